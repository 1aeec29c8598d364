"""Volumetry is fitted on validation patients, on the findings that datasets state about whole volumes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from components.curation.corpus import Corpus
from components.evaluation.model_answers import AnswerGenerator
from components.evaluation.organ_findings import measure_volumetry
from components.settings import EvaluationSettings

PATIENTS = 24


def _row(volume_id: str, finding: str, positive: bool, split: str = "validation", scope: str = "volume") -> SimpleNamespace:
    return SimpleNamespace(volume_id=volume_id, split=split, scope=scope, finding=finding, positive=positive)


def test_it_is_fitted_on_validation_volumes_and_diffuse_findings_alone() -> None:
    """Other rows state the contrary of what the volumes show: any one of them among the fitted would turn the weights."""
    rng = np.random.default_rng(0)
    rows, shares, volumes = [], {}, {}
    for number in range(3 * PATIENTS):
        volume_id, present = f"v{number}", number % 3 == 0
        shares[volume_id] = {"grey matter": float(rng.normal(0.5 - 0.1 * present, 0.01))}
        volumes[volume_id] = SimpleNamespace(patient_id=f"p{number}")
        if number < PATIENTS:
            rows += [_row(volume_id, "Atrophy", present), _row(volume_id, "lesion", not present)]
            rows.append(_row(volume_id, "atrophy", not present, scope="study"))
        else:
            rows.append(_row(volume_id, "atrophy", not present, split="train" if number % 2 else "test"))
    corpus = cast(Corpus, SimpleNamespace(volume_instructions=rows, volumes=volumes))
    answers = cast(AnswerGenerator, cast(Any, SimpleNamespace(shares=shares)))
    [fitted] = measure_volumetry(answers, corpus, EvaluationSettings()).findings
    assert (fitted.name, fitted.patients, fitted.positive) == ("atrophy", PATIENTS, PATIENTS // 3)
    assert fitted.weights["grey matter"] < 0 and fitted.auroc > 0.99
