"""DICOM files that contain several slices: Siemens mosaics and enhanced images, converted to NIfTI images in memory."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels import iter_pixels
from pydicom.uid import ExplicitVRLittleEndian

from components.errors import BadInput
from components.ingestion.formats.dicom import fast_elements, image_content
from components.ingestion.formats.dicom.frames import Frame, content_of_header, frames_of
from components.ingestion.formats.dicom.padding import Padding, blank_padding, find_padding, fit_padding, has_fitting_padding
from components.ingestion.formats.dicom.pixels import (
    check_high_bit,
    decode_pixels,
    reduce_to_stored_bits,
    rescale,
    rescale_of,
    stored_pixels,
)
from components.ingestion.formats.dicom.reading import is_plain, read_header, read_object
from components.ingestion.formats.dicom.series_splitting import affine_of
from components.ingestion.formats.orientation import LPS_TO_RAS
from components.ingestion.quarantine import Rejection

FramePlace = tuple[Path, int]
"""File of a frame, and its index in that file, from 0."""


def says_mosaic(header: Dataset) -> bool:
    """Return whether the image type of a header names a Siemens mosaic: many slices tiled in one image."""
    return "MOSAIC" in fast_elements.text(header, "ImageType").upper().split("\\")


def is_mosaic(header: Dataset) -> bool:
    """Return whether an image is a Siemens mosaic, by its image type and its private header.

    Images that were taken apart (enhanced ones of Siemens XA, and exports of single slices) retain the word alone.
    """
    return "PerFrameFunctionalGroupsSequence" not in header and says_mosaic(header) and _has_mosaic_header(header)


def _has_mosaic_header(header: Dataset) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel calls it experimental; the tests compare it with dcm2niix
        from nibabel.nicom import csareader
    try:
        return bool(csareader.is_mosaic(csareader.get_csa_header(header)))
    except Exception:  # a damaged private header; several types
        return False


_EXPORT_SLICES = "export it as single slices"
NO_MOSAIC_HEADER = Rejection(
    "geometry", "a mosaic of slices without the private header that says how they are tiled", _EXPORT_SLICES
)


def find_mosaic_rejection(header: Dataset) -> Rejection | None:
    """Return why a mosaic is no image of magnitudes; None if it is one."""
    content = content_of_header(header)
    if content == image_content.MAGNITUDE:
        return None
    return Rejection("not magnitude", f"{content}, not magnitude", "give the magnitude images")


def unpack_mosaic(path: Path) -> tuple[Any, tuple[str, ...]]:
    """Return a mosaic as a NIfTI image, and what the user should know about its padding.

    Its layout is in a private header that de-identification removes, so this comes first.

    Raises:
        BadInput: no such header, or pixels that do not fit it.
    """
    import nibabel as nib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel calls it experimental; the tests compare it with dcm2niix
        from nibabel.nicom.dicomwrappers import MosaicWrapper, wrapper_from_data
    try:
        dataset = read_object(path)
        tiles = np.array(decode_pixels(dataset))
        notes = blank_padding([tiles], [find_padding(tiles, dataset)])  # a mosaic has no intercept: 0 is no signal
        dataset.PixelData = stored_pixels(dataset, tiles)
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        wrapper = wrapper_from_data(dataset)
        if not isinstance(wrapper, MosaicWrapper):
            raise BadInput("a mosaic without its private header", where=path.name, remedy=_EXPORT_SLICES)
        voxels = np.asarray(wrapper.get_data())
        affine = LPS_TO_RAS @ wrapper.affine
    except BadInput:
        raise
    except Exception:  # a dozen types, some of which quote the header
        raise BadInput(
            "a mosaic whose pixels are missing or do not fit its private header",
            where=path.name,
            remedy=_EXPORT_SLICES,
        ) from None
    return nib.Nifti1Image(voxels, affine), notes


def unpack_frames(places: Sequence[FramePlace]) -> tuple[Any, tuple[str, ...]]:
    """Return frames of an enhanced image, or of the parts of a concatenated one, in the order given, as a NIfTI image; and what the
    user should know about their padding.
    """
    import nibabel as nib

    decoded: dict[FramePlace, _DecodedFrame] = {}
    indices: dict[Path, list[int]] = defaultdict(list)
    for path, index in places:
        indices[path].append(index)
    for path, of_file in indices.items():
        decoded |= _decode_frames(path, of_file)
    frames = [decoded[place] for place in places]
    if all(frame.scale == (1.0, 0.0) for frame in frames):
        voxels = np.stack([frame.stored for frame in frames])
    else:
        voxels = np.stack([rescale(frame.stored, *frame.scale) for frame in frames], dtype=np.float32)
    notes = blank_padding(list(voxels), [frame.padding for frame in frames])
    affine = affine_of([frame.frame for frame in frames])
    return nib.Nifti1Image(voxels.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]]), notes


class _DecodedFrame(NamedTuple):
    """Geometry, stored values (rows, columns), slope and intercept, and padding of a frame."""

    frame: Frame
    stored: NDArray[Any]
    scale: tuple[float, float]
    padding: Padding


def _decode_frames(path: Path, indices: Sequence[int]) -> dict[FramePlace, _DecodedFrame]:
    """Decode frames of one file."""
    header = read_header(path)
    if not has_fitting_padding(header):
        header = read_object(path)
        fit_padding(header)
    check_high_bit(header)
    frames = frames_of(header, path)
    source = path if is_plain(path) else read_object(path)
    decoded: dict[FramePlace, _DecodedFrame] = {}
    for index, plane in zip(sorted(indices), iter_pixels(source, raw=True, indices=sorted(indices)), strict=True):
        stored = reduce_to_stored_bits(plane, header)
        decoded[path, index] = _DecodedFrame(frames[index], stored, rescale_of(header, index), find_padding(stored, header))
    return decoded
