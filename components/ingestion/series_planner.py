"""Planning: assign the files of a source folder to series, patients and target names.

A series under ``data/`` is one volume: a source file that contains several (an enhanced DICOM file, a 4-D file with channels that
the card names, raw data) is split by its format.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from components.catalog import DatasetCard
from components.ingestion.dataset_checks import check_dataset
from components.ingestion.deidentification.pseudonyms import Pseudonyms
from components.ingestion.file_names import belongs_to_layout
from components.ingestion.formats.base import FileHeader
from components.ingestion.formats.other_formats import reject_other_format
from components.ingestion.formats.sniff import detect_format
from components.ingestion.quarantine import Rejection, rejection_of
from components.ingestion.source_folder import Plan, SourceFolder
from components.ingestion.source_listing import LOCKED_FILE, SourceListing, reject_pointer
from components.machine_faults import NO_ACCESS, raise_machine_fault
from components.registries import FORMATS

Mapper = Callable[[Callable[[Any], Any], Sequence[Any], str], Iterator[Any]]
"""Applies a function to items, perhaps in several processes, under a description; results in order."""
_NO_IMAGE = Rejection(
    "no image", "no image of a known format by its content, and nothing that belongs to one", "convert it, if it is one"
)


def inspect_file(path: Path) -> FileHeader:
    """Return the format of a file and what its format needs for planning.

    Messages of libraries are not passed on: they may quote the header.

    Raises:
        MachineFault: the file cannot be read for a reason that is not in the file.
    """
    name: str | None = None
    try:
        name = detect_format(path)
        if name is not None:
            return FORMATS[name].inspect(path)
        return FileHeader(path, None, reject_pointer(path))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ACCESS:
            return FileHeader(path, name, LOCKED_FILE)
        raise_machine_fault(error)
        return FileHeader(path, name, rejection_of(error))


def map_in_process(function: Callable[[Any], Any], items: Sequence[Any], _: str) -> Iterator[Any]:
    """Apply a function to items in this process (a :data:`Mapper`)."""
    return map(function, items)


def make_plan(card: DatasetCard, source: Path, pseudonyms: Pseudonyms, mapper: Mapper = map_in_process) -> Plan:
    """Plan the series of a source folder, format by format."""
    plan = Plan(SourceListing(source))
    paths = _select_files(card, source, plan)
    by_format: dict[str | None, list[FileHeader]] = defaultdict(list)
    for header in mapper(inspect_file, paths, "inspecting files"):
        if header.format in (None, "dicom") or card.layout.selects(header.path.relative_to(source).as_posix()):
            by_format[header.format].append(header)
        else:
            plan.ignored += 1
    others = by_format.pop(None, [])
    folder = SourceFolder(card, source, pseudonyms, [header.path for header in others])
    for name, image_format in FORMATS.items():
        readable = []
        for header in by_format.get(name, []):
            if header.rejection is None:
                readable.append(header)
            else:
                plan.reject([header.path], header.rejection)
                folder.used |= set(image_format.companions(header.path))
                folder.sidecars.find(header.path)
        image_format.plan(readable, folder, plan)
    plan.attach_label_maps(folder)
    check_dataset(folder, plan)
    used = folder.used | folder.sidecars.used
    for header in others:
        if header.path in used:
            continue
        if header.rejection is None and belongs_to_layout(folder.relative(header.path)):
            plan.layout_files += 1
        else:
            plan.reject([header.path], header.rejection or reject_other_format(header.path) or _NO_IMAGE)
    return plan


def _select_files(card: DatasetCard, source: Path, plan: Plan) -> list[Path]:
    """Return the files that the card does not exclude; count the others, and hidden ones, as ignored. Reject what is no file."""

    def is_excluded(path: Path) -> bool:
        relative = path.relative_to(source)
        names = relative.as_posix(), f"{relative.as_posix()}/"  # a glob such as "derivatives/*" excludes the folder, too
        return any(name.startswith(".") for name in relative.parts) or any(card.layout.excludes(name) for name in names)

    entries, plan.ignored = plan.listing.unreached_entries(is_excluded)
    plan.quarantined += entries
    paths = [path for path in plan.listing if not is_excluded(path)]
    plan.ignored += sum(1 for _ in plan.listing) - len(paths)
    return paths
