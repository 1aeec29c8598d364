"""Series are split into volumes; slices that form no regular volume are rejected."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.ingestion.formats.dicom.frames import REPEAT_ATTRIBUTES, Frame
from components.ingestion.formats.dicom.series_splitting import affine_of, find_spacing_notice, split_series
from tests.helpers.dicom_files import AXIAL, CORONAL, OBLIQUE, SAGITTAL

ROTATED = (0.9848078, 0.1736482, 0.0, -0.1736482, 0.9848078, 0.0)
"""Axial, rotated by ten degrees in its plane."""
TILTED = (1.0, 0, 0, 0, 0.9848078, 0.1736482)
"""Axial, tilted by ten degrees."""


def frame(number: int, position: float, orientation: tuple[float, ...] = AXIAL, echo: float = 12.0, **repeats: object) -> Frame:
    normal = np.cross(orientation[:3], orientation[3:])
    return Frame(
        path=Path(f"{number:04d}"),
        index=0,
        number=number,
        position=tuple(5 + normal * 3.0 * position),
        orientation=orientation,
        pixel_mm=(1.0, 1.0),
        stated_step_mm=3.0,
        thickness_mm=3.0,
        shape=(8, 8),
        content="magnitude",
        echo_time=echo,
        repeats=tuple(repeats.get(name, "") for name in REPEAT_ATTRIBUTES),  # type: ignore[arg-type]
    )


def stack(count: int = 5, orientation: tuple[float, ...] = AXIAL, first: int = 1, **values: object) -> list[Frame]:
    return [frame(first + index, index, orientation, **values) for index in range(count)]  # type: ignore[arg-type]


@given(st.permutations(list(range(9))), st.sampled_from([AXIAL, SAGITTAL, CORONAL, OBLIQUE]))
def test_slices_in_any_order_form_one_volume_sorted_by_position(order: list[int], orientation: tuple[float, ...]) -> None:
    volumes, rejected = split_series(frame(number, index, orientation) for number, index in enumerate(order, start=1))
    assert len(volumes) == 1 and not rejected
    steps = np.diff([item.position for item in volumes[0]], axis=0)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 3.0)
    largest = steps[0][np.abs(steps[0]).argmax()]
    assert largest > 0  # superior, posterior or left
    np.testing.assert_allclose(np.linalg.norm(affine_of(volumes[0])[:3, :3], axis=0), [3.0, 1.0, 1.0])


@given(
    st.lists(st.sampled_from(REPEAT_ATTRIBUTES[1:7]), min_size=1, max_size=2, unique=True),
    st.randoms(use_true_random=False),
)
def test_repeats_are_split_by_the_attribute_that_distinguishes_them(names: list[str], random: object) -> None:
    frames = [
        frame(1, index, **dict(zip(names, map(str, values), strict=True)))
        for index in range(4)
        for values in product(range(2), repeat=len(names))
    ]
    random.shuffle(frames)  # type: ignore[attr-defined]
    frames = [replace(item, number=number) for number, item in enumerate(frames)]
    volumes, rejected = split_series(frames)
    assert len(volumes) == 2 ** len(names) and not rejected
    assert all(len(volume) == 4 and len({item.repeats for item in volume}) == 1 for volume in volumes)


def test_repeats_that_no_attribute_distinguishes_are_split_by_order() -> None:
    volumes, rejected = split_series([*stack(4, first=1), *stack(4, first=5), *stack(4, first=9)])
    assert [[item.number for item in volume] for volume in volumes] == [
        [1, 2, 3, 4],
        [5, 6, 7, 8],
        [9, 10, 11, 12],
    ] and not rejected


def test_echoes_and_orientations_are_separate_volumes_and_phases_are_none() -> None:
    phase = [replace(item, content="phase") for item in stack(first=20)]
    volumes, rejected = split_series(
        [*stack(), *stack(first=10, echo=80.0), *phase, *stack(3, SAGITTAL, first=30), *stack(3, CORONAL, first=40)]
    )
    assert sorted(len(volume) for volume in volumes) == [3, 3, 5, 5]
    assert [(group.kind, group.reason, len(group.frames)) for group in rejected] == [("not magnitude", "phase, not magnitude", 5)]


@settings(max_examples=50)
@given(st.integers(2, 12), st.floats(0.5, 8), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_positions_off_the_regular_grid_by_a_twentieth_of_a_step_form_a_volume(
    count: int, step: float, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    off = rng.uniform(-1, 1, (count, 3))
    off *= share * 0.024 * step / np.maximum(np.linalg.norm(off, axis=1, keepdims=True), 1e-9)  # the ends are off, too
    frames = [
        replace(frame(index, 0), position=tuple(np.array([5.0, 5.0, 5.0 + step * index]) + off[index])) for index in range(count)
    ]
    volumes, rejected = split_series(frames)
    assert [len(volume) for volume in volumes] == [count] and not rejected


def test_echo_times_and_pixel_sizes_that_differ_by_rounding_do_not_split_a_volume() -> None:
    frames = [
        replace(item, echo_time=9.9949 if place % 2 else 9.9951, pixel_mm=(0.93749, 0.93751) if place % 2 else (0.93751, 0.93749))
        for place, item in enumerate(stack(8))
    ]
    volumes, rejected = split_series(frames)
    assert [len(volume) for volume in volumes] == [8] and not rejected


@pytest.mark.parametrize("change", [{"echo_time": 20.0}, {"pixel_mm": (1.2, 1.2)}, {"shape": (16, 16)}])
@pytest.mark.parametrize("places", [range(1, 8, 2), (2, 5, 6), (3,)])
def test_slices_of_another_kind_within_one_stack_are_rejected_not_split(change: dict[str, object], places: Iterable[int]) -> None:
    frames = [replace(item, **change) if place in places else item for place, item in enumerate(stack(8))]  # type: ignore[arg-type]
    volumes, rejected = split_series(frames)
    assert not volumes and [group.reason for group in rejected] == [
        "slices of one stack that differ in matrix, pixel size or echo time"
    ]


@pytest.mark.parametrize(
    ("stated", "notice"),
    [
        (3.0, ""),
        (-3.0, ""),
        (None, ""),
        (3.1, ""),
        (2.5, "slices 3.00 mm apart by their positions, 2.50 mm by Spacing Between Slices: positions are used"),
        (
            1.5,
            "slices 3.00 mm apart by their positions, 1.50 mm by Spacing Between Slices, as if slices were missing between all of "
            "them: positions are used",
        ),
    ],
)
def test_a_stated_distance_that_contradicts_the_positions_is_told(stated: float | None, notice: str) -> None:
    assert find_spacing_notice([replace(item, stated_step_mm=stated) for item in stack(4)]) == notice


def test_an_attribute_that_differs_within_a_volume_does_not_split_it() -> None:
    volumes, rejected = split_series(
        [frame(index, index, acquisition=str(index % 2), trigger_time=str(index)) for index in range(6)]
    )
    assert [len(volume) for volume in volumes] == [6] and not rejected


@pytest.mark.parametrize(
    ("frames", "reason", "volumes"),
    [
        (stack(6)[:2] + stack(6)[3:], "slices missing: 1 of 4 gaps", 0),
        ([*stack(6), frame(9, 3)], "doubled slices: 7 images at 6 positions", 0),
        ([*stack(5), frame(9, 5, TILTED)], "slices turned against the others: 1 of 6", 0),
        ([*stack(2), frame(5, 2, TILTED), frame(6, 3), frame(7, 4)], "slices turned against the others", 0),
        ([*stack(5), frame(9, 5, ROTATED)], "slices turned against the others", 0),
        (
            [*stack(5, acquisition="1"), *stack(5, first=6, acquisition="2"), *stack(3, first=11, acquisition="3")],
            "an incomplete repeat: 3 of 5 slices",
            2,
        ),
        (
            [replace(item, position=(item.position[0] + 2.0 * item.number, *item.position[1:])) for item in stack(5)],
            "sheared by 34 degrees",
            0,
        ),
        (
            [replace(item, position=(item.position[0] + 2.0 * (item.number == 3), *item.position[1:])) for item in stack(5)],
            "slices out of line, not one behind the other",
            0,
        ),
        (
            [frame(number, place) for number, place in enumerate((0, 1, 2, 3.3, 4.6))],
            "slices at uneven distances: 3.00 to 3.90 mm",
            0,
        ),
        ([frame(number, place) for number, place in enumerate((0, 1, 2, 4, 5, 8))], "slices missing: 2 of 5 gaps", 0),
        ([replace(frame(1, 0), position=(0.0, 0.0, 0.0)), replace(frame(2, 0), position=(40.0, 0.0, 0.0))], "side by side", 0),
    ],
)
def test_frames_that_form_no_regular_volume_are_rejected_with_the_reason(frames: list[Frame], reason: str, volumes: int) -> None:
    found, rejected = split_series(frames)
    assert len(found) == volumes
    assert any(reason in group.reason for group in rejected), rejected
    assert sum(map(len, found)) + sum(len(group.frames) for group in rejected) == len(frames)  # no frame is dropped silently


def test_positions_may_be_rounded_by_a_hundredth_of_a_millimeter() -> None:
    rounded = [
        replace(item, position=tuple(round(coordinate * 1.0001, 2) for coordinate in item.position)) for item in stack(9, OBLIQUE)
    ]
    volumes, rejected = split_series(rounded)
    assert [len(volume) for volume in volumes] == [9] and not rejected


def _moved(frames: list[Frame], along_mm: float = 0.0, aside_mm: float = 0.0, first: int = 1, **values: object) -> list[Frame]:
    """Return frames at other places along their normal and along their rows, numbered from ``first``."""
    shift = frames[0].normal * along_mm + np.array(frames[0].orientation[:3]) * aside_mm
    places = [tuple(np.array(item.position) + shift) for item in frames]
    repeats = tuple(values.get(name, "") for name in REPEAT_ATTRIBUTES)
    return [
        replace(item, position=place, number=first + number, path=Path(f"{first + number:04d}"), repeats=repeats)
        for number, (item, place) in enumerate(zip(frames, places, strict=True))
    ]


PARALLEL: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "named stacks behind a gap": ({"stack_id": "1"}, {"along_mm": 40.0, "stack_id": "2"}),
    "named stacks, numbered anew": ({"stack_id": "1"}, {"along_mm": 40.0, "stack_id": "2", "first": 1001}),
    "named stacks behind a gap of one slice": ({"stack_id": "1"}, {"along_mm": 18.0, "stack_id": "2"}),
    "acquisitions behind a gap": ({"acquisition": "1"}, {"along_mm": 47.3, "acquisition": "2"}),
    "named stacks that overlap": ({"stack_id": "1"}, {"along_mm": 10.0, "stack_id": "2"}),
    "named stacks that overlap in their slices": ({"stack_id": "1"}, {"along_mm": 9.0, "stack_id": "2"}),
    "in two lines": ({}, {"aside_mm": 120.0}),
    "in two lines, interleaved": ({}, {"aside_mm": 120.0, "along_mm": 1.5}),
    "in two lines with a gap": ({}, {"aside_mm": -80.0, "along_mm": 200.0}),
}


@pytest.mark.parametrize("case", PARALLEL)
@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL, OBLIQUE])
@pytest.mark.parametrize("is_reversed", [False, True])
def test_parallel_stacks_of_a_series_are_volumes(case: str, orientation: tuple[float, ...], is_reversed: bool) -> None:
    first, second = PARALLEL[case]
    frames = [
        *_moved(stack(5, orientation), **{"first": 1, **first}),  # type: ignore[arg-type]
        *_moved(stack(4, orientation), **{"first": 6, **second}),  # type: ignore[arg-type]
    ]
    volumes, rejected = split_series(reversed(frames) if is_reversed else frames)
    assert sorted(len(volume) for volume in volumes) == [4, 5] and not rejected


def test_repeats_of_parallel_stacks_are_volumes_of_each() -> None:
    frames = []
    for time in (0, 1):
        for number, aside in enumerate((0.0, 150.0)):
            first = 1 + 10 * (2 * time + number)
            frames += _moved(stack(5, CORONAL), aside_mm=aside, first=first, temporal_position=str(time))
    volumes, rejected = split_series(frames)
    assert [len(volume) for volume in volumes] == [5] * 4 and not rejected


def test_an_incomplete_named_stack_is_refused_by_itself() -> None:
    stations = [_moved(stack(6), along_mm=100.0 * n, first=1 + 10 * n, stack_id=str(n)) for n in range(3)]
    volumes, (group,) = split_series([*stations[0], *stations[1][:2], *stations[1][3:], *stations[2]])
    assert [len(volume) for volume in volumes] == [6, 6]
    assert len(group.frames) == 5 and "slices missing: 1 of 4 gaps" in group.reason


def test_packages_of_one_stack_that_interleave_are_one_volume() -> None:
    volumes, rejected = split_series([frame(n, n, stack_id=str(n % 2)) for n in range(8)])
    assert [len(volume) for volume in volumes] == [8] and not rejected


@pytest.mark.parametrize("case", ["side by side", "in lines of their own", "one stack"])
def test_ten_thousand_slices_take_seconds(case: str) -> None:
    count = 10_000
    aside = np.array([0, 0, 0] if case == "one stack" else [10, 0, 0])
    along = np.array([0, 0, 0] if case == "side by side" else [0, 0, 3])
    frames = [replace(frame(n, 0), position=tuple(n * aside + n * along + 0.0)) for n in range(count)]
    start = process_time()
    volumes, rejected = split_series(frames)
    assert process_time() - start < 60  # minutes where each slice is compared with each in Python
    assert bool(volumes) == (case == "one stack") and sum(len(group.frames) for group in rejected) in (0, count)


def _sheared(step_mm: float, drift_mm: float) -> list[Frame]:
    """Return frames of a tilted gantry, of which short parts look straight."""
    return [replace(frame(n, 0), position=(5 + drift_mm * n, 5.0, step_mm * n)) for n in range(12)]


UNCERTAIN: dict[str, tuple[list[Frame], bool]] = {
    "a gap that nothing explains": ([*stack(5), *_moved(stack(5), along_mm=40.0, first=6)], True),
    "acquisitions, a number absent at the gap": (
        [*_moved(stack(5), acquisition="1"), *_moved(stack(5), along_mm=18.0, first=7, acquisition="2")],
        True,
    ),
    "acquisitions that interleave": ([frame(n, n, acquisition=str(n % 2)) for n in (0, 2, 3, 4, 5, 6, 7, 8)], False),
    "named stacks of two slices": (
        [*_moved(stack(2), stack_id="1"), *_moved(stack(4), along_mm=40.0, first=3, stack_id="2")],
        False,
    ),
    "sheared": (_sheared(10, 0.21), False),
    "sheared, thin slices": (_sheared(3, 0.1), False),
    "moved within the plane": ([*stack(5), *_moved(stack(5), along_mm=15.0, aside_mm=2.0, first=6)], False),
    "one slice absent": (stack(6)[:2] + stack(6)[3:], False),
    "two images side by side": ([*stack(1), *_moved(stack(1), aside_mm=40.0, first=2)], True),
}


@pytest.mark.parametrize("case", UNCERTAIN)
def test_what_may_be_a_lost_slice_is_refused_and_the_remedy_names_stacks_where_there_may_be_some(case: str) -> None:
    frames, names_stacks = UNCERTAIN[case]
    volumes, (group,) = split_series(frames)
    assert not volumes and set(group.frames) == set(frames)
    assert group.remedy.startswith("export the whole series again")
    assert ("export each as a series of its own" in group.remedy) == names_stacks
