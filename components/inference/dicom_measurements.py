"""Boxes of volumes as a DICOM Measurement Report (PS3.16 TID 1500): one volumetric region (TID 1411) for each box.

A box is the six faces of a cuboid, polygons in the patient's coordinates (PS3.3 C.18.9, SCOORD3D), with its longest edge in mm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.inference.prediction import FoundVolumeBox

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.sr.coding import Code

_FACES = ((0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5))
"""Corners of each face of a cuboid; the bits of a corner's number are its ends of the slice, row and column axis."""


def build_measurements(
    boxes: Sequence[FoundVolumeBox],
    affine_lps: NDArray[np.float64],
    series: Sequence[Dataset],
    finding_code: Callable[[str], Code],
    tracking_uid: Callable[[int], str],
    device: tuple[str, str],
) -> Any:
    """Return the content of a measurement report.

    Args:
        affine_lps: (4, 4), index (d, h, w, 1) of the boxes -> the patient's coordinates (LPS+), mm.
        series: images of the series that the boxes belong to.
        finding_code: name of a finding -> its code.
        tracking_uid: number of a box -> its tracking UID.
        device: UID and name of the software that observed.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    device_uid, name = device
    observer = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(uid=device_uid, name=name),
    )
    groups = [
        _build_group(number, box, affine_lps, series, finding_code(box.label), tracking_uid(number))
        for number, box in enumerate(boxes, start=1)
    ]
    return hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.cid100.MRIUnspecifiedBodyRegion,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )


def _build_group(
    number: int, box: FoundVolumeBox, affine_lps: NDArray[np.float64], series: Sequence[Dataset], finding: Code, uid: str
) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    corners_mm = box_corners(box) @ affine_lps[:3, :3].T + affine_lps[:3, 3]
    surface = hd.sr.VolumeSurface(
        graphic_type=hd.sr.GraphicTypeValues3D.POLYGON,
        graphic_data=[corners_mm[[*face, face[0]]] for face in _FACES],
        frame_of_reference_uid=series[0].FrameOfReferenceUID,
        source_series=hd.sr.SourceSeriesForSegmentation(series[0].SeriesInstanceUID),
    )
    longest = max(float(np.linalg.norm(corners_mm[axis] - corners_mm[0])) for axis in (1, 2, 4))
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=uid, identifier=f"{box.label} {number}"[:64]),
        referenced_volume_surface=surface,
        finding_type=finding,
        measurements=[hd.sr.Measurement(name=codes.SCT.Length, value=round(longest, 2), unit=codes.UCUM.Millimeter)],
    )


def box_corners(box: FoundVolumeBox) -> NDArray[np.float64]:
    """Return the corners of a box, (8, 3) in indices of slice, row and column: voxels end half an index from their centers."""
    ends = ((box.slice0, box.slice1), (box.row0, box.row1), (box.col0, box.col1))
    return np.array([[ends[axis][corner >> (2 - axis) & 1] - 0.5 for axis in range(3)] for corner in range(8)], np.float64)
