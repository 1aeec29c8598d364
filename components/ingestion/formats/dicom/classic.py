"""Volumes of classic (single-frame) DICOM images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.errors import BadInput
from components.ingestion import acquisition_headers
from components.ingestion.formats.dicom.pixels import decode_pixels, read_slice, rescale, rescale_of
from components.ingestion.formats.dicom.reading import read_header
from components.ingestion.formats.dicom.series_splitting import affine_of, find_spacing_fault, frames_of, group_by_kind, sort_frames
from components.ingestion.volume import Acquisition


def read_series(paths: Sequence[Path], anatomy: str | None) -> tuple[NDArray[np.float32], NDArray[np.float64], Acquisition]:
    """Return voxels (D, H, W), affine to RAS+ mm and acquisition of the images of one volume.

    Raises:
        BadInput: slices that form no regular volume, or without pixels.
    """
    datasets = {path: read_slice(path) for path in paths}
    frames = sort_frames([frame for path, dataset in datasets.items() for frame in frames_of(dataset, path)])
    fault = find_spacing_fault(frames) or ("slices of different geometry" if len(group_by_kind(frames)) > 1 else None)
    if fault:
        raise BadInput(f"no regular volume: {fault}", where=paths[0].parent.name, remedy="export the whole series again")
    voxels = np.empty((len(frames), *frames[0].shape), dtype=np.float32)
    for plane, frame in zip(voxels, frames, strict=True):
        dataset = datasets[frame.path]
        plane[:] = rescale(decode_pixels(dataset), *rescale_of(dataset))
    affine = affine_of(frames)
    return voxels, affine, acquisition_headers.acquisition_from_dicom(datasets[paths[0]], affine, anatomy)


def slice_indices(paths: Sequence[Path]) -> list[int]:
    """Return for each image of a volume, in the order given, its slice index in the voxels of :func:`read_series`."""
    frames = [frame for path in paths for frame in frames_of(read_header(path), path)]
    index_of = {frame.path: index for index, frame in enumerate(sort_frames(frames))}
    return [index_of[path] for path in paths]
