"""Volumetry: findings of a whole organ, such as atrophy, from the volumes of its structures in the masks of the model.

No mask can outline such a finding. It is judged by the volume of tissue relative to that of the whole organ, as in the brain
parenchymal fraction (Rudick et al., Neurology 1999), which divides by the volume inside the outline of the brain. Its
probability is a logistic function of the share that each structure has of the organ, with the weights of validation patients
(:func:`fit_finding`). Evaluation fits it; the registered model carries it.

Shape letters: D slices, H rows, W columns, N volumes, S structures.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from components.curation.measure.volume_facts import CONTENT_SHARE
from components.curation.text.structure_names import is_lesion
from components.files import read_json, write_json
from components.tasks.known_structures import Shown

VOLUMETRY = "volumetry.json"
FEWEST = 3
"""Smallest number of patients with the finding, and of patients without it, for which weights are fitted."""
LEAST_AUROC = 0.75
"""Smallest AUROC of patients who are left out of the fit in turn; below it, volumes do not decide the finding."""
INVERSE_REGULARIZATION = 10.0
"""C of scikit-learn's logistic regression on standardized shares, chosen on validation patients of the demo (docs/LOG.md)."""
CLOSING_MM = 10.0
"""Gaps up to almost twice this wide, such as sulci, belong to the organ; 4 to 15 mm give the same diagnoses (docs/LOG.md)."""
GRID_MM = 2.0
"""Size of pixels that is fine enough for shares of an organ; finer images are sampled."""
RELATIVE_TO = "organ"
"""Entry of the file with the weights: shares are volumes divided by that of the organ.

Files from before December 2026 do not have this entry; their weights are for volumes divided by that of the body.
"""
Shares = Mapping[str, float]
"""Structure -> its share of the volume of the organ."""

logger = logging.getLogger(__name__)


def measure_shares(shown: Shown, spacing_mm: Sequence[float]) -> dict[str, float]:
    """Return the share that every structure, which is no lesion, has of the organ.

    It is the sum of its probabilities inside the outline of the organ, divided by the number of voxels there. The outline is that
    of all structures together (:func:`outline_organ`): what no label map names, such as a skull, does not count. Slices with less
    than :data:`CONTENT_SHARE` of the largest section of the organ, and those that the model did not look at, do not count either.

    Args:
        shown: of a volume, (D, H, W).
        spacing_mm: distance of its slices, rows and columns.
    """
    _, *pixel_mm = spacing_mm
    steps = [max(1, int(GRID_MM / side + 1e-3)) for side in pixel_mm]
    seen = {name: values[:, :: steps[0], :: steps[1]] for name, values in shown.structures.items()}
    if not seen:
        return {}
    sampled_mm = [side * step for side, step in zip(pixel_mm, steps, strict=True)]
    tissue_DHW = np.asarray(sum(seen.values(), np.float32(0))) > 0.5
    organ_DHW = np.stack([outline_organ(tissue_HW, sampled_mm) for tissue_HW in tissue_DHW])
    size_D = organ_DHW.sum((1, 2))
    organ_DHW[size_D < CONTENT_SHARE * size_D.max()] = False
    total = max(int(organ_DHW.sum()), 1)
    return {name: float(values[organ_DHW].sum() / total) for name, values in seen.items() if not is_lesion(name)}


def outline_organ(tissue_HW: NDArray[np.bool_], pixel_mm: Sequence[float]) -> NDArray[np.bool_]:
    """Return the pixels of an organ: its tissue, gaps narrower than almost twice :data:`CLOSING_MM`, and what these enclose.

    A morphological closing by a disk, and the holes in it.
    """
    outline = np.zeros_like(tissue_HW)
    if not tissue_HW.any():
        return outline
    [around] = ndimage.find_objects(tissue_HW.astype(np.uint8))
    margins = [(math.ceil(CLOSING_MM / side) + 1,) * 2 for side in pixel_mm]
    padded = np.pad(tissue_HW[around], margins)
    grown = ndimage.distance_transform_edt(~padded, sampling=pixel_mm) <= CLOSING_MM
    closed = ndimage.binary_fill_holes(ndimage.distance_transform_edt(grown, sampling=pixel_mm) > CLOSING_MM)
    outline[around] = closed[tuple(slice(before, -after) for before, after in margins)]
    return outline


