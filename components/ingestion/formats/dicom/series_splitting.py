"""The rules by which the 2-D images (frames) of DICOM files form volumes.

A series is the unit of an archive, not a volume: it may contain echoes, repeats, diffusion directions and several stacks, turned
or parallel, in files or frames of any order. Frames of magnitudes are first grouped by what never differs within a volume (matrix,
pixel size and echo time, within the rounding of headers), then by orientation; where positions still repeat, by the first attribute
that distinguishes the repeats, at last by their order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from components.ingestion.formats.dicom import image_content
from components.ingestion.formats.dicom.frames import REPEAT_ATTRIBUTES, Frame
from components.ingestion.formats.orientation import LPS_TO_RAS
from components.ingestion.quarantine import Kind

DIRECTION_TOLERANCE = 1e-3
"""Direction cosines that differ by less count as equal: headers round them."""
POSITION_TOLERANCE_MM = 0.01
SPACING_TOLERANCE = 0.02
"""Fraction of the median by which a step between slices may differ from it."""
JITTER_TOLERANCE = 0.05
"""Fraction of the mean step by which a slice may be off its place in a regular stack: headers round positions to 0.1 mm."""
STATED_TOLERANCE = 0.05
"""Fraction of Spacing Between Slices by which the distance of the positions may differ without a notice."""
PIXEL_TOLERANCE, ECHO_TOLERANCE_MS = 1e-3, 0.05
"""Pixel sizes (as a fraction) and echo times that differ by less from the next one count as equal: headers round them."""
_MIN_STACK = 3
"""Slices from which on a part of a series counts as a stack: two have no regular distance."""
_LINE_TOLERANCE_MM = 5.0
"""Slices that are further apart than this in their own plane lie in different lines; less is a sheared stack, or motion."""
_EXPORT_AGAIN = "export the whole series again"
_EXPORT_STACKS = f"{_EXPORT_AGAIN}; if it has several stacks, export each as a series of its own"
_SIDE_BY_SIDE = "slices side by side, not one behind the other"


@dataclass(frozen=True)
class RejectedFrames:
    """Frames that form no volume, with reason, remedy and kind of the reason."""

    frames: tuple[Frame, ...]
    reason: str
    remedy: str
    kind: Kind = "geometry"


def split_series(frames: Iterable[Frame]) -> tuple[list[tuple[Frame, ...]], list[RejectedFrames]]:
    """Return the volumes of a series, each in slice order, in a stable order; and the frames that form none."""
    volumes: list[tuple[Frame, ...]] = []
    rejected: list[RejectedFrames] = []
    for group in group_by_kind(_without_mixed_stacks(_select_magnitudes(frames, rejected), rejected)):
        stacks = _group_by_orientation(group)
        turned = [stack for stack in stacks if len(stack) == 1 and _is_turned(stack[0], stacks)]
        if turned:
            reason = f"slices turned against the others: {len(turned)} of {len(group)}"
            rejected.append(RejectedFrames(tuple(group), reason, _EXPORT_AGAIN))
            continue
        for repeat in (
            one for stack in stacks for parallel in _split_parallel(stack) for one in _split_repeats(parallel, rejected)
        ):
            volume = sort_frames(repeat)
            fault = find_spacing_fault(volume)
            if fault:
                is_several = fault == _SIDE_BY_SIDE or _has_stacks_behind_gaps(volume)
                rejected.append(RejectedFrames(volume, fault, _EXPORT_STACKS if is_several else _EXPORT_AGAIN))
            else:
                volumes.append(volume)
    return volumes, rejected


def has_stack(frames: Sequence[Frame]) -> bool:
    """Return whether most steps between the positions of frames of one orientation are equal, from :data:`_MIN_STACK` positions on.

    Slices may be missing; single slices of several visits have no common step.
    """
    return any(len(group) >= _MIN_STACK and _is_mostly_even(group) for group in _group_by_orientation(frames))


def _is_mostly_even(frames: Sequence[Frame]) -> bool:
    along = np.sort(np.array([frame.position for frame in frames]) @ frames[0].normal)
    sizes = np.diff(along)
    sizes = sizes[sizes > POSITION_TOLERANCE_MM]
    tolerance = max(SPACING_TOLERANCE * float(np.median(sizes)), POSITION_TOLERANCE_MM) if sizes.size else 0.0
    return len(sizes) >= _MIN_STACK - 1 and float(np.mean(np.abs(sizes - np.median(sizes)) <= tolerance)) > 0.5


def _select_magnitudes(frames: Iterable[Frame], rejected: list[RejectedFrames]) -> list[Frame]:
    """Return the frames of magnitudes; phases, parts of complex values and maps go to ``rejected``."""
    selected: list[Frame] = []
    for group in _group_frames(frames, lambda frame: frame.content):
        content = group[0].content
        if content == image_content.MAGNITUDE:
            selected += group
        else:
            reason = f"{content}, not magnitude"
            rejected.append(RejectedFrames(tuple(group), reason, "give the magnitude images", "not magnitude"))
    return selected


def _without_mixed_stacks(frames: list[Frame], rejected: list[RejectedFrames]) -> list[Frame]:
    """Return frames without stacks in which slices of several kinds alternate: each kind alone would be a stack with gaps.

    Such a stack is one volume whose slices differ in matrix, pixel size or echo time, or several that lack slices.
    """
    remaining: list[Frame] = []
    for stack in _group_by_orientation(frames):
        kinds = group_by_kind(stack)
        ordered = sort_frames(stack)
        places = {(frame.path, frame.index): place for place, frame in enumerate(ordered)}
        places_of_kinds = [[places[frame.path, frame.index] for frame in kind] for kind in kinds]
        extents = sorted((min(kind), max(kind)) for kind in places_of_kinds)
        alternate = any(later[0] < earlier[1] for earlier, later in pairwise(extents))
        is_one_stack = len(set(_position_indices(stack))) == len(stack) and find_spacing_fault(ordered) is None
        if len(kinds) > 1 and alternate and is_one_stack:
            reason = "slices of one stack that differ in matrix, pixel size or echo time"
            rejected.append(RejectedFrames(ordered, reason, _EXPORT_AGAIN))
        else:
            remaining += stack
    return remaining


def _group_frames(frames: Iterable[Frame], key: Callable[[Frame], Hashable]) -> list[list[Frame]]:
    """Group frames by key, in the order of their first numbers."""
    groups: dict[Hashable, list[Frame]] = defaultdict(list)
    for frame in sorted(frames, key=lambda frame: frame.order):
        groups[key(frame)].append(frame)
    return list(groups.values())


def group_by_kind(frames: Iterable[Frame]) -> list[list[Frame]]:
    """Group frames by what never differs within a volume: matrix, content, pixel size and echo time, within their tolerances."""
    frames = list(frames)
    rows = _cluster([frame.pixel_mm[0] for frame in frames], PIXEL_TOLERANCE, relative=True)
    columns = _cluster([frame.pixel_mm[1] for frame in frames], PIXEL_TOLERANCE, relative=True)
    echoes = _cluster([frame.echo_time for frame in frames], ECHO_TOLERANCE_MS)
    return _group_frames(
        frames,
        lambda frame: (frame.shape, frame.content, rows[frame.pixel_mm[0]], columns[frame.pixel_mm[1]], echoes[frame.echo_time]),
    )


def _cluster(values: Iterable[float], tolerance: float, relative: bool = False) -> dict[float, int]:
    """Return for each value the index of its cluster: values that differ by less than the tolerance from the next are together."""
    clusters: dict[float, int] = {}
    index, previous = 0, None
    for value in sorted(set(values)):
        if previous is not None and value - previous > tolerance * (abs(previous) if relative else 1.0):
            index += 1
        clusters[value] = index
        previous = value
    return clusters


def _group_by_orientation(frames: Sequence[Frame]) -> list[list[Frame]]:
    stacks: list[list[Frame]] = []
    for frame in frames:
        for stack in stacks:
            pairs = zip(stack[0].orientation, frame.orientation, strict=True)
            if all(abs(one - other) <= DIRECTION_TOLERANCE for one, other in pairs):
                stack.append(frame)
                break
        else:
            stacks.append([frame])
    return stacks


def _is_turned(frame: Frame, stacks: list[list[Frame]]) -> bool:
    """Return whether a lone frame is at less than 45 degrees to a stack: a turned slice of that stack, not a separate view."""
    return any(len(stack) > 1 and abs(float(frame.normal @ stack[0].normal)) > 0.7071 for stack in stacks)


def _position_indices(frames: Sequence[Frame]) -> list[int]:
    """Return for each frame of one orientation the index of its position."""
    positions = np.array([frame.position for frame in frames])
    along = positions @ frames[0].normal
    indices = [0] * len(frames)
    distinct, distinct_along = np.empty((3, len(frames))), np.empty_like(along)
    first, count = 0, 0  # of the positions at the height of a frame, and of all
    for frame_index in np.argsort(along, kind="stable"):
        while first < count and along[frame_index] - distinct_along[first] >= POSITION_TOLERANCE_MM:
            first += 1
        is_equal = np.abs(distinct[:, first:count] - positions[frame_index][:, None]).max(0) < POSITION_TOLERANCE_MM
        if is_equal.any():
            indices[frame_index] = first + int(np.flatnonzero(is_equal)[-1])
            continue
        indices[frame_index] = count
        distinct[:, count], distinct_along[count] = positions[frame_index], along[frame_index]
        count += 1
    return indices


def _split_parallel(frames: list[Frame]) -> list[list[Frame]]:
    """Split frames of one orientation that are no regular stack into parallel stacks, if it is certain that no slice is missing.

    Stacks in different lines (the stations of a coronal body scan, both breasts in an axial one) are certain, and so are those that
    Stack ID (0020,9056) names, whatever is between them: one that is incomplete is refused by itself. A gap between stacks behind
    one another may also be what a lost slice left: they are split by Acquisition Number if the instance numbers run on across it.
    """
    by_id = _group_by_repeat(frames, "stack_id")
    if _is_regular(frames) and not _overlap_in_part(by_id, frames):
        return [frames]
    by_line = _group_by_line(frames)
    if len(by_line) > 1 and all(map(_is_stack, by_line)):
        return by_line
    if len(by_id) > 1 and all(len(set(_position_indices(stack))) >= _MIN_STACK for stack in by_id) and any(map(_is_stack, by_id)):
        return by_id
    acquisitions = _group_by_repeat(frames, "acquisition")
    if len(acquisitions) > 1 and _are_apart(acquisitions) and _numbers_run_on(frames) and all(map(_is_stack, acquisitions)):
        return acquisitions
    return [frames]


def _group_by_repeat(frames: Sequence[Frame], name: str) -> list[list[Frame]]:
    """Group frames by one of :data:`REPEAT_ATTRIBUTES`."""
    attribute = REPEAT_ATTRIBUTES.index(name)
    return _group_frames(frames, lambda frame: frame.repeats[attribute])


def _overlap_in_part(groups: Sequence[Sequence[Frame]], frames: Sequence[Frame]) -> bool:
    """Return whether groups of frames share positions, of which none has all: no repeats, and no parts that interleave."""
    index_of = {(frame.path, frame.index): place for frame, place in zip(frames, _position_indices(frames), strict=True)}
    places = [{index_of[frame.path, frame.index] for frame in group} for group in groups]
    count = len(set(index_of.values()))
    return sum(map(len, places)) > count and all(len(found) < count for found in places)


def _is_stack(frames: Sequence[Frame]) -> bool:
    """Return whether frames, repeats included, lie at regular positions, at least :data:`_MIN_STACK`."""
    return len(set(_position_indices(frames))) >= _MIN_STACK and _is_regular(frames)


def _is_regular(frames: Sequence[Frame]) -> bool:
    """Return whether the positions of frames of one orientation, each counted once, are even."""
    at_position = dict(zip(_position_indices(frames), frames, strict=True))
    return find_spacing_fault(sort_frames(list(at_position.values()))) is None


def _group_by_line(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Group frames of one orientation by the lines, parallel to their normal, that their positions lie on."""
    normal, positions = frames[0].normal, np.array([frame.position for frame in frames])
    aside = positions - np.outer(positions @ normal, normal)
    places, lines = np.empty((3, len(frames))), list[list[Frame]]()
    for frame, place in zip(frames, aside, strict=True):
        is_near = ((places[:, : len(lines)] - place[:, None]) ** 2).sum(0) <= _LINE_TOLERANCE_MM**2
        if is_near.any():
            lines[int(is_near.argmax())].append(frame)
        else:
            places[:, len(lines)] = place
            lines.append([frame])
    return lines


