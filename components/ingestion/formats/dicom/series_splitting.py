"""The 2-D images (frames) of DICOM files, and how they make volumes.

A series is an archive's unit, not a volume: it may hold echoes, repeats, diffusion directions and stacks of several orientations,
in files or frames of any order. Frames are first parted by what never differs within a volume (matrix, pixel size, component of the
signal, echo time), then by orientation; where positions still repeat, by the first attribute that tells the repeats apart, at last
by their order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from components.ingestion.formats.dicom import fast_elements
from components.ingestion.formats.dicom.fast_elements import Vector

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME_DIRECTION = 1e-3
"""Direction cosines that differ by less are the same: headers round them."""
SAME_PLACE_MM = 0.01
UNEVEN = 0.02
"""A step between slices may differ from the median by this share of it."""
_COMPONENTS = {"M": "M", "MAGNITUDE": "M", "P": "P", "PHASE": "P", "R": "R", "REAL": "R", "I": "I", "IMAGINARY": "I"}
_REPEATS = (
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
)


@dataclass(frozen=True)
class Frame:
    """One 2-D image of a file.

    Attributes:
        path: its file.
        index: its place among the frames of the file, from 0.
        number: instance number, or ``index`` in a multi-frame file.
        position: centre of its first pixel, mm, LPS+.
        orientation: direction cosines of a row and of a column, 6 numbers, LPS+.
        pixel_mm: distance between rows, between columns.
        thickness_mm: distance between slices as the header says, else thickness, else 1.
        shape: rows, columns.
        component: ``"M"``, ``"P"``, ``"R"`` or ``"I"``.
        echo_time: ms.
        repeats: values of what tells repeats at one position apart, by name.
    """

    path: Path
    index: int
    number: int
    position: Vector
    orientation: Vector
    pixel_mm: Vector
    thickness_mm: float
    shape: tuple[int, int]
    component: str
    echo_time: float
    repeats: tuple[Hashable, ...]

    @property
    def kind(self) -> tuple[Hashable, ...]:
        """What is the same in all frames of a volume."""
        return (self.shape, tuple(round(side, 3) for side in self.pixel_mm), self.component, round(self.echo_time, 2))

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector across the image."""
        return np.cross(self.orientation[:3], self.orientation[3:])


@dataclass(frozen=True)
class Refused:
    """Frames that make no volume, and why."""

    frames: tuple[Frame, ...]
    reason: str
    remedy: str


def _numbers(value: Any) -> Vector:
    return tuple(float(number) for number in value)


def _number(value: Any, otherwise: float = 0.0) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return otherwise


def _item(*places: Dataset, keyword: str) -> Dataset:
    """The first item of a functional group, in the frame's own groups or the shared ones."""
    for place in places:
        if sequence := place.get(keyword):
            return sequence[0]
    return Dataset()


def frames_of(header: Dataset, path: Path) -> list[Frame]:
    """The frames of a classic or an enhanced (multi-frame) MR image.

    Raises:
        KeyError, AttributeError, ValueError, TypeError: geometry missing or no numbers.
    """
    if "PerFrameFunctionalGroupsSequence" in header:
        shared = _item(header, keyword="SharedFunctionalGroupsSequence")
        return [_enhanced(header, own, shared, index, path) for index, own in enumerate(header.PerFrameFunctionalGroupsSequence)]
    image_type = tuple(fast_elements.text(header, "ImageType").split("\\"))
    component = fast_elements.text(header, "ComplexImageComponent") or (image_type[2] if len(image_type) > 2 else "M")
    values = {
        "image_type": image_type,
        "b_value": header.get("DiffusionBValue"),
        "temporal_position": fast_elements.text(header, "TemporalPositionIdentifier"),
        "acquisition": fast_elements.text(header, "AcquisitionNumber"),
        "gradient": _hashable(header.get("DiffusionGradientOrientation")),
        "inversion_time": fast_elements.text(header, "InversionTime"),
        "flip_angle": fast_elements.text(header, "FlipAngle"),
        "repetition_time": fast_elements.text(header, "RepetitionTime"),
        "trigger_time": fast_elements.text(header, "TriggerTime"),
        "stack_id": fast_elements.text(header, "StackID"),
    }
    thickness_mm = fast_elements.number(header, "SpacingBetweenSlices") or fast_elements.number(header, "SliceThickness") or 1.0
    return [
        Frame(
            path=path,
            index=0,
            number=int(fast_elements.number(header, "InstanceNumber") or 0),
            position=fast_elements.numbers(header, "ImagePositionPatient"),
            orientation=fast_elements.numbers(header, "ImageOrientationPatient"),
            pixel_mm=fast_elements.numbers(header, "PixelSpacing"),
            thickness_mm=thickness_mm,
            shape=(fast_elements.short(header, "Rows") or 0, fast_elements.short(header, "Columns") or 0),
            component=_COMPONENTS.get(component.upper(), "M"),
            echo_time=fast_elements.number(header, "EchoTime") or 0.0,
            repeats=tuple(_text(values[name]) for name in _REPEATS),
        )
    ]


