"""Boxes of overlapping tiles."""

from components.inference.prediction import FoundBox
from components.tasks.detection import drop_duplicate_boxes


def test_a_lesion_in_two_tiles_is_reported_once() -> None:
    largest = FoundBox("lesion", 0, 0, 0, 10, 10)
    duplicate = FoundBox("lesion", 0, 1, 0, 10, 10)
    other_slice = FoundBox("lesion", 1, 0, 0, 10, 10)
    assert drop_duplicate_boxes([duplicate, largest, other_slice]) == [largest, other_slice]
