"""Checks of fully sampled k-space: every phase-encoding line between the outermost ones was measured once, by every coil, and the
center of k-space is in the middle of the array.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.errors import BadInput
from components.ingestion.quarantine import UnsupportedInput

_MIN_CONCENTRATION, _MIN_SIDE = 0.5, 8
"""Length of the mean direction from which on energy has a place on an axis (noise: 0), and the shortest axis that is judged."""
_MAX_SHIFT, _MAX_SHIFT_LINES = 1 / 18, 0.75
"""Fraction of the axis, or lines on a short one, by which the mean may be off the first index where the center was not shifted. In
an array of the measured part alone it is further off: a ninth where 9 of 16 lines were measured.
"""
NOISE_FREE = 0.002
"""Share of zeros among the values of a slice's lines from which on it is a simulation: rounding of noise leaves fewer."""


def require_finite(kspace: NDArray[Any], file_name: str) -> None:
    """Require finite k-space: one value that is not spoils every pixel of its slice.

    Raises:
        BadInput: NaN or infinity.
    """
    count = sum(int(values.size - np.isfinite(values).sum()) for values in kspace)  # slice by slice: no mask of the whole
    if count:
        raise BadInput(f"k-space with {count} values that are not finite", where=file_name, remedy="get the file again")


def require_lines(kspace: NDArray[Any], file_name: str) -> None:
    """Require that no line of (slices, coils, rows, columns) or (slices, rows, columns) is missing, in part missing, or a copy.

    Columns of zeros at either edge (partial Fourier, zero-filling), empty slices and coils that are empty in a slice are accepted.
    So are simulations without noise, whose transform has zeros and symmetries of its own.

    Raises:
        BadInput: a line between others is zero, in all coils or in one, or the same as another one, bit by bit.
    """
    has_data_SCW = np.stack([(values != 0).any(-2).reshape(-1, values.shape[-1]) for values in kspace])
    measured = np.flatnonzero(has_data_SCW.any((0, 1)))
    for index, has_data_CW in enumerate(has_data_SCW[:, :, measured[0] : measured[-1] + 1] if measured.size else ()):
        faulty = np.argwhere(~has_data_CW & has_data_CW.any(1)[:, None])
        if not has_data_CW.any() or _is_noise_free(kspace[index]):
            continue
        for coil, column in faulty[:1]:
            line = f"line {column + measured[0]} of slice {index} is zero"
            _refuse(line if not has_data_CW[:, column].any() else f"{line} in coil {coil}", file_name)
        _refuse_copies(kspace[index], index, measured, file_name)


def _is_noise_free(kspace: NDArray[Any]) -> bool:
    """Return whether lines ([C,] H, W) with data have zeros between their values, which noise does not leave."""
    has_data = kspace != 0
    lines = has_data.any(-2).sum() * kspace.shape[-2]
    return bool(has_data.sum() < (1 - NOISE_FREE) * lines)


def _refuse_copies(kspace: NDArray[Any], index: int, columns: Sequence[int] | NDArray[np.intp], file_name: str) -> None:
    """Refuse two equal columns of a slice ([C,] H, W) that are not zero."""
    lines = np.ascontiguousarray(np.moveaxis(kspace, -1, 0))
    seen: dict[int, int] = {}
    for column in columns:
        checksum = zlib.crc32(lines[column])
        first = seen.setdefault(checksum, int(column))
        if first != column and lines[column].any() and np.array_equal(lines[column], lines[first]):
            _refuse(f"line {column} of slice {index} repeats line {first}", file_name)


def require_center(energy_HW: NDArray[np.float64], file_name: str) -> None:
    """Require the low frequencies in the middle of the array, where its center (index N // 2) is by the layout of fastMRI.

    The energy of an image is in its low frequencies, whichever lines were measured. Their circular mean on an axis is in the
    middle of centered k-space, and at the first index of ``fft2`` without a shift. Noise has no such mean, and is accepted.

    K-space is not shifted here: whether the image was shifted, too, is not known, and the wrong guess rolls it by half of its field
    of view.

    Args:
        energy_HW: sum of squared magnitudes over slices and coils.

    Raises:
        UnsupportedInput: the center is at the first row or column, or at both (the corner).
    """
    noun = {0: "row", 1: "column"}
    shifted = [noun[axis] for axis in (0, 1) if _is_at_start(energy_HW.sum(1 - axis))]
    if shifted:
        raise UnsupportedInput(
            "unsupported",
            f"k-space whose center is at the first {' and the first '.join(shifted)}, not in the middle",
            where=file_name,
            remedy="store it with the center in the middle: fftshift(fft2(ifftshift(image)))",
        )


def _is_at_start(energy: NDArray[np.float64]) -> bool:
    """Return whether the circular mean of the indices of an axis is the first, and not the middle."""
    total = float(energy.sum())
    if len(energy) < _MIN_SIDE or not total:
        return False
    mean = complex(energy @ np.exp(2j * np.pi * np.arange(len(energy)) / len(energy))) / total
    shift = abs(float(np.angle(mean))) / (2 * np.pi)
    return abs(mean) > _MIN_CONCENTRATION and shift < max(_MAX_SHIFT, _MAX_SHIFT_LINES / len(energy))


def _refuse(fault: str, file_name: str) -> None:
    raise BadInput(
        f"k-space that was not fully measured: {fault}", where=file_name, remedy="get the file again, or give fully sampled data"
    )