def _hashable(value: Any) -> Any:
    return None if value is None else _numbers(value)


def _text(value: Any) -> Hashable:
    """A value that compares and sorts: numbers as numbers, the rest as text."""
    return value if isinstance(value, tuple) else "" if value is None else str(value)


def _enhanced(header: Dataset, own: Dataset, shared: Dataset, index: int, path: Path) -> Frame:
    def group(keyword: str) -> Dataset:
        return _item(own, shared, keyword=keyword)

    measures, content = group("PixelMeasuresSequence"), group("FrameContentSequence")
    diffusion, timing = group("MRDiffusionSequence"), group("MRTimingAndRelatedParametersSequence")
    frame_type = group("MRImageFrameTypeSequence")
    direction = _item(diffusion, keyword="DiffusionGradientDirectionSequence")
    component = frame_type.get("ComplexImageComponent") or header.get("ComplexImageComponent") or "M"
    values = {
        "image_type": tuple(str(part) for part in frame_type.get("FrameType") or ()),
        "b_value": diffusion.get("DiffusionBValue"),
        "temporal_position": content.get("TemporalPositionIndex"),
        "acquisition": content.get("FrameAcquisitionNumber"),
        "gradient": _hashable(direction.get("DiffusionGradientOrientation")),
        "inversion_time": _hashable(_several(group("MRModifierSequence").get("InversionTimes"))),
        "flip_angle": timing.get("FlipAngle"),
        "repetition_time": timing.get("RepetitionTime"),
        "trigger_time": group("CardiacSynchronizationSequence").get("NominalCardiacTriggerDelayTime"),
        "stack_id": content.get("StackID"),
    }
    return Frame(
        path=path,
        index=index,
        number=index,
        position=_numbers(group("PlanePositionSequence").ImagePositionPatient),
        orientation=_numbers(group("PlaneOrientationSequence").ImageOrientationPatient),
        pixel_mm=_numbers(measures.PixelSpacing),
        thickness_mm=_number(measures.get("SpacingBetweenSlices")) or _number(measures.get("SliceThickness")) or 1.0,
        shape=(int(header.Rows), int(header.Columns)),
        component=_COMPONENTS.get(str(component).upper(), "M"),
        echo_time=_number(group("MREchoSequence").get("EffectiveEchoTime")),
        repeats=tuple(_text(values[name]) for name in _REPEATS),
    )


def _several(value: Any) -> Any:
    return value if value is None or hasattr(value, "__iter__") else [value]


def split(frames: Iterable[Frame]) -> tuple[list[tuple[Frame, ...]], list[Refused]]:
    """The volumes of a series, each in slice order, in a stable order; and the frames that make none."""
    volumes: list[tuple[Frame, ...]] = []
    refused: list[Refused] = []
    for part in _groups(frames, lambda frame: frame.kind):
        stacks = _by_orientation(part)
        turned = [stack for stack in stacks if len(stack) == 1 and _leans(stack[0], stacks)]
        if turned:
            refused.append(Refused(tuple(part), f"slices turned against the others: {len(turned)} of {len(part)}", _AGAIN))
            continue
        for stack in stacks:
            for one in _without_repeats(stack, refused):
                ordered = in_order(one)
                fault = uneven(ordered)
                if fault:
                    refused.append(Refused(ordered, fault, _AGAIN))
                else:
                    volumes.append(ordered)
    return volumes, refused


_AGAIN = "export the whole series again"


def _groups(frames: Iterable[Frame], key: Callable[[Frame], Hashable]) -> list[list[Frame]]:
    """Frames of equal key, in the order of their first numbers."""
    found: dict[Hashable, list[Frame]] = defaultdict(list)
    for frame in sorted(frames, key=lambda frame: (frame.number, frame.index, frame.path)):
        found[key(frame)].append(frame)
    return list(found.values())


def _by_orientation(frames: Sequence[Frame]) -> list[list[Frame]]:
    stacks: list[list[Frame]] = []
    for frame in frames:
        same = (stack for stack in stacks if np.allclose(stack[0].orientation, frame.orientation, rtol=0, atol=SAME_DIRECTION))
        home = next(same, None)
        if home is None:
            stacks.append([frame])
        else:
            home.append(frame)
    return stacks


