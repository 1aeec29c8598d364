"""Checks of fully sampled k-space: every phase-encoding line between the outermost ones was measured once, by every coil."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.errors import BadInput

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


def _refuse(fault: str, file_name: str) -> None:
    raise BadInput(
        f"k-space that was not fully measured: {fault}", where=file_name, remedy="get the file again, or give fully sampled data"
    )
