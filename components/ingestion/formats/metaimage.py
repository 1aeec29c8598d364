"""MetaImage (``.mha``, ``.mhd`` with a data file beside it), read with SimpleITK."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from components.errors import BadInput
from components.ingestion.formats.gzipped import MAX_DEFLATE_RATIO
from components.ingestion.formats.image_files import ImageFacts, ImageFileFormat
from components.ingestion.formats.nifti_header import require_plausible
from components.ingestion.formats.orientation import LPS_TO_RAS
from components.ingestion.quarantine import UnsupportedInput

_MAGIC = re.compile(rb"\s*(?:ObjectType|Comment|NDims)\s*=")
_MAX_HEADER_BYTES = 1 << 16
_ELEMENT_BYTES = {
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
_GET_AGAIN = "get the file again"
_VECTORS, _ONE_VALUE = "a MetaImage of colors or vectors", "give an image of one value for each voxel"


class MetaImageFormat(ImageFileFormat):
    """MetaImage with local or external voxels."""

    name = "metaimage"

    @override
    def sniff(self, head: bytes, path: Path) -> bool:
        return _MAGIC.match(head) is not None

    @override
    def load(self, path: Path) -> Any:
        return load(path)

    def shape_of(self, path: Path) -> tuple[int, ...]:
        """Return the sides of an image (x, y, z and perhaps more), from its header alone."""
        try:
            return tuple(int(side) for side in _header_fields(path)["DimSize"].split())
        except (KeyError, ValueError):
            raise BadInput("a damaged MetaImage header", where=path.name, remedy=_GET_AGAIN) from None

    @override
    def facts_of(self, path: Path) -> ImageFacts:
        return ImageFacts(self.shape_of(path))

    @override
    def companions(self, path: Path) -> tuple[Path, ...]:
        """Return the data file that the header names, in whatever case its name is written."""
        data_file = _external_data_file(path)
        if data_file is None:
            return ()
        return tuple(file for file in path.parent.iterdir() if file.name.lower() == data_file.name.lower())

    @override
    def source_files(self, path: Path) -> tuple[Path, ...]:
        data_file = _external_data_file(path)
        return (path,) if data_file is None else (path, data_file)

    @override
    def count_voxels(self, path: Path, limit: int) -> int:
        if b"ElementDataFile = LOCAL" not in path.read_bytes()[:_MAX_HEADER_BYTES]:
            raise BadInput("a header that names another file", where="image", remedy="send one .mha with its voxels (LOCAL)")
        return super().count_voxels(path, limit)


FORMAT = MetaImageFormat()


def load(path: Path) -> Any:
    """Load a MetaImage as a NIfTI image: voxels and geometry, none of the header's text.

    Raises:
        BadInput: a damaged header, fewer voxels than it claims, or several values for each voxel.
    """
    import nibabel as nib

    fields = _header_fields(path)
    data_file = _external_data_file(path)
    _require_data_file(fields, path, data_file)
    _check_size(fields, path, data_file)
    image, values = _read_with_simpleitk(path)
    dimensions = image.GetDimension()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(dimensions, dimensions)[:3, :3] * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    require_plausible(affine)
    return nib.Nifti1Image(values.transpose(), LPS_TO_RAS @ affine, dtype=values.dtype)


def _require_data_file(fields: dict[str, str], path: Path, data_file: Path | None) -> None:
    """Require voxels behind the header, or in one file beside it.

    Raises:
        UnsupportedInput: a file for each slice.
        BadInput: no data file of this name.
    """
    name = fields.get("ElementDataFile", "")
    if name == "LOCAL":
        return
    if name == "LIST" or "%" in name:
        raise UnsupportedInput(
            "unsupported", "a MetaImage with a file for each slice", where=path.name, remedy="save it as one .mha file"
        )
    if not name:
        raise BadInput("a MetaImage header without ElementDataFile", where=path.name, remedy=_GET_AGAIN)
    if data_file is not None and data_file.is_file():
        return
    if data_file is not None and any(file.name.lower() == name.lower() for file in path.parent.iterdir()):
        what = "the data file's name differs in upper and lower case from the one that the MetaImage header names"
        raise BadInput(what, where=path.name, remedy="rename it as the header names it (ElementDataFile)")
    raise BadInput("the data file of the MetaImage header is not beside it", where=path.name, remedy="give both files")


def _check_size(fields: dict[str, str], path: Path, data_file: Path | None) -> None:
    """Reject a header that claims more voxels than the data file can contain, or an unsupported number of dimensions."""
    try:
        sides = [int(side) for side in fields["DimSize"].split()]
        element_type = fields["ElementType"].removeprefix("MET_").removesuffix("_ARRAY")
        claimed_bytes = int(np.prod(sides, dtype=object)) * _ELEMENT_BYTES[element_type]
    except (KeyError, ValueError):
        raise BadInput("a damaged MetaImage header", where=path.name, remedy=_GET_AGAIN) from None
    if not min(_spacing(fields)) > 0:
        raise BadInput("a voxel size of zero or less (ElementSpacing)", where=path.name, remedy="fix the header")
    ratio = MAX_DEFLATE_RATIO if fields.get("CompressedData", "").lower() == "true" else 1
    possible_bytes = (data_file or path).stat().st_size * ratio
    if fields.get("ElementNumberOfChannels", "1") != "1":
        raise UnsupportedInput("unsupported", _VECTORS, where=path.name, remedy=_ONE_VALUE)
    if len(sides) not in (3, 4) or min(sides) < 1:
        raise BadInput(f"MetaImage of {len(sides)} dimensions", where=path.name, remedy="give images of 3 or 4 dimensions")
    if claimed_bytes > possible_bytes:
        raise BadInput("fewer voxels than the MetaImage header claims", where=path.name, remedy=_GET_AGAIN)


def _spacing(fields: dict[str, str]) -> list[float]:
    """Return the voxel size of a header; 1 where it has none. ITK would silently take a negative one as positive."""
    try:
        return [float(size) for size in fields.get("ElementSpacing", fields.get("ElementSize", "1")).split()] or [1.0]
    except ValueError:
        return [0.0]


def _read_with_simpleitk(path: Path) -> tuple[Any, Any]:
    """Return the SimpleITK image and its array (slices, rows, columns)."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    try:
        image = reader.Execute()
        values = SimpleITK.GetArrayFromImage(image)
    except RuntimeError:
        raise BadInput("MetaImage cannot be read", where=path.name, remedy=_GET_AGAIN) from None
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise UnsupportedInput("unsupported", _VECTORS, where=path.name, remedy=_ONE_VALUE)
    return image, values


def _header_fields(path: Path) -> dict[str, str]:
    """Return the fields of a header up to ElementDataFile, which is the last."""
    with path.open("rb") as stream:
        head = stream.read(_MAX_HEADER_BYTES)
    fields: dict[str, str] = {}
    for line in head.split(b"\n"):
        name, equals, value = line.partition(b"=")
        if not equals:
            break
        fields[name.strip().decode("latin-1")] = value.strip().decode("latin-1")
        if name.strip() == b"ElementDataFile":
            break
    return fields


def _external_data_file(path: Path) -> Path | None:
    """Return the file beside a header that stores its voxels; None where they follow the header, or the name leads elsewhere."""
    name = _header_fields(path).get("ElementDataFile", "")
    is_plain = name not in ("", "LOCAL", "LIST") and "%" not in name and Path(name).name == name
    return path.with_name(name) if is_plain else None
