"""Generated cohorts: the same bytes for the same card, growing, shrinking and resuming, findings in labels, boxes and tables."""

import csv
import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from components.catalog import GeneratedSource, load_card
from components.curation.measure.regions import SHORTEST_MM
from components.curation.text.structure_names import lesion_kinds
from components.samples import build_sample, cohort_digest
from components.samples.anatomies import ANATOMIES
from components.samples.cohort import CohortForm, forms, write_cohort

FORMS = ("dicom", "nifti", "kspace", "multicoil")
IN_PLANE = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])


def source(form: str = "nifti", patients: int = 2, **changes: object) -> GeneratedSource:
    return GeneratedSource.model_validate({"anatomy": "brain", "form": form, "patients": patients, **changes})


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a cohort of four patients in every form; the fourth has a tumor."""
    folder = tmp_path_factory.mktemp("cohorts")
    for form in FORMS:
        write_cohort(folder / form, source(form, 4))
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_a_smaller_cohort_built_again_and_grown_has_the_same_bytes(built: Path, tmp_path: Path, form: str) -> None:
    write_cohort(tmp_path / "cohort", source(form, 2))
    small = digests(tmp_path / "cohort")
    write_cohort(tmp_path / "cohort", source(form, 4))
    assert digests(tmp_path / "cohort") == digests(built / form)
    write_cohort(tmp_path / "cohort", source(form, 2))
    assert digests(tmp_path / "cohort") == small


def test_an_interrupted_build_resumes(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interruption comes between the rows of a patient and its file, and leaves half a file."""

    def stop(form: CohortForm, anatomy: object, patient: object, target: Path) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    kspace = type(forms()["kspace"])
    write_cohort(tmp_path / "cohort", source("kspace", 3))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(kspace, "write", stop)
        write_cohort(tmp_path / "cohort", source("kspace", 4))
    (tmp_path / "cohort" / ".file_0003.h5.0.tmp").write_bytes(b"half")  # as SIGKILL leaves it
    untouched = (tmp_path / "cohort" / "file_0000.h5").stat().st_mtime_ns
    write_cohort(tmp_path / "cohort", source("kspace", 4))
    assert digests(tmp_path / "cohort") == digests(built / "kspace")
    assert (tmp_path / "cohort" / "file_0000.h5").stat().st_mtime_ns == untouched


@pytest.mark.parametrize("change", [{"seed": 7}, {"difficulty": 1.0}])
def test_seed_and_difficulty_make_other_patients(tmp_path: Path, change: dict[str, float]) -> None:
    write_cohort(tmp_path / "cohort", source("nifti", 1))
    before = digests(tmp_path / "cohort")
    write_cohort(tmp_path / "cohort", source("nifti", 1, **change))
    after = digests(tmp_path / "cohort")
    assert before.keys() == after.keys() and before != after


def test_the_inputs_of_ingestion_contain_size_seed_and_difficulty() -> None:
    card = load_card("synthetic-brain-nifti")
    assert card.generated is not None
    changes = ({}, {"patients": 5}, {"seed": 1}, {"difficulty": 0.8})
    cards = [card.model_copy(update={"generated": card.generated.model_copy(update=change)}) for change in changes]
    assert len({cohort_digest(changed, None) for changed in cards}) == 4
    assert cohort_digest(card, 5) == cohort_digest(cards[1], None)
    assert cohort_digest(load_card("fastmri-knee"), None) == ""


def test_tables_agree_with_the_label_maps(built: Path) -> None:
    anatomy, form = ANATOMIES["brain"], forms()["kspace"]
    findings = {row["patient"]: row for row in csv.DictReader((built / "kspace" / "findings.csv").open())}
    boxes = list(csv.DictReader((built / "kspace" / "annotations.csv").open()))
    assert {row["tumor"] for row in findings.values()} == {"yes", "no"} == {row["lesion"] for row in findings.values()}
    for number in range(4):
        patient, key = form.generate(source("kspace", 4), number), form.key(number)
        for kind, values in lesion_kinds(anatomy.label_map).items():
            mask, covered = np.isin(patient.labels, values), np.zeros(patient.labels.shape, dtype=bool)
            assert (findings[key][kind] == "yes") == mask.any()
            for row in (row for row in boxes if row["file"] == key and row["label"] == kind):
                index, x, y, width, height = (int(row[name]) for name in ("slice", "x", "y", "width", "height"))
                edges = mask[index, y : y + height, x : x + width]
                assert edges[0].any() and edges[-1].any() and edges[:, 0].any() and edges[:, -1].any()
                covered[index, y : y + height, x : x + width] = True
            missed, _ = ndimage.label(mask & ~covered, structure=IN_PLANE)
            longest = [max(s.stop - s.start for s in piece[1:]) for piece in ndimage.find_objects(missed)]
            assert all(pixels * form.grid(anatomy).pixel_mm < SHORTEST_MM for pixels in longest), "nobody marks a speck"
        if not any(finding for name, finding in patient.findings.items() if name != "atrophy"):
            assert [row["label"] for row in boxes if row["file"] == key] == ["Normal for age"]


def test_a_cohort_is_written_in_the_memory_of_one_patient(built: Path, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        write_cohort(tmp_path / str(count), source("nifti", count))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    one_image = 20 * 108 * 108 * 8
    assert peak(6) - peak(2) < one_image  # of the twelve images of four more patients


def test_the_card_of_a_generated_dataset_decides_its_size(tmp_path: Path) -> None:
    card = load_card("synthetic-brain-nifti")
    assert card.generated is not None
    small = card.model_copy(update={"generated": card.generated.model_copy(update={"patients": 1})})
    assert [path.name for path in sorted(build_sample(small, tmp_path / "a").glob("sub-*"))] == ["sub-0000"]
    assert len(list(build_sample(card, tmp_path / "b", patients=2).glob("sub-*"))) == 2
