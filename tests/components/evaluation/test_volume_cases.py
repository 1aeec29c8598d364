"""Whole volumes of an evaluation: which ones are asked about."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from components.curation.corpus import Corpus
from components.evaluation.volume_cases import select_volumes

KINDS = [(lesion, has_labels) for lesion in (False, True) for has_labels in (False, True)]


def corpus_of(volumes: dict[str, tuple[bool | None, bool]]) -> Corpus:
    """Return the fields of a corpus that the selection reads: each volume is of a patient of its own."""
    records = {
        name: SimpleNamespace(lesion=lesion, has_labels=has_labels, patient_id=f"p{name}")
        for name, (lesion, has_labels) in volumes.items()
    }
    asked = [SimpleNamespace(volume_id=name, scope="volume", split="test") for name in records]
    return cast(Corpus, SimpleNamespace(volumes=records, volume_instructions=cast(Any, asked)))


@given(kinds=st.lists(st.sampled_from(KINDS), max_size=30), seed=st.integers(0, 99))
def test_the_first_four_are_of_every_kind_that_there_is(kinds: list[tuple[bool, bool]], seed: int) -> None:
    """With and without lesions, with and without masks: a few volumes suffice for a question of each task."""
    volumes = {f"v{number}": kind for number, kind in enumerate(kinds)}
    chosen = select_volumes(corpus_of(volumes), "test", 4, seed)
    assert len(chosen) == len(set(chosen)) == min(len(volumes), 4)
    assert {volumes[name] for name in chosen} == set(kinds)


@given(seed=st.integers(0, 99))
def test_of_two_one_has_a_lesion_and_one_none_and_masks_come_first(seed: int) -> None:
    """So that few volumes have both answers and masks, whatever their ids are."""
    volumes: dict[str, tuple[bool | None, bool]] = {f"v{n}": (n % 2 == 0, n == 5) for n in range(10)}
    assert "v5" in select_volumes(corpus_of(volumes), "test", 2, seed)
    volumes = {f"v{number}": kind for number, kind in enumerate(KINDS * 3)}
    assert [volumes[name] for name in select_volumes(corpus_of(volumes), "test", 2, seed)] == [(False, True), (True, True)]
