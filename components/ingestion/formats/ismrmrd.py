"""ISMRMRD raw data (HDF5): Cartesian, fully sampled acquisitions, sorted into k-space by the counters of their lines.

A file may hold several images (contrasts, phases, repetitions, sets): each becomes a file of its own under ``data/``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import fft

from components.errors import BadInput
from components.ingestion.formats import fastmri
from components.ingestion.formats.dicom.series_splitting import LPS_TO_RAS
from components.ingestion.quarantine import UnsupportedInput

IMAGES = ("contrast", "phase", "repetition", "set")
"""Counters that tell images apart."""
_NO_IMAGE = (19, 20, 23, 24, 26, 27, 28, 29, 30, 31)
"""Flags (ismrmrd.h) of noise, calibration, navigator, phase-correction, feedback and dummy lines."""
_REVERSED = 22
_LARGEST = 2**31
Image = tuple[int, ...]


def is_raw(path: Path) -> bool:
    """Whether an HDF5 file holds ISMRMRD acquisitions."""
    try:
        with h5py.File(path) as file:
            return "dataset" in file and "data" in file["dataset"] and "xml" in file["dataset"]
    except (OSError, TypeError, ValueError, RuntimeError, KeyError):  # what h5py makes of a damaged group
        return False


def images(path: Path) -> list[Image]:
    """The images of a file, as values of :data:`IMAGES`.

    Raises:
        BadInput: the file cannot be read.
    """
    heads = _heads(path)
    counters = heads["idx"][_lines(heads)]
    found = {tuple(int(line[name]) for name in IMAGES) for line in counters}
    if not found:
        raise BadInput("no line of an image", where=path.name, remedy="give the measurement, not its calibration alone")
    return sorted(found)


def _heads(path: Path) -> NDArray[Any]:
    try:
        with h5py.File(path) as file:
            if not fastmri.is_believable(file["dataset/data"]):
                raise ValueError("claims more than it holds")
            return np.asarray(file["dataset/data"].fields("head")[()])
    except (OSError, KeyError, ValueError, TypeError):
        raise BadInput("ISMRMRD cannot be read", where=path.name, remedy="get the file again") from None


def _lines(heads: NDArray[Any]) -> NDArray[np.bool_]:
    """Which acquisitions are lines of images in the first encoded space."""
    mask = sum(1 << (flag - 1) for flag in _NO_IMAGE)
    return np.asarray(((heads["flags"] & np.uint64(mask)) == 0) & (heads["encoding_space_ref"] == 0))


def write_clean(source: Path, target: Path, patient: str, image: Image) -> str:
    """Write one image of a file in the form of :mod:`kspace`; returns the MD5 of its k-space.

    Raises:
        BadInput: not Cartesian, undersampled, or reversed lines (echo-planar).
    """
    import ismrmrd

    heads = _heads(source)
    chosen = _lines(heads) & np.all([heads["idx"][name] == value for name, value in zip(IMAGES, image, strict=True)], axis=0)
    heads, where = heads[chosen], np.flatnonzero(chosen)
    with ismrmrd.File(source, mode="r") as file:
        container = file["dataset"]
        with h5py.File(source) as plain:
            values = fastmri.header_values(plain["dataset/xml"][0])
        _check(source, heads, values)
        sorted_lines, slices = _sort(source, heads, container.acquisitions.data, where, values)
    echoes = values.get("sequenceParameters/TE", [])
    if len(echoes) > image[0]:
        values["sequenceParameters/TE"] = [echoes[image[0]]]
    affine = _affine(heads, values, slices, sorted_lines.shape)
    return fastmri.write(target, {"kspace": sorted_lines}, values, patient, affine=affine)


def _check(source: Path, heads: NDArray[Any], values: dict[str, list[str]]) -> None:
    fault = ""
    if values.get("encoding/trajectory", ["cartesian"])[0] != "cartesian" or np.any(heads["trajectory_dimensions"] > 0):
        fault = "not Cartesian"
    elif np.any(heads["flags"] & np.uint64(1 << (_REVERSED - 1))):
        fault = "reversed lines (echo-planar), which need a phase correction"
    elif len(np.unique(heads["active_channels"])) != 1 or len(np.unique(heads["number_of_samples"])) != 1:
        fault = "lines of unlike length or number of coils"
    if fault:
        raise UnsupportedInput(
            "unsupported",
            f"ISMRMRD data that is {fault}",
            where=source.name,
            remedy="give reconstructed images, or Cartesian k-space",
        )


def _sort(
    source: Path, heads: NDArray[Any], acquisitions: Any, where: NDArray[np.intp], values: dict[str, list[str]]
) -> tuple[NDArray[np.complex64], NDArray[np.int_]]:
    """k-space (slices, coils, readout, phase) with averages averaged, and the slice counters."""

    def size(axis: str, otherwise: int) -> int:
        return int(fastmri.first_number(values, f"encoding/encodedSpace/matrixSize/{axis}") or otherwise)

    first = heads[0]
    samples, coils = int(first["number_of_samples"]), int(first["active_channels"])
    columns = size("x", samples), size("y", int(heads["idx"]["kspace_encode_step_1"].max()) + 1)
    depth = size("z", 1)
    slices = _slices(heads)
    number_of = {int(slice_): number for number, slice_ in enumerate(slices)}
    shape = (len(slices), depth, coils, *columns)
    if np.prod(shape, dtype=object) > _LARGEST or samples > columns[0]:
        raise BadInput(f"a header that claims k-space of {shape}", where=source.name, remedy="get the file again")
    lines = np.zeros(shape, dtype=np.complex64)
    count = np.zeros((len(slices), depth, columns[1]), dtype=np.int32)
    starts = [
        side // 2 - int(fastmri.first_number(values, f"encoding/encodingLimits/kspace_encoding_step_{number}/center") or side // 2)
        for number, side in ((1, columns[1]), (2, depth))
    ]
    for head, place in zip(heads, where, strict=True):
        index = head["idx"]
        s, z = number_of[int(index["slice"])], int(index["kspace_encode_step_2"]) + starts[1]
        y, x = int(index["kspace_encode_step_1"]) + starts[0], columns[0] // 2 - int(head["center_sample"])
        if not (0 <= y < columns[1] and 0 <= z < depth and 0 <= x <= columns[0] - samples):
            raise BadInput("lines outside of the encoded space", where=source.name, remedy="get the file again")
        data = acquisitions[place]["data"].view(np.complex64).reshape(coils, samples)
        lines[s, z, :, x : x + samples, y] += data
        count[s, z, y] += 1
    _check_sampling(source, count)
    lines /= np.maximum(count, 1)[:, :, None, None, :]
    if depth > 1:
        along = fft.fftshift(fft.ifft(fft.ifftshift(lines, axes=1), axis=1, norm="ortho"), axes=1)
        kept = min(int(fastmri.first_number(values, "encoding/reconSpace/matrixSize/z") or depth), depth)
        corner = (depth - kept) // 2
        lines = np.asarray(along[:, corner : corner + kept], dtype=np.complex64)
    return lines.reshape(-1, coils, *columns), slices


def _slices(heads: NDArray[Any]) -> NDArray[np.int_]:
    """Slice counters in the order of their places along the slice direction."""
    numbers, first = np.unique(heads["idx"]["slice"], return_index=True)
    along = (heads["position"][first].astype(np.float64) * heads["slice_dir"][first[0]]).sum(axis=1)
    return np.asarray(numbers[np.argsort(along, kind="stable")], dtype=int)


def _check_sampling(source: Path, count: NDArray[np.int32]) -> None:
    """Refuse gaps between the outermost lines: partial Fourier is no gap, acceleration is."""
    for axis in (1, 2):
        sampled = np.flatnonzero(count.any(axis=(0, 3 - axis)))
        missing = int(sampled[-1] - sampled[0] + 1 - len(sampled))
        if missing:
            raise UnsupportedInput(
                "unsupported",
                f"undersampled k-space ({missing} lines missing): there is no reference image",
                where=source.name,
                remedy="give fully sampled data",
            )


def _affine(
    heads: NDArray[Any], values: dict[str, list[str]], slices: NDArray[np.int_], shape: tuple[int, ...]
) -> NDArray[np.float64] | None:
    """(slice, readout, phase, 1) -> RAS+ mm of the whole encoded image; None where the lines carry no directions."""
    of_slice = [heads[heads["idx"]["slice"] == number][0] for number in slices]
    directions = [np.array(of_slice[0][name], dtype=np.float64) for name in ("slice_dir", "read_dir", "phase_dir")]
    if any(abs(float(np.linalg.norm(one)) - 1) > 0.01 for one in directions):
        return None

    def extent(axis: str, count: int) -> float:
        return float(fastmri.first_number(values, f"encoding/encodedSpace/fieldOfView_mm/{axis}") or count)

    first, last = (np.array(head["position"], dtype=np.float64) for head in (of_slice[0], of_slice[-1]))
    rows, columns = shape[-2:]
    read, phase = directions[1] * extent("x", rows) / rows, directions[2] * extent("y", columns) / columns
    if len(slices) > 1:
        step = (last - first) / (len(slices) - 1)
        step = step if np.linalg.norm(step) > 0 else directions[0] * extent("z", 1)
        centre = first
    else:
        encoded = int(fastmri.first_number(values, "encoding/encodedSpace/matrixSize/z") or 1)
        step = directions[0] * extent("z", 1) / encoded
        centre = first - step * (shape[0] // 2 if encoded > 1 else 0)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = step, read, phase
    affine[:3, 3] = centre - read * (rows // 2) - phase * (columns // 2)
    return np.asarray(LPS_TO_RAS @ affine)
