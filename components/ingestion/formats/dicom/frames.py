"""The 2-D images (frames) of DICOM files: geometry, kind of values, and what distinguishes repeats at one position."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from components.ingestion.formats.dicom import fast_elements, image_content
from components.ingestion.formats.dicom.fast_elements import Vector

REPEAT_ATTRIBUTES = (
    "image_type",
    "b_value",
    "temporal_position",
    "acquisition",
    "gradient",
    "inversion_time",
    "flip_angle",
    "repetition_time",
    "trigger_time",
    "stack_id",
    "echo_time",
)
"""Names of :attr:`Frame.repeats`."""


@dataclass(frozen=True)
class Frame:
    """One 2-D image of a file.

    Attributes:
        path: its file.
        index: its index among the frames of the file, from 0.
        number: instance number, or ``index`` in a multi-frame file.
        position: center of its first pixel, mm, LPS+.
        orientation: direction cosines of a row and of a column, 6 numbers, LPS+.
        pixel_mm: distance between rows, between columns.
        stated_step_mm: distance between slices as the header states it (Spacing Between Slices); None where it does not.
        thickness_mm: slice thickness; None where the header does not state it.
        shape: rows, columns.
        content: what its values are, see :mod:`components.ingestion.formats.dicom.image_content`.
        echo_time: ms.
        repeats: values of the attributes that distinguish repeats at one position, in a fixed order.
    """

    path: Path
    index: int
    number: int
    position: Vector
    orientation: Vector
    pixel_mm: Vector
    stated_step_mm: float | None
    thickness_mm: float | None
    shape: tuple[int, int]
    content: str
    echo_time: float
    repeats: tuple[Hashable, ...]

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector perpendicular to the image."""
        return np.cross(self.orientation[:3], self.orientation[3:])

    @property
    def order(self) -> tuple[int, int, Path]:
        """Sort key: instance number, then index, then path."""
        return self.number, self.index, self.path


def frames_of(header: Dataset, path: Path) -> list[Frame]:
    """Return the frames of a classic or an enhanced (multi-frame) MR image.

    Raises:
        KeyError, AttributeError, ValueError, TypeError: geometry missing or no numbers.
    """
    if not fast_elements.is_absent(header, "PerFrameFunctionalGroupsSequence"):
        shared = _first_item(header, keyword="SharedFunctionalGroupsSequence")
        per_frame = enumerate(header.PerFrameFunctionalGroupsSequence)
        return [_enhanced_frame(header, groups, shared, index, path) for index, groups in per_frame]
    return [_classic_frame(header, path)]


def _classic_frame(header: Dataset, path: Path) -> Frame:
    values = {
        "image_type": tuple(fast_elements.text(header, "ImageType").split("\\")),
        "b_value": fast_elements.converted(header, "DiffusionBValue"),
        "temporal_position": fast_elements.text(header, "TemporalPositionIdentifier"),
        "acquisition": fast_elements.text(header, "AcquisitionNumber"),
        "gradient": _optional_numbers(fast_elements.converted(header, "DiffusionGradientOrientation")),
        "inversion_time": fast_elements.text(header, "InversionTime"),
        "flip_angle": fast_elements.text(header, "FlipAngle"),
        "repetition_time": fast_elements.text(header, "RepetitionTime"),
        "trigger_time": fast_elements.text(header, "TriggerTime"),
        "stack_id": fast_elements.text(header, "StackID"),
        "echo_time": fast_elements.text(header, "EchoTime"),
    }
    return Frame(
        path=path,
        index=0,
        number=int(fast_elements.number(header, "InstanceNumber") or 0),
        position=fast_elements.numbers(header, "ImagePositionPatient"),
        orientation=fast_elements.numbers(header, "ImageOrientationPatient"),
        pixel_mm=fast_elements.numbers(header, "PixelSpacing"),
        stated_step_mm=fast_elements.number(header, "SpacingBetweenSlices") or None,
        thickness_mm=fast_elements.number(header, "SliceThickness") or None,
        shape=(fast_elements.short(header, "Rows") or 0, fast_elements.short(header, "Columns") or 0),
        content=content_of_header(header),
        echo_time=fast_elements.number(header, "EchoTime") or 0.0,
        repeats=tuple(_comparable(values[name]) for name in REPEAT_ATTRIBUTES),
    )