def _are_apart(groups: Sequence[Sequence[Frame]]) -> bool:
    """Return whether groups of frames of one orientation lie behind one another, without overlap."""
    normal = groups[0][0].normal
    places = [[float(normal @ np.array(frame.position)) for frame in group] for group in groups]
    extents = sorted((min(along), max(along)) for along in places)
    return all(later[0] > earlier[1] for earlier, later in pairwise(extents))


def _numbers_run_on(frames: Sequence[Frame]) -> bool:
    """Return whether no number between the lowest and the highest instance number is absent."""
    numbers = {frame.number for frame in frames}
    return max(numbers) - min(numbers) + 1 == len(numbers) == len(frames)


def _has_stacks_behind_gaps(volume: Sequence[Frame]) -> bool:
    """Return whether sorted frames may be several stacks: wide gaps between parts of at least :data:`_MIN_STACK` slices."""
    along = np.array([frame.position for frame in volume]) @ volume[0].normal
    sizes = np.abs(np.diff(along))
    ends = np.flatnonzero(sizes > 1.5 * np.median(sizes)) + 1
    parts = np.diff([0, *ends, len(volume)])
    return bool(len(parts) > 1 and parts.min() >= _MIN_STACK)


def _split_repeats(stack: list[Frame], rejected: list[RejectedFrames]) -> list[list[Frame]]:
    """Split a stack until no position repeats in a volume; frames that are still doubled or incomplete go to ``rejected``."""
    count = len(set(_position_indices(stack)))
    if count == len(stack):
        return [stack]
    for attribute in range(len(REPEAT_ATTRIBUTES)):
        groups = _group_frames(stack, lambda frame, attribute=attribute: frame.repeats[attribute])  # type: ignore[misc]
        complete = [group for group in groups if len(set(_position_indices(group))) == count]
        if len(groups) > 1 and 2 * len(complete) > len(groups):
            rejected += [_incomplete_repeat(group, count) for group in groups if group not in complete]
            return [volume for group in complete for volume in _split_repeats(group, rejected)]
    return _split_by_order(stack, count, rejected)


