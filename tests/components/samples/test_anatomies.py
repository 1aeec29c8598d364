"""Generated anatomies: fixed bytes, labels that agree with images, findings that agree with labels, contrast by difficulty."""

import hashlib

import numpy as np
import pytest

from components.samples.anatomies import ANATOMIES
from components.samples.phantom import Patient, generate_patient
from components.settings import load_settings

PIXELS = 64
DIGESTS = {
    "brain": "bf21e51c1ddc1d7c",
    "head": "496f0c4a36bd7b16",
    "brain tumor": "6baacee0b476ece4",
    "knee": "3b488c456150ff78",
    "prostate": "ee8edf5dce46e325",
    "heart": "f991ad47fdca7058",
    "breast": "2657fe4a5a48f88c",
}
BRIGHTER: list[tuple[str, str, list[str]]] = [
    ("brain", "T1-weighted", ["white matter", "gray matter"]),
    ("brain", "T2-weighted", ["tumor", "edema", "gray matter", "white matter"]),
    ("head", "T1-weighted", ["white matter", "gray matter"]),
    ("head", "T2-weighted", ["edema", "gray matter", "white matter"]),
    ("brain tumor", "T1-weighted post-contrast", ["enhancing tumor", "white matter", "edema", "non-enhancing tumor"]),
    ("brain tumor", "T2-FLAIR", ["edema", "gray matter", "white matter"]),
    ("knee", "PD-weighted", ["femur", "articular cartilage", "meniscus"]),
    ("knee", "PD-FS", ["effusion", "articular cartilage", "femur"]),
    ("prostate", "T2-weighted", ["peripheral zone", "transition zone", "lesion"]),
    ("prostate", "ADC", ["peripheral zone", "transition zone", "lesion"]),
    ("heart", "bSSFP", ["left ventricle", "myocardium"]),
    ("heart", "T1-weighted post-contrast", ["scar", "right ventricle", "myocardium"]),
    ("breast", "T2-weighted", ["fat", "fibroglandular tissue", "mass"]),
    ("breast", "T1-FS", ["mass", "fibroglandular tissue", "fat"]),
]
"""Anatomy, sequence, structures in the order of their brightness."""


def patient(name: str, number: int, difficulty: float = 0.5) -> Patient:
    anatomy = ANATOMIES[name]
    return generate_patient(anatomy, number, anatomy.grid.resized(PIXELS), (1, 1), difficulty)


@pytest.fixture(scope="module")
def cohorts() -> dict[str, list[Patient]]:
    """Generate small patients of every anatomy, among whom every finding occurs; of six heads one has a tumor."""
    return {name: [patient(name, number) for number in range(24 if name == "head" else 6)] for name in ANATOMIES}


@pytest.mark.parametrize("name", ANATOMIES)
def test_a_patient_has_the_same_bytes_on_every_machine(cohorts: dict[str, list[Patient]], name: str) -> None:
    one = cohorts[name][1]
    checksum = hashlib.sha256(one.labels.tobytes())
    for sequence in one.images:
        checksum.update(one.simulate_magnitude(sequence).tobytes())
    assert checksum.hexdigest()[:16] == DIGESTS[name]


@pytest.mark.parametrize(("name", "sequence", "order"), BRIGHTER)
def test_structures_have_the_contrast_of_the_sequence(
    cohorts: dict[str, list[Patient]], name: str, sequence: str, order: list[str]
) -> None:
    values = {structure: value for value, structure in ANATOMIES[name].label_map.items()}
    medians = [
        np.median(np.concatenate([one.images[sequence][one.labels == values[structure]] for one in cohorts[name]]))
        for structure in order
    ]
    assert medians == sorted(medians, reverse=True)


@pytest.mark.parametrize("name", ANATOMIES)
def test_patients_differ_and_have_every_structure(cohorts: dict[str, list[Patient]], name: str) -> None:
    assert set(np.unique([one.labels for one in cohorts[name]])) == {0, *ANATOMIES[name].label_map}
    first = next(iter(cohorts[name][0].images))
    images = [one.images[first] for one in cohorts[name]]
    assert all(np.abs(images[0] - other).max() > 0.1 for other in images[1:])


@pytest.mark.parametrize("name", ANATOMIES)
def test_findings_agree_with_the_label_map(cohorts: dict[str, list[Patient]], name: str) -> None:
    label_map = ANATOMIES[name].label_map
    for one in cohorts[name]:
        for finding, present in one.findings.items():
            values = [value for value, structure in label_map.items() if finding in structure]
            assert not values or np.isin(one.labels, values).any() == present
    assert {present for one in cohorts[name] for present in one.findings.values()} == {True, False}


@pytest.mark.parametrize(("name", "number"), [("brain", 1), ("prostate", 1), ("breast", 1), ("heart", 1)])
def test_difficulty_changes_the_contrast_to_noise_of_findings_alone(name: str, number: int) -> None:
    easy, hard = patient(name, number, 0.0), patient(name, number, 1.0)
    np.testing.assert_array_equal(easy.labels, hard.labels)
    assert easy.noise < hard.noise
    sequence = sorted(easy.images)[-1]
    changed = np.abs(easy.images[sequence] - hard.images[sequence])
    finding = max(ANATOMIES[name].label_map) if name != "brain" else 3
    assert np.median(changed[easy.labels == finding]) > 10 * np.median(changed[easy.labels != finding]) + 0.05


def test_a_skull_lies_between_brain_and_scalp() -> None:
    one = generate_patient(ANATOMIES["head"], 0, ANATOMIES["head"].grid, (1, 1), 0.2)
    middle = one.grid.slices // 2, one.grid.pixels // 2  # from the right ear to the left
    row = one.images["T1-weighted"][middle]
    brain = np.flatnonzero(one.labels[middle])
    for outside in (row[: brain[0]][::-1], row[brain[-1] + 1 :]):
        fat = int(np.argmax(outside > 0.9))
        assert 2 <= fat * one.grid.pixel_mm / 2 <= 9 and outside[:fat].min() < 0.35
        assert outside[-1] == 0


def test_slices_of_heads_begin_at_different_heights_and_show_the_same_findings_as_brains() -> None:
    heads = [patient("head", number) for number in range(12)]
    assert [one.findings for one in heads] == [patient("brain", number).findings for number in range(12)]
    shares = [(one.labels[-1] > 0).mean() for one in heads]  # of the highest slice
    assert min(shares) < 0.5 * max(shares)


def test_the_profile_of_anatomies_has_every_anatomy_and_the_accelerations_of_the_paper() -> None:
    from components.catalog import load_card

    settings = load_settings("anatomies")
    generated = [load_card(dataset.card).generated for dataset in settings.datasets]
    assert {one.anatomy for one in generated if one} == set(ANATOMIES) - {"head"}
    assert {one.anatomy for one in generated if one and one.form == "kspace"} == {"brain", "knee", "prostate", "breast"}
    assert settings.curation.accelerations == (2, 6)
