"""MetaImage (``.mha``, ``.mhd`` with a data file beside it), by SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from components.errors import BadInput
from components.ingestion.formats.dicom.series_splitting import LPS_TO_RAS
from components.ingestion.formats.gzipped import MAX_DEFLATE_RATIO

_HEADER = 1 << 16
_BYTES = {
    "CHAR": 1,
    "UCHAR": 1,
    "SHORT": 2,
    "USHORT": 2,
    "INT": 4,
    "UINT": 4,
    "LONG": 4,
    "ULONG": 4,
    "LONG_LONG": 8,
    "ULONG_LONG": 8,
    "FLOAT": 4,
    "DOUBLE": 8,
}
_AGAIN = "get the file again"


def _fields(path: Path) -> dict[str, str]:
    with path.open("rb") as stream:
        head = stream.read(_HEADER)
    fields: dict[str, str] = {}
    for line in head.split(b"\n"):
        name, equals, value = line.partition(b"=")
        if not equals:
            break
        fields[name.strip().decode("latin-1")] = value.strip().decode("latin-1")
        if name.strip() == b"ElementDataFile":
            break
    return fields


def data_file(path: Path) -> Path | None:
    """The file beside a header that holds its voxels; None where they follow the header, or the name leads elsewhere."""
    name = _fields(path).get("ElementDataFile", "")
    plain = name not in ("", "LOCAL", "LIST") and "%" not in name and Path(name).name == name
    return path.with_name(name) if plain else None


def shape_of(path: Path) -> tuple[int, ...]:
    """Sides of an image (x, y, z and perhaps more), from its header alone.

    Raises:
        BadInput: a damaged header.
    """
    try:
        return tuple(int(side) for side in _fields(path)["DimSize"].split())
    except (KeyError, ValueError):
        raise BadInput("a damaged MetaImage header", where=path.name, remedy=_AGAIN) from None


def load(path: Path) -> Any:
    """A MetaImage as a NIfTI image: voxels and geometry, nothing of the header's text.

    Raises:
        BadInput: a damaged header, fewer voxels than it says, or colours.
    """
    import nibabel as nib
    import SimpleITK

    fields = _fields(path)
    beside = data_file(path)
    if fields.get("ElementDataFile") != "LOCAL" and (beside is None or not beside.is_file()):
        raise BadInput("the data file of the MetaImage header is not beside it", where=path.name, remedy="give both files")
    try:
        sides = [int(side) for side in fields["DimSize"].split()]
        claimed = int(np.prod(sides, dtype=object)) * _BYTES[fields["ElementType"].removeprefix("MET_").removesuffix("_ARRAY")]
        there = (beside or path).stat().st_size * (MAX_DEFLATE_RATIO if fields.get("CompressedData", "").lower() == "true" else 1)
    except (KeyError, ValueError):
        raise BadInput("a damaged MetaImage header", where=path.name, remedy=_AGAIN) from None
    if len(sides) not in (3, 4) or min(sides) < 1:
        raise BadInput(f"MetaImage of {len(sides)} dimensions", where=path.name, remedy="give images of 3 or 4 dimensions")
    if claimed > there:
        raise BadInput("fewer voxels than the MetaImage header says", where=path.name, remedy=_AGAIN)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    try:
        image = reader.Execute()
        values = SimpleITK.GetArrayFromImage(image)
    except RuntimeError:
        raise BadInput("MetaImage cannot be read", where=path.name, remedy=_AGAIN) from None
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise BadInput("a MetaImage of colours or vectors", where=path.name, remedy="give an image of one value a voxel")
    count = image.GetDimension()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(count, count)[:3, :3] * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    return nib.Nifti1Image(values.transpose(), LPS_TO_RAS @ affine, dtype=values.dtype)
