"""Write a data version into a separate folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import BadInput
from components.files import atomic_file
from components.progress import track
from components.provenance import file_md5
from components.versioning.dvc_store import fetch_objects, object_path

if TYPE_CHECKING:
    from dvc.repo import Repo


def export_files(repo: Repo, files: Mapping[str, str], folder: Path) -> int:
    """Write files of a version into a folder; resume an interrupted export.

    Args:
        files: path relative to ``folder`` -> md5.

    Returns:
        Number of written files, without those that were complete already.

    Raises:
        BadInput: the folder contains other files.
        JobFailed: neither cache nor remote has an object.
    """
    existing = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} if folder.exists() else set()
    foreign = sorted(path for path in existing - files.keys() if not path.endswith(".tmp"))
    if foreign:
        raise BadInput(
            f"{len(foreign)} files do not belong to this version", where=str(folder / foreign[0]), remedy="give an empty folder"
        )
    outdated = {path: md5 for path, md5 in files.items() if path not in existing or file_md5(folder / path) != md5}
    fetch_objects(repo, set(outdated.values()))
    for path, md5 in track(outdated.items(), "writing files", total=len(outdated)):
        with atomic_file(folder / path) as temporary:
            temporary.write_bytes(object_path(repo, md5).read_bytes())
    for leftover in folder.rglob(".*.tmp"):
        leftover.unlink()
    return len(outdated)
