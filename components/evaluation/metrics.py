"""Metrics of the tasks, each by the library or definition that is standard in its field.

Shape letters: D slices, H rows, W columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curation.text.template import FIELD_STRENGTH, parse_paragraph
from components.evaluation.verdicts import Score
from components.tasks.findings import VolumeOutline
from model_core.boxes import TextBox, VolumeBox

Array = NDArray[np.floating[Any]]
IOU = 0.5


def nmse(prediction_DHW: Array, target_DHW: Array) -> float:
    """Compute the normalized mean squared error of a volume (fastMRI, arXiv:1811.08839, eq. 12)."""
    return float(((prediction_DHW - target_DHW) ** 2).sum() / (target_DHW**2).sum())


def psnr(prediction_DHW: Array, target_DHW: Array, data_range: float) -> float:
    """Compute the peak signal-to-noise ratio of a volume, dB (fastMRI: the range is the volume's maximum)."""
    from skimage.metrics import peak_signal_noise_ratio

    return float(peak_signal_noise_ratio(target_DHW, prediction_DHW, data_range=data_range))


def ssim(prediction_DHW: Array, target_DHW: Array, data_range: float) -> float:
    """Compute the mean structural similarity of slices (fastMRI): uniform window of 7, sample covariance, range = maximum."""
    from skimage.metrics import structural_similarity

    scores = [
        structural_similarity(target_HW, prediction_HW, win_size=7, data_range=data_range)
        for target_HW, prediction_HW in zip(target_DHW, prediction_DHW, strict=True)
    ]
    return float(np.mean(scores))


def dice(prediction_HW: NDArray[np.bool_], target_HW: NDArray[np.bool_]) -> float:
    """Compute the Dice coefficient of a mask with MONAI; for an empty truth 1 if the prediction is empty, else 0."""
    import torch
    from monai.metrics import compute_dice

    prediction, truth = (torch.from_numpy(np.asarray(mask, dtype=np.float32))[None, None] for mask in (prediction_HW, target_HW))
    if not truth.any():
        return float(not prediction.any())
    return float(compute_dice(prediction, truth, include_background=True, ignore_empty=False))


def hd95(prediction_HW: NDArray[np.bool_], target_HW: NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> float:
    """Compute the 95th percentile of the distances between two outlines or surfaces (of volumes), mm, with MONAI.

    The result is 0 if both masks are empty, and the diagonal of the image, the largest possible distance, if one mask is empty.
    """
    import torch
    from monai.metrics import compute_hausdorff_distance

    if not prediction_HW.any() and not target_HW.any():
        return 0.0
    if not prediction_HW.any() or not target_HW.any():
        return float(np.linalg.norm([side * mm for side, mm in zip(target_HW.shape, spacing_mm, strict=True)]))
    prediction, truth = (torch.from_numpy(np.asarray(mask, dtype=np.float32))[None, None] for mask in (prediction_HW, target_HW))
    return float(compute_hausdorff_distance(prediction, truth, include_background=True, percentile=95, spacing=list(spacing_mm)))


def iou(first: TextBox, second: TextBox) -> float:
    """Compute the intersection over union of two boxes of slices, or of two boxes of volumes."""
    (low, high), (other_low, other_high) = (np.asarray(box.edges).reshape(2, -1) for box in (first, second))
    shared = int(np.clip(np.minimum(high, other_high) - np.maximum(low, other_low), 0, None).prod())
    return shared / (int((high - low).prod()) + int((other_high - other_low).prod()) - shared)


def count_matches(predicted: Sequence[TextBox], truth: Sequence[TextBox], least: float = IOU) -> int:
    """Count the predicted boxes matched one-to-one with true boxes: same label, an IoU of at least ``least``, largest IoU first."""
    pairs = [
        (iou(p, t), i, j) for i, p in enumerate(predicted) for j, t in enumerate(truth) if p.label == t.label and iou(p, t) >= least
    ]
    used_p: set[int] = set()
    used_t: set[int] = set()
    for _, i, j in sorted(pairs, reverse=True):
        if i not in used_p and j not in used_t:
            used_p.add(i)
            used_t.add(j)
    return len(used_p)


def detection_f1(predicted: Sequence[Sequence[TextBox]], truth: Sequence[Sequence[TextBox]], least: float = IOU) -> float:
    """Compute the F1 of boxes at an IoU over all images or volumes; 1 if there is no true and no predicted box."""
    hits = sum(count_matches(p, t, least) for p, t in zip(predicted, truth, strict=True))
    total = sum(map(len, predicted)) + sum(map(len, truth))
    return 2 * hits / total if total else 1.0


@dataclass(frozen=True)
class FrocHits:
    """Confidences of the false boxes of a volume, and of its true findings (0 = not found)."""

    false: NDArray[np.float64]
    true: NDArray[np.float64]


def froc_hits(found: Sequence[VolumeOutline], truth: Sequence[VolumeBox], shape: tuple[int, int, int]) -> FrocHits:
    """Compare the boxes of a volume with the truth as MONAI does: a box is right if its center is in a true box, whatever its name.

    Args:
        shape: (D, H, W) of the volume.
    """
    from monai.metrics.froc import compute_fp_tp_probs_nd

    targets = np.zeros(shape, np.int64)
    for number, box in enumerate(truth, start=1):
        targets[VolumeOutline.of_box(box, shape).voxels] = number
    centers = np.array([one.center for one in found], np.int64).reshape(-1, 3)
    confidences = np.array([one.confidence for one in found], np.float64)
    false, true, _ = compute_fp_tp_probs_nd(confidences, centers, targets)
    return FrocHits(np.asarray(false, np.float64), np.asarray(true, np.float64))


def froc_sensitivity(hits: Sequence[FrocHits], false_per_volume: float) -> float:
    """Compute the share of findings that are found at a number of false boxes per volume (MONAI's FROC curve).

    Without true findings, 1 if nothing is found, else 0.
    """
    from monai.metrics.froc import compute_froc_curve_data, compute_froc_score

    false, true = (np.concatenate([getattr(one, name) for one in hits]) for name in ("false", "true"))
    if not true.size:
        return float(not false.size)
    # MONAI omits the lowest confidence, which it takes for that of findings that are missed.
    curve = compute_froc_curve_data(np.append(false, 0.0), true, len(true), len(hits))
    return float(compute_froc_score(*curve, (false_per_volume,)))


def localization_f1(predicted: Sequence[Sequence[TextBox]], truth: Sequence[Sequence[TextBox]]) -> float:
    """Compute :func:`detection_f1` whatever the names of the boxes are: what is found, and not what it is called."""

    def unnamed(answers: Sequence[Sequence[TextBox]]) -> list[list[TextBox]]:
        return [[replace(box, label="") for box in boxes] for boxes in answers]

    return detection_f1(unnamed(predicted), unnamed(truth))


def average_precision(predicted: Sequence[Sequence[TextBox]], truth: Sequence[Sequence[TextBox]], scores: Sequence[float]) -> float:
    """Compute the AP of boxes at an IoU of one half, without interpolation; every box has the score of its answer.

    The result is scikit-learn's average precision (boxes of equal score enter together) times the recall of all boxes, because
    lesions without a matching box belong to the truth as well. It is 0 without a match, and 1 if there is no true and no predicted
    box.
    """
    from sklearn.metrics import average_precision_score

    hits = [count_matches(p, t) for p, t in zip(predicted, truth, strict=True)]
    total = sum(map(len, truth))
    if not total:
        return float(not any(predicted))
    correct = [i < hit for p, hit in zip(predicted, hits, strict=True) for i in range(len(p))]
    ranked = [score for p, score in zip(predicted, scores, strict=True) for _ in p]
    return float(average_precision_score(correct, ranked)) * sum(hits) / total if sum(hits) else 0.0


def presence_accuracy(predicted: Sequence[Sequence[TextBox]], truth: Sequence[Sequence[TextBox]]) -> float:
    """Compute the share of images with a correct decision between "some box" and "no box"."""
    return float(np.mean([bool(p) == bool(t) for p, t in zip(predicted, truth, strict=True)]))


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Compute the area under the ROC curve; 0.5 if there is only one class."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, scores)) if len(set(positive)) == 2 else 0.5


def auroc_by_unit(scores: Sequence[float], positive: Sequence[bool], units: Sequence[str]) -> Score:
    """Return the AUROC over units (such as patients) of the chosen cases: their largest score, and whether any case is positive."""

    def score(chosen: Sequence[int]) -> float:
        largest: dict[str, float] = {}
        present: dict[str, bool] = {}
        for i in chosen:
            largest[units[i]] = max(largest.get(units[i], 0.0), scores[i])
            present[units[i]] = present.get(units[i], False) or positive[i]
        return auroc_by_ranks(list(largest.values()), [present[unit] for unit in largest])

    return score


def has_both_answers(positive: Sequence[bool], units: Sequence[str]) -> bool:
    """Return whether there are positive and negative units: without both, :func:`auroc_by_unit` is not a number."""
    present = {unit for unit, one in zip(units, positive, strict=True) if one}
    return bool(present) and present != set(units)


def auroc_by_ranks(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Compute :func:`auroc` without scikit-learn's checks, for a thousand bootstrap resamples; NaN if there is only one class."""
    from scipy.stats import rankdata

    truth = np.asarray(positive, dtype=bool)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return float("nan")
    return float((rankdata(scores)[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def bleu(predicted: Sequence[str], truth: Sequence[str]) -> float:
    """Compute the corpus BLEU with sacrebleu, 0 to 1."""
    import sacrebleu

    return float(sacrebleu.corpus_bleu(list(predicted), [list(truth)]).score) / 100


def rouge_l(predicted: Sequence[str], truth: Sequence[str]) -> float:
    """Compute the mean ROUGE-L F-measure with rouge-score."""
    return float(np.mean(rouge_l_each(predicted, truth)))


def rouge_l_each(predicted: Sequence[str], truth: Sequence[str]) -> list[float]:
    """Compute the ROUGE-L F-measure of every text."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return [scorer.score(t, p)["rougeL"].fmeasure for p, t in zip(predicted, truth, strict=True)]


SIZE_TOLERANCE = 0.2
"""Relative difference up to which two sizes count as equal. RECIST 1.1 calls an increase of the diameter by 20 % a progression."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?) (mm|ml)\b")


def same_statement(text: str, truth: str, tolerance: float) -> bool:
    """Return whether two texts are the same, up to a relative difference of their sizes in mm and ml."""
    if _SIZE.sub(r"\2", text) != _SIZE.sub(r"\2", truth):
        return False
    sizes, true_sizes = (np.array([float(number) for number, _ in _SIZE.findall(one)]) for one in (text, truth))
    return bool((np.abs(sizes - true_sizes) <= tolerance * true_sizes).all())


def field_f1(predicted: Sequence[str], truth: Sequence[str], tolerance: float = 0.0) -> float:
    """Compute the F1 over the fields of the Fig. 2 template: a field is correct if both name and text are.

    The field strength, which reports copy from the header, is no field of the template.

    Args:
        tolerance: relative difference of sizes in mm and ml that counts as correct.
    """
    hits = total = 0
    for predicted_text, true_text in zip(predicted, truth, strict=True):
        fields, true_fields = parse_paragraph(predicted_text), parse_paragraph(true_text)
        fields.pop(FIELD_STRENGTH, None)
        hits += sum(name in true_fields and same_statement(text, true_fields[name], tolerance) for name, text in fields.items())
        total += len(fields) + len(true_fields)
    return 2 * hits / total if total else 0.0


def lesion_sides(report: str) -> frozenset[str]:
    """Return the sides, left and right, of the findings of a report; bilateral counts as both."""
    findings = " ".join(text for name, text in parse_paragraph(report).items() if name.startswith("pathological_findings."))
    sides = frozenset(re.findall(r"\b(left|right|bilateral)\b", findings))
    return frozenset(("left", "right")) if "bilateral" in sides else sides


def same_sides(report: str, truth: str) -> bool:
    """Return whether a report names exactly the sides of the true findings."""
    return lesion_sides(report) == lesion_sides(truth)
