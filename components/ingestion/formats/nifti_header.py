"""Headers of NIfTI-1, NIfTI-2 and Analyze 7.5 files, read as stored: kind of the values, unit of length, and orientation.

nibabel's loader chooses by the suffix of the file name and corrects headers without a word (a voxel size of 0 becomes 1). Here the
content decides, and every correction and guess is stated. Sources: nifti1.h and nifti2.h (NIfTI standard of 2003 and 2011).
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from components.errors import BadInput
from components.ingestion.formats.gzipped import is_gzipped
from components.ingestion.quarantine import UnsupportedInput

HEADER_BYTES = 540
"""Size of a NIfTI-2 header, the largest."""
NO_ORIENTATION = "no orientation: sform_code and qform_code are 0, so that left and right are unknown"
NAME_ORIENTATION = "set the sform of the file, or name the directions of its axes in layout.orientation of the card, e.g. LAS"
VOXEL_SIZE_RANGE_MM = 1e-2, 1e2
"""Plausible sides of a voxel of a person's image, with a margin of ten; others come from a wrong unit or a damaged header."""
MAX_SHEAR, MIN_TOLD_SHEAR = 0.2, 1e-3
"""Loss of volume by shear (1 - |det| / product of the sides): a larger one is no image geometry, a smaller one is not mentioned."""
MAX_DISAGREEMENT_VOXELS = 0.5
"""Distance of corners, in voxels, up to which sform and qform count as the same."""
MAX_SIZE_DIFFERENCE = 0.01
"""Relative difference of voxel sizes up to which sform and ``pixdim`` count as the same."""
_NIFTI1, _NIFTI2 = (b"n+1\0", b"ni1\0"), (b"n+2\0", b"ni2\0")
_PAIR_MAGIC = (b"ni1\0", b"ni2\0")
_MM_OF_UNIT = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}
"""``xyzt_units & 7``: unknown, meter, millimeter, micrometer."""
_UNIT_NAMES = {1: "meters", 3: "micrometers"}
_COLOR_CODES = (128, 2304)
"""Data type codes of RGB24 and RGBA32."""
_TIME_SERIES_INTENT = 2001


