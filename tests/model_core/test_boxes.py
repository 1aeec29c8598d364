"""Boxes as text: written boxes are read back, and the parser accepts any text."""

from hypothesis import given
from hypothesis import strategies as st

from model_core.boxes import GRID, NO_LESION, TextBox, VolumeBox, format_boxes, parse_boxes

EDGES = st.integers(0, GRID - 1)
LABELS = st.from_regex(r"[a-z]([a-z ]{0,18}[a-z])?", fullmatch=True)
PIECES = st.sampled_from(["<bbox>", "lesion", "<loc000>", "<loc012>", "<loc255>", "<loc999>", "<loc", "-1", " ", "\n", "no lesion"])


@st.composite
def boxes(draw: st.DrawFn, axes: int = 2) -> TextBox:
    pairs = [sorted(draw(st.lists(EDGES, min_size=2, max_size=2, unique=True))) for _ in range(axes)]
    (row0, row1), (col0, col1) = pairs[:2]
    plane = (draw(LABELS), row0, col0, row1, col1)
    return TextBox(*plane) if axes == 2 else VolumeBox(*plane, *pairs[2])


@given(st.lists(boxes(), max_size=5))
def test_boxes_come_back_in_reading_order(written: list[TextBox]) -> None:
    read = parse_boxes(format_boxes(written))
    assert sorted(read, key=repr) == sorted(written, key=repr)
    assert [box.row0 for box in read] == sorted(box.row0 for box in written)


@given(st.lists(boxes(axes=3), max_size=3))
def test_boxes_of_a_volume_come_back_in_the_order_of_slices(written: list[VolumeBox]) -> None:
    """Six edges for each, none of which is mistaken for a box of a slice."""
    text = format_boxes(written)
    assert text.count("<loc") == 6 * len(written)
    read = parse_boxes(text)
    assert sorted(read, key=repr) == sorted(written, key=repr)
    assert [box.edges for box in read] == sorted(box.edges for box in written)


@given(st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join)))
def test_any_string_is_parsed_to_valid_boxes_only(text: str) -> None:
    for box in parse_boxes(text):
        assert 0 <= box.row0 < box.row1 < GRID and 0 <= box.col0 < box.col1 < GRID
        assert box.label == box.label.strip() and box.label


@given(st.lists(boxes(), min_size=1, max_size=3), st.sampled_from(["<bbox>", "<bbox>lesion", "<bbox>lesion<loc001>", " and "]))
def test_malformed_text_removes_no_other_box(written: list[TextBox], broken: str) -> None:
    """A truncated answer keeps the boxes before the truncation."""
    assert len(parse_boxes(format_boxes(written) + broken)) == len(written)


def test_malformed_boxes_are_ignored() -> None:
    assert format_boxes([]) == NO_LESION
    for text in (
        NO_LESION,
        "<bbox>lesion<loc005><loc005><loc005><loc009>",
        "<bbox>lesion<loc009><loc000><loc001><loc009>",
        "<bbox>lesion<loc001><loc002><loc003><loc004><loc005>",
        "<bbox>lesion<loc009><loc000><loc000><loc009><loc005><loc005>",
        "<bbox><loc000><loc000><loc001><loc001>",
        "<bbox>x<loc000><loc000><loc001><loc256>",
        "lesion<loc000><loc000><loc009><loc009>",
    ):
        assert parse_boxes(text) == []
    assert parse_boxes("<bbox> lesion <loc001> <loc002><loc003><loc004>") == [TextBox("lesion", 1, 2, 3, 4)]
