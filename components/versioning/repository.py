"""One folder under DVC: add, push, compare. Commands are DVC's own, from Python."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from components.errors import BadInput, JobFailed

if TYPE_CHECKING:
    from dvc.repo import Repo

REMOTE = "local"
REMOTE_FOLDER = Path(".omnimri") / "dvc-remote"
"""The default remote, a folder beside the runs' state; relative to the repository."""


@dataclass(frozen=True)
class DataVersion:
    """A pinned version of the data.

    Attributes:
        digest: md5 that DVC gives the folder, without its ``.dir``: the name of this version everywhere downstream.
        files, bytes: what it holds.
        changed: it differs from the version that was pinned before.
    """

    digest: str
    files: int
    bytes: int
    changed: bool


class DataRepository:
    """The DVC repository at ``root`` that holds the folder ``data``."""

    def __init__(self, root: Path, data: Path) -> None:
        self.root, self.data = root.resolve(), data.resolve()
        self.pin = self.root / f"{self.data.name}.dvc"

    def snapshot(self) -> DataVersion:
        """Pin the folder as it is now and push it to the default remote. The pin is not rewritten where nothing changed.

        Raises:
            BadInput: there is no data.
            JobFailed: DVC refuses.
        """
        if not self.data.is_dir() or not any(self.data.iterdir()):
            raise BadInput("no data to version", where=str(self.data), remedy="run omnimri ingest first")
        before = self._pinned()
        with self._opened() as repo:
            if before is None or repo.status([str(self.pin)]):
                repo.add([str(self.data)])
            if repo.config["core"].get("remote"):
                repo.push([str(self.pin)])
        after = self._pinned()
        assert after is not None
        return DataVersion(after["md5"].removesuffix(".dir"), after["nfiles"], after["size"], before != after)

    def digest(self) -> str:
        """The pinned version.

        Raises:
            BadInput: nothing is pinned.
        """
        pinned = self._pinned()
        if pinned is None:
            raise BadInput("no pinned data version", where=str(self.pin), remedy="run omnimri ingest first")
        return str(pinned["md5"]).removesuffix(".dir")

    def clean(self) -> bool:
        """The folder is what is pinned."""
        with self._opened() as repo:
            return not repo.status([str(self.pin)])

    def _pinned(self) -> dict[str, Any] | None:
        if not self.pin.exists():
            return None
        return dict(yaml.safe_load(self.pin.read_text())["outs"][0])

    @contextmanager
    def _opened(self) -> Iterator[Repo]:
        """The repository, initialised where there is none, without analytics; library errors become ours."""
        os.environ.setdefault("DVC_NO_ANALYTICS", "1")
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        logging.getLogger("dvc").setLevel(logging.WARNING)  # its hints are for people who type DVC's commands
        within_git = (self.root / ".git").exists()
        try:
            if not (self.root / ".dvc").is_dir():
                self._initialise(within_git)
            repo = Repo(str(self.root))
            try:
                yield repo
            finally:
                repo.close()
        except DvcException as error:
            raise JobFailed(f"DVC: {error}", where=str(self.root), remedy="see `dvc doctor` in this folder") from error

    def _initialise(self, within_git: bool) -> None:
        from dvc.repo import Repo

        repo = Repo.init(str(self.root), no_scm=not within_git)
        try:
            with repo.config.edit() as config:
                config["core"].update({"remote": REMOTE, "analytics": False, "autostage": False})
                config["remote"][REMOTE] = {"url": str(self.root / REMOTE_FOLDER)}
        finally:
            repo.close()