@dataclass(frozen=True)
class NiftiHeader:
    """A header as stored.

    Attributes:
        fields: nibabel's header, unchecked.
        is_pair: whether the voxels are in a second file.
        is_analyze: whether it is Analyze 7.5, which states no orientation.
    """

    fields: Any
    is_pair: bool
    is_analyze: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the sides (x, y, z, ...), without axes of one element behind the third.

        Raises:
            BadInput: a side that is not positive.
        """
        dim = [int(side) for side in self.fields["dim"]]
        sides = tuple(dim[1 : 1 + max(0, min(dim[0], 7))])
        if not sides or min(sides) < 1:
            raise BadInput("a damaged NIfTI header: a side of the image is not positive", remedy="get the file again")
        while len(sides) > 3 and sides[-1] == 1:
            sides = sides[:-1]
        return sides

    @property
    def stored_type(self) -> np.dtype[Any]:
        """Return the type of the stored values: integers, floats or complex numbers.

        Raises:
            UnsupportedInput: colors.
            BadInput: an unknown type.
        """
        code = int(self.fields["datatype"])
        if code in _COLOR_CODES:
            raise UnsupportedInput("unsupported", "a color image", remedy="give the gray-value image that it was made from")
        try:
            stored = np.dtype(self.fields.get_data_dtype())
        except Exception:  # nibabel's error quotes the header
            stored = np.dtype("V1")
        if stored.kind not in "uifc":
            raise BadInput("a NIfTI data type of no number", remedy="export it with integers or floats")
        return stored

    @property
    def offset(self) -> int:
        """Return the position of the first voxel in its file.

        Raises:
            BadInput: a position inside of the header.
        """
        stored = float(self.fields["vox_offset"])
        smallest = 0 if self.is_pair else self.fields.sizeof_hdr + 4
        is_of_single = self.is_pair and bytes(self.fields["magic"])[:3] in (b"n+1", b"n+2")
        if stored == 0 or is_of_single:  # not set, or that of the other form: the voxels follow the header
            return int(smallest)
        if not (math.isfinite(stored) and stored >= smallest):
            raise BadInput("a damaged NIfTI header: the voxels begin inside of it", remedy="get the file again")
        return int(stored)

    @property
    def scaling(self) -> tuple[float, float]:
        """Return slope and intercept; (1, 0) where the header states no scaling (slope 0 or not finite, as in nifti1.h)."""
        slope, intercept = float(self.fields["scl_slope"]), float(self.fields["scl_inter"])
        if slope == 0 or not math.isfinite(slope):
            return 1.0, 0.0
        if not math.isfinite(intercept):
            raise BadInput("a damaged NIfTI header: an intercept that is no number", remedy="export it again")
        return slope, intercept

    def not_image(self) -> str:
        """Return by which intent code the values are no image; "" if they may be one."""
        code = int(self.fields["intent_code"])
        if 2 <= code <= 24:
            return "statistics by its intent code"
        if code in (1002, 1003):
            return "a label map by its intent code"
        if code in (0, _TIME_SERIES_INTENT):
            return ""
        return "a derived map by its intent code" if code in (1001, 1011) else "vectors, matrices or a surface by its intent code"


@lru_cache(maxsize=64)
def _read_cached(path: Path, modified_ns: int, size: int) -> NiftiHeader:
    with gzip.open(path) if is_gzipped(path) else path.open("rb") as stream:
        head = stream.read(HEADER_BYTES)
    return parse_header(head)


def read_header(path: Path) -> NiftiHeader:
    """Read the header of a file, plain or gzipped.

    Raises:
        BadInput: no NIfTI or Analyze header, or a gzipped file that is damaged.
    """
    status = path.stat()
    try:
        header = _read_cached(path, status.st_mtime_ns, status.st_size)
        return header if header.is_analyze else replace(header, is_pair=_is_pair(path, header, status.st_size))
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise BadInput("a gzipped file that is damaged or cut short", where=path.name, remedy="get the file again") from None


def _is_pair(path: Path, header: NiftiHeader, size: int) -> bool:
    """Return whether the voxels are in a second file: where the magic says so and there is one, or where only a header is here.

    Some programs write the magic of the other form.
    """
    is_header_alone = size <= header.fields.sizeof_hdr + 4
    if is_gzipped(path) or header.is_pair == is_header_alone:
        return header.is_pair
    return data_file(path, replace(header, is_pair=True)).is_file()


def parse_header(head: bytes) -> NiftiHeader:
    """Parse the first bytes of a file.

    Raises:
        BadInput: too short, or neither NIfTI nor Analyze.
    """
    if len(head) >= 540 and head[4:8] in _NIFTI2:
        return NiftiHeader(nib.Nifti2Header(head[:540], check=False), head[4:8] in _PAIR_MAGIC, False)
    if len(head) >= 348 and head[344:348] in _NIFTI1:
        return NiftiHeader(nib.Nifti1Header(head[:348], check=False), head[344:348] in _PAIR_MAGIC, False)
    if is_analyze(head):
        return NiftiHeader(nib.Nifti1Header(head[:348], check=False), True, True)
    raise BadInput("a damaged NIfTI header", remedy="get the file again")


def is_nifti(head: bytes) -> bool:
    """Return whether these first bytes are those of a NIfTI file."""
    return head[344:348] in _NIFTI1 or head[4:8] in _NIFTI2


def is_analyze(head: bytes) -> bool:
    """Return whether these are the 348 bytes of an Analyze 7.5 header: its size, plausible sides, and a type with its bits."""
    if len(head) < 348 or is_nifti(head) or (len(head) > 348 and head[38:39] != b"r"):
        return False
    for order in "<>":
        size, rank = np.frombuffer(head[:4], f"{order}i4")[0], np.frombuffer(head[40:42], f"{order}i2")[0]
        code, bits = np.frombuffer(head[70:74], f"{order}i2")
        if size == 348 and 1 <= rank <= 7 and bits == {1: 1, 2: 8, 4: 16, 8: 32, 16: 32, 32: 64, 64: 64, 128: 24}.get(int(code)):
            return bool((np.frombuffer(head[42 : 42 + 2 * int(rank)], f"{order}i2") > 0).all())
    return False


def data_file(path: Path, header: NiftiHeader) -> Path:
    """Return the file that stores the voxels: the file itself, or the ``.img`` beside the header of a pair, perhaps gzipped.

    It is found by its stem, in upper or lower case; where there is none, its usual name is returned.
    """
    if not header.is_pair:
        return path
    stem = _pair_stem(path.name)
    names = {f"{stem}.img".lower(), f"{stem}.img.gz".lower()}
    found = [file for file in sorted(path.parent.iterdir()) if file.name.lower() in names and file != path]
    exact = [file for file in found if file.name.startswith(stem)]
    return (exact or found or [path.with_name(f"{stem}.img")])[0]


def _pair_stem(name: str) -> str:
    for suffix in (".hdr.gz", ".hdr"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


@dataclass(frozen=True)
class Geometry:
    """Position of an image.

    Attributes:
        affine: (4, 4) float64, index (x, y, z, 1) -> RAS+ mm.
        notes: corrections and choices that the user should know.
    """

    affine: NDArray[np.float64]
    notes: tuple[str, ...]


def has_orientation(header: NiftiHeader) -> bool:
    """Return whether the header states an orientation: the code of sform or qform is positive."""
    return int(header.fields["sform_code"]) > 0 or int(header.fields["qform_code"]) > 0


def geometry(header: NiftiHeader, orientation: str | None = None) -> Geometry:
    """Return the position that a header states: the sform if it is valid, else the qform, in millimeters.

    Args:
        orientation: anatomical directions of the axes, e.g. "LAS", for a header that states none; from the card.

    Raises:
        UnsupportedInput: no orientation, or one that is no geometry of an image.
    """
    unit = int(header.fields["xyzt_units"]) & 7
    if unit not in _MM_OF_UNIT:
        raise UnsupportedInput("geometry", f"an unknown unit of length (code {unit})", remedy="set xyzt_units")
    sform, qform = _sform(header.fields), _qform(header.fields)
    notes = [f"lengths in {_UNIT_NAMES[unit]}, converted to millimeters"] if unit in _UNIT_NAMES else []
    if sform is not None:
        affine = sform
        if qform is not None and _distance_voxels(sform, qform, header.shape) > MAX_DISAGREEMENT_VOXELS:
            notes.append("sform and qform disagree: the sform is used")
        elif qform is None and _has_other_sizes(sform, header.fields):
            notes.append("sform and voxel size (pixdim) disagree: the sform is used")
    elif qform is not None:
        affine = qform
        if int(header.fields["sform_code"]) > 0:
            notes.append("an sform without volume: the qform is used")
    elif not has_orientation(header):
        affine = _declared_affine(header, orientation)
        notes.append("no orientation in the header (sform_code and qform_code 0): that of the card is used")
    else:
        raise UnsupportedInput("geometry", _fault_of(header.fields), remedy="export it again with its geometry")
    affine = affine.copy()
    affine[:3] *= _MM_OF_UNIT[unit]
    return Geometry(affine, (*notes, *require_plausible(affine)))


def _sform(fields: Any) -> NDArray[np.float64] | None:
    """Return the sform; None if it has no code or no volume."""
    if int(fields["sform_code"]) <= 0:
        return None
    affine = np.eye(4)
    affine[:3] = [fields[name] for name in ("srow_x", "srow_y", "srow_z")]
    if not np.isfinite(affine).all():
        return None
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    return affine if sides.min() > 0 and abs(np.linalg.det(affine[:3, :3] / sides)) > 1e-3 else None


def _qform(fields: Any) -> NDArray[np.float64] | None:
    """Return the qform (nifti1.h, method 2); None if it has no code, or no voxel size or rotation."""
    sizes = np.array(fields["pixdim"][1:4], dtype=np.float64)
    if int(fields["qform_code"]) <= 0 or not (np.isfinite(sizes).all() and sizes.min() > 0):
        return None
    b, c, d = (float(fields[f"quatern_{name}"]) for name in "bcd")
    rest = 1 - (b * b + c * c + d * d)
    offset = [float(fields[f"qoffset_{axis}"]) for axis in "xyz"]
    if not (np.isfinite([b, c, d, *offset]).all() and rest > -1e-4):
        return None
    affine = np.eye(4)
    rotation = nib.quaternions.quat2mat([math.sqrt(rest) if rest > abs(fields.quaternion_threshold) else 0.0, b, c, d])
    handed = -1.0 if float(fields["pixdim"][0]) < 0 else 1.0  # 0 counts as 1
    affine[:3, :3] = rotation * (sizes * [1.0, 1.0, handed])
    affine[:3, 3] = offset
    return affine


def _has_other_sizes(sform: NDArray[np.float64], fields: Any) -> bool:
    """Return whether a header states voxel sizes that differ from those of its sform by more than a hundredth."""
    sizes = np.array(fields["pixdim"][1:4], dtype=np.float64)
    if not (np.isfinite(sizes).all() and sizes.min() > 0):
        return False
    return bool(np.abs(np.linalg.norm(sform[:3, :3], axis=0) / sizes - 1).max() > MAX_SIZE_DIFFERENCE)


def _fault_of(fields: Any) -> str:
    """Return why neither sform nor qform can be used, although one has a code."""
    if int(fields["qform_code"]) > 0 and not np.array(fields["pixdim"][1:4]).min() > 0:
        return "a voxel size (pixdim) of zero or less"
    return "an sform or qform that is no position: zeros, or no numbers"


def _distance_voxels(first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Return the largest distance of a corner under two affines, in sides of the smallest voxel."""
    corners = np.array([[x, y, z, 1] for x in (0, shape[0] - 1) for y in (0, shape[1] - 1) for z in (0, shape[2] - 1)])
    apart = np.linalg.norm((corners @ (first - second).T)[:, :3], axis=1).max()
    return float(apart / np.linalg.norm(first[:3, :3], axis=0).min())


