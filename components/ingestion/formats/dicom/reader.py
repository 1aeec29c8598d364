"""DICOM MR images, classic, mosaic and enhanced (PS3.3 A.4, A.36), and segmentations (A.51)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.pixels import iter_pixels, pixel_array
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from components.errors import BadInput
from components.ingestion import acquisition_headers
from components.ingestion.annotations import rt_structures
from components.ingestion.annotations.rt_structures import STRUCTURES
from components.ingestion.formats.dicom.fast_elements import content, numbers, short, text
from components.ingestion.formats.dicom.series_splitting import LPS_TO_RAS, Frame, affine_of, frames_of, in_order, uneven
from components.ingestion.formats.gzipped import open_decompressed, read_decompressed
from components.ingestion.quarantine import Rejection, UnsupportedInput
from components.ingestion.volume import Acquisition

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABELS = frozenset({SEGMENTATION, STRUCTURES})
MR_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.4",  # MR Image Storage
        "1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR Image Storage
        "1.2.840.10008.5.1.4.1.1.4.4",  # Legacy Converted Enhanced MR Image Storage
    }
)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_MODALITIES = frozenset(
    [
        "CR",
        "CT",
        "DX",
        "ECG",
        "IO",
        "KO",
        "MG",
        "NM",
        "OT",
        "PR",
        "PT",
        "PX",
        "REG",
        "RF",
        "RTDOSE",
        "RTIMAGE",
        "RTPLAN",
        "RTSTRUCT",
        "SC",
        "SM",
        "SR",
        "US",
        "XA",
    ]
)
_CLASSIC = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SeriesInstanceUID",
    "SOPInstanceUID",
)
_META, _META_HEAD = 144, b"DICM\x02\x00\x00\x00UL\x04\x00"
_EXPLICIT, _FIRST_GROUP = b"\x02\x00\x10\x00UI\x14\x00" + ExplicitVRLittleEndian.encode() + b"\0", b"\x08\0"
"""Of the file meta information (PS3.10 7.1): where it goes on after its length, what stands before that, a transfer syntax, and
what the data set after it begins with."""
_AS_STORED = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
_LARGEST_FRAME, _PACKED_AT_BEST = 2**26, 4096
"""Pixels of a frame, and bytes out of one compressed byte, that are believed; more is a damaged header."""


def read_header(path: Path) -> Dataset:
    """Header of a file, plain or gzipped, pixels left out; bare data sets are read too.

    Raises:
        BadInput: a gzipped file that cannot be unpacked.
    """
    return pydicom.dcmread(open_decompressed(path), stop_before_pixels=True, force=True)


def read_slice(path: Path) -> Dataset:
    """The data set of a file with its pixels, as :func:`pydicom.dcmread` gives it.

    Of what most files are, explicit little endian after a preamble, only the transfer syntax is taken from the file meta
    information: the library makes a data set of its own of that, a quarter of the time. Where its length does not lead to
    group 0008, the library looks for the way.
    """
    file = read_decompressed(path)
    end = _META + int.from_bytes(file[140:_META], "little")
    plain = file[128:140] == _META_HEAD and file.find(_EXPLICIT, _META, end) > 0 and file[end : end + 2] == _FIRST_GROUP
    if not plain:
        return pydicom.dcmread(BytesIO(file), force=True)
    stream = BytesIO(file)
    stream.seek(end)
    dataset = read_dataset(stream, is_implicit_VR=False, is_little_endian=True)
    dataset.file_meta = _explicit_meta()
    return dataset


@cache
def _explicit_meta() -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta


def refusal(header: Dataset) -> Rejection | None:
    """Why a data set is not taken in, and the remedy; None where it is fine. Of its texts only published terms are quoted."""
    kind = str(header.get("SOPClassUID", "") or "")
    if kind == SEGMENTATION:
        return None
    if kind == STRUCTURES:
        return rt_structures.refusal(header)
    image_type = " ".join(str(part).upper().replace("_", " ") for part in header.get("ImageType") or ())
    if (
        kind.startswith(SECONDARY_CAPTURE)
        or str(header.get("BurnedInAnnotation", "")).upper() == "YES"
        or "SCREEN SAVE" in image_type
        or "SCREENSAVE" in image_type
    ):
        return Rejection(
            "burnt-in",
            "its pixels may show the patient's name (burnt-in annotation or secondary capture)",
            "leave it out, or give the image itself",
        )
    modality = str(header.get("Modality", "") or "")
    if modality != "MR":
        said = f"modality {modality}" if modality in _MODALITIES else "modality not given" if not modality else "another modality"
        return Rejection("not MR", f"{said}, not MR", "give MR images; leave other modalities out")
    if kind and kind not in MR_CLASSES:
        return Rejection("not MR", f"no MR image ({UID(kind).name if UID(kind).name != kind else 'unknown class'})", "leave it out")
    if int(header.get("SamplesPerPixel") or 1) != 1:
        return Rejection("unsupported", "a colour image", "give the image that it was made of")
    if "PerFrameFunctionalGroupsSequence" not in header:
        missing = [name for name in _CLASSIC if header.get(name) is None or header.get(name) == ""]
        if missing:
            return Rejection("geometry", f"without {', '.join(missing)}", "export the series again with its geometry")
        if int(header.get("NumberOfFrames") or 1) > 1:
            return Rejection("geometry", "several frames without their geometry", "export it as enhanced or as single-frame MR")
    return None


def frames_or_refusal(header: Dataset, path: Path) -> tuple[list[Frame], Rejection | None]:
    """The frames of a file that :func:`refusal` let through, or why its geometry cannot be used."""
    try:
        frames = frames_of(header, path)
        sound = all(
            len(frame.position) == 3
            and len(frame.orientation) == 6
            and len(frame.pixel_mm) == 2
            and min(frame.pixel_mm) > 0
            and min(frame.shape) > 0
            and np.isfinite([*frame.position, *frame.orientation]).all()
            and abs(float(np.linalg.norm(frame.normal)) - 1) < 0.01
            for frame in frames
        )
    except (KeyError, AttributeError, ValueError, TypeError, IndexError, OverflowError):
        sound, frames = False, []
    if not frames or not sound:
        return [], Rejection(
            "geometry", "position, orientation or pixel size missing or wrong", "export the series again with its geometry"
        )
    return frames, None


def broken(path: Path) -> Rejection | None:
    """Why the pixels of a file cannot be decoded, and the remedy; None where they can."""
    try:
        decoded(pydicom.dcmread(open_decompressed(path), force=True))
    except BadInput as error:
        return Rejection("unreadable", error.what, error.remedy)
    except Exception as error:
        return Rejection("unreadable", f"broken or unreadable pixels ({type(error).__name__})", "export or download it again")
    return None


def decoded(dataset: Dataset) -> NDArray[Any]:
    """Pixels ([frames,] rows, columns) as stored.

    Raises:
        BadInput: no pixels, or fewer than the header says.
        Exception: what the decoders raise.
    """
    pixels = content(dataset, "PixelData")
    if not pixels:
        raise BadInput("no pixel data", remedy="export or download it again")
    rows, columns, frames = short(dataset, "Rows") or 0, short(dataset, "Columns") or 0, int(dataset.get("NumberOfFrames") or 1)
    bits = rows * columns * frames * (short(dataset, "BitsAllocated") or 0)
    claimed = bits // 8
    if rows * columns > _LARGEST_FRAME or claimed > len(pixels) * _PACKED_AT_BEST:
        raise BadInput(f"a header that claims {frames} frames of {rows} x {columns}", remedy="export or download it again")
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if syntax is not None and not UID(syntax).is_compressed:
        if len(pixels) * 8 < bits:
            raise BadInput("fewer pixels than the header says", remedy="export or download it again")
        shape = (rows, columns) if frames == 1 else (frames, rows, columns)
        plain = _plain(dataset, pixels, shape) if syntax in _AS_STORED else None
        if plain is not None:
            return plain
    try:
        return np.asarray(pixel_array(dataset, raw=True, view_only=True))
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a panic in the RLE decoder, which is Rust, is no Exception and would end the process
        raise BadInput("pixels that do not decode", remedy="export or download it again") from None


def _plain(dataset: Dataset, pixels: bytes, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """Pixels that are stored as an array is: whole words of one sample each, no bit beside the value's own. Else None.

    What nearly every MR image is; the library's decoder, which allows for everything else, takes as long as reading the file.
    """
    bits, used = short(dataset, "BitsAllocated") or 0, short(dataset, "BitsStored") or 0
    whole = bits in (8, 16) and 1 <= used <= bits and short(dataset, "HighBit") == used - 1
    signed = short(dataset, "PixelRepresentation")
    if not whole or signed not in (0, 1) or short(dataset, "SamplesPerPixel") not in (None, 1) or not math.prod(shape):
        return None
    values = np.frombuffer(pixels, dtype=f"<{'i' if signed else 'u'}{bits // 8}", count=math.prod(shape))
    highest = (1 << used - bool(signed)) - 1
    if used < bits and (values.max() > highest or (signed and values.min() < -highest - 1)):
        return None
    return values.reshape(shape)


def stored_pixels(dataset: Dataset) -> bytes:
    """The pixel data of a dataset, decompressed, little endian, and no byte more.

    Raises:
        BadInput, Exception: see :func:`decoded`.
    """
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if syntax in _AS_STORED and "PixelData" in dataset:
        bits = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("NumberOfFrames") or 1) * int(dataset.BitsAllocated)
        if len(dataset.PixelData) * 8 < bits:
            raise BadInput("fewer pixels than the header says", remedy="export or download it again")
        return bytes(dataset.PixelData[: (bits + 7) // 8])
    values = decoded(dataset)
    if int(dataset.BitsAllocated) == 1:
        return np.packbits(values.ravel(), bitorder="little").tobytes()
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def is_mosaic(header: Dataset) -> bool:
    """A Siemens mosaic: many slices tiled in one image, told apart by its image type."""
    return "MOSAIC" in [str(part).upper() for part in header.get("ImageType") or ()]


def unpack_mosaic(path: Path) -> Any:
    """A mosaic as a NIfTI image. Its layout is in a private header that de-identification removes, so this comes first.

    Raises:
        BadInput: no such header, or pixels that do not fit it.
    """
    import nibabel as nib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "experimental"; the tests hold it to dcm2niix
        from nibabel.nicom.dicomwrappers import wrapper_from_file
    try:
        wrapper = wrapper_from_file(open_decompressed(path))
        voxels = np.asarray(wrapper.get_data())
        affine = LPS_TO_RAS @ wrapper.affine
    except BadInput:
        raise
    except Exception:  # a dozen kinds, some of which quote the header
        raise BadInput(
            "a mosaic whose pixels are missing or do not fit its private header",
            where=path.name,
            remedy="export it as single slices",
        ) from None
    return nib.Nifti1Image(voxels, affine)


def unpack_frames(path: Path, indices: Sequence[int]) -> Any:
    """Frames of an enhanced image, in the order given, as a NIfTI image."""
    import nibabel as nib

    header = read_header(path)
    frames = frames_of(header, path)
    scales = [_scale(header, index) for index in indices]
    planes = dict(zip(sorted(indices), iter_pixels(open_decompressed(path), indices=sorted(indices)), strict=True))
    if all(scale == (1.0, 0.0) for scale in scales):
        voxels = np.stack([planes[index] for index in indices])
    else:
        voxels = np.stack([_scaled(planes[index], *scale) for index, scale in zip(indices, scales, strict=True)], dtype=np.float32)
    affine = affine_of([frames[index] for index in indices])
    return nib.Nifti1Image(voxels.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]])


def _scale(header: Dataset, index: int = 0) -> tuple[float, float]:
    """Slope and intercept of a frame."""
    places = [header]
    if "PerFrameFunctionalGroupsSequence" in header:
        groups = (header.PerFrameFunctionalGroupsSequence[index], *header.get("SharedFunctionalGroupsSequence", ()))
        places = [item for group in groups for item in group.get("PixelValueTransformationSequence", ())] + places
    for place in places:
        if text(place, "RescaleSlope"):
            intercept = numbers(place, "RescaleIntercept")[0] if text(place, "RescaleIntercept") else 0.0
            return numbers(place, "RescaleSlope")[0], intercept
    return 1.0, 0.0


def _scaled(plane: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    return plane if (slope, intercept) == (1.0, 0.0) else plane.astype(np.float64) * slope + intercept


def read_series(paths: Sequence[Path], anatomy: str | None) -> tuple[NDArray[np.float32], NDArray[np.float64], Acquisition]:
    """Voxels (D, H, W), affine to RAS+ mm and acquisition of the classic images of one volume.

    Raises:
        BadInput: slices that make no regular volume, or without pixels.
    """
    found = {path: read_slice(path) for path in paths}
    ordered = in_order([frame for path, dataset in found.items() for frame in frames_of(dataset, path)])
    fault = uneven(ordered) or ("slices of unlike geometry" if len({frame.kind for frame in ordered}) > 1 else None)
    if fault:
        raise BadInput(f"no regular volume: {fault}", where=paths[0].parent.name, remedy="export the whole series again")
    voxels = np.empty((len(ordered), *ordered[0].shape), dtype=np.float32)
    for plane, frame in zip(voxels, ordered, strict=True):
        plane[:] = _scaled(decoded(found[frame.path]), *_scale(found[frame.path]))
    affine = affine_of(ordered)
    return voxels, affine, acquisition_headers.from_dicom(found[paths[0]], affine, anatomy)


def places(paths: Sequence[Path]) -> list[int]:
    """For each classic image of a volume, in the order given, its slice in :func:`read_series`'s voxels."""
    frames = [frame for path in paths for frame in frames_of(read_header(path), path)]
    numbers = {frame.path: number for number, frame in enumerate(in_order(frames))}
    return [numbers[path] for path in paths]


