"""Curating one volume: onto the grid, into one intensity scale, with its record, its description and its slice facts.

k-space is resampled **in the image domain**: the coil-combined complex image is put on the grid and transformed again, so that
``kspace`` and ``voxels`` of a curated volume always agree (``|ifft2c(kspace)| == voxels``, up to the storage's half precision).
It is therefore k-space of the curated image, not the scanner's raw lines; for a single coil on the grid already (same pixel
size) the two differ by cropping only.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from components.curation.measure.volume_facts import (
    SliceFacts,
    annotated_on_tissue,
    neighbour_correlation,
    normalised_box,
    slice_facts,
)
from components.curation.resampling import PlaneGrid, resample
from components.curation.store import STORED, ArrayName, VolumeStore
from components.curation.table_rows import BoxRecord, DescriptionRecord, Row, VolumeRecord
from components.curation.text.descriptions import describe
from components.curation.text.structure_names import lesion_values
from components.ingestion.volume import SourceSeries, Volume
from components.settings import CurationSettings
from model_core.mri_physics.fourier_numpy import fft2c, ifft2c

SCALE_PERCENTILE = 99.5
SMOOTH_LINES = 24
"""Lowest frequencies (per axis) that coil sensitivities are estimated from."""


class CardFacts(Row):
    """What curation takes from a dataset card."""

    dataset_id: str
    name: str
    anatomy: str | None
    synthetic: bool
    label_map: dict[int, str]
    tasks: tuple[str, ...] = ()
    patients: int | None = None
    volumes: int | None = None


class CuratedVolume(Row):
    """Everything about one curated volume but its arrays. ``record.split`` is set when all patients are known."""

    record: VolumeRecord
    description: DescriptionRecord
    facts: SliceFacts
    files: dict[ArrayName, str] = Field(description="array in the store -> MD5 of its file")


def combine_coils(kspace: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """(D, coils, H, W) k-space -> (D, H, W) complex image.

    One coil: its inverse transform. Several: weighted by sensitivities estimated from the low frequencies (their coil images
    over their root-sum-of-squares), which keeps the phase, unlike root-sum-of-squares.
    """
    images = ifft2c(kspace)
    if kspace.shape[1] == 1:
        return images[:, 0]
    return np.asarray((low_resolution_sensitivities(kspace).conj() * images).sum(axis=1), dtype=np.complex64)


def low_resolution_sensitivities(kspace: NDArray[np.complex64], lines: int = SMOOTH_LINES) -> NDArray[np.complex64]:
    """Coil images of the lowest ``lines`` frequencies of each axis, over their root-sum-of-squares: (D, coils, H, W)."""
    rows, columns = kspace.shape[-2:]
    low = np.zeros_like(kspace)
    centre = tuple(slice(max(n // 2 - lines // 2, 0), n // 2 + lines // 2) for n in (rows, columns))
    low[..., centre[0], centre[1]] = kspace[..., centre[0], centre[1]]
    smooth = ifft2c(low)
    root = np.sqrt((np.abs(smooth) ** 2).sum(axis=1, keepdims=True))
    return np.asarray(smooth / np.maximum(root, np.finfo(np.float32).tiny), dtype=np.complex64)


def intensity_scale(magnitude: NDArray[np.floating[Any]]) -> float:
    """The 99.5th percentile of the finite values; 1 where there is no signal."""
    finite = magnitude[np.isfinite(magnitude)]
    scale = float(np.percentile(finite, SCALE_PERCENTILE)) if finite.size else 0.0
    return scale if scale > 0 else 1.0


def _boxes(volume: Volume, grid: PlaneGrid) -> dict[int, list[BoxRecord]]:
    """The dataset's own boxes on the curated grid, by slice."""
    found: dict[int, list[BoxRecord]] = {}
    for box in volume.boxes:
        moved = grid.box(box.row0, box.col0, box.row1, box.col1)
        if moved:
            found.setdefault(box.slice_index, []).append(normalised_box(*moved, grid.size, grid.size, box.label))
    return dict(sorted(found.items()))


