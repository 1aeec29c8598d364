"""Checking cards: overlaps that do not hold, and a layout held against a folder."""

from pathlib import Path

import pytest

from components.catalog.check import check
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


def test_our_own_cards_hold() -> None:
    assert check().faults == ()


def test_each_glob_says_how_many_files_it_finds(own: Path, tmp_path: Path) -> None:
    data = _folder(tmp_path / "data", "a/p1_t1.nii.gz", "a/p1_seg.nii.gz", "b/p2_seg.nii.gz", "b/p2_fat.nii.gz", "a/.hidden")
    checked = check("mine", data)
    assert [(one.field, one.files) for one in checked.globs] == [("labels", 2), ("tissue_maps.2", 1)]
    assert (checked.unmatched, checked.patients, checked.faults) == (1, 2, ())


def test_a_glob_that_finds_nothing_is_a_fault_with_its_field(own: Path, tmp_path: Path) -> None:
    checked = check("mine", _folder(tmp_path / "data", "p1_seg.nii.gz"))
    assert [fault.field for fault in checked.faults] == ["layout.tissue_maps.2"]
    assert "1 files" in checked.faults[0].what and checked.faults[0].remedy


def test_a_download_may_lack_one_sequence_and_what_is_ignored(own: Path, tmp_path: Path) -> None:
    more = '  images: ["*_t1.nii.gz", "*_t2.nii.gz"]\n  ignored: ["*_old.nii.gz"]\n'
    (own / "mine.yaml").write_text(CARD.replace("layout:\n", f"layout:\n{more}"))
    checked = check("mine", _folder(tmp_path / "data", "p1_t1.nii.gz", "p1_seg.nii.gz", "p1_fat.nii.gz"))
    assert {one.pattern: one.files for one in checked.globs}["*_t2.nii.gz"] == 0
    assert checked.faults == ()


def test_a_patient_expression_that_names_nobody_is_a_fault(own: Path, tmp_path: Path) -> None:
    checked = check("mine", _folder(tmp_path / "data", "x_seg.nii.gz", "x_fat.nii.gz"))
    assert [fault.field for fault in checked.faults] == ["layout.patient"]


def test_a_card_can_be_given_by_its_path(own: Path) -> None:
    assert check(str(own / "mine.yaml")).cards == 1
    with pytest.raises(BadInput, match="no such file"):
        check(str(own / "other.yaml"))
    with pytest.raises(BadInput, match="catalog list"):
        check("other")
    with pytest.raises(BadInput, match="no such folder"):
        check("mine", own / "nowhere")


def test_a_broken_card_shows_its_faults_and_no_globs(own: Path, tmp_path: Path) -> None:
    (own / "mine.yaml").write_text(CARD + "doi: none\n")
    checked = check("mine", _folder(tmp_path / "data", "p1_seg.nii.gz"))
    assert [fault.field for fault in checked.faults] == ["doi"]
    assert checked.globs == ()


def test_overlaps_must_lead_to_a_card_and_only_one_way(own: Path) -> None:
    (own / "mine.yaml").write_text(CARD + "overlaps: {yours: all, gone: all}\n")
    (own / "yours.yaml").write_text(CARD.replace("mine", "yours") + "overlaps: {mine: 3}\n")
    assert {(fault.field, fault.what) for fault in check().faults} == {
        ("overlaps.gone", "no such card"),
        ("overlaps.yours", "that card names this one too"),
        ("overlaps.mine", "that card names this one too"),
    }
