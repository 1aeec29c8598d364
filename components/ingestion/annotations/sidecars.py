"""BIDS sidecars: files beside an image, or in a folder above, that describe it (BIDS inheritance principle).

They are JSON files and, for diffusion, tables of b-values.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from components.errors import BadInput
from components.ingestion.annotations.encodings import decode_text
from components.ingestion.formats.dicom.image_content import content_of, content_of_unit

MAX_SECONDS = {"EchoTime": 1.0, "RepetitionTime": 30.0, "InversionTime": 30.0}
"""Field of a sidecar -> longest time of an MRI sequence, with a wide margin; a larger number is in milliseconds."""
JSON, B_VALUES = ".json", ".bval"
"""Endings of sidecars."""
_MIN_MILLISECONDS = 0.1
"""A shorter time is in seconds."""
IN_MILLISECONDS = "times in milliseconds, where BIDS has seconds: converted"
_NOT_UTF8 = "a sidecar that is not UTF-8: read as Latin-1"


class SidecarIndex:
    """Index of the JSON files and the tables of b-values of a source folder.

    Attributes:
        used: sidecars that belong to an image that was looked up.
    """

    def __init__(self, source: Path, files: Iterable[Path]) -> None:
        self._source = source
        self._by_folder: dict[tuple[Path, str], list[Path]] = defaultdict(list)
        self.used: set[Path] = set()
        for path in files:
            if (suffix := path.suffix.lower()) in (JSON, B_VALUES):
                self._by_folder[path.parent, suffix].append(path)

    def find(self, image: Path, suffix: str = JSON) -> tuple[Path, ...]:
        """Return the sidecars of an image, the most general first; the fields of a later one take precedence."""
        stem = image_stem(image)
        sidecars: list[Path] = []
        folder = image.parent
        while True:
            is_image_folder = folder == image.parent
            here = self._by_folder[folder, suffix]
            sidecars = [path for path in here if _applies_to(path.stem, stem, is_image_folder)] + sidecars
            if folder == self._source or self._source not in folder.parents:
                break
            folder = folder.parent
        self.used |= set(sidecars)
        return tuple(sidecars)

    def b_values(self, image: Path) -> Path | None:
        """Return the table of b-values of an image, the nearest one; None without any."""
        return next(reversed(self.find(image, B_VALUES)), None)

    def notes(self, image: Path) -> tuple[str, ...]:
        """Return how the sidecars of an image were interpreted; a damaged one has none (see :meth:`faults`)."""
        return tuple(dict.fromkeys(note for sidecar in readable(self.find(image)) for note in sidecar.notes))

    def content(self, image: Path) -> str:
        """Return what the sidecars say that the values are: magnitude, another component, or a map; "" where they do not say."""
        for sidecar in reversed(readable(self.find(image))):
            if found := component_of(sidecar.fields):
                return found
        return ""

    def faults(self, image: Path) -> dict[Path, BadInput]:
        """Return each sidecar of an image that cannot be read, with its fault."""
        return {path: fault for path in self.find(image) if (fault := _find_fault(path)) is not None}


def component_of(fields: Mapping[str, Any]) -> str:
    """Return what the fields of a sidecar say that the values are: magnitude, another component, or a map; "" for nothing."""
    image_type = fields.get("ImageType")
    terms = image_type.split("\\") if isinstance(image_type, str) else image_type if isinstance(image_type, list) else []
    return content_of(terms, fields.get("ComplexImageComponent")) or content_of_unit(fields.get("Units"))


def image_stem(image: Path) -> str:
    """Return the file name of an image without its suffixes."""
    return image.name.removesuffix(".gz").rpartition(".")[0] or image.name


def _applies_to(sidecar: str, image: str, is_image_folder: bool) -> bool:
    """Return whether a sidecar applies to an image: the same BIDS suffix, and no entity that the image lacks.

    Args:
        sidecar, image: file names without suffixes.
        is_image_folder: whether the sidecar is in the folder of the image; only there may the names be equal.
    """
    if sidecar == image:
        return is_image_folder
    *sidecar_entities, sidecar_suffix = sidecar.split("_")
    *image_entities, image_suffix = image.split("_")
    return bool(image_entities) and sidecar_suffix == image_suffix and set(sidecar_entities) <= set(image_entities)


def readable(paths: Iterable[Path]) -> list[Sidecar]:
    """Return the content of those sidecars that can be read."""
    return [read_sidecar(path) for path in paths if _find_fault(path) is None]


def _find_fault(path: Path) -> BadInput | None:
    """Return why a sidecar cannot be read; None if it can."""
    try:
        read_sidecar(path)
    except BadInput as fault:
        return fault
    return None


def merge_sidecars(paths: Iterable[Path]) -> dict[str, Any]:
    """Return the merged fields of sidecars, times in seconds; later files override earlier ones.

    Raises:
        BadInput: a file is not a JSON object.
    """
    return merge_fields(read_sidecar(path) for path in paths)


def merge_fields(sidecars: Iterable[Sidecar]) -> dict[str, Any]:
    """Return the merged fields of sidecars, times in seconds; later ones override earlier ones."""
    merged: dict[str, Any] = {}
    for fields in (sidecar.fields for sidecar in sidecars):
        merged.update({**fields, **dict.fromkeys(MAX_SECONDS.keys() & fields, None), **times_in_seconds(fields)})
    return merged


@dataclass(frozen=True)
class Sidecar:
    """Content of a sidecar.

    Attributes:
        fields: as stored.
        notes: how it was interpreted.
    """

    fields: dict[str, Any]
    notes: tuple[str, ...]


def read_sidecar(path: Path) -> Sidecar:
    """Read a sidecar.

    Raises:
        BadInput: not a JSON object.
    """
    return _read_cached(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4096)
def _read_cached(path: Path, modified_ns: int) -> Sidecar:  # a sidecar of an upper folder is inherited by many images
    text, is_unicode = decode_text(path.read_bytes())
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput("the sidecar is not valid JSON", where=path.name, remedy="fix or remove it") from None
    if not isinstance(fields, dict):
        raise BadInput("the sidecar is not a JSON object", where=path.name, remedy="fix or remove it")
    notes = [] if is_unicode else [_NOT_UTF8]
    if times_in_seconds(fields) != _times(fields):
        notes.append(IN_MILLISECONDS)
    return Sidecar(fields, tuple(notes))


def _times(fields: Mapping[str, Any]) -> dict[str, float]:
    """Return the times of a sidecar that are finite positive numbers, as stored."""
    return {
        name: float(fields[name])
        for name in MAX_SECONDS
        if isinstance(fields.get(name), int | float) and not isinstance(fields[name], bool) and 0 < fields[name] < math.inf
    }


def times_in_seconds(fields: Mapping[str, Any]) -> dict[str, float]:
    """Return echo, repetition and inversion time in seconds; a time that is too long for one is in milliseconds.

    BIDS has seconds, some converters write milliseconds. If one time can only be milliseconds, so are the others of this sidecar,
    unless that would make them shorter than any sequence's, or the repetition shorter than the echo.
    """
    stored = _times(fields)
    certain = {name for name, value in stored.items() if value > MAX_SECONDS[name]}
    if not certain:
        return stored
    shortest_repetition = max(_MIN_MILLISECONDS, *(stored[name] for name in certain if name == "EchoTime"), 0.0)
    in_milliseconds = set(certain)
    for name, value in stored.items():
        lowest = shortest_repetition if name == "RepetitionTime" else _MIN_MILLISECONDS
        if value >= lowest:
            in_milliseconds.add(name)
    return {name: value / 1000 if name in in_milliseconds else value for name, value in stored.items()}
