"""Findings of whole organs, predicted from the volumes of structures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from skimage.morphology import convex_hull_image
from sklearn.metrics import roc_auc_score

from components.files import read_json, write_json
from components.tasks.known_structures import Shown
from components.tasks.volumetry import (
    NO_VOLUMETRY,
    VOLUMETRY,
    MeasuredVolume,
    OrganFinding,
    Volumetry,
    fit_finding,
    measure_shares,
    outline_organ,
)

ATROPHY = OrganFinding("atrophy", {"grey matter": -20.0, "white matter": -10.0}, 20.0, 0.9, 30, 8)


SPACING_MM = (5.0, 2.0, 2.0)


def _organ(fluid: int) -> Shown:
    """Return an organ of 24 x 24 pixels with fluid of ``fluid`` x ``fluid`` in its middle, in slices 1 to 3 of five."""
    tissue, lesion = (np.zeros((5, 32, 32), np.float32) for _ in range(2))
    tissue[1:4, 4:28, 4:28] = 1
    low, high = 16 - fluid // 2, 16 + fluid // 2
    tissue[1:4, low:high, low:high] = 0
    tissue[1:4, 5:7, 5:7], lesion[1:4, 5:7, 5:7] = 0, 1
    return Shown(lesion, {"white matter": tissue, "lesion": lesion})


def _edited(shown: Shown, edit: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Shown:
    return Shown(edit(shown.mask), {name: edit(values) for name, values in shown.structures.items()})


def test_a_share_is_that_of_the_organ_with_its_lesions_and_the_fluid_that_it_encloses() -> None:
    expected = (24**2 - 12**2 - 4) / 24**2
    assert measure_shares(_organ(12), SPACING_MM) == {"white matter": pytest.approx(expected, abs=0.01)}


def _with_sulcus(width_mm: int, pixel_mm: tuple[int, int], across: bool) -> tuple[Shown, float]:
    """Return an organ of 120 x 120 mm with a sulcus 60 mm deep, open to the outside, and its share if the sulcus belongs to it."""
    tissue = np.zeros((5, 160, 160), np.float32)  # pixels of 1 mm
    tissue[1:4, 20:140, 20:140] = 1
    first = 80 - width_mm // 2
    tissue[1:4, 20:80, first : first + width_mm] = 0
    sampled = (tissue.transpose(0, 2, 1) if across else tissue)[:, :: pixel_mm[0], :: pixel_mm[1]]
    return Shown(np.zeros_like(sampled), {"white matter": sampled}), 1 - 60 * width_mm / 120**2


@pytest.mark.parametrize("pixel_mm", [(1, 1), (2, 2), (4, 4), (1, 4), (4, 1)])
@pytest.mark.parametrize("across", [False, True])
def test_a_sulcus_belongs_to_the_organ_and_a_wide_gap_does_not(pixel_mm: tuple[int, int], across: bool) -> None:
    """A sulcus is open to the outside: no region of its own that tissue encloses. The gap is wider than twice the closing."""
    for width_mm, belongs in ((8, True), (12, True), (24, False), (32, False)):
        shown, with_sulcus = _with_sulcus(width_mm, pixel_mm, across)
        [share] = measure_shares(shown, (5.0, *pixel_mm)).values()
        assert share == pytest.approx(with_sulcus if belongs else 1.0, abs=0.02), width_mm


def test_tissue_that_is_seen_beyond_the_organ_does_not_count() -> None:
    false = _organ(12)
    false.structures["white matter"][4, 4:6, 4:6] = 1
    assert measure_shares(false, SPACING_MM) == measure_shares(_organ(12), SPACING_MM)


def test_slices_that_were_not_looked_at_do_not_count() -> None:
    shown = _organ(12)
    complete = measure_shares(shown, SPACING_MM)
    for values in shown.structures.values():
        values[2] = 0
    assert measure_shares(shown, SPACING_MM) == complete


@given(st.integers(0, 3))
def test_shares_do_not_depend_on_the_field_of_view(margin: int) -> None:
    pad = ((margin, margin), (2 * margin, margin), (0, 3 * margin))
    padded = _edited(_organ(12), lambda values: np.pad(values, pad))
    assert measure_shares(padded, SPACING_MM) == measure_shares(_organ(12), SPACING_MM)


@pytest.mark.parametrize("times", [(2, 2), (4, 4), (3, 1)])
def test_shares_do_not_depend_on_the_size_of_pixels(times: tuple[int, int]) -> None:
    fine = _edited(_organ(12), lambda values: values.repeat(times[0], 1).repeat(times[1], 2))
    depth_mm, row_mm, column_mm = SPACING_MM
    measured = measure_shares(fine, (depth_mm, row_mm / times[0], column_mm / times[1]))
    assert measured == {"white matter": pytest.approx(measure_shares(_organ(12), SPACING_MM)["white matter"], abs=0.01)}


def test_a_model_that_shows_no_structure_has_shares_of_nothing() -> None:
    empty = _edited(_organ(12), np.zeros_like)
    assert measure_shares(empty, SPACING_MM) == {"white matter": 0.0}
    assert measure_shares(Shown(empty.mask, {}), SPACING_MM) == {}


@given(arrays(np.bool_, (12, 16)))
def test_an_outline_contains_the_tissue_and_lies_within_its_convex_hull(tissue: NDArray[np.bool_]) -> None:
    outline = outline_organ(tissue, (2.0, 2.0))
    assert (outline >= tissue).all()
    assert (outline <= convex_hull_image(tissue)).all() if tissue.any() else not outline.any()


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


def test_weights_for_shares_of_the_body_are_not_used_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Volumetry((ATROPHY,)).write(tmp_path)
    stored = read_json(tmp_path / VOLUMETRY)
    del stored["relative_to"]
    write_json(tmp_path / VOLUMETRY, stored)
    assert Volumetry.read(tmp_path) == NO_VOLUMETRY
    assert "shares of the body" in caplog.text and "omnimri run" in caplog.text