def _declared_affine(header: NiftiHeader, orientation: str | None) -> NDArray[np.float64]:
    """Return a centered affine by the directions that the card names and the voxel sizes of the header.

    Raises:
        UnsupportedInput: the card names none, or the header has no voxel size.
    """
    if orientation is None:
        raise UnsupportedInput("geometry", NO_ORIENTATION, remedy=NAME_ORIENTATION)
    sizes = np.array(header.fields["pixdim"][1:4], dtype=np.float64)
    if not (np.isfinite(sizes).all() and sizes.min() > 0):
        raise UnsupportedInput("geometry", "a voxel size (pixdim) of zero or less", remedy="export it again with its geometry")
    affine = np.zeros((4, 4))
    for axis, code in enumerate(orientation):
        world = next(index for index, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        affine[world, axis] = sizes[axis] * (1 if code in "RAS" else -1)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(header.shape[:3]) - 1) / 2)
    affine[3, 3] = 1
    return affine


def require_plausible(affine: NDArray[np.float64]) -> list[str]:
    """Return a note about shear.

    Raises:
        UnsupportedInput: too much shear, or a voxel of implausible size.
    """
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    smallest, largest = VOXEL_SIZE_RANGE_MM
    if not smallest <= sides.min() <= sides.max() <= largest:
        shown = " x ".join(f"{side:.3g}" for side in sides)
        what = f"voxels of implausible size: {shown} mm"
        raise UnsupportedInput("geometry", what, remedy="fix its unit of length (xyzt_units) or voxel size")
    shear = 1 - abs(float(np.linalg.det(affine[:3, :3] / sides)))
    if shear > MAX_SHEAR:
        raise UnsupportedInput("geometry", "a sheared image: its axes are not at right angles", remedy="resample it")
    return ["axes that are not at right angles (shear): voxels are taken as they are"] if shear > MIN_TOLD_SHEAR else []
