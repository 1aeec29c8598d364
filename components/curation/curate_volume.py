"""Curate one volume: resample it to the grid, normalize its intensity, and compute its record, description and slice facts.

k-space is resampled **in the image domain**: the coil-combined complex image is resampled to the grid and transformed again, so
that ``kspace`` and ``voxels`` of a curated volume always agree (``|ifft2c(kspace)| == voxels``, up to the half precision of the
store). It is therefore k-space of the curated image, not the raw lines of the scanner; for a single coil with the pixel size of the
grid, the two differ by cropping only. Datasets whose card names a ``coil_reference`` keep their coils
(:mod:`components.curation.coil_data`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from components.curation.coil_data import CoilReference, resample_coils
from components.curation.intensity import compute_intensity_scale
from components.curation.measure.volume_facts import (
    SliceFacts,
    annotated_share_on_tissue,
    compute_slice_facts,
    correlate_neighbors,
    normalize_box,
)
from components.curation.resampling import PlaneGrid, resample
from components.curation.store import STORED, ArrayName, VolumeStore
from components.curation.table_rows import BoxRecord, DescriptionRecord, Row, VolumeRecord
from components.curation.text.descriptions import describe
from components.curation.text.structure_names import is_diffuse, lesion_values
from components.ingestion.volume import SourceSeries, Volume
from components.settings import CurationSettings
from model_core.mri_physics.coils import low_resolution_sensitivities
from model_core.mri_physics.fourier import fft2c_numpy, ifft2c_numpy


class CardFacts(Row):
    """The fields of a dataset card that curation uses."""

    dataset_id: str
    name: str
    anatomy: str | None
    synthetic: bool
    label_map: dict[int, str]
    tasks: tuple[str, ...] = ()
    patients: int | None = None
    volumes: int | None = None
    coil_reference: CoilReference | None = None


class CuratedVolume(Row):
    """Everything about one curated volume but its arrays. ``record.split`` is assigned later, when all patients are known."""

    record: VolumeRecord
    description: DescriptionRecord
    facts: SliceFacts
    files: dict[ArrayName, str] = Field(description="array in the store -> MD5 of its file")


LoadVolume = Callable[[str], CuratedVolume]
"""Reads the curated volume of a volume id."""


def combine_coils(kspace: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Combine (D, coils, H, W) k-space to a (D, H, W) complex image.

    The image of a single coil is its inverse transform. Several coils are weighted by sensitivities that are estimated from the low
    frequencies (their coil images over the root sum of squares); unlike the root sum of squares, this preserves the phase.
    """
    images = ifft2c_numpy(kspace)
    if kspace.shape[1] == 1:
        return images[:, 0]
    return np.asarray((low_resolution_sensitivities(kspace).conj() * images).sum(axis=1), dtype=np.complex64)


def _boxes_on_grid(volume: Volume, grid: PlaneGrid) -> dict[int, list[BoxRecord]]:
    """Return slice -> the dataset's own boxes on the curated grid."""
    boxes: dict[int, list[BoxRecord]] = {}
    for box in volume.boxes:
        mapped = grid.map_box(box.row0, box.col0, box.row1, box.col1)
        if mapped:
            boxes.setdefault(box.slice_index, []).append(normalize_box(*mapped, grid.size, grid.size, box.label))
    return dict(sorted(boxes.items()))


def resample_volume(
    volume: Volume, grid: PlaneGrid, coil_reference: CoilReference | None = None
) -> tuple[dict[ArrayName, NDArray[Any]], float]:
    """Resample the arrays of a volume to the grid, in the types of the store; return them and the intensity scale.

    Args:
        coil_reference: keep the coils of a volume with several, and combine its image in this way; None = combine its coils.
    """
    if coil_reference and volume.kspace is not None and volume.kspace.shape[1] > 1:
        return resample_coils(volume, grid, coil_reference)
    image = combine_coils(volume.kspace) if volume.kspace is not None else volume.voxels
    scale = compute_intensity_scale(np.abs(image))
    resampled = resample(image, grid) / np.float32(scale)
    arrays: dict[ArrayName, NDArray[Any]] = {}
    if volume.kspace is not None:
        arrays["kspace"] = fft2c_numpy(resampled)
    arrays["voxels"] = np.abs(resampled) if volume.kspace is not None else resampled
    if volume.labels is not None:
        arrays["labels"] = resample(volume.labels, grid, nearest=True)
    return {name: np.ascontiguousarray(values, STORED[name]) for name, values in arrays.items()}, scale


