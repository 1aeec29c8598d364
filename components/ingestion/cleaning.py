"""De-identify planned files, in worker processes if it takes long, and resume after an interruption.

New files are staged beside the last version (:mod:`components.ingestion.staging`). Each is noted in a journal, so that an
interrupted ingestion resumes where it stopped, and ends with the same bytes as an undisturbed one. The commit removes the journal.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from components.errors import MachineFault
from components.ingestion.formats.base import PlannedFile, WriteContext
from components.ingestion.manifest import JOURNAL, Manifest, files_of
from components.ingestion.quarantine import Rejection, rejection_of
from components.ingestion.series_planner import Mapper
from components.ingestion.staging import Staging
from components.ingestion.volume import SourceFile
from components.machine_faults import raise_machine_fault
from components.provenance import digest, file_md5


@dataclass(frozen=True)
class CleanedFile:
    """Result of de-identifying one planned file.

    Attributes:
        file: the file under ``data/``; None if it was rejected.
        source_md5: MD5 of its source, or a digest over those of several sources.
        content: MD5 of an image's content, independent of its header; "" for other files.
        rejection: reason why there is no file.
        staged: the file is not part of the last version.
        read_back: result of :meth:`~components.ingestion.formats.base.Output.check`, if the file was written by this run.
        notes: what the user should know about its voxels, if the file was written by this run.
    """

    file: SourceFile | None
    source_md5: str
    content: str = ""
    rejection: Rejection | None = None
    staged: bool = False
    read_back: Any = None
    notes: tuple[str, ...] = ()


def silence_libraries() -> None:
    """Keep libraries from quoting header values in warnings and logs: a value may be a patient's name."""
    from pydicom import config

    config.settings.reading_validation_mode = config.IGNORE
    config.settings.writing_validation_mode = config.IGNORE
    warnings.filterwarnings("ignore", module=r"(pydicom|highdicom|nibabel|dicomanonymizer|openjpeg|libjpeg)\b")
    for name in ("pydicom", "highdicom", "nibabel", "nibabel.global"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def read_previous(root: Path, recipe: str) -> dict[str, CleanedFile]:
    """Return target -> file of earlier ingestions, finished or interrupted, that used the same recipe."""
    previous: dict[str, CleanedFile] = {}
    manifest = Manifest.read(root)
    if manifest is not None and manifest.recipe == recipe:
        for series in manifest.series:
            for file in files_of(series):
                previous[file.path] = CleanedFile(file, manifest.sources[file.path], manifest.contents.get(file.path, ""))
    if (root / JOURNAL).exists():
        for line in (root / JOURNAL).read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the line that was being written at the interruption
            if entry.pop("recipe") == recipe:
                file = SourceFile(**entry.pop("file"))
                previous[file.path] = CleanedFile(file, **entry, staged=True)
    return previous


def clean_files(
    files: Sequence[PlannedFile],
    previous: Mapping[str, CleanedFile],
    staging: Staging,
    context: WriteContext,
    recipe: str,
    mapper: Mapper,
) -> dict[str, CleanedFile]:
    """Stage the files whose source is new or changed; return the results by target, earlier ones where nothing changed.

    Raises:
        MachineFault: a source cannot be read, or a file not be written, for a reason that is not in the source.
    """
    results: dict[str, CleanedFile] = {}
    changed: list[PlannedFile] = []
    for file in files:
        earlier = previous.get(file.target)
        if earlier is not None and _is_current(earlier, file, staging):
            results[file.target] = earlier
        else:
            changed.append(file)
    clean = partial(clean_file, staging=staging, context=context)
    with (staging.root / JOURNAL).open("a") as journal:
        for planned, result in zip(changed, mapper(clean, changed, "de-identifying"), strict=True):
            results[planned.target] = result
            if result.file is not None:
                entry = {"recipe": recipe, "file": asdict(result.file), "source_md5": result.source_md5, "content": result.content}
                journal.write(json.dumps(entry) + "\n")
                journal.flush()
    return results


def _is_current(earlier: CleanedFile, planned: PlannedFile, staging: Staging) -> bool:
    """Return whether a file of an earlier ingestion exists in its size, and its source did not change."""
    path = staging.path(planned.target) if earlier.staged else staging.root.parent / planned.target
    if earlier.file is None or not path.is_file() or path.stat().st_size != earlier.file.size:
        return False
    return earlier.source_md5 == source_md5(planned)


def source_md5(file: PlannedFile) -> str:
    """Return the MD5 of the source, or a digest over those of several. The MD5 of a file that does not exist is "": the source of
    a sidecar that only the card declares.
    """
    sums = [_cached_md5(path, path.stat().st_mtime_ns) if path.is_file() else "" for path in file.sources]
    return sums[0] if len(sums) == 1 else digest(sums)[:32]


@lru_cache(maxsize=4096)
def _cached_md5(path: Path, modified_ns: int) -> str:  # a table or an enhanced file is the source of many outputs
    return file_md5(path)


def _source_state(file: PlannedFile) -> list[tuple[int, int, int] | None]:
    """Return inode, size and modification time of each source; None for one that does not exist."""
    states = [path.stat() if path.is_file() else None for path in file.sources]
    return [state and (state.st_ino, state.st_size, state.st_mtime_ns) for state in states]


def clean_file(file: PlannedFile, staging: Staging, context: WriteContext) -> CleanedFile:
    """Stage one de-identified file. Messages of libraries are not passed on: they may quote the header.

    Raises:
        MachineFault: see :func:`clean_files`.
    """
    md5 = ""
    try:
        before = _source_state(file)
        md5 = source_md5(file)
        try:
            output = file.prepare(context)
        finally:
            if _source_state(file) != before:
                raise MachineFault(
                    "a source file changed or vanished while it was read",
                    where=file.target,
                    remedy="run the command again when no other program writes to the source",
                )
        written, read_back = staging.write(file.target, output)
    except Exception as error:
        raise_machine_fault(error, file.target)
        return CleanedFile(None, md5, rejection=rejection_of(error))
    return CleanedFile(written, md5, output.content, staged=True, read_back=read_back, notes=output.notes)