def sidecar_fields(header: Dataset, index: int = 0) -> dict[str, object]:
    """The fields of a frame's header that a sidecar of its NIfTI may have (BIDS names and units)."""
    places = [header]
    for group in (
        header.get("PerFrameFunctionalGroupsSequence", [Dataset()])[index],
        *header.get("SharedFunctionalGroupsSequence", ()),
    ):
        for name in ("MREchoSequence", "MRTimingAndRelatedParametersSequence", "MRModifierSequence", "FrameAnatomySequence"):
            places += group.get(name, ())

    def get(*names: str) -> Any:
        found = (place.get(name) for name in names for place in places)
        return next((value for value in found if value not in (None, "")), None)

    times = {
        "RepetitionTime": get("RepetitionTime"),
        "EchoTime": get("EchoTime", "EffectiveEchoTime"),
        "InversionTime": get("InversionTime", "InversionTimes"),
    }
    seconds = {name: float(value) / 1000 for name, value in times.items() if value and not hasattr(value, "__iter__")}
    numbers = {name: float(get(name)) for name in ("MagneticFieldStrength", "FlipAngle") if get(name)}
    words = {
        name: str(get(name)) for name in ("Modality", "Manufacturer", "BodyPartExamined", "PatientSex", "PatientAge") if get(name)
    }
    model = {"ManufacturersModelName": str(get("ManufacturerModelName"))} if get("ManufacturerModelName") else {}
    return {**seconds, **numbers, **words, **model}