def _split_by_order(stack: list[Frame], count: int, rejected: list[RejectedFrames]) -> list[list[Frame]]:
    """Split repeats that no attribute distinguishes: the first frame of each position, the second of each, and so on."""
    layers: list[list[Frame]] = []
    depth: dict[Hashable, int] = defaultdict(int)
    for frame, position in sorted(zip(stack, _position_indices(stack), strict=True), key=lambda pair: pair[0].order):
        if depth[position] == len(layers):
            layers.append([])
        layers[depth[position]].append(frame)
        depth[position] += 1
    complete = [layer for layer in layers if len(layer) == count]
    if len(complete) < len(layers) and (len(complete) == 1 or len(layers) - len(complete) > 1):
        reason = f"doubled slices: {len(stack)} images at {count} positions"
        rejected.append(RejectedFrames(tuple(stack), reason, "keep one image of each position"))
        return []
    rejected += [_incomplete_repeat(layer, count) for layer in layers[len(complete) :]]
    return complete


def _incomplete_repeat(frames: list[Frame], count: int) -> RejectedFrames:
    return RejectedFrames(tuple(frames), f"an incomplete repeat: {len(frames)} of {count} slices", _EXPORT_AGAIN)


def sort_frames(frames: Sequence[Frame]) -> tuple[Frame, ...]:
    """Sort frames along their normal towards superior, posterior or left, whichever the normal is nearest to."""
    normal = frames[0].normal
    along = normal if normal[np.abs(normal).argmax()] > 0 else -normal
    return tuple(sorted(frames, key=lambda frame: float(along @ np.array(frame.position))))