def _leans(frame: Frame, stacks: list[list[Frame]]) -> bool:
    """Whether a lone frame lies at less than 45 degrees to a stack: a slice of it that is turned, not a view of its own."""
    return any(len(stack) > 1 and abs(float(frame.normal @ stack[0].normal)) > 0.7071 for stack in stacks)


def _places(frames: Sequence[Frame]) -> list[int]:
    """For each frame of one orientation the number of its position."""
    positions = np.array([frame.position for frame in frames])
    along = positions @ frames[0].normal
    numbers = [0] * len(frames)
    known: list[tuple[float, NDArray[np.float64]]] = []
    for index in np.argsort(along, kind="stable"):
        number = len(known)
        while number and along[index] - known[number - 1][0] < SAME_PLACE_MM:
            number -= 1
            if np.abs(known[number][1] - positions[index]).max() < SAME_PLACE_MM:
                break
        else:
            number = len(known)
            known.append((float(along[index]), positions[index]))
        numbers[index] = number
    return numbers


def _without_repeats(stack: list[Frame], refused: list[Refused]) -> list[list[Frame]]:
    """Part a stack until no position repeats in a volume; what remains doubled or incomplete goes to ``refused``."""
    places = _places(stack)
    count = len(set(places))
    if count == len(stack):
        return [stack]
    for name in range(len(_REPEATS)):
        groups = _groups(stack, lambda frame, name=name: frame.repeats[name])  # type: ignore[misc]
        whole = [group for group in groups if len(set(_places(group))) == count]
        if len(groups) > 1 and 2 * len(whole) > len(groups):
            for group in groups:
                if group not in whole:
                    refused.append(Refused(tuple(group), f"an incomplete repeat: {len(group)} of {count} slices", _AGAIN))
            return [one for group in whole for one in _without_repeats(group, refused)]
    layers: list[list[Frame]] = []
    depth: dict[Hashable, int] = defaultdict(int)
    for frame, place in sorted(zip(stack, places, strict=True), key=lambda pair: (pair[0].number, pair[0].index, pair[0].path)):
        if depth[place] == len(layers):
            layers.append([])
        layers[depth[place]].append(frame)
        depth[place] += 1
    whole = [layer for layer in layers if len(layer) == count]
    if len(whole) < len(layers) and (len(whole) == 1 or len(layers) - len(whole) > 1):
        refused.append(Refused(tuple(stack), f"doubled slices: {len(stack)} images at {count} positions", "leave one of each in"))
        return []
    for layer in layers[len(whole) :]:
        refused.append(Refused(tuple(layer), f"an incomplete repeat: {len(layer)} of {count} slices", _AGAIN))
    return whole


def in_order(frames: Sequence[Frame]) -> tuple[Frame, ...]:
    """Frames along their normal, so that they lead to superior, posterior or left, whichever the normal is nearest to."""
    normal = frames[0].normal
    along = normal if normal[np.abs(normal).argmax()] > 0 else -normal
    return tuple(sorted(frames, key=lambda frame: float(along @ np.array(frame.position))))


def uneven(frames: Sequence[Frame]) -> str | None:
    """What is wrong with the steps between frames in order; None where they are even."""
    if len(frames) < 2:
        return None
    normal = frames[0].normal
    steps = np.diff(np.array([frame.position for frame in frames]), axis=0)
    sizes = np.abs(steps @ normal)
    usual = float(np.median(sizes))
    tolerance = max(UNEVEN * usual, SAME_PLACE_MM)
    if usual < SAME_PLACE_MM or float(np.abs(steps - np.outer(steps @ normal, normal)).max()) > tolerance:
        return "slices side by side or out of line, not one behind the other"
    if float(np.abs(sizes - usual).max()) <= tolerance:
        return None
    wide = int((sizes > usual + tolerance).sum())
    return f"slices missing: {wide} of {len(sizes)} gaps wider than {usual:.2f} mm" if wide else "slices doubled or too close"


def affine_of(frames: Sequence[Frame]) -> NDArray[np.float64]:
    """(4, 4): index (slice, row, column, 1) of frames in order -> RAS+ mm."""
    first, last = frames[0], frames[-1]
    affine = np.eye(4)
    if len(frames) > 1:
        affine[:3, 0] = (np.array(last.position) - np.array(first.position)) / (len(frames) - 1)
    else:
        normal = first.normal
        affine[:3, 0] = normal * first.thickness_mm * (1 if normal[np.abs(normal).argmax()] > 0 else -1)
    affine[:3, 1] = np.array(first.orientation[3:]) * first.pixel_mm[0]
    affine[:3, 2] = np.array(first.orientation[:3]) * first.pixel_mm[1]
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine
