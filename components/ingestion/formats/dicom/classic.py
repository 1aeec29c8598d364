"""Volumes of classic (single-frame) DICOM images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from components.errors import BadInput
from components.ingestion import acquisition_headers
from components.ingestion.formats.dicom.fast_elements import Vector
from components.ingestion.formats.dicom.frames import Frame, frames_of
from components.ingestion.formats.dicom.padding import Padding, blank_padding, find_padding
from components.ingestion.formats.dicom.pixels import decode_pixels, read_slice, rescale, rescale_of
from components.ingestion.formats.dicom.reading import read_header
from components.ingestion.formats.dicom.series_splitting import affine_of, find_spacing_fault, group_by_kind, sort_frames
from components.ingestion.formats.voxels import require_signal_range
from components.ingestion.volume import Acquisition


class ReadSeries(NamedTuple):
    """A volume of classic images.

    Attributes:
        voxels: (D, H, W), padding as background.
        affine: (4, 4), index (slice, row, column, 1) -> RAS+ mm.
        acquisition: header values.
        notes: what the user should know about padding.
    """

    voxels: NDArray[np.float32]
    affine: NDArray[np.float64]
    acquisition: Acquisition
    notes: tuple[str, ...]


def read_series(paths: Sequence[Path], anatomy: str | None) -> ReadSeries:
    """Read the images of one volume.

    Raises:
        BadInput: slices that form no regular volume, without pixels, or without signal.
        UnsupportedInput: values beyond single precision.
    """
    datasets = {path: read_slice(path) for path in paths}
    frames = _arrange([frame for path, dataset in datasets.items() for frame in frames_of(dataset, path)], paths)
    voxels = np.empty((len(frames), *frames[0].shape), dtype=np.float32)
    ends, paddings = [], []
    for plane, frame in zip(voxels, frames, strict=True):
        values, scale = decode_pixels(datasets[frame.path]), rescale_of(datasets[frame.path])
        paddings.append(find_padding(values, datasets[frame.path]))
        ends.append(_ends_of(values, scale, paddings[-1]))
        with np.errstate(over="ignore"):  # told by the ends
            plane[:] = rescale(values, *scale)
    require_signal_range(*_range_of(ends))
    notes = blank_padding(list(voxels), paddings)
    affine = affine_of(frames)
    acquisition = acquisition_headers.acquisition_from_dicom(datasets[paths[0]], affine, anatomy)
    return ReadSeries(voxels, affine, acquisition, notes)


def _arrange(frames: Sequence[Frame], paths: Sequence[Path]) -> tuple[Frame, ...]:
    """Return the frames of one volume in slice order.

    Raises:
        BadInput: they form no regular volume.
    """
    ordered = sort_frames(frames)
    fault = find_spacing_fault(ordered) or ("slices of different geometry" if len(group_by_kind(ordered)) > 1 else None)
    if fault:
        raise BadInput(f"no regular volume: {fault}", where=paths[0].parent.name, remedy="export the whole series again")
    return ordered


def _ends_of(values: NDArray[Any], scale: tuple[float, float], padding: Padding) -> Vector:
    """Return the lowest and the highest voxel of a slice with stored values (rows, columns), in any order; () if all is padding."""
    slope, intercept = scale
    if padding.mask is not None:
        values = values[~padding.mask]
    if not values.size:
        return ()
    return float(values.min()) * slope + intercept, float(values.max()) * slope + intercept


def _range_of(ends: Sequence[Vector]) -> tuple[float, float]:
    """Return the lowest and the highest voxel of a volume from those of its slices; equal ones if all is padding."""
    found = [end for of_slice in ends for end in of_slice]
    return min(found, default=0.0), max(found, default=0.0)


@dataclass(frozen=True)
class SliceReadBack:
    """Facts that :func:`read_series` takes from a written slice, whose pixels have been compared with those of its source.

    Attributes:
        frame: geometry and kind.
        ends: lowest and highest voxel, in any order; () if all is padding.
    """

    frame: Frame
    ends: Vector

    @classmethod
    def of(cls, dataset: Dataset, values: NDArray[Any], path: Path) -> SliceReadBack:
        """Return what the volume needs of a slice with stored values (rows, columns).

        Raises:
            Exception: :func:`read_series` would raise it.
        """
        (frame,) = frames_of(dataset, path)
        return cls(frame, _ends_of(values, rescale_of(dataset), find_padding(values, dataset)))


def check_slices(paths: Sequence[Path], slices: Sequence[SliceReadBack]) -> None:
    """Check slices that were read back one by one as the volume that :func:`read_series` reads from them.

    Order, geometry and range of the volume follow from the slices alone; of the files only the first is read again, for the
    acquisition.

    Raises:
        BadInput, Exception: :func:`read_series` would raise it.
    """
    frames = _arrange([one.frame for one in slices], paths)
    require_signal_range(*_range_of([one.ends for one in slices]))
    acquisition_headers.acquisition_from_dicom(read_slice(paths[0]), affine_of(frames), None)


def slice_indices(paths: Sequence[Path]) -> list[int]:
    """Return for each image of a volume, in the order given, its slice index in the voxels of :func:`read_series`."""
    frames = [frame for path in paths for frame in frames_of(read_header(path), path)]
    index_of = {frame.path: index for index, frame in enumerate(sort_frames(frames))}
    return [index_of[path] for path in paths]
