"""Studies are the series of one patient and visit: never of two, and in the same order whatever the files are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from components.curation.corpus import Corpus
from components.curation.studies import group_studies
from components.curation.table_rows import VolumeRecord
from components.ingestion import ingest, list_series
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from tests.helpers.corpora import tiny_corpus
from tests.helpers.dicom_files import random_pixels, write_series
from tests.helpers.real_world.common import make_card, nifti_card, ramp
from tests.helpers.real_world.nifti_files import write_nifti_file

NAMES = st.tuples(st.sampled_from("ab"), st.sampled_from("pq"), st.sampled_from(["", "v1", "v2"]))


def _record(**values: Any) -> VolumeRecord:
    return VolumeRecord.model_construct(**{"sequence": None, "plane": None, **values})


@given(names=st.lists(NAMES, max_size=8), data=st.data())
def test_series_of_a_study_share_dataset_patient_and_visit(names: list[tuple[str, str, str]], data: st.DataObject) -> None:
    records = [
        _record(volume_id=str(number), series_id=str(number), dataset_id=dataset, patient_id=patient, visit=visit)
        for number, (dataset, patient, visit) in enumerate(names)
    ]
    studies = group_studies(records)
    for number, name in enumerate(names):
        assert {record.volume_id for record in studies[str(number)]} == {str(n) for n, other in enumerate(names) if other == name}
    assert group_studies(data.draw(st.permutations(records))) == studies


def test_two_dicom_studies_of_a_patient_are_two_visits(tmp_path: Path) -> None:
    card = make_card(formats=("DICOM",))
    for number, (study, folder) in enumerate((("1.2.3", "a"), ("1.2.3", "b"), ("1.2.4", "c"))):
        pixels = random_pixels(3, 16, 16, seed=number)
        uid = f"1.2.99.{number}"
        write_series(tmp_path / "source" / folder, folder, pixels, PatientID="17", StudyInstanceUID=study, SeriesInstanceUID=uid)
    ingest(card, tmp_path / "source", tmp_path / "data", DEMO_KEY)
    visits = [series.visit for series in list_series(tmp_path / "data", card.id)]
    assert len(visits) == 3 and len(set(visits)) == 2 and all(visits)
    assert not any(study in visit for study in ("1.2.3", "1.2.4") for visit in visits)


def test_bids_sessions_are_visits_and_one_session_needs_no_name(tmp_path: Path) -> None:
    for name in ("sub-01/ses-2019/anat/sub-01_ses-2019_T1w", "sub-01/ses-2021/anat/sub-01_ses-2021_T1w", "sub-02/anat/sub-02_T1w"):
        write_nifti_file(tmp_path / "source" / f"{name}.nii.gz", ramp(seed=len(name) + int("2021" in name)))
    card = nifti_card()
    ingest(card, tmp_path / "source", tmp_path / "data", DEMO_KEY)
    series = list_series(tmp_path / "data", card.id)
    visits = {one.visit for one in series}
    assert len(series) == 3 and len(visits) == 3 and "" in visits and not any("20" in visit[:3] for visit in visits)
    entries = json.loads((tmp_path / "data" / card.id / "manifest.json").read_text())["series"]
    assert sorted("visit" in entry for entry in entries) == [False, True, True]


def test_a_study_is_asked_about_its_named_series_and_about_itself(tmp_path: Path) -> None:
    corpus: Corpus = tiny_corpus(tmp_path)
    about_studies = [row for row in corpus.volume_instructions if row.scope == "study"]
    assert {row.task for row in about_studies} == {"segmentation", "detection", "diagnosis", "report", "reconstruction"}
    for row in about_studies:
        sequences = [corpus.volumes[volume_id].sequence for volume_id in row.series]
        assert sequences == ["T1-weighted", "T2-weighted"] and row.volume_id in row.series
        own = corpus.volumes[row.volume_id].sequence
        named = row.task in ("segmentation", "detection", "reconstruction")
        assert (f"{own} brain MRI" in row.instruction) == named and ("MRI study" in row.instruction) == (not named)
    for row in corpus.volume_instructions:
        if row.positive is not None:
            assert row.response.startswith("yes" if row.positive else "no")
            assert row.positive == corpus.volumes[row.volume_id].lesion
