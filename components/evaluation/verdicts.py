"""Better, worse, or not to be told apart: a bootstrap over patients, since slices of one patient are no independent cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

DRAWS = 400
LEVEL = 0.05
Score = Callable[[Sequence[int]], float]
"""Metric of some cases, by their positions."""


def verdict(model: Score, baseline: Score, patients: Sequence[str], higher_is_better: bool, seed: int = 0) -> str:
    """Compare two scores of the same cases.

    Patients are drawn with replacement 400 times; the difference counts if 95 % of the draws' differences have one sign.
    """
    rng = np.random.default_rng(seed)
    names = sorted(set(patients))
    cases = {name: [i for i, patient in enumerate(patients) if patient == name] for name in names}
    differences = []
    for _ in range(DRAWS):
        drawn = [i for name in rng.choice(names, len(names)) for i in cases[str(name)]]
        differences.append(model(drawn) - baseline(drawn))
    low, high = np.quantile(differences, [LEVEL / 2, 1 - LEVEL / 2]) * (1 if higher_is_better else -1)
    if min(low, high) > 0:
        return "better"
    return "worse" if max(low, high) < 0 else "no difference"
