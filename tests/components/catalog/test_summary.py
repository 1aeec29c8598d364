"""Sums over cards: shared patients count once, unknown values add nothing and are counted as null."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.catalog.card_files import packaged_cards
from components.catalog.cards import COUNTS, DatasetCard
from components.catalog.summary import IMAGES_ONLY, SEVERAL, UNSTATED, Summary, summarize_cards
from components.errors import BadInput


def _card(name: str, checked: bool = True, **fields: Any) -> DatasetCard:
    source = {"where": "constructed by this test", "checked": checked}
    sources = {field: source for field in COUNTS if fields.get(field) is not None}
    base = {"id": name, "name": name, "rights": "none", "formats": ("NIfTI",), "synthetic": False, "sources": sources}
    return DatasetCard.model_validate({**base, **fields})


def _bounds(summary: Summary, statistic: str = "patients") -> tuple[int, int]:
    return summary.totals[statistic].at_least, summary.totals[statistic].at_most


def test_separate_datasets_add_up() -> None:
    summary = summarize_cards([_card("a", patients=30, volumes=90), _card("b", patients=12)])
    assert _bounds(summary) == (42, 42)
    assert _bounds(summary, "volumes") == (90, 90)


def test_unknown_values_are_counted_as_null_and_not_as_zero() -> None:
    total = summarize_cards([_card("a", patients=30), _card("b"), _card("c", False, patients=5)]).totals["patients"]
    assert (total.at_most, total.stated, total.null, total.checked) == (35, 2, 1, 1)


def test_a_subset_of_another_dataset_adds_nothing() -> None:
    cards = [_card("whole", patients=100, slices=5000), _card("masks", patients=40, slices=900, overlaps={"whole": "all"})]
    assert _bounds(summarize_cards(cards)) == (100, 100)
    assert _bounds(summarize_cards(cards), "slices") == (5000, 5000)


def test_a_subset_of_a_dataset_without_statistics_counts() -> None:
    assert _bounds(summarize_cards([_card("whole"), _card("masks", patients=40, overlaps={"whole": "all"})])) == (40, 40)


def test_a_known_overlap_is_subtracted_and_an_unknown_one_widens_the_bounds() -> None:
    assert _bounds(summarize_cards([_card("a", patients=100), _card("b", patients=40, overlaps={"a": 15})])) == (125, 125)
    assert _bounds(summarize_cards([_card("a", patients=100), _card("b", patients=40, overlaps={"a": None})])) == (100, 140)
    assert _bounds(summarize_cards([_card("a", patients=10), _card("b", patients=40, overlaps={"a": None})])) == (40, 50)


def test_a_combination_of_datasets_adds_nothing() -> None:
    parts = [_card("a", patients=30), _card("b", patients=20)]
    assert _bounds(summarize_cards([*parts, _card("both", patients=45, overlaps={"a": "all", "b": "all"})])) == (50, 50)


def test_an_overlap_known_only_in_patients_widens_the_bounds_of_volumes() -> None:
    cards = [_card("a", patients=100, volumes=400), _card("b", patients=40, volumes=80, overlaps={"a": 15})]
    assert _bounds(summarize_cards(cards), "volumes") == (400, 480)


def test_synthetic_and_sample_data_are_excluded() -> None:
    summary = summarize_cards(
        [_card("a", patients=30), _card("s", patients=9, synthetic=True), _card("p", patients=9, public_sample=True)]
    )
    assert (summary.cards, summary.totals["patients"].at_most) == (1, 30)


def test_a_card_can_be_excluded() -> None:
    cards = [_card("a", patients=30), _card("giant", patients=100_000)]
    assert _bounds(summarize_cards(cards, without=["giant"])) == (30, 30)
    with pytest.raises(BadInput, match="catalog list"):
        summarize_cards(cards, without=["gaint"])


def test_shares_are_percentages_of_patients_and_of_cards() -> None:
    cards = [
        _card("a", patients=60, regions=("Asia",), anatomy="knee", tasks=("segmentation", "diagnosis"), access="open"),
        _card("b", patients=30, regions=("Asia", "Europe"), anatomy="brain", tasks=("segmentation",)),
        _card("c", patients=10, anatomy="brain"),
        _card("d", anatomy="brain"),
    ]
    summary = summarize_cards(cards)
    assert {name: share.percent for name, share in summary.regions.items()} == {"Asia": 60.0, SEVERAL: 30.0, UNSTATED: 10.0}
    brain = summary.anatomies["brain"]
    assert (brain.cards, brain.patients, brain.percent, brain.card_percent, brain.paper) == (3, 40, 40.0, 75.0, 25.0)
    assert {name: share.patients for name, share in summary.tasks.items()} == {"segmentation": 90, "diagnosis": 60, IMAGES_ONLY: 10}
    assert summary.tasks["diagnosis"].paper == 19.6
    assert {name: share.cards for name, share in summary.access.items()} == {"open": 1, UNSTATED: 3}


def test_the_summary_of_no_cards_is_empty() -> None:
    assert _bounds(summarize_cards([])) == (0, 0)


_SHARED = st.one_of(st.none(), st.just("all"), st.integers(0, 50))


@given(
    patients=st.lists(st.one_of(st.none(), st.integers(0, 100)), min_size=1, max_size=6),
    shared=st.lists(st.lists(_SHARED, min_size=6, max_size=6), min_size=6, max_size=6),
    present=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=6, max_size=6),
)
def test_bounds_hold_for_arbitrary_overlaps(
    patients: list[int | None], shared: list[list[int | str | None]], present: list[list[bool]]
) -> None:
    cards = [
        _card(f"c{i}", patients=count, overlaps={f"c{j}": shared[i][j] for j in range(i) if present[i][j]})
        for i, count in enumerate(patients)
    ]
    at_least, at_most = _bounds(summarize_cards(cards))
    stated = [count for count in patients if count is not None]
    assert 0 <= at_least <= at_most <= sum(stated)
    assert at_most >= (patients[0] or 0)


def test_the_catalog_is_as_large_as_the_corpus_of_the_paper() -> None:
    summary = summarize_cards(packaged_cards(), without=("uk-biobank", "mr-rate"))
    for name in COUNTS:
        total = summary.totals[name]
        assert total.paper / 2 < total.at_least <= total.at_most, name
        assert total.stated + total.null == summary.cards
    assert summary.figures_checked / summary.figures > 0.8
