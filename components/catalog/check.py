"""Holding a card against its folder: how many files each glob finds, and which files none does."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from components.catalog.cards import DatasetCard, Fault, card_paths, matches, parse_card
from components.errors import BadInput


@dataclass(frozen=True)
class GlobCount:
    """Files that one glob of a layout finds.

    Attributes:
        field: where the glob stands in the layout.
        pattern: the glob.
        files: how many files of the folder it matches.
    """

    field: str
    pattern: str
    files: int


@dataclass(frozen=True)
class Checked:
    """What was found out about cards, and about the folder of one.

    Attributes:
        cards: cards looked at.
        faults: everything that is wrong with them.
        globs: what each glob finds in the folder; empty without a folder.
        unmatched: files that no glob finds (None without a folder, or where the layout has no globs).
        patients: how many different patients the layout's expression names among the matched files (None: no expression).
    """

    cards: int
    faults: tuple[Fault, ...]
    globs: tuple[GlobCount, ...] = ()
    unmatched: int | None = None
    patients: int | None = None


def check(name: str | None = None, folder: Path | None = None) -> Checked:
    """Check one card (by id, or by the path of its file), or all of them; with a folder, its layout too.

    Raises:
        BadInput: no such card or folder.
    """
    paths = [_path_of(name)] if name else list(card_paths().values())
    parsed = {path: parse_card(path) for path in paths}
    faults = [fault for result in parsed.values() if isinstance(result, list) for fault in result]
    if not name:
        cards = {path: result for path, result in parsed.items() if isinstance(result, DatasetCard)}
        faults += [fault for path, card in cards.items() for fault in _loose_overlaps(path, card, list(cards.values()))]
    if folder is None:
        return Checked(len(paths), tuple(faults))
    if not folder.is_dir():
        raise BadInput("no such folder", where=str(folder), remedy="name the folder that holds the dataset's files")
    card = parsed[paths[0]]
    if not isinstance(card, DatasetCard):
        return Checked(len(paths), tuple(faults))
    return _against(paths[0], card, folder)


def _path_of(name: str) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not Path(name).is_file():
            raise BadInput("no such file", where=name, remedy="give the path of a card, or its id")
        return Path(name)
    paths = card_paths()
    if name not in paths:
        raise BadInput("no such dataset card", where=name, remedy="omnimri catalog list names those there are")
    return paths[name]


def _loose_overlaps(path: Path, card: DatasetCard, cards: list[DatasetCard]) -> list[Fault]:
    """Overlaps with a card that is not there, or that names this one in turn (the patients would be taken off twice)."""
    known = {other.id: other for other in cards}
    faults = []
    for other in card.overlaps:
        if other not in known:
            faults.append(Fault(str(path), f"overlaps.{other}", "no such card", "name a card that is there"))
        elif card.id in known[other].overlaps:
            faults.append(Fault(str(path), f"overlaps.{other}", "that card names this one too", "keep it on one of the two"))
    return faults


def _part(glob: GlobCount) -> str:
    return glob.field.partition(".")[0]


def _against(path: Path, card: DatasetCard, folder: Path) -> Checked:
    """A layout against a folder. A part of it (images, labels, ...) is at fault if none of its globs finds a file: a download may
    lack one sequence, and what is ignored need not be there.
    """
    files = [one.relative_to(folder).as_posix() for one in sorted(folder.rglob("*")) if one.is_file() and one.name[0] != "."]
    globs = tuple(
        GlobCount(field, pattern, sum(matches(file, [pattern]) for file in files)) for field, pattern in card.layout.globs()
    )
    found_by: Counter[str] = Counter()
    for one in globs:
        found_by[_part(one)] += one.files
    faults = [
        Fault(
            str(path),
            f"layout.{one.field}",
            f"{one.pattern!r} finds nothing among {len(files)} files",
            "mend the glob (it is relative to the folder; * goes across folders), or name the folder above or below",
        )
        for one in globs
        if not found_by[_part(one)] and one.field != "ignored"
    ]
    patterns = [pattern for _, pattern in card.layout.globs()]
    found = [file for file in files if matches(file, patterns)]
    patients = None
    if card.layout.patient is not None:
        named = [re.search(card.layout.patient, file) for file in (found or files)]
        patients = len({match[1] for match in named if match})
        if not patients and files:
            remedy = "mend the expression: it is searched for in the path relative to the folder"
            faults.append(Fault(str(path), "layout.patient", "names no patient in any path", remedy))
    return Checked(1, tuple(faults), globs, len(files) - len(found) if globs else None, patients)
