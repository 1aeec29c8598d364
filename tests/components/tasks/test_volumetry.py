"""Findings of whole organs, predicted from the volumes of structures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from components.tasks.known_structures import Shown
from components.tasks.volumetry import MeasuredVolume, OrganFinding, Volumetry, fit_finding, measure_shares

ATROPHY = OrganFinding("atrophy", {"grey matter": -20.0, "white matter": -10.0}, 20.0, 0.9, 30, 8)


def _head(fluid: int) -> tuple[NDArray[np.float32], Shown]:
    """Return a head of 24 x 24 pixels with dark fluid of ``fluid`` x ``fluid`` in its middle, in slices 1 to 3 of five."""
    voxels, tissue, lesion = (np.zeros((5, 32, 32), np.float32) for _ in range(3))
    tissue[1:4, 4:28, 4:28] = 1
    low, high = 16 - fluid // 2, 16 + fluid // 2
    tissue[1:4, low:high, low:high] = 0
    voxels[tissue > 0] = 0.8
    lesion[1:4, 5:7, 5:7] = 1
    return voxels, Shown(lesion, {"white matter": tissue, "lesion": lesion})


def test_a_share_is_that_of_the_body_with_the_dark_parts_that_it_encloses() -> None:
    assert measure_shares(*_head(12)) == {"white matter": pytest.approx(1 - 12**2 / 24**2)}


def test_slices_that_were_not_looked_at_do_not_count() -> None:
    voxels, shown = _head(12)
    complete = measure_shares(voxels, shown)
    for values in shown.structures.values():
        values[2] = 0
    assert measure_shares(voxels, shown) == complete


@given(st.floats(0.25, 4.0), st.integers(0, 3))
def test_shares_depend_neither_on_brightness_nor_on_the_field_of_view(brightness: float, margin: int) -> None:
    voxels, shown = _head(12)
    pad = ((margin, margin), (2 * margin, margin), (0, 3 * margin))
    padded = Shown(np.pad(shown.mask, pad), {name: np.pad(values, pad) for name, values in shown.structures.items()})
    assert measure_shares(np.pad(voxels * np.float32(brightness), pad), padded) == measure_shares(voxels, shown)


def _cohort(effect: float, patients: int = 40, seed: int = 0) -> list[MeasuredVolume]:
    """Return two volumes of each patient; one in four has less of both tissues by ``effect`` standard deviations."""
    rng = np.random.default_rng(seed)
    volumes = []
    for number in range(patients):
        present = number % 4 == 0
        grey, white = rng.normal([0.5, 0.3], 0.02) - present * effect * 0.02
        volumes += [MeasuredVolume(str(number), {"grey matter": grey, "white matter": white}, present)] * 2
    return volumes


def test_a_finding_that_changes_volumes_is_predicted_in_other_patients() -> None:
    fitted = fit_finding("atrophy", _cohort(3.0))
    assert fitted is not None and (fitted.patients, fitted.positive) == (40, 10)
    others = _cohort(3.0, seed=1)
    probabilities = [fitted.probability(one.shares) for one in others]
    assert roc_auc_score([one.present for one in others], probabilities) > 0.9
    assert all(weight < 0 for weight in fitted.weights.values())


def test_a_finding_that_volumes_do_not_show_is_left_to_the_network() -> None:
    """The AUROC that decides is of patients who are left out of the fit: any two numbers seem to predict fitted patients."""
    assert fit_finding("atrophy", _cohort(0.0)) is None


@pytest.mark.parametrize("patients", [0, 4, 8])
def test_too_few_patients_fit_nothing(patients: int) -> None:
    assert fit_finding("atrophy", _cohort(3.0, patients)) is None


def test_volumes_without_a_common_structure_fit_nothing() -> None:
    named = [MeasuredVolume(one.patient_id, {f"{index % 2}": 0.5}, one.present) for index, one in enumerate(_cohort(3.0))]
    assert fit_finding("atrophy", named) is None


def test_a_finding_is_predicted_where_the_question_names_it_and_its_structures_are_measured() -> None:
    volumetry, normal = Volumetry((ATROPHY,)), {"grey matter": 0.6, "white matter": 0.9, "lesion": 0.1}
    assert volumetry.probability("Is there an Atrophy in this brain MRI?", normal) == pytest.approx(1 / (1 + np.e))
    assert volumetry.probability("Is there a lesion?", normal) is None and not volumetry.names("Is there a lesion?")
    assert volumetry.probability("Is there atrophy?", {"grey matter": 0.6}) is None
    assert volumetry.organ_findings(normal) == {"atrophy": False} and volumetry.organ_findings({"bone": 0.2}) == {}


def test_the_weights_survive_the_file_and_a_folder_without_it_tells_nothing(tmp_path: Path) -> None:
    Volumetry((ATROPHY,)).write(tmp_path)
    assert Volumetry.read(tmp_path / "none", tmp_path) == Volumetry((ATROPHY,))
    assert Volumetry.read(tmp_path / "none").organ_findings({"grey matter": 0.1}) == {}
