"""How a series is parted into volumes, and which slices make none."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.ingestion.formats.dicom.series_splitting import Frame, affine_of, split_series
from tests.helpers.dicom_files import AXIAL, CORONAL, OBLIQUE, SAGITTAL

NAMES = (
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
LEANING = (0.9848078, 0.1736482, 0.0, -0.1736482, 0.9848078, 0.0)
"""Axial, turned by ten degrees in its plane."""
TILTED = (1.0, 0, 0, 0, 0.9848078, 0.1736482)
"""Axial, tilted by ten degrees."""


def frame(number: int, place: float, orientation: tuple[float, ...] = AXIAL, echo: float = 12.0, **repeats: object) -> Frame:
    normal = np.cross(orientation[:3], orientation[3:])
    return Frame(
        path=Path(f"{number:04d}"),
        index=0,
        number=number,
        position=tuple(5 + normal * 3.0 * place),
        orientation=orientation,
        pixel_mm=(1.0, 1.0),
        thickness_mm=3.0,
        shape=(8, 8),
        component="M",
        echo_time=echo,
        repeats=tuple(repeats.get(name, "") for name in NAMES),  # type: ignore[arg-type]
    )


def stack(count: int = 5, orientation: tuple[float, ...] = AXIAL, first: int = 1, **values: object) -> list[Frame]:
    return [frame(first + place, place, orientation, **values) for place in range(count)]  # type: ignore[arg-type]


@given(st.permutations(list(range(9))), st.sampled_from([AXIAL, SAGITTAL, CORONAL, OBLIQUE]))
def test_slices_in_any_order_make_one_volume_in_order_of_place(order: list[int], orientation: tuple[float, ...]) -> None:
    volumes, refused = split_series(frame(number, place, orientation) for number, place in enumerate(order, start=1))
    assert len(volumes) == 1 and not refused
    steps = np.diff([one.position for one in volumes[0]], axis=0)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 3.0)
    largest = steps[0][np.abs(steps[0]).argmax()]
    assert largest > 0  # superior, posterior or left
    np.testing.assert_allclose(np.linalg.norm(affine_of(volumes[0])[:3, :3], axis=0), [3.0, 1.0, 1.0])


@given(
    st.lists(st.sampled_from(NAMES[1:7]), min_size=1, max_size=2, unique=True),
    st.randoms(use_true_random=False),
)
def test_repeats_are_told_apart_by_whatever_tells_them_apart(names: list[str], random: object) -> None:
    frames = [
        frame(1, place, **dict(zip(names, map(str, values), strict=True)))
        for place in range(4)
        for values in product(range(2), repeat=len(names))
    ]
    random.shuffle(frames)  # type: ignore[attr-defined]
    frames = [replace(one, number=number) for number, one in enumerate(frames)]
    volumes, refused = split_series(frames)
    assert len(volumes) == 2 ** len(names) and not refused
    assert all(len(volume) == 4 and len({one.repeats for one in volume}) == 1 for volume in volumes)


def test_repeats_that_nothing_tells_apart_go_by_their_order() -> None:
    volumes, refused = split_series([*stack(4, first=1), *stack(4, first=5), *stack(4, first=9)])
    assert [[one.number for one in volume] for volume in volumes] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]] and not refused


def test_echoes_planes_and_parts_of_the_signal_are_volumes_of_their_own() -> None:
    phase = [replace(one, component="P") for one in stack(first=20)]
    volumes, refused = split_series(
        [*stack(), *stack(first=10, echo=80.0), *phase, *stack(3, SAGITTAL, first=30), *stack(3, CORONAL, first=40)]
    )
    assert sorted(len(volume) for volume in volumes) == [3, 3, 5, 5, 5] and not refused


def test_an_attribute_that_differs_within_a_volume_does_not_part_it() -> None:
    volumes, refused = split_series(
        [frame(place, place, acquisition=str(place % 2), trigger_time=str(place)) for place in range(6)]
    )
    assert [len(volume) for volume in volumes] == [6] and not refused


@pytest.mark.parametrize(
    ("frames", "reason", "volumes"),
    [
        (stack(6)[:2] + stack(6)[3:], "slices missing: 1 of 4 gaps", 0),
        ([*stack(6), frame(9, 3)], "doubled slices: 7 images at 6 positions", 0),
        ([*stack(5), frame(9, 5, TILTED)], "slices turned against the others: 1 of 6", 0),
        ([*stack(2), frame(5, 2, TILTED), frame(6, 3), frame(7, 4)], "slices turned against the others", 0),
        ([*stack(5), frame(9, 5, LEANING)], "slices turned against the others", 0),
        (
            [*stack(5, acquisition="1"), *stack(5, first=6, acquisition="2"), *stack(3, first=11, acquisition="3")],
            "an incomplete repeat: 3 of 5 slices",
            2,
        ),
        ([replace(one, position=(one.position[0] + 2.0 * one.number, *one.position[1:])) for one in stack(5)], "out of line", 0),
        ([replace(frame(1, 0), position=(0.0, 0.0, 0.0)), replace(frame(2, 0), position=(40.0, 0.0, 0.0))], "side by side", 0),
    ],
)
def test_what_makes_no_regular_volume_is_refused_with_the_reason(frames: list[Frame], reason: str, volumes: int) -> None:
    found, refused = split_series(frames)
    assert len(found) == volumes
    assert any(reason in one.reason for one in refused), refused
    assert sum(map(len, found)) + sum(len(one.frames) for one in refused) == len(frames)  # nothing is dropped silently


def test_positions_may_be_rounded_by_a_hundredth_of_a_millimetre() -> None:
    rounded = [replace(one, position=tuple(round(part * 1.0001, 2) for part in one.position)) for one in stack(9, OBLIQUE)]
    volumes, refused = split_series(rounded)
    assert [len(volume) for volume in volumes] == [9] and not refused
