"""DICOM MR series and segmentations (PS3.3 A.4, A.51), geometry by highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset

from components.errors import BadInput
from components.ingestion import headers
from components.ingestion.volume import Acquisition

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


def read_header(path: Path) -> Dataset:
    """Header of a file, pixels left out; bare data sets are read too."""
    return pydicom.dcmread(path, stop_before_pixels=True, force=True)


def refusal(dataset: Dataset) -> tuple[str, str] | None:
    """Why a data set is not taken in, and the remedy; None where it is fine."""
    if dataset.get("SOPClassUID") == SEGMENTATION:
        return None
    modality = dataset.get("Modality")
    if modality != "MR":
        return f"modality {modality or 'not given'}, not MR", "give MR images; leave other modalities out"
    missing = [name for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns",
                                 "SeriesInstanceUID", "SOPInstanceUID") if dataset.get(name) is None]  # fmt: skip
    if missing:
        return f"without {', '.join(missing)}", "export the series again with its geometry"
    if int(dataset.get("NumberOfFrames", 1) or 1) > 1:
        return "enhanced multi-frame MR is not read yet", "export it as single-frame MR"
    return None


def broken(path: Path) -> tuple[str, str] | None:
    """Why the pixels of a file cannot be decoded, and the remedy; None where they can."""
    try:
        _ = pydicom.dcmread(path, force=True).pixel_array
    except Exception as error:
        return f"broken or unreadable pixels ({type(error).__name__})", "export or download it again"
    return None


def is_mosaic(dataset: Dataset) -> bool:
    """A Siemens mosaic: many slices tiled in one image, told apart by its image type."""
    return "MOSAIC" in [str(part).upper() for part in dataset.get("ImageType", [])]


def unpack_mosaic(path: Path) -> Any:
    """A mosaic as a NIfTI image. Its layout is in a private header that de-identification removes, so this comes first."""
    import nibabel as nib
    from nibabel.nicom.dicomwrappers import wrapper_from_file

    wrapper = wrapper_from_file(path)
    return nib.Nifti1Image(np.asarray(wrapper.get_data()), _LPS_TO_RAS @ wrapper.affine)


def _volume(datasets: Sequence[Dataset]) -> hd.Volume:
    """The slices as one volume, sorted along their normal.

    Raises:
        BadInput: slices of unlike geometry, repeated or missing.
    """
    name = str(datasets[0].get("PatientID", ""))
    if len(datasets) == 1:
        only = datasets[0]
        array = np.asarray(pydicom.pixels.apply_rescale(only.pixel_array, only), dtype=np.float32)[None]
        return hd.Volume.from_attributes(
            array=array,
            image_position=only.ImagePositionPatient,
            image_orientation=only.ImageOrientationPatient,
            pixel_spacing=only.PixelSpacing,
            spacing_between_slices=float(only.get("SliceThickness", 0) or 1),
            coordinate_system="PATIENT",
        )
    try:
        volume = hd.get_volume_from_series(list(datasets))
    except (ValueError, RuntimeError) as error:
        raise BadInput(f"the slices make no regular volume: {error}", where=name, remedy="export the whole series again") from None
    return volume if _leads_up(volume.affine) else volume.flip_spatial(0)


def _leads_up(affine: NDArray[np.float64]) -> bool:
    """Slices lead to superior, posterior or left (each positive in LPS), whichever the normal is nearest to."""
    step = affine[:3, 0]
    return bool(step[np.abs(step).argmax()] > 0)


def read_series(paths: list[Path], anatomy: str | None) -> tuple[hd.Volume, NDArray[np.float64], Acquisition]:
    """Volume (array (D, H, W)), affine to RAS+ mm and acquisition of the slices of a series."""
    datasets = [pydicom.dcmread(path) for path in paths]
    volume = _volume(datasets)
    affine = _LPS_TO_RAS @ volume.affine
    return volume, affine, headers.from_dicom(datasets[0], affine, anatomy)


def read_segmentation(path: Path, volume: hd.Volume, label_map: dict[int, str]) -> NDArray[np.uint8]:
    """Labels (D, H, W) on the grid of a volume, segments by their label in the card's label map.

    Raises:
        BadInput: a segment whose label the card does not know.
    """
    segmentation = hd.seg.segread(path)
    by_name = {name.lower(): value for value, name in label_map.items()}
    values = {}
    for number in segmentation.segment_numbers:
        name = segmentation.get_segment_description(number).segment_label.lower()
        if name not in by_name:
            raise BadInput(f"segment {name!r} is not in the card's label map", where=path.name, remedy="add it to the card")
        values[number] = by_name[name]
    found = segmentation.get_volume(combine_segments=True, dtype=np.uint8).match_geometry(volume)
    table = np.zeros(256, dtype=np.uint8)
    for number, value in values.items():
        table[number] = value
    return table[found.array]
