"""The pin of the data: ``data.dvc``, which names the current version in git."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components.files import atomic_file
from components.versioning.dvc_store import LIST_SUFFIX


@dataclass(frozen=True)
class Pin:
    """Content of the pin.

    Attributes:
        digest: the pinned version.
        files, bytes: number and total size of its files.
    """

    digest: str
    files: int
    bytes: int

    @classmethod
    def parse(cls, text: str) -> Pin:
        """Parse the content of a ``.dvc`` file."""
        output: dict[str, Any] = yaml.safe_load(text)["outs"][0]
        return cls(str(output["md5"]).removesuffix(LIST_SUFFIX), output.get("nfiles", 0), output.get("size", 0))

    @classmethod
    def read(cls, path: Path) -> Pin | None:
        """Read a ``.dvc`` file; return None if it does not exist."""
        return cls.parse(path.read_text()) if path.exists() else None

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


@contextmanager
def restored_on_error(path: Path) -> Iterator[None]:
    """Give a pin its content back if the context fails. The copy is written before, so that restoring it needs no space."""
    copy = path.with_name(f".{path.name}.last")
    if path.exists():
        shutil.copy2(path, copy)
    try:
        yield
    except BaseException:
        if copy.exists():
            copy.replace(path)
        else:
            path.unlink(missing_ok=True)
        raise
    finally:
        copy.unlink(missing_ok=True)


def digest_at_revision(path: Path, revision: str) -> str | None:
    """Return the digest that a pin has at a git revision; None without a git repository, revision or pin."""
    if revision.startswith("-") or not (path.parent / ".git").exists():
        return None
    command = ["git", "show", f"{revision}:./{path.name}"]
    result = subprocess.run(command, cwd=path.parent, capture_output=True, text=True)
    return Pin.parse(result.stdout).digest if result.returncode == 0 else None
