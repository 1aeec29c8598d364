"""The images of a question: read from what the user names, and checked to be images by their values."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.errors import BadInput
from components.ingestion.volume import Volume

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadImage:
    """A volume that was read.

    Attributes:
        volume: voxels and header.
        file_affine: (4, 4) of its file, if that is NIfTI.
        dicom_files: its files, if it is a DICOM series of a study.
    """

    volume: Volume
    file_affine: NDArray[np.float64] | None = None
    dicom_files: tuple[Path, ...] = ()


def read_image(source: str | Path | Volume) -> ReadImage:
    """Read one volume: a file, the folder of a DICOM series, or a volume in memory.

    Raises:
        BadInput: it cannot be read, has no signal, or is a mask or label map by its values.
    """
    from components.ingestion.formats.sniff import detect_format
    from components.ingestion.volume_reader import read_scan

    if isinstance(source, Volume):
        _check_array(source, "the volume")
        return ReadImage(source)
    path = Path(source)
    volume = read_scan(path)
    _check_image(volume, path.name, is_dicom=path.is_dir() or detect_format(path) == "dicom")
    return ReadImage(volume, _file_affine(path))


def read_images(sources: Sequence[str | Path | Volume]) -> Iterator[ReadImage]:
    """Yield the images of a study; warn of series that are left out.

    Raises:
        BadInput: as :func:`read_image`, or images of several visits.
    """
    from components.ingestion.study_reader import read_study

    for source in sources:
        if isinstance(source, Volume):
            _check_array(source, "a volume of the study")
            yield ReadImage(source)
            continue
        found, left_out = read_study([Path(source)])
        for reason in left_out:
            logger.warning("a series of %s is left out: %s", Path(source).name, reason)
        for one in found:
            _check_image(one.volume, one.path.name, is_dicom=bool(one.files))
            yield ReadImage(one.volume, _file_affine(one.path), one.files)


def _check_image(volume: Volume, name: str, is_dicom: bool) -> None:
    """Check that a volume of a file is an image by its values; warn where that is uncertain.

    Args:
        is_dicom: whether it is a magnitude by its header. So is the image of k-space.

    Raises:
        BadInput: a constant, or a mask or label map.
    """
    from components.ingestion.formats.voxels import require_image

    _warn(name, require_image(volume.voxels, name, is_dicom or volume.kspace is not None))


def _check_array(volume: Volume, name: str) -> None:
    """Check that a volume in memory has a signal; warn if it does not look like an image.

    The program that hands it over may know more than its values show.

    Raises:
        BadInput: a constant.
    """
    from components.ingestion.formats.voxels import require_gray_values, require_image

    notes = require_image(volume.voxels, name, is_magnitude=True)
    try:
        notes += require_gray_values(volume.voxels)
    except BadInput as error:
        notes += (error.what,)
    _warn(name, notes)


def _warn(name: str, notes: Sequence[str]) -> None:
    for note in notes:
        logger.warning("%s: %s", name, note)


def _file_affine(path: Path) -> NDArray[np.float64] | None:
    """Return the affine of a NIfTI file; None for another format or a folder."""
    from components.ingestion.formats.nifti import load
    from components.ingestion.formats.sniff import detect_format

    return np.asarray(load(path).affine) if path.is_file() and detect_format(path) == "nifti" else None
