"""Checks of cards: inconsistent overlaps, and a layout against a folder."""

from pathlib import Path

import pytest

from components.catalog.check import check_cards
from components.errors import BadInput

CARD = """
id: mine
name: Mine
rights: ours
synthetic: false
formats: [NIfTI]
layout:
  labels: ["*_seg.nii.gz"]
  tissue_maps: {2: "*_fat.nii.gz"}
  patient: "(p[0-9]+)_"
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cards = tmp_path / "cards"
    cards.mkdir()
    monkeypatch.setenv("OMNIMRI_CARDS", str(cards))
    (cards / "mine.yaml").write_text(CARD)
    return cards


def _folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_packaged_cards_have_no_faults() -> None:
    assert check_cards().faults == ()


def test_matching_files_are_counted_per_glob(own: Path, tmp_path: Path) -> None:
    data = _folder(tmp_path / "data", "a/p1_t1.nii.gz", "a/p1_seg.nii.gz", "b/p2_seg.nii.gz", "b/p2_fat.nii.gz", "a/.hidden")
    result = check_cards("mine", data)
    assert [(glob.field, glob.files) for glob in result.globs] == [("labels", 2), ("tissue_maps.2", 1)]
    assert (result.unmatched, result.patients, result.faults) == (1, 2, ())


def test_a_glob_without_matches_is_a_fault_with_its_field(own: Path, tmp_path: Path) -> None:
    result = check_cards("mine", _folder(tmp_path / "data", "p1_seg.nii.gz"))
    assert [fault.field for fault in result.faults] == ["layout.tissue_maps.2"]
    assert "none of 1 files" in result.faults[0].what and result.faults[0].remedy


def test_one_sequence_and_ignored_files_may_be_missing(own: Path, tmp_path: Path) -> None:
    more = '  images: ["*_t1.nii.gz", "*_t2.nii.gz"]\n  ignored: ["*_old.nii.gz"]\n'
    (own / "mine.yaml").write_text(CARD.replace("layout:\n", f"layout:\n{more}"))
    result = check_cards("mine", _folder(tmp_path / "data", "p1_t1.nii.gz", "p1_seg.nii.gz", "p1_fat.nii.gz"))
    assert {glob.pattern: glob.files for glob in result.globs}["*_t2.nii.gz"] == 0
    assert result.faults == ()


def test_a_patient_expression_without_matches_is_a_fault(own: Path, tmp_path: Path) -> None:
    result = check_cards("mine", _folder(tmp_path / "data", "x_seg.nii.gz", "x_fat.nii.gz"))
    assert [fault.field for fault in result.faults] == ["layout.patient"]


def test_a_card_can_be_given_by_its_path(own: Path) -> None:
    assert check_cards(str(own / "mine.yaml")).cards == 1
    with pytest.raises(BadInput, match="no such file"):
        check_cards(str(own / "other.yaml"))
    with pytest.raises(BadInput, match="catalog list"):
        check_cards("other")
    with pytest.raises(BadInput, match="no such folder"):
        check_cards("mine", own / "nowhere")


def test_an_invalid_card_reports_faults_and_no_globs(own: Path, tmp_path: Path) -> None:
    (own / "mine.yaml").write_text(CARD + "doi: none\n")
    result = check_cards("mine", _folder(tmp_path / "data", "p1_seg.nii.gz"))
    assert [fault.field for fault in result.faults] == ["doi"]
    assert result.globs == ()


def test_overlaps_refer_to_an_existing_card_in_one_direction(own: Path) -> None:
    (own / "mine.yaml").write_text(CARD + "overlaps: {yours: all, missing: all}\n")
    (own / "yours.yaml").write_text(CARD.replace("mine", "yours") + "overlaps: {mine: 3}\n")
    assert {(fault.field, fault.what) for fault in check_cards().faults} == {
        ("overlaps.missing", "no such card"),
        ("overlaps.yours", "both cards declare this overlap"),
        ("overlaps.mine", "both cards declare this overlap"),
    }


def test_files_that_ingestion_will_leave_out_or_count_as_one_patient_are_noted(own: Path, tmp_path: Path) -> None:
    names = [
        "p1_t1.nii.gz",
        "p1_seg.nii.gz",
        "p1_fat.nii.gz",
        "x_t1.nii.gz",
        "p2_mask.nii.gz",
        "sub-p3_T1map.nii.gz",
        "p1_phase.json",
    ]
    result = check_cards("mine", _folder(tmp_path / "data", *names))
    assert result.faults == () and result.notes == (
        "layout.patient does not match the path of 1 of 6 image files: they count as one patient",
        "1 image files are a derived map by their names, which no glob declares: they are not ingested as images",
        "1 image files are a mask or label map by their names, which no glob declares: they are not ingested as images",
    )


def test_a_layout_without_patients_is_noted(own: Path, tmp_path: Path) -> None:
    (own / "mine.yaml").write_text(CARD.replace('  patient: "(p[0-9]+)_"\n', ""))
    result = check_cards("mine", _folder(tmp_path / "data", "p1_t1.nii.gz", "p1_seg.nii.gz", "p1_fat.nii.gz"))
    assert result.notes == ("no layout.patient: 3 image files count as one patient, in one split",)
