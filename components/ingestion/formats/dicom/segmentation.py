"""DICOM segmentations (PS3.3 A.51) and label map segmentations as label maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.ingestion.formats.orientation import LPS_TO_RAS
from components.ingestion.quarantine import UnsupportedInput

if TYPE_CHECKING:
    from highdicom.seg import Segmentation


def read_segmentation(
    path: Path, affine: NDArray[np.float64], shape: tuple[int, ...], label_map: dict[int, str]
) -> NDArray[np.uint8]:
    """Return labels (D, H, W) on the grid of a volume; segments are matched to the card's label map by their label.

    Args:
        affine: of the volume, index (d, h, w, 1) -> RAS+ mm.

    Raises:
        UnsupportedInput: a segment whose label the card does not declare, fractions other than 0 and 1, segments that overlap, or
            a grid that is not the volume's.
    """
    import highdicom as hd

    segmentation = hd.seg.segread(path)
    lookup = _match_segments(segmentation, label_map, path.name)
    _check_fractions(segmentation, path.name)
    grid = hd.VolumeGeometry(affine=LPS_TO_RAS @ affine, spatial_shape=shape, coordinate_system="PATIENT")
    try:
        volume = segmentation.get_volume(combine_segments=True, dtype=lookup.dtype)
    except RuntimeError as error:
        if "overlap" not in str(error):
            raise
        raise UnsupportedInput(
            "label",
            "segments overlap: a voxel belongs to two",
            where=path.name,
            remedy="export segments that exclude each other, or give one of them",
        ) from None
    except ValueError:
        raise UnsupportedInput(
            "label", "the frames of the segmentation form no regular volume", where=path.name, remedy=_ON_GRID
        ) from None
    try:
        segments = volume.match_geometry(grid)
    except (RuntimeError, ValueError):
        raise UnsupportedInput(
            "label", "the segmentation is on another grid than its image", where=path.name, remedy=_ON_GRID
        ) from None
    return np.asarray(lookup[segments.array], dtype=np.uint8)


_ON_GRID = "resample it to the image's grid"


def _match_segments(segmentation: Segmentation, label_map: dict[int, str], file_name: str) -> NDArray[np.uint16]:
    """Return a table: segment number -> label of the card; 0 for numbers without a segment.

    Raises:
        UnsupportedInput: a segment whose label is not in the label map.
    """
    value_of_name = {name.lower(): value for value, name in label_map.items()}
    lookup = np.zeros(max([0, *segmentation.segment_numbers]) + 1, dtype=np.uint16)
    for number in segmentation.segment_numbers:
        name = segmentation.get_segment_description(number).segment_label.strip().lower()
        if name in value_of_name:
            lookup[number] = value_of_name[name]
        elif number:  # segment 0 of a label map is its background
            raise UnsupportedInput(
                "label", f"segment {number}'s label is not in the card's label map", where=file_name, remedy="add it there"
            )
    return lookup


def _check_fractions(segmentation: Segmentation, file_name: str) -> None:
    """Require a fractional segmentation to contain only 0 and its largest value.

    Raises:
        UnsupportedInput: other fractions.
    """
    if str(segmentation.get("SegmentationType")) != "FRACTIONAL":
        return
    values = np.unique(segmentation.pixel_array)
    if not set(values.tolist()) <= {0, int(segmentation.MaximumFractionalValue)}:
        raise UnsupportedInput(
            "label",
            "a fractional segmentation with values between 0 and 1",
            where=file_name,
            remedy="export it as binary: a threshold is the reader's decision",
        )
