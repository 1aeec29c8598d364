"""DICOM files that contain several slices: Siemens mosaics and enhanced images, converted to NIfTI images in memory."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.pixels import iter_pixels

from components.errors import BadInput
from components.ingestion.formats.dicom.headers import read_header
from components.ingestion.formats.dicom.pixels import rescale, rescale_of
from components.ingestion.formats.dicom.series_splitting import affine_of, frames_of
from components.ingestion.formats.gzipped import open_decompressed
from components.ingestion.formats.orientation import LPS_TO_RAS


def is_mosaic(header: Dataset) -> bool:
    """Return whether an image is a Siemens mosaic (many slices tiled in one image), by its image type."""
    return "MOSAIC" in [str(term).upper() for term in header.get("ImageType") or ()]


def unpack_mosaic(path: Path) -> Any:
    """Return a mosaic as a NIfTI image. Its layout is in a private header that de-identification removes, so this comes first.

    Raises:
        BadInput: no such header, or pixels that do not fit it.
    """
    import nibabel as nib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel calls it experimental; the tests compare it with dcm2niix
        from nibabel.nicom.dicomwrappers import wrapper_from_file
    try:
        wrapper = wrapper_from_file(open_decompressed(path))
        voxels = np.asarray(wrapper.get_data())
        affine = LPS_TO_RAS @ wrapper.affine
    except BadInput:
        raise
    except Exception:  # a dozen types, some of which quote the header
        raise BadInput(
            "a mosaic whose pixels are missing or do not fit its private header",
            where=path.name,
            remedy="export it as single slices",
        ) from None
    return nib.Nifti1Image(voxels, affine)


def unpack_frames(path: Path, indices: Sequence[int]) -> Any:
    """Return frames of an enhanced image, in the order given, as a NIfTI image."""
    import nibabel as nib

    header = read_header(path)
    frames = frames_of(header, path)
    scales = [rescale_of(header, index) for index in indices]
    planes = dict(zip(sorted(indices), iter_pixels(open_decompressed(path), indices=sorted(indices)), strict=True))
    if all(scale == (1.0, 0.0) for scale in scales):
        voxels = np.stack([planes[index] for index in indices])
    else:
        voxels = np.stack([rescale(planes[index], *scale) for index, scale in zip(indices, scales, strict=True)], dtype=np.float32)
    affine = affine_of([frames[index] for index in indices])
    return nib.Nifti1Image(voxels.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]])