def find_spacing_fault(frames: Sequence[Frame]) -> str | None:
    """Return the fault in the steps between sorted frames; None where they are even."""
    if len(frames) < 2:
        return None
    normal, positions = frames[0].normal, np.array([frame.position for frame in frames])
    along = positions @ normal
    sizes = np.abs(np.diff(along))
    median = float(np.median(sizes))
    tolerance = max(SPACING_TOLERANCE * median, POSITION_TOLERANCE_MM)
    if median < POSITION_TOLERANCE_MM:
        return _SIDE_BY_SIDE
    aside = positions - np.outer(along, normal)
    drift = float(np.linalg.norm(aside[-1] - aside[0])) / (len(frames) - 1)
    if drift > tolerance and drift * (len(frames) - 1) > 2 * JITTER_TOLERANCE * median:
        degrees = float(np.degrees(np.arctan2(drift, median)))
        return f"slices out of line with their normal: a stack sheared by {degrees:.0f} degrees (a tilted gantry)"
    if _deviation(aside) > max(tolerance, JITTER_TOLERANCE * median):
        return "slices out of line, not one behind the other"
    if float(np.abs(sizes - median).max()) <= tolerance or _deviation(along[:, None]) <= JITTER_TOLERANCE * median:
        return None
    return _describe_gaps(sizes, median)