def segment_names(segmentation: Dataset) -> dict[int, str]:
    """Segment number -> its label, lower case."""
    return {
        int(item.SegmentNumber): str(item.get("SegmentLabel", "")).strip().lower()
        for item in segmentation.get("SegmentSequence", ())
    }


def read_segmentation(
    path: Path, affine: NDArray[np.float64], shape: tuple[int, ...], label_map: dict[int, str]
) -> NDArray[np.uint8]:
    """Labels (D, H, W) on the grid of a volume, segments by their label in the card's label map.

    Args:
        affine: of the volume, index (d, h, w, 1) -> RAS+ mm.

    Raises:
        BadInput: a segment whose label the card does not know, or a grid that is not the volume's.
    """
    import highdicom as hd

    segmentation = hd.seg.segread(path)
    by_name = {name.lower(): value for value, name in label_map.items()}
    values = {}
    for number in segmentation.segment_numbers:
        name = segmentation.get_segment_description(number).segment_label.strip().lower()
        if name not in by_name:
            raise UnsupportedInput(
                "label", f"segment {number}'s label is not in the card's label map", where=path.name, remedy="add it there"
            )
        values[number] = by_name[name]
    grid = hd.VolumeGeometry(affine=LPS_TO_RAS @ affine, spatial_shape=shape, coordinate_system="PATIENT")
    try:
        found = segmentation.get_volume(combine_segments=True, dtype=np.uint8).match_geometry(grid)
    except (RuntimeError, ValueError) as error:
        raise UnsupportedInput(
            "label",
            f"the segmentation lies on another grid, or its segments overlap ({type(error).__name__})",
            where=path.name,
            remedy="give one on the image's grid",
        ) from None
    table = np.zeros(256, dtype=np.uint8)
    for number, value in values.items():
        table[number] = value
    return table[found.array]
