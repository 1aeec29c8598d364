"""Sex, age and diagnosis from a participants table (BIDS), for images whose headers lack them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.catalog import DatasetCard, Layout, load_card
from components.catalog.layout import LabelTable
from components.ingestion import ingest, list_series, read_quarantine, read_volume
from components.ingestion.annotations.finding_tables import read_demographics
from components.ingestion.deidentification.pseudonyms import DEMO_KEY, Pseudonyms
from components.ingestion.volume import Volume
from tests.helpers import dicom_files

TABLE = LabelTable(
    path="participants.tsv",
    key="participant_id",
    sex="sex",
    age="age",
    findings={"group": "schizophrenia"},
    values={"patient": True, "control": False},
)
CARD = DatasetCard(
    id="made-up",
    name="Made up",
    rights="none",
    formats=("NIfTI",),
    synthetic=True,
    layout=Layout(patient="(sub-[^/_]+)/", tables=(TABLE,)),
)
ROWS = (
    ("participant_id", "name", "age", "sex", "group"),
    ("sub-zwetschge", "Zwetschge, Anna", "34", "F", "patient"),
    ("sub-2", "Quitte, Kurt", "91.5", "male", "control"),
    ("sub-3", "", "n/a", "n/a", "n/a"),
)


def _write(folder: Path, rows: tuple[tuple[str, ...], ...], sidecars: dict[str, dict[str, Any]] | None = None) -> None:
    for number, row in enumerate(rows[1:]):
        anat = folder / row[0] / "anat"
        anat.mkdir(parents=True, exist_ok=True)
        nib.save(
            nib.Nifti1Image(dicom_files.random_pixels(8, 9, 4, seed=number).astype(np.int16), np.eye(4)),
            anat / f"{row[0]}_T1w.nii.gz",
        )
        if row[0] in (sidecars or {}):
            (anat / f"{row[0]}_T1w.json").write_text(json.dumps((sidecars or {})[row[0]]))
    (folder / "participants.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n")


def _taken(folder: Path, card: DatasetCard = CARD) -> dict[str, Volume]:
    """Return pseudonym -> volume."""
    ingest(card, folder / "source", folder / "data", DEMO_KEY)
    return {one.patient_id: read_volume(folder / "data", one, card) for one in list_series(folder / "data", card.id)}


def test_sex_age_and_diagnosis_reach_the_volume_and_names_do_not(tmp_path: Path) -> None:
    _write(tmp_path / "source", ROWS)
    found = _taken(tmp_path)
    names = Pseudonyms(DEMO_KEY, CARD.id)
    demographics = {name: (one.acquisition.sex, one.acquisition.age_years, one.diagnosis) for name, one in found.items()}
    assert demographics == {
        names.patient("sub-zwetschge"): ("F", 34.0, {"schizophrenia": True}),
        names.patient("sub-2"): ("M", 90.0, {"schizophrenia": False}),  # as the rule for headers has it
        names.patient("sub-3"): (None, None, {}),
    }
    assert not read_quarantine(tmp_path / "data", CARD.id)
    kept = b"".join(path.read_bytes() + path.name.encode() for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert not [word for word in (b"Zwetschge", b"zwetschge", b"Quitte", b"sub-2", b"91.5") if word in kept]


def test_a_sidecar_takes_precedence_over_the_table(tmp_path: Path) -> None:
    _write(tmp_path / "source", ROWS, {"sub-2": {"PatientSex": "O", "EchoTime": 0.01}, "sub-zwetschge": {"PatientAge": 35}})
    found = _taken(tmp_path)
    demographics = {(one.acquisition.sex, one.acquisition.age_years, one.acquisition.echo_time_ms) for one in found.values()}
    assert demographics == {("F", 35.0, None), ("O", 90.0, 10.0), (None, None, None)}


def test_only_a_corrected_table_is_read_again(tmp_path: Path) -> None:
    _write(tmp_path / "source", ROWS)
    _taken(tmp_path)
    (tmp_path / "source" / "participants.tsv").write_text("participant_id\tage\tsex\tgroup\nsub-3\t8\tM\tcontrol\n")
    report = ingest(CARD, tmp_path / "source", tmp_path / "data", DEMO_KEY)
    assert (report.files_new, report.files_reused) == (6, 3)  # two tables' answers for each of three images
    assert {one.acquisition.age_years for one in _taken(tmp_path).values()} == {8.0, None}


def test_a_missing_column_is_reported_once(tmp_path: Path) -> None:
    _write(tmp_path / "source", tuple((row[0], row[4]) for row in ROWS))
    assert len(_taken(tmp_path)) == 3
    assert [one.reason for one in read_quarantine(tmp_path / "data", CARD.id)] == ["no column 'sex'"]


@pytest.mark.parametrize("name", ["openneuro", "spine-generic-multi-subject"])
def test_cards_of_bids_datasets_name_the_table(tmp_path: Path, name: str) -> None:
    _write(tmp_path / "source", ROWS)
    card = load_card(name)
    ingest(card, tmp_path / "source", tmp_path / "data", bytes(range(32)))
    found = [read_volume(tmp_path / "data", one, card).acquisition for one in list_series(tmp_path / "data", name)]
    assert {(one.sex, one.age_years) for one in found} >= {("M", 90.0), (None, None)}


@given(st.lists(st.tuples(st.text(max_size=6), st.text(max_size=6)), max_size=3))
def test_arbitrary_cells_yield_a_valid_sex_and_age_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:
    table = tmp_path_factory.mktemp("any") / "participants.tsv"
    lines = ["participant_id\tsex\tage\tgroup", *(f"sub-1\t{sex}\t{age}\t-" for sex, age in cells)]
    table.write_text("\n".join(lines), errors="replace")
    found = read_demographics(table, TABLE, "sub-1")
    assert set(found) <= {"PatientSex", "PatientAge"}
    assert found.get("PatientSex", "F") in ("F", "M", "O") and 0 <= float(found.get("PatientAge", 0)) <= 90


YEARS = {
    "34": 34.0,
    "0.5": 0.5,
    "89+": 89.0,
    "90+": 90.0,
    "112": 90.0,
    "034Y": 34.0,
    "-1": None,
    "inf": None,
    "nan": None,
    "adult": None,
    "": None,
}


@pytest.mark.parametrize(("cell", "years"), YEARS.items())
def test_ages_are_in_years_and_at_most_ninety(tmp_path: Path, cell: str, years: float | None) -> None:
    (tmp_path / "participants.tsv").write_text(f"participant_id\tsex\tage\nsub-1\tF\t{cell}\n")
    assert read_demographics(tmp_path / "participants.tsv", TABLE, "sub-1").get("PatientAge") == years


def test_contradicting_rows_yield_no_value(tmp_path: Path) -> None:
    (tmp_path / "participants.tsv").write_text("participant_id\tsex\tage\nsub-1\tF\t30\nsub-1\tF\t32\n")
    assert read_demographics(tmp_path / "participants.tsv", TABLE, "sub-1") == {"PatientSex": "F"}


CONTRADICTIONS: dict[str, tuple[tuple[tuple[str, str, str], ...], list[str]]] = {
    "diagnosis": ((("34", "F", "patient"), ("34", "F", "control")), ["'group': it counts as present"]),
    "the same, reversed": ((("34", "F", "control"), ("34", "F", "patient")), ["'group': it counts as present"]),
    "sex": ((("34", "F", "patient"), ("34", "male", "patient")), ["'sex': it is unknown"]),
    "age of two visits": ((("34", "F", "patient"), ("36", "F", "patient")), ["'age': it is unknown"]),
    "all": (
        (("34", "F", "patient"), ("36", "M", "control")),
        ["'age': it is unknown", "'group': it counts as present", "'sex': it is unknown"],
    ),
    "other spellings": ((("34", "F", "patient"), ("34.0", "female", "Patient")), []),
    "unknown cells": ((("34", "F", "patient"), ("n/a", "", "n/a")), []),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
@pytest.mark.parametrize("is_numbered", [False, True])
def test_rows_of_one_participant_that_contradict_each_other_are_told(tmp_path: Path, case: str, is_numbered: bool) -> None:
    twice, expected = CONTRADICTIONS[case]
    rows = (ROWS[0], *(("sub-zwetschge", "", *cells) for cells in twice), *ROWS[2:])
    table, columns = TABLE, {"age": 2, "sex": 3, "group": 4}
    if is_numbered:
        table = TABLE.model_copy(update={"key": 0, "age": 2, "sex": 3, "findings": {4: "schizophrenia"}})
        expected = [text.replace(f"'{name}'", str(columns[name])) for text in expected for name in columns if f"'{name}'" in text]
    card = CARD.model_copy(update={"layout": Layout(patient="(sub-[^/_]+)/", tables=(table,))})
    _write(tmp_path / "source", rows)
    notices = ingest(card, tmp_path / "source", tmp_path / "data", DEMO_KEY).notices
    told = sorted(notice.text for notice in notices if "contradict" in notice.text)
    assert len(told) == len(expected)
    for text, end in zip(told, sorted(expected), strict=True):
        assert f"rows about 1 of its keys contradict each other in the column {end}" in text and "zwetschge" not in text


def test_two_tables_that_contradict_each_other_are_told(tmp_path: Path) -> None:
    _write(tmp_path / "source", ROWS)
    other = (ROWS[0], ("sub-zwetschge", "", "34", "M", "control"), *ROWS[2:])
    (tmp_path / "source" / "other.tsv").write_text("\n".join("\t".join(row) for row in other) + "\n")
    tables = (TABLE, TABLE.model_copy(update={"path": "other.tsv"}))
    card = CARD.model_copy(update={"layout": Layout(patient="(sub-[^/_]+)/", tables=tables)})
    notices = ingest(card, tmp_path / "source", tmp_path / "data", DEMO_KEY).notices
    told = {notice.text.partition(":")[0]: notice.count for notice in notices if "contradict" in notice.text}
    assert told == {f"tables that contradict each other about {fact!r} for 1 of their keys": 2 for fact in ("schizophrenia", "sex")}
    (found,) = [
        read_volume(tmp_path / "data", one, card)
        for one in list_series(tmp_path / "data", CARD.id)
        if one.patient_id == Pseudonyms(DEMO_KEY, CARD.id).patient("sub-zwetschge")
    ]
    assert (found.acquisition.sex, found.diagnosis) == ("M", {"schizophrenia": False})  # the last table, as the notice says


def test_equal_keys_of_a_patient_and_of_a_scan_are_not_compared(tmp_path: Path) -> None:
    for name in ("p1/scan2", "p2/scan1"):
        path = tmp_path / "source" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(dicom_files.random_pixels(8, 9, 4, seed=int(name[1])).astype(np.int16), np.eye(4)), path)
    titles = "participant_id\tsex\tage\tgroup\n"
    (tmp_path / "source" / "participants.tsv").write_text(f"{titles}1\tF\t34\tpatient\n2\tM\t50\tcontrol\n")
    (tmp_path / "source" / "scans.tsv").write_text(f"{titles}2\tF\t34\tpatient\n1\tM\t50\tcontrol\n")
    tables = (TABLE, TABLE.model_copy(update={"path": "scans.tsv", "image": r"scan(\d+)"}))
    card = CARD.model_copy(update={"layout": Layout(patient=r"p(\d+)/", tables=tables)})
    report = ingest(card, tmp_path / "source", tmp_path / "data", DEMO_KEY)
    assert report.patients == 2 and not [notice for notice in report.notices if "contradict" in notice.text]


@pytest.mark.parametrize(("group", "is_overridden"), [("control", True), ("n/a", False)])
def test_what_becomes_of_rows_that_contradict_each_other_beside_another_table(
    tmp_path: Path, group: str, is_overridden: bool
) -> None:
    twice = (("sub-zwetschge", "", "34", "F", "patient"), ("sub-zwetschge", "", "34", "M", "control"))
    _write(tmp_path / "source", (ROWS[0], *twice, *ROWS[2:]))
    (tmp_path / "source" / "other.tsv").write_text(f"participant_id\tsex\tage\tgroup\nsub-zwetschge\tF\t34\t{group}\n")
    tables = (TABLE, TABLE.model_copy(update={"path": "other.tsv"}))
    card = CARD.model_copy(update={"layout": Layout(patient="(sub-[^/_]+)/", tables=tables)})
    notices = ingest(card, tmp_path / "source", tmp_path / "data", DEMO_KEY).notices
    told = sorted(notice.text for notice in notices if "contradict" in notice.text)
    outcome = "another table decides it" if is_overridden else "it counts as present"
    assert [text.partition(" in ")[2].partition(";")[0] for text in told] == [
        f"the column 'group': {outcome}",
        "the column 'sex': another table decides it",
    ]
    (found,) = [
        read_volume(tmp_path / "data", one, CARD)
        for one in list_series(tmp_path / "data", CARD.id)
        if one.patient_id == Pseudonyms(DEMO_KEY, CARD.id).patient("sub-zwetschge")
    ]
    assert (found.acquisition.sex, found.diagnosis) == ("F", {"schizophrenia": not is_overridden})
