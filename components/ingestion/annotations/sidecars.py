"""BIDS sidecars: JSON files that describe an image, those of upper folders included (BIDS, "the inheritance principle")."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from components.errors import BadInput


class Sidecars:
    """The JSON files of a source folder.

    Attributes:
        used: those that belong to an image.
    """

    def __init__(self, source: Path, files: Iterable[Path]) -> None:
        self._source = source
        self._by_folder: dict[Path, list[Path]] = defaultdict(list)
        self.used: set[Path] = set()
        for path in files:
            if path.suffix.lower() == ".json":
                self._by_folder[path.parent].append(path)

    def of(self, image: Path) -> tuple[Path, ...]:
        """The sidecars of an image, the most general first: a field of a later one wins."""
        stem = stem_of(image)
        found: list[Path] = []
        folder = image.parent
        while True:
            found = [path for path in self._by_folder[folder] if _applies(path.stem, stem, own=folder == image.parent)] + found
            if folder == self._source or self._source not in folder.parents:
                break
            folder = folder.parent
        self.used |= set(found)
        return tuple(found)


def stem_of(image: Path) -> str:
    """File name of an image without its endings."""
    return image.name.removesuffix(".gz").rpartition(".")[0] or image.name


def _applies(sidecar: str, image: str, own: bool) -> bool:
    """Whether a sidecar's name covers an image's: the same suffix, and no entity that the image has not."""
    if sidecar == image:
        return own
    *entities, suffix = sidecar.split("_")
    *others, wanted = image.split("_")
    return bool(others) and suffix == wanted and set(entities) <= set(others)


def merged(paths: Iterable[Path]) -> dict[str, Any]:
    """The fields of sidecars, later ones over earlier ones.

    Raises:
        BadInput: no JSON object.
    """
    fields: dict[str, Any] = {}
    for path in paths:
        try:
            found = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError):
            raise BadInput("a sidecar that is no JSON", where=path.name, remedy="mend or remove it") from None
        if not isinstance(found, dict):
            raise BadInput("a sidecar that is no JSON object", where=path.name, remedy="mend or remove it")
        fields.update(found)
    return fields
