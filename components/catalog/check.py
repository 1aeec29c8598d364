"""Check cards, and the layout of a card against a dataset folder: files that each glob matches, and files that none matches."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from components.catalog.card_files import CardFault, card_paths, parse_card
from components.catalog.cards import DatasetCard
from components.catalog.layout import IMAGE_SUFFIXES, matches_any
from components.errors import BadInput
from components.ingestion.file_names import not_magnitude_by_name


@dataclass(frozen=True)
class GlobCount:
    """Number of files that one glob of a layout matches.

    Attributes:
        field: field of the layout that contains the glob.
        pattern: the glob.
        files: number of matching files in the folder.
    """

    field: str
    pattern: str
    files: int


@dataclass(frozen=True)
class CheckResult:
    """Result of checking cards and, for one card, its dataset folder.

    Attributes:
        cards: number of checked cards.
        faults: all faults of these cards.
        globs: number of files per glob; empty without a folder.
        unmatched: number of files that no glob matches (None without a folder, or if the layout has no globs).
        patients: number of distinct patients that the patient expression finds in the matched files (None: no expression).
        notes: what ingestion will do with files that the layout does not explain; no faults.
    """

    cards: int
    faults: tuple[CardFault, ...]
    globs: tuple[GlobCount, ...] = ()
    unmatched: int | None = None
    patients: int | None = None
    notes: tuple[str, ...] = ()


def check_cards(name: str | None = None, folder: Path | None = None) -> CheckResult:
    """Check one card or all cards; with a folder, also check the layout of the card against it.

    Args:
        name: id of a card, or path of its file; None = all cards.

    Raises:
        BadInput: the card or the folder does not exist.
    """
    paths = [_find_card(name)] if name else list(card_paths().values())
    parsed = {path: parse_card(path) for path in paths}
    faults = [fault for result in parsed.values() if isinstance(result, list) for fault in result]
    if not name:
        cards = {path: result for path, result in parsed.items() if isinstance(result, DatasetCard)}
        faults += [fault for path, card in cards.items() for fault in _check_overlaps(path, card, list(cards.values()))]
    if folder is None:
        return CheckResult(len(paths), tuple(faults))
    if not folder.is_dir():
        raise BadInput("no such folder", where=str(folder), remedy="give the folder that contains the dataset files")
    card = parsed[paths[0]]
    if not isinstance(card, DatasetCard):
        return CheckResult(len(paths), tuple(faults))
    return _check_layout(paths[0], card, folder)


def _find_card(name: str) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not Path(name).is_file():
            raise BadInput("no such file", where=name, remedy="give the path of a card, or its id")
        return Path(name)
    paths = card_paths()
    if name not in paths:
        raise BadInput("no such dataset card", where=name, remedy="omnimri catalog list shows the available cards")
    return paths[name]


def _check_overlaps(path: Path, card: DatasetCard, cards: list[DatasetCard]) -> list[CardFault]:
    """Find overlaps with a missing card, or declared by both cards, which would subtract the patients twice."""
    cards_by_id = {other.id: other for other in cards}
    faults = []
    for other in card.overlaps:
        if other not in cards_by_id:
            faults.append(CardFault(str(path), f"overlaps.{other}", "no such card", "give the id of an existing card"))
        elif card.id in cards_by_id[other].overlaps:
            faults.append(
                CardFault(str(path), f"overlaps.{other}", "both cards declare this overlap", "remove it from one of the two")
            )
    return faults


def _layout_section(glob: GlobCount) -> str:
    return glob.field.partition(".")[0]


def _check_layout(path: Path, card: DatasetCard, folder: Path) -> CheckResult:
    """Check a layout against a folder.

    A section (images, labels, ...) is faulty if none of its globs matches a file: a download may lack one sequence, and ignored
    files need not exist.
    """
    files = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file() and file.name[0] != "."]
    globs = tuple(
        GlobCount(field, pattern, sum(matches_any(file, [pattern]) for file in files)) for field, pattern in card.layout.globs()
    )
    files_by_section: Counter[str] = Counter()
    for glob in globs:
        files_by_section[_layout_section(glob)] += glob.files
    faults = [
        CardFault(
            str(path),
            f"layout.{glob.field}",
            f"{glob.pattern!r} matches none of {len(files)} files",
            "fix the glob (relative to the folder; * also matches /), or give the parent folder or a subfolder",
        )
        for glob in globs
        if not files_by_section[_layout_section(glob)] and glob.field != "ignored"
    ]
    patterns = [pattern for _, pattern in card.layout.globs()]
    matched = [file for file in files if matches_any(file, patterns)]
    patients = None
    if card.layout.patient is not None:
        matches = [re.search(card.layout.patient, file) for file in (matched or files)]
        patients = len({match[1] for match in matches if match})
        if not patients and files:
            remedy = "fix the expression: it is searched in the path relative to the folder"
            faults.append(CardFault(str(path), "layout.patient", "matches no path", remedy))
    unmatched = len(files) - len(matched) if globs else None
    return CheckResult(1, tuple(faults), globs, unmatched, patients, tuple(_find_notes(card, files)))


def _find_notes(card: DatasetCard, files: list[str]) -> Iterator[str]:
    """Yield what ingestion will do with files of no patient, and with masks and maps that the layout does not declare."""
    images = [file for file in files if file.lower().endswith(IMAGE_SUFFIXES) and not card.layout.excludes(file)]
    if card.layout.patient is None:
        if len(images) > 1:
            yield f"no layout.patient: {len(images)} image files count as one patient, in one split"
    else:
        others = sum(re.search(card.layout.patient, file) is None for file in images)
        if others:
            yield f"layout.patient does not match the path of {others} of {len(images)} image files: they count as one patient"
    declared = [*card.layout.images, *card.layout.labels, *card.layout.tissue_maps.values()]
    left_out = Counter(filter(None, (not_magnitude_by_name(file) for file in images if not matches_any(file, declared))))
    for reason, count in sorted(left_out.items()):
        yield f"{count} image files are {reason} by their names, which no glob declares: they are not ingested as images"
