"""The files of a source folder, in a fixed order, and the entries of it that cannot be read. A source is only read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path

from components.errors import BadInput
from components.files import Unreached, UnreachedKind, walk_folder
from components.ingestion.quarantine import SHOWN_SUFFIXES, Rejection
from components.ingestion.volume import Notice, QuarantineEntry

_ANNEX = "annex/objects/"
"""Part of the target of every link that git-annex (DataLad) creates."""
_POINTER_BYTES = 64
_EXCLUDE = "or exclude it with layout.ignored of the card"
NOT_FETCHED = Rejection(
    "inaccessible", "content that was not fetched (git-annex or Git LFS)", f"datalad get, git annex get or git lfs pull; {_EXCLUDE}"
)
LOCKED_FILE = Rejection("inaccessible", "a file that may not be read", f"correct its permissions, {_EXCLUDE}")
_REJECTIONS: dict[UnreachedKind, tuple[str, Rejection]] = {
    "dangling link": (
        "link",
        Rejection("inaccessible", "a link to nothing", f"fetch or mount what it leads to, {_EXCLUDE}"),
    ),
    "link loop": ("looping link", Rejection("inaccessible", "a link to a folder above it", f"remove it, {_EXCLUDE}")),
    "locked folder": (
        "folder",
        Rejection("inaccessible", "a folder that may not be read", f"correct its permissions (read and execute), {_EXCLUDE}"),
    ),
    "locked file": ("locked file", LOCKED_FILE),
    "special file": (
        "special file",
        Rejection("inaccessible", "a pipe, socket or device", f"remove it, {_EXCLUDE}"),
    ),
}
"""Kind of an entry -> (noun, rejection)."""


class SourceListing:
    """Files of a source folder in a fixed order, so that an entry can refer to a file by its number: its name may be the patient's.

    Links are followed, linked folders included. ``find -L . -type f | LC_ALL=C sort | sed -n 12p`` in the folder prints the twelfth
    file.
    """

    def __init__(self, source: Path) -> None:
        """List a folder.

        Raises:
            OSError: the disk or the file server fails, or the folder itself may not be read.
        """
        walk = walk_folder(source)
        self._source = source
        self._numbers = {path: number for number, path in enumerate(sorted(walk.files, key=self._sort_key), start=1)}
        self._unreached = sorted(walk.unreached, key=lambda entry: self._sort_key(entry.path))
        self.linked_folders = walk.linked_folders

    def _sort_key(self, path: Path) -> bytes:
        return os.fsencode(path.relative_to(self._source))

    def __iter__(self) -> Iterator[Path]:
        return iter(self._numbers)

    def quarantine_entry(self, paths: Iterable[Path], rejection: Rejection) -> QuarantineEntry:
        """Return an entry about one file, or about files that would have formed one volume."""
        return QuarantineEntry(self._describe(set(paths)), kind=rejection.kind, reason=rejection.reason, remedy=rejection.remedy)

    def notice(self, paths: Iterable[Path], text: str) -> Notice:
        """Return a notice about ingested files."""
        distinct = set(paths)
        first = min(distinct, key=self._numbers.__getitem__)
        return Notice(text, len(distinct), self._describe({first}))

    def _describe(self, paths: set[Path]) -> str:
        """Return the number of the first file, how many follow, and its suffix if that can be no name."""
        first, more = min(paths, key=self._numbers.__getitem__), len(paths) - 1
        return f"file {self._numbers[first]}{f' and {more} more' if more else ''} of {len(self._numbers)}{_shown_suffix(first)}"

    def unreached_entries(self, is_excluded: Callable[[Path], bool]) -> tuple[list[QuarantineEntry], int]:
        """Return an entry for each link, folder or special file that cannot be read, and how many the card excludes.

        An entry is numbered among those of its noun, in the order of their names.
        """
        by_noun: dict[str, list[Unreached]] = {}
        for entry in self._unreached:
            by_noun.setdefault(_REJECTIONS[entry.kind][0], []).append(entry)
        entries, excluded = [], 0
        for noun, members in by_noun.items():
            for number, member in enumerate(members, start=1):
                if is_excluded(member.path):
                    excluded += 1
                    continue
                rejection = NOT_FETCHED if _is_annex_link(member) else _REJECTIONS[member.kind][1]
                which = f"{noun} {number} of {len(members)}{_shown_suffix(member.path)}"
                entries.append(QuarantineEntry(which, rejection.reason, rejection.remedy, rejection.kind))
        return entries, excluded


def _shown_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    return f", *{suffix}" if suffix in SHOWN_SUFFIXES else ""


def _is_annex_link(entry: Unreached) -> bool:
    return entry.kind == "dangling link" and _ANNEX in str(entry.path.readlink())


def is_pointer(head: bytes) -> bool:
    """Return whether a file is a pointer of git-annex (unlocked files) or Git LFS to content that was not fetched."""
    return head.startswith((b"/annex/objects/", b"version https://git-lfs.github.com/spec/"))


def reject_pointer(path: Path) -> Rejection | None:
    """Return why a file is rejected that is a pointer (see :func:`is_pointer`); None for any other."""
    with path.open("rb") as stream:
        return NOT_FETCHED if is_pointer(stream.read(_POINTER_BYTES)) else None


def refuse_own_folders(source: Path, own: Iterable[Path], allowed: Path | None = None, links: Iterable[Path] = ()) -> None:
    """Refuse a source that is, contains or lies in a folder that OmniMRI writes to: its files would be replaced and removed.

    Folders are compared after resolving links, and by inode, which also finds a folder that is mounted twice.

    Args:
        own: folders that OmniMRI writes to.
        allowed: a folder in one of these whose content may be a source (the sample datasets).
        links: linked folders in the source, to which the same applies.

    Raises:
        BadInput: the source is such a folder, or links to one.
    """
    if allowed is not None and _contains(allowed, source):
        return
    for folder, place in product(own, (source, *links)):
        if _contains(folder, place) or _contains(place, folder):
            what = "source" if place is source else "target of a link in the source"
            raise BadInput(
                f"the {what} and OmniMRI's own folder {folder} contain each other: a source is only read, never written to",
                where=str(source),
                remedy="name the folder that the dataset was downloaded to; keep it apart from OMNIMRI_DATA and OMNIMRI_HOME",
            )


def _contains(outer: Path, inner: Path) -> bool:
    """Return whether a folder is another one or contains it."""
    place, outer = inner.resolve(), outer.resolve()
    identity = _identity(outer)
    return any(path == outer or (identity is not None and _identity(path) == identity) for path in (place, *place.parents))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
