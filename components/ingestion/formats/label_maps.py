"""Label maps of ingested series: NIfTI masks, tissue probability maps, DICOM segmentations and structure sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.catalog import DatasetCard
from components.ingestion.annotations import rt_structures
from components.ingestion.formats import nifti
from components.ingestion.formats.orientation import turn_like
from components.ingestion.formats.stored_labels import SEGMENTATION_SUFFIX, STRUCTURES_SUFFIX, TISSUE_INFIX
from components.ingestion.quarantine import UnsupportedInput
from components.ingestion.volume import Volume


def read_labels(paths: Sequence[Path], volume: Volume, card: DatasetCard) -> NDArray[np.uint8]:
    """Read the labels (D, H, W) of a volume.

    Args:
        paths: the tissue maps of the volume, or one file of another kind.

    Raises:
        BadInput: labels on another grid than the volume's, or values and names that the card does not declare.
    """
    shape, affine = volume.voxels.shape, volume.affine
    tissue_maps = {int(path.name.split(TISSUE_INFIX)[1].split(".")[0]): path for path in paths if TISSUE_INFIX in path.name}
    if tissue_maps:
        return _read_tissue_maps({card.label_codes.get(value, value): path for value, path in tissue_maps.items()}, shape, affine)
    if paths[0].name.endswith(STRUCTURES_SUFFIX):
        return rt_structures.read_structures(paths[0], affine, shape, card.stored_label_map)
    if paths[0].name.endswith(SEGMENTATION_SUFFIX):
        from components.ingestion.formats.dicom.segmentation import read_segmentation

        return read_segmentation(paths[0], affine, shape, card.stored_label_map)
    return _read_label_map(paths[0], shape, affine)


def _read_label_map(path: Path, shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Read a stored label map (:mod:`components.ingestion.formats.stored_labels`) in the orientation of its image.

    Raises:
        UnsupportedInput: another grid than the image's.
    """
    values, label_affine = turn_like(nifti.load(path), affine)
    _check_grid("label map", path, values.shape, label_affine, shape, affine)
    return np.asarray(values, dtype=np.uint8)


def _read_tissue_maps(paths: dict[int, Path], shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Read labels from probability maps or binary masks: the most probable structure where its probability is at least one half.

    Args:
        paths: label value -> map of this structure.

    Raises:
        UnsupportedInput: another grid than the image's.
    """
    maps: dict[int, NDArray[Any]] = {}
    for value, path in sorted(paths.items()):
        loaded, map_affine = turn_like(nifti.load(path), affine)
        _check_grid("tissue map", path, loaded.shape, map_affine, shape, affine)
        maps[value] = np.nan_to_num(loaded, nan=0.0)
    scale = _scale_of_probabilities(maps.values())
    labels, best = np.zeros(shape, dtype=np.uint8), np.full(shape, 0.5)
    for value, stored in maps.items():
        probability = stored / (float(stored.max()) if _is_mask(stored) else scale)
        labels = np.where(probability >= best, value, labels).astype(np.uint8)
        best = np.maximum(best, probability)
    return labels


_PROBABILITY_SCALES = (1.0, 100.0, 255.0)
"""Values that stand for certainty: of fractions, percentages and bytes."""


def _is_mask(values: NDArray[Any]) -> bool:
    """Return whether a map of one structure only has the values 0 and the structure's, 1 or more."""
    highest = float(values.max())
    return highest >= 1 and bool(((values == 0) | (values == highest)).all())


def _scale_of_probabilities(maps: Iterable[NDArray[Any]]) -> float:
    """Return the value that stands for certainty in all maps of one image: one of them alone need not reach it."""
    highest = max((float(values.max()) for values in maps if not _is_mask(values)), default=1.0)
    return next((scale for scale in _PROBABILITY_SCALES if highest <= scale * (1 + 1e-3)), highest)


def _check_grid(
    noun: str,
    path: Path,
    label_shape: tuple[int, ...],
    label_affine: NDArray[np.float64],
    image_shape: tuple[int, ...],
    image_affine: NDArray[np.float64],
) -> None:
    """Require the image's shape and position; corners may lie half a voxel apart, as headers of exports do.

    Raises:
        UnsupportedInput: another shape or position.
    """
    remedy = "resample it to the image's grid"
    if label_shape != image_shape:
        raise UnsupportedInput("label", f"{noun} of {label_shape} for an image of {image_shape}", where=path.name, remedy=remedy)
    last_d, last_h, last_w = (side - 1 for side in label_shape)
    corners = np.array([[d, h, w, 1] for d in (0, last_d) for h in (0, last_h) for w in (0, last_w)])
    distance_mm = float(np.linalg.norm((corners @ (label_affine - image_affine).T)[:, :3], axis=1).max())
    if distance_mm > 0.5 * float(np.linalg.norm(image_affine[:3, :3], axis=0).min()):
        raise UnsupportedInput("label", f"{noun} {distance_mm:.1f} mm off its image", where=path.name, remedy=remedy)
