"""Sums over cards: what is in two of them counts once, what is not stated counts as nothing and is said so."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.catalog.cards import COUNTS, DatasetCard, packaged_cards
from components.catalog.summary import IMAGES_ONLY, SEVERAL, UNSTATED, Summary, summarise
from components.errors import BadInput


def _card(name: str, checked: bool = True, **fields: Any) -> DatasetCard:
    source = {"where": "planted by this test", "checked": checked}
    sources = {field: source for field in COUNTS if fields.get(field) is not None}
    base = {"id": name, "name": name, "rights": "none", "formats": ("NIfTI",), "synthetic": False, "sources": sources}
    return DatasetCard.model_validate({**base, **fields})


def _bounds(summary: Summary, figure: str = "patients") -> tuple[int, int]:
    return summary.totals[figure].at_least, summary.totals[figure].at_most


def test_separate_datasets_add_up() -> None:
    summary = summarise([_card("a", patients=30, volumes=90), _card("b", patients=12)])
    assert _bounds(summary) == (42, 42)
    assert _bounds(summary, "volumes") == (90, 90)


def test_what_nobody_states_is_counted_as_null_and_not_as_zero() -> None:
    total = summarise([_card("a", patients=30), _card("b"), _card("c", False, patients=5)]).totals["patients"]
    assert (total.at_most, total.stated, total.null, total.checked) == (35, 2, 1, 1)


def test_a_dataset_inside_another_adds_nothing() -> None:
    cards = [_card("whole", patients=100, slices=5000), _card("masks", patients=40, slices=900, overlaps={"whole": "all"})]
    assert _bounds(summarise(cards)) == (100, 100)
    assert _bounds(summarise(cards), "slices") == (5000, 5000)


def test_a_dataset_inside_one_that_states_nothing_counts_itself() -> None:
    assert _bounds(summarise([_card("whole"), _card("masks", patients=40, overlaps={"whole": "all"})])) == (40, 40)


def test_a_known_overlap_is_taken_off_and_an_unknown_one_bounds_the_sum() -> None:
    assert _bounds(summarise([_card("a", patients=100), _card("b", patients=40, overlaps={"a": 15})])) == (125, 125)
    assert _bounds(summarise([_card("a", patients=100), _card("b", patients=40, overlaps={"a": None})])) == (100, 140)
    assert _bounds(summarise([_card("a", patients=10), _card("b", patients=40, overlaps={"a": None})])) == (40, 50)


def test_a_dataset_made_of_several_adds_nothing() -> None:
    parts = [_card("a", patients=30), _card("b", patients=20)]
    assert _bounds(summarise([*parts, _card("both", patients=45, overlaps={"a": "all", "b": "all"})])) == (50, 50)


def test_a_part_known_in_patients_only_bounds_the_volumes() -> None:
    cards = [_card("a", patients=100, volumes=400), _card("b", patients=40, volumes=80, overlaps={"a": 15})]
    assert _bounds(summarise(cards), "volumes") == (400, 480)


def test_generated_and_sample_data_do_not_count() -> None:
    summary = summarise(
        [_card("a", patients=30), _card("s", patients=9, synthetic=True), _card("p", patients=9, public_sample=True)]
    )
    assert (summary.cards, summary.totals["patients"].at_most) == (1, 30)


def test_a_card_can_be_left_out() -> None:
    cards = [_card("a", patients=30), _card("giant", patients=100_000)]
    assert _bounds(summarise(cards, without=["giant"])) == (30, 30)
    with pytest.raises(BadInput, match="catalog list"):
        summarise(cards, without=["gaint"])


def test_shares_are_of_the_patients_and_of_the_cards() -> None:
    cards = [
        _card("a", patients=60, regions=("Asia",), anatomy="knee", tasks=("segmentation", "diagnosis"), access="open"),
        _card("b", patients=30, regions=("Asia", "Europe"), anatomy="brain", tasks=("segmentation",)),
        _card("c", patients=10, anatomy="brain"),
        _card("d", anatomy="brain"),
    ]
    summary = summarise(cards)
    assert {name: share.percent for name, share in summary.regions.items()} == {"Asia": 60.0, SEVERAL: 30.0, UNSTATED: 10.0}
    brain = summary.anatomies["brain"]
    assert (brain.cards, brain.patients, brain.percent, brain.card_percent, brain.paper) == (3, 40, 40.0, 75.0, 25.0)
    assert {name: share.patients for name, share in summary.tasks.items()} == {"segmentation": 90, "diagnosis": 60, IMAGES_ONLY: 10}
    assert summary.tasks["diagnosis"].paper == 19.6
    assert {name: share.cards for name, share in summary.access.items()} == {"open": 1, UNSTATED: 3}


def test_no_cards_make_an_empty_summary() -> None:
    assert _bounds(summarise([])) == (0, 0)


_SHARED = st.one_of(st.none(), st.just("all"), st.integers(0, 50))


@given(
    patients=st.lists(st.one_of(st.none(), st.integers(0, 100)), min_size=1, max_size=6),
    shared=st.lists(st.lists(_SHARED, min_size=6, max_size=6), min_size=6, max_size=6),
    present=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=6, max_size=6),
)
def test_bounds_hold_whatever_the_overlaps(
    patients: list[int | None], shared: list[list[int | str | None]], present: list[list[bool]]
) -> None:
    cards = [
        _card(f"c{i}", patients=count, overlaps={f"c{j}": shared[i][j] for j in range(i) if present[i][j]})
        for i, count in enumerate(patients)
    ]
    least, most = _bounds(summarise(cards))
    stated = [count for count in patients if count is not None]
    assert 0 <= least <= most <= sum(stated)
    assert most >= (patients[0] or 0)


def test_the_catalogue_is_of_the_size_of_the_papers_corpus() -> None:
    summary = summarise(packaged_cards(), without=("uk-biobank", "mr-rate"))
    for name in COUNTS:
        total = summary.totals[name]
        assert total.paper / 2 < total.at_least <= total.at_most, name
        assert total.stated + total.null == summary.cards
    assert summary.figures_checked / summary.figures > 0.8