def content_of_header(header: Dataset) -> str:
    """Return what the values of a single-frame image are: its own elements, else those of its manufacturer, decide."""
    if unit := image_content.mapped_unit([header]):
        return f"a map in {unit}"
    image_type = fast_elements.text(header, "ImageType").split("\\")
    component = fast_elements.text(header, "ComplexImageComponent")
    if component.strip().upper() == "MIXED":
        return "one of several components that its header does not name"
    stated = image_content.content_of(image_type, component)
    if stated not in ("", image_content.MAGNITUDE):
        return stated
    return image_content.private_content(header) or stated or image_content.MAGNITUDE


def _content_of_frame(header: Dataset, groups: Sequence[Dataset], frame_type: Dataset) -> str:
    """Return what the values of a frame are: its own frame type decides, else the header.

    Args:
        groups: functional groups of the frame and shared ones.
        frame_type: item of its MR Image Frame Type Sequence.
    """
    if unit := image_content.mapped_unit(groups):
        return f"a map in {unit}"
    own = image_content.content_of(frame_type.get("FrameType") or (), frame_type.get("ComplexImageComponent"))
    if own:
        return own
    return content_of_header(header)


def _enhanced_frame(header: Dataset, groups: Dataset, shared: Dataset, index: int, path: Path) -> Frame:
    """Return one frame of an enhanced image from its own functional groups and the shared ones."""

    def group(keyword: str) -> Dataset:
        return _first_item(groups, shared, keyword=keyword)

    measures, content = group("PixelMeasuresSequence"), group("FrameContentSequence")
    diffusion, timing = group("MRDiffusionSequence"), group("MRTimingAndRelatedParametersSequence")
    frame_type = group("MRImageFrameTypeSequence")
    direction = _first_item(diffusion, keyword="DiffusionGradientDirectionSequence")
    values = {
        "image_type": tuple(str(term) for term in frame_type.get("FrameType") or ()),
        "b_value": diffusion.get("DiffusionBValue"),
        "temporal_position": content.get("TemporalPositionIndex"),
        "acquisition": content.get("FrameAcquisitionNumber"),
        "gradient": _optional_numbers(direction.get("DiffusionGradientOrientation")),
        "inversion_time": _optional_numbers(_as_sequence(group("MRModifierSequence").get("InversionTimes"))),
        "flip_angle": timing.get("FlipAngle"),
        "repetition_time": timing.get("RepetitionTime"),
        "trigger_time": group("CardiacSynchronizationSequence").get("NominalCardiacTriggerDelayTime"),
        "stack_id": content.get("StackID"),
        "echo_time": group("MREchoSequence").get("EffectiveEchoTime"),
    }
    return Frame(
        path=path,
        index=index,
        number=index,
        position=_numbers(group("PlanePositionSequence").ImagePositionPatient),
        orientation=_numbers(group("PlaneOrientationSequence").ImageOrientationPatient),
        pixel_mm=_numbers(measures.PixelSpacing),
        stated_step_mm=_number(measures.get("SpacingBetweenSlices")) or None,
        thickness_mm=_number(measures.get("SliceThickness")) or None,
        shape=(int(header.Rows), int(header.Columns)),
        content=_content_of_frame(header, (groups, shared), frame_type),
        echo_time=_number(group("MREchoSequence").get("EffectiveEchoTime")),
        repeats=tuple(_comparable(values[name]) for name in REPEAT_ATTRIBUTES),
    )


def _first_item(*groups: Dataset, keyword: str) -> Dataset:
    """Return the first item of a sequence in the first of the groups that has it; an empty data set where none has."""
    for group in groups:
        if sequence := group.get(keyword):
            return sequence[0]
    return Dataset()


def _numbers(value: Any) -> Vector:
    return tuple(float(number) for number in value)


def _number(value: Any, default: float = 0.0) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return default


def _optional_numbers(value: Any) -> Any:
    return None if value is None else _numbers(value)


def _as_sequence(value: Any) -> Any:
    return value if value is None or hasattr(value, "__iter__") else [value]


def _comparable(value: Any) -> Hashable:
    """Return a value that compares and sorts: tuples unchanged, the rest as text."""
    return value if isinstance(value, tuple) else "" if value is None else str(value)
