"""The pin of the data: ``data.dvc``, which names the current version in git."""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from components.errors import BadInput, JobFailed
from components.files import atomic_file
from components.provenance import git_environment
from components.versioning.dvc_store import LIST_SUFFIX

_PINNED = re.compile(rf"^[+-].*\bmd5: ([0-9a-f]{{32}}){re.escape(LIST_SUFFIX)}$", re.MULTILINE)
"""A line of a patch that names a version."""


@dataclass(frozen=True)
class Pin:
    """Content of the pin.

    Attributes:
        digest: the pinned version.
        files, bytes: number and total size of its files.
        folder: path of the folder, as the file states it.
    """

    digest: str
    files: int
    bytes: int
    folder: str = ""

    @classmethod
    def parse(cls, text: str) -> Pin:
        """Parse the content of a ``.dvc`` file.

        Raises:
            ValueError: it does not pin a folder.
        """
        try:
            content = yaml.safe_load(text)
            [output] = content["outs"]
            digest = re.fullmatch(rf"([0-9a-f]{{32}}){re.escape(LIST_SUFFIX)}", str(output["md5"]))
            folder = PurePosixPath(content.get("wdir", "."), str(output["path"])).as_posix()
            numbers = int(output.get("nfiles", 0)), int(output.get("size", 0))
        except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
            digest = None
        if digest is None:
            raise ValueError("no pin of a folder")
        return cls(digest[1], *numbers, folder)

    @classmethod
    def read(cls, path: Path) -> Pin | None:
        """Read a ``.dvc`` file; return None if it does not exist.

        Raises:
            BadInput: it has conflict markers, is empty, or pins something else, such as another folder.
        """
        if not path.exists():
            return None
        text = path.read_text(errors="replace") if path.is_file() else "no file"
        try:
            pin = cls.parse(text)
            if pin.folder == path.stem:
                return pin
            fault = f"pins another folder ({pin.folder})"
        except ValueError:
            fault = "is empty" if not text.strip() else "does not pin a version of a folder"
            if "<<<<<<<" in text:
                fault = "has conflict markers of git"
        remedy = f"git checkout -- {path.name} (after a merge: git checkout --ours {path.name}) restores a version"
        raise BadInput(fault, where=str(path), remedy=f"{remedy}; or delete it: omnimri data push pins {path.stem}/ as it is")

    def write(self, path: Path) -> None:
        """Write the ``.dvc`` file of a folder in the form that DVC writes."""
        output = {
            "md5": f"{self.digest}{LIST_SUFFIX}",
            "size": self.bytes,
            "nfiles": self.files,
            "hash": "md5",
            "path": path.stem,
        }
        with atomic_file(path) as temporary:
            temporary.write_text(yaml.safe_dump({"outs": [output]}, sort_keys=False))


def digest_at_revision(path: Path, revision: str) -> str | None:
    """Return the digest that a pin has at a git revision; None without a git repository, revision or pin."""
    if revision.startswith("-") or not (path.parent / ".git").exists():
        return None
    command = ["git", "show", f"{revision}:./{path.name}"]
    try:
        result = subprocess.run(command, cwd=path.parent, env=git_environment(), capture_output=True, text=True)
    except FileNotFoundError:
        remedy = "install git, or name the data version by its digest"
        raise BadInput("git is not installed, and only it knows revisions", where=revision, remedy=remedy) from None
    with suppress(ValueError):  # at that revision the file was damaged
        return Pin.parse(result.stdout).digest if result.returncode == 0 else None
    return None


def digests_in_history(path: Path) -> set[str]:
    """Return the digests that a pin has had at any revision of the git repository; empty without one.

    Raises:
        JobFailed: git is missing or cannot read the repository.
    """
    if not (path.parent / ".git").exists():
        return set()
    command = ["git", "log", "--all", "--format=", "--patch", "--diff-merges=separate", "--", path.name]
    try:
        result = subprocess.run(command, cwd=path.parent, env=git_environment(), capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        remedy = "install git and make the repository readable, then run it again"
        raise JobFailed(f"git does not list earlier versions ({type(error).__name__})", where=path.name, remedy=remedy) from None
    return set(_PINNED.findall(result.stdout))
