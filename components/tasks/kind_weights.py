"""Weights of the kinds of findings: what a part of a mask is called, from validation patients.

A network gives too small a probability to a kind that it rarely saw, wherever it is (logit adjustment, Menon et al.,
arXiv:2007.07314). The probabilities of findings are weighed by kind, so that their sum stays the same in every pixel
(:meth:`components.tasks.known_structures.KnownStructures.probabilities`). Evaluation fits the weights; the registered model carries
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.files import read_json, write_json
from components.tasks.findings import ANY

KIND_WEIGHTS = "kind_weights.json"
SPECIFIC = 3.0
"""Weight of a kind with a name of its own, relative to "lesion", which every finding is, without a fit (docs/LOG.md)."""
_PULL = 3.0
"""Strength of the pull of slope and offsets to their defaults: some parts of each kind are needed to move them."""
_LEAST_SLOPE = 0.2
"""Lower bound of the slope: more evidence of a kind never makes this kind less probable."""


def default_weight(kind: str) -> float:
    """Return the weight of a kind for which none is fitted."""
    return 1.0 if kind == ANY else SPECIFIC


@dataclass(frozen=True)
class FoundPart:
    """A part of a mask that overlaps a true finding.

    Attributes:
        evidence: kind -> sum of its probabilities over the pixels of the part, not weighed.
        kind: of the true finding.
    """

    evidence: Mapping[str, float]
    kind: str


def fit_kind_weights(parts: Sequence[FoundPart]) -> dict[str, float]:
    """Return kind -> weight, of all kinds of these parts: a multinomial logistic regression on the log evidence.

    All kinds share the slope. A pull to the defaults keeps few parts from extreme weights. With the weights, the most probable kind
    is that with the largest weighed evidence.
    """
    from scipy.optimize import minimize

    known = [part for part in parts if part.kind in part.evidence]
    kinds = sorted({kind for part in known for kind in part.evidence})
    if len({part.kind for part in known}) < 2:
        return {}
    start = np.array([1.0, *(np.log(default_weight(kind)) for kind in kinds)])
    evidence_PK = np.array(
        [[np.log(part.evidence[kind] + 1e-2) if kind in part.evidence else -np.inf for kind in kinds] for part in known]
    )
    possible_PK, evidence_PK = np.isfinite(evidence_PK), np.where(np.isfinite(evidence_PK), evidence_PK, 0.0)
    truth_P = np.array([kinds.index(part.kind) for part in known])

    def loss(weights: NDArray[np.float64]) -> float:
        scores_PK = np.where(possible_PK, weights[0] * evidence_PK + weights[1:], -np.inf)
        entropy_P = np.logaddexp.reduce(scores_PK, axis=1) - scores_PK[np.arange(len(truth_P)), truth_P]
        return float(entropy_P.sum() + 0.5 * _PULL * ((weights - start) ** 2).sum())

    bounds = [(_LEAST_SLOPE, None), *[(None, None)] * len(kinds)]
    slope, *offsets = minimize(loss, start, bounds=bounds, method="L-BFGS-B").x
    return {kind: float(np.exp(offset / slope)) for kind, offset in zip(kinds, offsets, strict=True)}


def write_kind_weights(folder: Path, weights: Mapping[str, float]) -> None:
    """Write the weights to a folder."""
    write_json(folder / KIND_WEIGHTS, dict(weights))


def read_kind_weights(*folders: Path) -> dict[str, float]:
    """Read the weights from the first folder that has them; none without any."""
    found = next((folder / KIND_WEIGHTS for folder in folders if (folder / KIND_WEIGHTS).is_file()), None)
    return {} if found is None else {str(kind): float(weight) for kind, weight in read_json(found).items()}
