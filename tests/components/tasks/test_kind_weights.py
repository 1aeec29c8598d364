"""Weights of kinds of findings, beside scikit-learn's logistic regression."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from components.tasks.kind_weights import (
    SPECIFIC,
    FoundPart,
    default_weight,
    fit_kind_weights,
    read_kind_weights,
    write_kind_weights,
)


def _parts(neglect: float, count: int = 4000, slope: float = 1.0) -> list[FoundPart]:
    """Return parts of which half are tumors, whose evidence is ``neglect`` times too small."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, count)
    is_tumor = rng.random(count) < 1 / (1 + np.exp(-slope * logits))
    evidence = np.exp(logits) / neglect
    return [
        FoundPart({"lesion": 20.0, "tumor": 20.0 * float(e)}, "tumor" if t else "lesion")
        for e, t in zip(evidence, is_tumor, strict=True)
    ]


@pytest.mark.parametrize("neglect", [0.3, 1.0, 10.0])
@pytest.mark.parametrize("slope", [0.5, 1.0, 2.0])
def test_a_kind_that_the_network_neglects_is_weighed_up(neglect: float, slope: float) -> None:
    """Where both kinds are as probable, the weighed evidence of both is the same, whatever the slope of the evidence is."""
    parts = _parts(neglect, slope=slope)
    weights = fit_kind_weights(parts)
    assert weights["tumor"] / weights["lesion"] == pytest.approx(neglect, rel=0.15)
    log_ratio = np.array([[np.log(part.evidence["tumor"] / part.evidence["lesion"])] for part in parts])
    reference = LogisticRegression(C=1e6).fit(log_ratio, [part.kind == "tumor" for part in parts])
    even = float(np.exp(reference.intercept_[0] / reference.coef_[0, 0]))
    assert weights["tumor"] / weights["lesion"] == pytest.approx(even, rel=0.05)


def test_parts_of_one_kind_fit_nothing() -> None:
    parts = [part for part in _parts(10.0, 50) if part.kind == "tumor"]
    assert fit_kind_weights(parts) == {} == fit_kind_weights([])
    assert fit_kind_weights([FoundPart({"lesion": 3.0}, "tear")]) == {}, "a kind that the model does not know"


def test_two_parts_hardly_move_the_weights() -> None:
    weights = fit_kind_weights([FoundPart({"lesion": 20.0, "tumor": 2.0}, kind) for kind in ("tumor", "lesion")])
    assert SPECIFIC < weights["tumor"] / weights["lesion"] < 2 * SPECIFIC  # the parts alone would say ten


def test_kinds_of_other_anatomies_do_not_compete() -> None:
    """A knee has no tumor to confuse with: its parts change nothing about those of the brain."""
    brain = _parts(5.0, 400)
    knee = [FoundPart({"tear": 5.0, "effusion": 5.0}, kind) for kind in ("tear", "effusion")] * 100
    apart, together = fit_kind_weights(brain), fit_kind_weights([*brain, *knee])
    assert set(together) == {"lesion", "tumor", "tear", "effusion"}
    assert together["tumor"] / together["lesion"] == pytest.approx(apart["tumor"] / apart["lesion"], rel=0.3)


def test_the_weights_survive_the_file_and_a_folder_without_it_has_none(tmp_path: Path) -> None:
    write_kind_weights(tmp_path, {"tumor": 9.0})
    assert read_kind_weights(tmp_path / "none", tmp_path) == {"tumor": 9.0}
    assert read_kind_weights(tmp_path / "none") == {}
    assert (default_weight("tumor"), default_weight("lesion")) == (SPECIFIC, 1.0)