def _deviation(places: NDArray[np.float64]) -> float:
    """Return the largest distance of places (N, any) from the regular grid between the first and the last."""
    grid = np.linspace(places[0], places[-1], len(places))
    return float(np.linalg.norm(places - grid, axis=1).max())


def _describe_gaps(sizes: NDArray[np.float64], median: float) -> str:
    """Describe uneven steps: gaps where slices are missing (multiples of the usual step), doubled slices, or another spacing."""
    multiples = sizes / median
    is_multiple = np.abs(multiples - np.rint(multiples)) <= JITTER_TOLERANCE * np.maximum(multiples, 1)
    gaps = int((multiples > 1.5).sum())
    if multiples.min() < JITTER_TOLERANCE:
        return "slices doubled or too close"
    if is_multiple.all() and gaps:
        return f"slices missing: {gaps} of {len(sizes)} gaps wider than {median:.2f} mm"
    return f"slices at uneven distances: {sizes.min():.2f} to {sizes.max():.2f} mm"


def find_spacing_notice(frames: Sequence[Frame]) -> str:
    """Return how the distance between the slices of a volume contradicts the header's; "" where it does not."""
    stated = abs(frames[0].stated_step_mm or 0.0)
    if len(frames) < 2 or not stated:
        return ""
    step = float(np.linalg.norm(np.array(frames[-1].position) - np.array(frames[0].position))) / (len(frames) - 1)
    if abs(step - stated) <= max(STATED_TOLERANCE * stated, POSITION_TOLERANCE_MM):
        return ""
    multiple = step / stated
    is_multiple = round(multiple) > 1 and abs(multiple - round(multiple)) < STATED_TOLERANCE
    hint = ", as if slices were missing between all of them" if is_multiple else ""
    return f"slices {step:.2f} mm apart by their positions, {stated:.2f} mm by Spacing Between Slices{hint}: positions are used"


def affine_of(frames: Sequence[Frame]) -> NDArray[np.float64]:
    """Return (4, 4): index (slice, row, column, 1) of sorted frames -> RAS+ mm."""
    first, last = frames[0], frames[-1]
    affine = np.eye(4)
    if len(frames) > 1:
        affine[:3, 0] = (np.array(last.position) - np.array(first.position)) / (len(frames) - 1)
    else:
        normal = first.normal
        thickness_mm = abs(first.stated_step_mm or first.thickness_mm or 1.0)
        affine[:3, 0] = normal * thickness_mm * (1 if normal[np.abs(normal).argmax()] > 0 else -1)
    affine[:3, 1] = np.array(first.orientation[3:]) * first.pixel_mm[0]
    affine[:3, 2] = np.array(first.orientation[:3]) * first.pixel_mm[1]
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine
