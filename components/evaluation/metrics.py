"""Metrics of the five tasks, each by the library or definition that its field uses.

Shape letters: D slices, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curation.text.template import parse_paragraph
from model_core.boxes import TextBox

Array = NDArray[np.floating[Any]]
IOU = 0.5


def nmse(prediction_DHW: Array, target_DHW: Array) -> float:
    """Normalised mean squared error of a volume (fastMRI, arXiv:1811.08839, eq. 12)."""
    return float(((prediction_DHW - target_DHW) ** 2).sum() / (target_DHW**2).sum())


def psnr(prediction_DHW: Array, target_DHW: Array, data_range: float) -> float:
    """Peak signal-to-noise ratio of a volume, dB (fastMRI: the range is the volume's maximum)."""
    from skimage.metrics import peak_signal_noise_ratio

    return float(peak_signal_noise_ratio(target_DHW, prediction_DHW, data_range=data_range))


def ssim(prediction_DHW: Array, target_DHW: Array, data_range: float) -> float:
    """Structural similarity, mean over slices: uniform window of 7, sample covariance, range = the volume's maximum (fastMRI)."""
    from skimage.metrics import structural_similarity

    scores = [
        structural_similarity(truth, made, win_size=7, data_range=data_range)
        for truth, made in zip(target_DHW, prediction_DHW, strict=True)
    ]
    return float(np.mean(scores))


def dice(prediction_HW: NDArray[np.bool_], target_HW: NDArray[np.bool_]) -> float:
    """Dice coefficient of a mask by MONAI; an empty truth that is predicted empty counts 1, otherwise 0."""
    import torch
    from monai.metrics import compute_dice

    made, truth = (torch.from_numpy(np.asarray(mask, dtype=np.float32))[None, None] for mask in (prediction_HW, target_HW))
    if not truth.any():
        return float(not made.any())
    return float(compute_dice(made, truth, include_background=True, ignore_empty=False))


def hd95(prediction_HW: NDArray[np.bool_], target_HW: NDArray[np.bool_], spacing_mm: tuple[float, float]) -> float:
    """95th percentile of the distances between two outlines, mm, by MONAI.

    0 where both masks are empty; the diagonal of the image where one is, the worst that any mask could be.
    """
    import torch
    from monai.metrics import compute_hausdorff_distance

    if not prediction_HW.any() and not target_HW.any():
        return 0.0
    if not prediction_HW.any() or not target_HW.any():
        return float(np.hypot(*(side * mm for side, mm in zip(target_HW.shape, spacing_mm, strict=True))))
    made, truth = (torch.from_numpy(np.asarray(mask, dtype=np.float32))[None, None] for mask in (prediction_HW, target_HW))
    return float(compute_hausdorff_distance(made, truth, include_background=True, percentile=95, spacing=list(spacing_mm)))


def iou(first: TextBox, second: TextBox) -> float:
    """Intersection over union of two boxes."""
    height = min(first.row1, second.row1) - max(first.row0, second.row0)
    width = min(first.col1, second.col1) - max(first.col0, second.col0)
    shared = max(height, 0) * max(width, 0)
    areas = [(box.row1 - box.row0) * (box.col1 - box.col0) for box in (first, second)]
    return shared / (sum(areas) - shared)


def matches(predicted: Sequence[TextBox], truth: Sequence[TextBox]) -> int:
    """Predictions that meet a box of their own: same label, overlap of at least one half, best overlaps first."""
    pairs = [
        (iou(p, t), i, j) for i, p in enumerate(predicted) for j, t in enumerate(truth) if p.label == t.label and iou(p, t) >= IOU
    ]
    used_p: set[int] = set()
    used_t: set[int] = set()
    for _, i, j in sorted(pairs, reverse=True):
        if i not in used_p and j not in used_t:
            used_p.add(i)
            used_t.add(j)
    return len(used_p)


def detection_f1(predicted: Sequence[Sequence[TextBox]], truth: Sequence[Sequence[TextBox]]) -> float:
    """F1 of boxes at an overlap of one half over all images; 1 where there is nothing to find and nothing is found."""
    hits = sum(matches(p, t) for p, t in zip(predicted, truth, strict=True))
    total = sum(map(len, predicted)) + sum(map(len, truth))
    return 2 * hits / total if total else 1.0


def average_precision(predicted: Sequence[Sequence[TextBox]], truth: Sequence[Sequence[TextBox]], scores: Sequence[float]) -> float:
    """AP of boxes at an overlap of one half, without interpolation; every box has the score of the answer that it stands in.

    scikit-learn's average precision (boxes of equal score enter together) times the recall that all boxes reach, since lesions
    that no box meets belong to the truth as well. 0 where nothing is right, 1 where there is nothing to find and nothing is found.
    """
    from sklearn.metrics import average_precision_score

    hits = [matches(p, t) for p, t in zip(predicted, truth, strict=True)]
    total = sum(map(len, truth))
    if not total:
        return float(not any(predicted))
    right = [i < hit for p, hit in zip(predicted, hits, strict=True) for i in range(len(p))]
    ranked = [score for p, score in zip(predicted, scores, strict=True) for _ in p]
    return float(average_precision_score(right, ranked)) * sum(hits) / total if sum(hits) else 0.0


def found_right(predicted: Sequence[Sequence[TextBox]], truth: Sequence[Sequence[TextBox]]) -> float:
    """Share of images in which "something or nothing" is answered rightly."""
    return float(np.mean([bool(p) == bool(t) for p, t in zip(predicted, truth, strict=True)]))


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Area under the ROC curve; 0.5 where only one class is there."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, scores)) if len(set(positive)) == 2 else 0.5


def auroc_by_ranks(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """The same without scikit-learn's checks, for a bootstrap of a thousand draws; no number where only one class is there."""
    from scipy.stats import rankdata

    truth = np.asarray(positive, dtype=bool)
    ones, zeros = int(truth.sum()), int((~truth).sum())
    if not ones or not zeros:
        return float("nan")
    return float((rankdata(scores)[truth].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def bleu(predicted: Sequence[str], truth: Sequence[str]) -> float:
    """Corpus BLEU by sacrebleu, 0 to 1."""
    import sacrebleu

    return float(sacrebleu.corpus_bleu(list(predicted), [list(truth)]).score) / 100


def rouge_l(predicted: Sequence[str], truth: Sequence[str]) -> float:
    """Mean ROUGE-L F-measure by rouge-score."""
    return float(np.mean(rouge_l_each(predicted, truth)))


def rouge_l_each(predicted: Sequence[str], truth: Sequence[str]) -> list[float]:
    """ROUGE-L F-measure of every text."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return [scorer.score(t, p)["rougeL"].fmeasure for p, t in zip(predicted, truth, strict=True)]


def field_f1(predicted: Sequence[str], truth: Sequence[str]) -> float:
    """F1 over the fields of the Fig. 2 template: a field counts where name and text are both right."""
    hits = total = 0
    for made, real in zip(predicted, truth, strict=True):
        ours, theirs = parse_paragraph(made), parse_paragraph(real)
        hits += sum(theirs.get(name) == text for name, text in ours.items())
        total += len(ours) + len(theirs)
    return 2 * hits / total if total else 0.0
