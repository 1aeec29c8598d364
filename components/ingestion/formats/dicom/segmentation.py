"""DICOM segmentations (PS3.3 A.51) as label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.ingestion.formats.orientation import LPS_TO_RAS
from components.ingestion.quarantine import UnsupportedInput


def read_segmentation(
    path: Path, affine: NDArray[np.float64], shape: tuple[int, ...], label_map: dict[int, str]
) -> NDArray[np.uint8]:
    """Return labels (D, H, W) on the grid of a volume; segments are matched to the card's label map by their label.

    Args:
        affine: of the volume, index (d, h, w, 1) -> RAS+ mm.

    Raises:
        UnsupportedInput: a segment whose label the card does not declare, or a grid that is not the volume's.
    """
    import highdicom as hd

    segmentation = hd.seg.segread(path)
    value_of_name = {name.lower(): value for value, name in label_map.items()}
    value_of_segment = {}
    for number in segmentation.segment_numbers:
        name = segmentation.get_segment_description(number).segment_label.strip().lower()
        if name not in value_of_name:
            raise UnsupportedInput(
                "label", f"segment {number}'s label is not in the card's label map", where=path.name, remedy="add it there"
            )
        value_of_segment[number] = value_of_name[name]
    grid = hd.VolumeGeometry(affine=LPS_TO_RAS @ affine, spatial_shape=shape, coordinate_system="PATIENT")
    try:
        segments = segmentation.get_volume(combine_segments=True, dtype=np.uint8).match_geometry(grid)
    except (RuntimeError, ValueError) as error:
        raise UnsupportedInput(
            "label",
            f"the segmentation is on another grid, or its segments overlap ({type(error).__name__})",
            where=path.name,
            remedy="give one on the image's grid",
        ) from None
    lookup = np.zeros(256, dtype=np.uint8)
    for number, value in value_of_segment.items():
        lookup[number] = value
    return lookup[segments.array]