def _has_lesion(volume: Volume, labels: NDArray[np.uint8] | None, card: CardFacts) -> bool | None:
    """Return whether a lesion is present according to labels, boxes, or the dataset's diagnoses, in this order; None = unknown."""
    lesion_labels = lesion_values(card.label_map)
    if labels is not None and lesion_labels:
        return bool(np.isin(labels, lesion_labels).any()) or bool(volume.boxes)
    if volume.boxes:
        return True
    focal = [present for finding, present in volume.diagnosis.items() if not is_diffuse(finding)]
    return any(focal) if focal else None


def compute_content_md5(arrays: dict[ArrayName, NDArray[Any]]) -> str:
    """Return the MD5 over names, shapes and bytes of the stored arrays (a checksum, not a security measure)."""
    checksum = hashlib.md5(usedforsecurity=False)
    for name in sorted(arrays):
        checksum.update(f"{name}{arrays[name].shape}".encode())
        checksum.update(arrays[name].tobytes())
    return checksum.hexdigest()


def curate_volume(
    volume_id: str, volume: Volume, series: SourceSeries, card: CardFacts, settings: CurationSettings, store: VolumeStore
) -> CuratedVolume:
    """Curate one volume: write its arrays to the store and return the rest."""
    _, row_mm, column_mm = volume.spacing_mm
    _, rows, columns = volume.voxels.shape
    grid = PlaneGrid.centered((rows, columns), (row_mm, column_mm), settings.matrix, settings.pixel_mm)
    arrays, scale = resample_volume(volume, grid, card.coil_reference)
    files = {name: store.write(volume_id, name, values) for name, values in arrays.items()}
    voxels, labels = arrays["voxels"].astype(np.float32), arrays.get("labels")
    affine = grid.map_affine(np.asarray(volume.affine, dtype=np.float64))
    boxes = _boxes_on_grid(volume, grid)
    facts = compute_slice_facts(volume, voxels, labels, boxes, card.label_map, affine)
    lesion = _has_lesion(volume, labels, card)
    record = VolumeRecord(
        volume_id=volume_id,
        **_source_columns(series),
        split="train",
        synthetic=card.synthetic,
        slices=len(voxels),
        rows=grid.size,
        columns=grid.size,
        affine=affine.ravel().tolist(),
        intensity_scale=scale,
        **_voxel_columns(voxels),
        neighbour_correlation=correlate_neighbors(volume.voxels),
        has_kspace="kspace" in arrays or "coils" in arrays,
        coils=arrays["coils"].shape[1] if "coils" in arrays else 1,
        has_labels=labels is not None,
        label_values=[int(value) for value in np.unique(labels) if value] if labels is not None else [],
        annotated_on_tissue=annotated_share_on_tissue(voxels, labels, boxes),
        lesion=lesion,
        content_md5=compute_content_md5(arrays),
        **asdict(volume.acquisition),
    )
    description = describe(volume_id, volume.acquisition, card.anatomy, volume.report, facts, lesion)
    return CuratedVolume(record=record, description=description, facts=facts, files=files)


def _source_columns(series: SourceSeries) -> dict[str, Any]:
    """Return the columns of the volume table that identify the source."""
    return {
        "dataset_id": series.dataset_id,
        "patient_id": series.patient_id,
        "series_id": series.series_id,
        "visit": series.visit,
        "source_files": [file.path for file in (*series.files, *series.labels, *series.annotations)],
        "source_md5": series.md5,
        "reader": series.reader,
    }


def _voxel_columns(voxels: NDArray[np.float32]) -> dict[str, Any]:
    """Return the intensity statistics of the volume table."""
    return {
        "voxel_minimum": float(np.nanmin(voxels)),
        "voxel_maximum": float(np.nanmax(voxels)),
        "voxel_deviation": float(np.nanstd(voxels)),
        "finite": bool(np.isfinite(voxels).all()),
    }
