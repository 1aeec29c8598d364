"""BIDS sidecars: JSON files that describe an image, including those of parent folders (BIDS inheritance principle)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from components.errors import BadInput


class SidecarIndex:
    """Index of the JSON files of a source folder.

    Attributes:
        used: sidecars that belong to an image that was looked up.
    """

    def __init__(self, source: Path, files: Iterable[Path]) -> None:
        self._source = source
        self._by_folder: dict[Path, list[Path]] = defaultdict(list)
        self.used: set[Path] = set()
        for path in files:
            if path.suffix.lower() == ".json":
                self._by_folder[path.parent].append(path)

    def find(self, image: Path) -> tuple[Path, ...]:
        """Return the sidecars of an image, the most general first; the fields of a later one take precedence."""
        stem = image_stem(image)
        sidecars: list[Path] = []
        folder = image.parent
        while True:
            is_image_folder = folder == image.parent
            sidecars = [path for path in self._by_folder[folder] if _applies_to(path.stem, stem, is_image_folder)] + sidecars
            if folder == self._source or self._source not in folder.parents:
                break
            folder = folder.parent
        self.used |= set(sidecars)
        return tuple(sidecars)


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


def merge_sidecars(paths: Iterable[Path]) -> dict[str, Any]:
    """Return the merged fields of sidecars; later files override earlier ones.

    Raises:
        BadInput: a file is not a JSON object.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        try:
            fields = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError):
            raise BadInput("the sidecar is not valid JSON", where=path.name, remedy="fix or remove it") from None
        if not isinstance(fields, dict):
            raise BadInput("the sidecar is not a JSON object", where=path.name, remedy="fix or remove it")
        merged.update(fields)
    return merged