@dataclass(frozen=True)
class OrganFinding:
    """The weights of a finding of a whole organ.

    Attributes:
        name: of the finding.
        weights: structure -> weight of its share; without all of these shares there is no prediction.
        offset: of the log odds.
        auroc: of validation patients, each left out of the fit in turn.
        patients, positive: number of validation patients, and of those among them with the finding.
    """

    name: str
    weights: Mapping[str, float]
    offset: float
    auroc: float
    patients: int
    positive: int

    def probability(self, shares: Shares) -> float | None:
        """Return the probability of the finding; None if a structure was not measured."""
        if not set(self.weights) <= set(shares):
            return None
        score = self.offset + sum(weight * shares[name] for name, weight in self.weights.items())
        return float(1 / (1 + np.exp(-score)))


@dataclass(frozen=True)
class Volumetry:
    """Findings of whole organs that are predicted from volumes of structures."""

    findings: tuple[OrganFinding, ...] = ()

    def names(self, question: str) -> bool:
        """Return whether a question names a finding that volumetry predicts."""
        return self._named(question) is not None

    def probability(self, question: str, shares: Shares) -> float | None:
        """Return the probability of the finding that a question names; None if these shares predict none that it names."""
        found = self._named(question)
        return None if found is None else found.probability(shares)

    def organ_findings(self, shares: Shares) -> dict[str, bool]:
        """Return finding -> whether it is more probable than not, for all findings that these shares predict."""
        probabilities = {one.name: one.probability(shares) for one in self.findings}
        return {name: probability > 0.5 for name, probability in probabilities.items() if probability is not None}

    def _named(self, question: str) -> OrganFinding | None:
        return next((one for one in self.findings if one.name in question.lower()), None)

    def write(self, folder: Path) -> None:
        """Write the weights to a folder."""
        write_json(folder / VOLUMETRY, {"relative_to": RELATIVE_TO, "findings": [asdict(one) for one in self.findings]})

    @classmethod
    def read(cls, *folders: Path) -> Volumetry:
        """Read the weights from the first folder that has them; without any, no finding is predicted.

        Weights for shares of the body, which versions before December 2026 have, are not used: a warning says what to do.
        """
        found = next((folder / VOLUMETRY for folder in folders if (folder / VOLUMETRY).is_file()), None)
        if found is None:
            return cls()
        stored = read_json(found)
        if stored["findings"] and stored.get("relative_to") != RELATIVE_TO:
            logger.warning(
                "%s: its weights are for shares of the body, not of the organ, and are not used: the text of the network decides "
                "findings of whole organs; `omnimri run` trains, evaluates and registers a new version",
                found,
            )
            return cls()
        return cls(tuple(OrganFinding(**one) for one in stored["findings"]))


NO_VOLUMETRY = Volumetry()
"""The volumetry of a model that was not evaluated, or whose validation patients have no such finding."""


@dataclass(frozen=True)
class MeasuredVolume:
    """A validation volume: its patient, its shares, and whether its dataset states the finding as present."""

    patient_id: str
    shares: Shares
    present: bool


def fit_finding(name: str, volumes: Sequence[MeasuredVolume]) -> OrganFinding | None:
    """Return the weights of a finding; None if too few patients have it or lack it, or if the volumes of structures do not show it.

    A logistic regression on the shares of those structures that all volumes have.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    patients = {one.patient_id for one in volumes}
    positive = len({one.patient_id for one in volumes if one.present})
    structures = sorted(set.intersection(*(set(one.shares) for one in volumes))) if volumes else []
    if not structures or min(positive, len(patients) - positive) < FEWEST:
        return None
    shares_NS = np.array([[one.shares[structure] for structure in structures] for one in volumes])
    present_N = np.array([one.present for one in volumes])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_REGULARIZATION))
    groups = [one.patient_id for one in volumes]
    left_out_N2 = cross_val_predict(model, shares_NS, present_N, groups=groups, cv=LeaveOneGroupOut(), method="predict_proba")
    auroc = float(roc_auc_score(present_N, left_out_N2[:, 1]))
    if auroc < LEAST_AUROC:
        logger.info("volumes of structures do not tell %s: AUROC %.2f of validation patients", name, auroc)
        return None
    scaler, regression = model.fit(shares_NS, present_N)
    weights_S = regression.coef_[0] / scaler.scale_
    offset = float(regression.intercept_[0] - weights_S @ scaler.mean_)
    weights = {structure: float(weight) for structure, weight in zip(structures, weights_S, strict=True)}
    return OrganFinding(name, weights, offset, auroc, len(patients), positive)
