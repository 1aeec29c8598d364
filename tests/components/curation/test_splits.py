"""Patients are never divided between splits; the split is reproducible and close to the requested shares."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.curation.splits import Patient, split_patients


def cohort(number: int, dataset: str = "a", lesions: int = 0) -> list[Patient]:
    return [Patient(f"{dataset}{i:03d}", dataset, i < lesions) for i in range(number)]


@given(st.integers(4, 60), st.data())
def test_every_split_of_a_dataset_gets_its_share_of_patients(number: int, data: st.DataObject) -> None:
    lesions = data.draw(st.integers(0, number))
    counts = Counter(split_patients(cohort(number, lesions=lesions), 0.15, 0.25, seed=1).values())
    assert counts["test"] == pytest.approx(number * 0.25, abs=0.5)
    assert counts["validation"] == 1 or counts["test"] + counts["validation"] == pytest.approx(number * 0.4, abs=0.5)
    assert min(counts["train"], counts["validation"], counts["test"]) >= 1


@given(st.integers(0, 5))
def test_patients_with_and_without_a_lesion_are_held_out(seed: int) -> None:
    splits = split_patients(cohort(12, lesions=6), 0.15, 0.25, seed)
    assert {int(patient[1:]) < 6 for patient, split in splits.items() if split == "test"} == {True, False}


def test_order_and_repetition_do_not_matter() -> None:
    patients = cohort(12, lesions=5)
    assert split_patients(patients, 0.15, 0.25, 0) == split_patients([*patients[::-1], *patients], 0.15, 0.25, 0)


def test_another_seed_gives_another_split() -> None:
    assert split_patients(cohort(30), 0.15, 0.25, 0) != split_patients(cohort(30), 0.15, 0.25, 1)


def test_a_patient_of_two_datasets_is_in_one_split() -> None:
    shared = [Patient(patient.patient_id, "b", None) for patient in cohort(12)]
    alone, both = split_patients(cohort(12), 0.15, 0.25, 0), split_patients([*shared, *cohort(12)], 0.15, 0.25, 0)
    assert alone == both


def test_datasets_too_small_to_cut_go_to_train() -> None:
    splits = split_patients([*cohort(12), Patient("icbm", "template", None)], 0.15, 0.25, 0)
    assert splits["icbm"] == "train"


@given(st.integers(8, 40))
def test_one_more_patient_moves_at_most_one_other_per_cut(number: int) -> None:
    before, after = (split_patients(cohort(n), 0.15, 0.25, 0) for n in (number, number + 1))
    assert sum(before[patient] != after[patient] for patient in before) <= 2


def test_no_patient_is_held_out_if_the_shares_are_zero() -> None:
    assert set(split_patients(cohort(12), 0.0, 0.0, 0).values()) == {"train"}
