"""De-identified NIfTI files: stored values, scaling and geometry under a fresh header."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray
from typing_extensions import override

from components.errors import BadInput
from components.ingestion.formats.base import Output, ReadBackError, Role
from components.ingestion.formats.orientation import round_affine, to_canonical
from components.ingestion.formats.voxels import notes_on_values, require_signal
from components.ingestion.quarantine import UnsupportedInput

AFFINE_TOLERANCE = 2.0**-20
"""Relative error of an affine in the header of NIfTI-1, which stores it in single precision."""


def content_md5(stored: bytes | memoryview, *properties: Any) -> str:
    """Return the MD5 of stored values and their properties (shape, type, scale): the same for copies under other names.

    It identifies content; it is not a security measure.
    """
    total = hashlib.md5(repr(properties).encode(), usedforsecurity=False)
    total.update(stored)
    return total.hexdigest()


@dataclass(frozen=True)
class Scaling:
    """Values of an image are ``stored * slope + intercept``, in double precision, as nibabel, ITK and FSL read them."""

    slope: float = 1.0
    intercept: float = 0.0

    @classmethod
    def of(cls, image: Any) -> Scaling:
        """Return the scaling that the reader of an image applies to its stored values.

        nibabel moves it from the header, where it then reads NaN, to the array proxy. There, slope 0 or NaN reads 1 (no scaling).
        """
        proxy = image.dataobj
        return cls(float(getattr(proxy, "slope", 1.0)), float(getattr(proxy, "inter", 0.0)))

    def apply(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return the values of stored ones, in double precision unless the scaling is the identity."""
        values = apply_read_scaling(stored, np.float64(self.slope), np.float64(self.intercept))  # NumPy would keep single precision
        return np.asarray(values)

    @property
    def fits_nifti1(self) -> bool:
        """Return whether single precision, in which NIfTI-1 stores the scaling, represents it exactly."""
        return all(float(np.float32(value)) == value for value in (self.slope, self.intercept))


def stored_values(image: Any) -> NDArray[Any]:
    """Return the array of an image without its scaling applied."""
    return np.asanyarray(image.dataobj.get_unscaled() if hasattr(image.dataobj, "get_unscaled") else image.dataobj)


class NiftiOutput(Output):
    """A NIfTI-1 file with values and geometry, and nothing else of the header: no description, file name, extension or compression
    (compressed bytes differ between machines). Scaled integers stay as stored, under their scaling.
    """

    def __init__(self, image: Any, role: Role = "image", channel: int | None = None, notes: tuple[str, ...] = ()) -> None:
        """Take the content of an image, or of one of its channels.

        Args:
            image: NIfTI image (x, y, z[, channels]) as its reader returned it.
            channel: index along the fourth axis; None = all.
            notes: what the user should know about how the image was read.

        Raises:
            BadInput: values or shape that no image has; for the role "image", no signal.
        """
        scaling, stored = Scaling.of(image), stored_values(image)
        stored = stored if channel is None else stored[..., channel]
        _require_numbers(stored)
        if not scaling.fits_nifti1:  # NIfTI-2 scales in double precision
            stored, scaling = scaling.apply(stored), Scaling()
        self._values = scaling.apply(stored)
        if role == "image":
            require_signal(self._values)
            self.notes = (*notes, *notes_on_values(self._values))
        self._affine = round_affine(image.affine)
        clean = nib.Nifti1Image(stored, self._affine, dtype=stored.dtype)
        _fill_header(clean.header, image, scaling)
        self._header = clean.header
        self._stored = np.asarray(stored, dtype=clean.header.get_data_dtype()).tobytes(order="F")
        self.content = content_md5(self._stored, stored.shape, stored.dtype.name, scaling.slope, scaling.intercept)

    @override
    def write(self, path: Path) -> None:
        # nibabel's own writer would rescale: header and stored values are written unchanged.
        with path.open("wb") as stream:
            self._header.write_to(stream)  # 348 bytes, and 4 that declare no extension
            stream.write(self._stored)

    @override
    def check(self, path: Path) -> None:
        from components.ingestion.formats import nifti

        image = nifti.load(path)
        if not np.array_equal(np.asanyarray(image.dataobj), self._values, equal_nan=True):
            raise ReadBackError("other voxels")
        limit = AFFINE_TOLERANCE * max(1.0, float(np.abs(self._affine).max()))
        if not np.allclose(image.affine, self._affine, rtol=0, atol=limit):
            raise ReadBackError("another affine")
        to_canonical(image)


def _require_numbers(stored: NDArray[Any]) -> None:
    """Require voxels of one number each, on three axes or four.

    Raises:
        BadInput: no voxels, or another number of axes.
        UnsupportedInput: colors, or an axis that NIfTI-1 cannot store.
    """
    if stored.dtype.names or stored.dtype.kind not in "biufc":
        raise UnsupportedInput("unsupported", "a color image", remedy="give the grayscale image that it was created from")
    if stored.ndim not in (3, 4):
        raise UnsupportedInput("unsupported", f"an image of {stored.ndim} dimensions", remedy="give images of 3 or 4 dimensions")
    if stored.size == 0:
        raise BadInput("an image without voxels", remedy="get the file again")
    if max(stored.shape) > np.iinfo(np.int16).max:
        raise UnsupportedInput(
            "unsupported", "an axis of more than 32767 voxels, the limit of NIfTI-1", remedy="cut or resample it"
        )


def _fill_header(header: Any, image: Any, scaling: Scaling) -> None:
    """Set units, time step, scaling, offset and magic of a fresh header."""
    for name in ("b", "c", "d"):  # qform code 0 disables the quaternion; its last bits depend on the linear algebra library
        header[f"quatern_{name}"] = 0
    header.set_xyzt_units("mm", "sec")
    if len(header.get_data_shape()) == 4:
        header.set_zooms((*header.get_zooms()[:3], image.header.get_zooms()[3]))
    header.set_slope_inter(scaling.slope, scaling.intercept)
    header["vox_offset"], header["magic"] = 352, b"n+1"
