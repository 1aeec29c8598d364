"""Calibration of p(yes): the text's probability and the evidence of the finding's mask, weighed on validation patients.

A probability from volumetry (:mod:`components.tasks.volumetry`) is calibrated already: it is the answer.

``logit p = text weight * logit p(text) + mask weight * logit evidence + offset``, the logistic calibration of Platt (1999), of
which temperature scaling (Guo et al., arXiv:1706.04599) is the case of one weight. Evaluation fits it; the registered model carries
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.files import read_json, write_json

CALIBRATION, VOLUME_CALIBRATION = "calibration.json", "volume_calibration.json"
"""Files of the weights for questions about slices, and for questions about whole volumes."""
SMALLEST = 1e-4
"""Probabilities are cut off here and at one minus it, before their logit."""


@dataclass(frozen=True)
class Answer:
    """Opinions on a yes-or-no question.

    Attributes:
        text: p(yes) / (p(yes) + p(no)) of the first word.
        mask: evidence (0 to 1) of the finding in the masks; None = the question is about no structure that the model knows.
        measured: probability of a finding of a whole organ by volumetry; None = no such finding, or not predicted by it.
    """

    text: float
    mask: float | None
    measured: float | None = None


@dataclass(frozen=True)
class Calibration:
    """Weights of the two opinions; those of questions without a mask apart.

    Attributes:
        text_alone, offset_alone: of questions without a mask; 1 / ``text_alone`` is the temperature.
        text, mask, offset: of questions with one.
    """

    text_alone: float = 1.0
    offset_alone: float = 0.0
    text: float = 0.5
    mask: float = 0.5
    offset: float = 0.0

    def probability(self, answer: Answer) -> float:
        """Return the calibrated p(yes)."""
        if answer.measured is not None:
            return answer.measured
        if answer.mask is None:
            score = self.text_alone * logit(answer.text) + self.offset_alone
        else:
            score = self.text * logit(answer.text) + self.mask * logit(answer.mask) + self.offset
        return float(1 / (1 + np.exp(-score)))

    def write(self, folder: Path, name: str = CALIBRATION) -> None:
        """Write the weights to a folder."""
        write_json(folder / name, asdict(self))

    @classmethod
    def read(cls, *folders: Path, name: str = CALIBRATION) -> Calibration:
        """Read the weights from the first folder that has them; without any, both opinions count alike."""
        found = next((folder / name for folder in folders if (folder / name).is_file()), None)
        return cls() if found is None else cls(**read_json(found))


def logit(probability: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log odds of probabilities, cut off near 0 and 1."""
    clipped = np.clip(np.asarray(probability, np.float64), SMALLEST, 1 - SMALLEST)
    return np.asarray(np.log(clipped / (1 - clipped)))


def fit_calibration(answers: Sequence[Answer], positive: Sequence[bool]) -> Calibration:
    """Return the weights with the least cross-entropy; the defaults where there are not both kinds of truth.

    Weights are not negative: an opinion never counts against itself. A weak pull to the defaults (one case of each) keeps few cases
    that happen to be separable from infinite weights.
    """
    default = Calibration()
    pairs = [(answer, truth) for answer, truth in zip(answers, positive, strict=True) if answer.measured is None]
    alone = [(logit(a.text)[None], truth) for a, truth in pairs if a.mask is None]
    both = [(np.array([logit(a.text), logit(a.mask)]), truth) for a, truth in pairs if a.mask is not None]
    text_alone, offset_alone = _fit(alone, [default.text_alone, default.offset_alone])
    text, mask, offset = _fit(both, [default.text, default.mask, default.offset])
    return Calibration(text_alone, offset_alone, text, mask, offset)


def _fit(cases: Sequence[tuple[NDArray[np.float64], bool]], start: list[float]) -> list[float]:
    """Return weights and offset of a logistic regression with weights of at least zero."""
    from scipy.optimize import minimize

    truth = np.array([t for _, t in cases], np.float64)
    if len(set(truth.tolist())) < 2:
        return start
    inputs = np.array([[*x, 1.0] for x, _ in cases])
    origin = np.array(start)

    def loss(weights: NDArray[np.float64]) -> float:
        scores = inputs @ weights
        entropy = np.logaddexp(0, scores) - truth * scores
        return float(entropy.sum() + 0.5 * ((weights - origin) ** 2).sum())

    bounds = [*[(0.0, None)] * (len(start) - 1), (None, None)]
    return [float(weight) for weight in minimize(loss, origin, bounds=bounds, method="L-BFGS-B").x]