def gridded(volume: Volume, grid: PlaneGrid) -> tuple[dict[ArrayName, NDArray[Any]], float]:
    """The arrays of a volume on the grid, in the form that is stored, and the intensity scale."""
    image = combine_coils(volume.kspace) if volume.kspace is not None else volume.voxels
    scale = intensity_scale(np.abs(image))
    gridded = resample(image, grid) / np.float32(scale)
    arrays: dict[ArrayName, NDArray[Any]] = {}
    if volume.kspace is not None:
        arrays["kspace"] = fft2c(gridded)
    arrays["voxels"] = np.abs(gridded) if volume.kspace is not None else gridded
    if volume.labels is not None:
        arrays["labels"] = resample(volume.labels, grid, nearest=True)
    return {name: np.ascontiguousarray(values, STORED[name]) for name, values in arrays.items()}, scale


def _lesion(volume: Volume, labels: NDArray[np.uint8] | None, card: CardFacts) -> bool | None:
    """Whether a lesion is present: by labels, boxes, or the dataset's diagnoses, in this order."""
    pathological = lesion_values(card.label_map)
    if labels is not None and pathological:
        return bool(np.isin(labels, pathological).any()) or bool(volume.boxes)
    if volume.boxes:
        return True
    return any(volume.diagnosis.values()) if volume.diagnosis else None


def content_md5(arrays: dict[ArrayName, NDArray[Any]]) -> str:
    """MD5 over names, shapes and bytes of the stored arrays (a content sum, not a security measure)."""
    total = hashlib.md5(usedforsecurity=False)
    for name in sorted(arrays):
        total.update(f"{name}{arrays[name].shape}".encode())
        total.update(arrays[name].tobytes())
    return total.hexdigest()


def curate_volume(
    volume_id: str, volume: Volume, series: SourceSeries, card: CardFacts, settings: CurationSettings, store: VolumeStore
) -> CuratedVolume:
    """Curate one volume: arrays go to the store, the rest is returned."""
    _, row_mm, column_mm = volume.spacing_mm
    _, rows, columns = volume.voxels.shape
    grid = PlaneGrid.centred((rows, columns), (row_mm, column_mm), settings.matrix, settings.pixel_mm)
    arrays, scale = gridded(volume, grid)
    files = {name: store.write(volume_id, name, values) for name, values in arrays.items()}
    voxels, labels = arrays["voxels"].astype(np.float32), arrays.get("labels")
    affine = grid.affine(np.asarray(volume.affine, dtype=np.float64))
    boxes = _boxes(volume, grid)
    facts = slice_facts(volume, voxels, labels, boxes, card.label_map, affine)
    lesion = _lesion(volume, labels, card)
    record = VolumeRecord(
        volume_id=volume_id,
        dataset_id=series.dataset_id,
        patient_id=series.patient_id,
        series_id=series.series_id,
        split="train",
        synthetic=card.synthetic,
        source_files=[file.path for file in (*series.files, *series.labels, *series.annotations)],
        source_md5=series.md5,
        reader=series.reader,
        slices=len(voxels),
        rows=grid.size,
        columns=grid.size,
        affine=affine.ravel().tolist(),
        intensity_scale=scale,
        voxel_minimum=float(np.nanmin(voxels)),
        voxel_maximum=float(np.nanmax(voxels)),
        voxel_deviation=float(np.nanstd(voxels)),
        finite=bool(np.isfinite(voxels).all()),
        neighbour_correlation=neighbour_correlation(volume.voxels),
        has_kspace="kspace" in arrays,
        has_labels=labels is not None,
        label_values=[int(value) for value in np.unique(labels) if value] if labels is not None else [],
        annotated_on_tissue=annotated_on_tissue(voxels, labels, boxes),
        lesion=lesion,
        content_md5=content_md5(arrays),
        **asdict(volume.acquisition),
    )
    description = describe(volume_id, volume.acquisition, card.anatomy, volume.report, facts, lesion)
    return CuratedVolume(record=record, description=description, facts=facts, files=files)
