"""The five tasks: predictions, baselines, rows and pictures of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curation.corpus import Corpus
from components.evaluation import metrics
from components.evaluation.answers import Answerer, Case
from components.evaluation.baselines import Learned, total_variation
from components.evaluation.records import ResultRow
from components.evaluation.verdicts import Score, verdict
from components.settings import EvaluationSettings
from model_core.boxes import TextBox, parse_boxes

PICTURES = 4
"""The first cases: structures, answers and patients take turns in their order, so that no kind is left out."""


@dataclass(frozen=True)
class Panel:
    """One image of the page; boxes are (row0, col0, row1, col1) in pixels."""

    title: str
    image: NDArray[Any]
    boxes: tuple[tuple[float, float, float, float], ...] = ()


@dataclass
class TaskResult:
    """One task's rows, rows of pictures, and examples of text (question, truth, answer)."""

    rows: list[ResultRow] = field(default_factory=list)
    pictures: list[list[Panel]] = field(default_factory=list)
    texts: list[tuple[str, str, str]] = field(default_factory=list)


def _row(
    task: str, metric: str, higher: bool, model: Score, baselines: Mapping[str, Score], patients: Sequence[str], cases: int
) -> ResultRow:
    """Evaluate the scores on all units, and compare with the best baseline."""
    everything = range(len(patients))
    values = {name: score(everything) for name, score in baselines.items()}
    best = (max if higher else min)(values, key=lambda name: values[name])
    against_best = verdict(model, baselines[best], patients, higher)
    return ResultRow(task, metric, higher, model(everything), values, against_best, cases, len(set(patients)))


def _mean_of(values: Sequence[float]) -> Score:
    array = np.asarray(values)
    return lambda chosen: float(array[list(chosen)].mean())


def _of_pairs(score: Callable[[Any, Any], float], predicted: Sequence[Any], truth: Sequence[Any]) -> Score:
    return lambda chosen: score([predicted[i] for i in chosen], [truth[i] for i in chosen])


def reconstruction(
    cases: list[Case], answerer: Answerer, corpus: Corpus, learned: Learned, settings: EvaluationSettings
) -> TaskResult:
    """fastMRI's metrics by volume: conditional mean (one step) and mean of samples, beside zero filling and total variation."""
    made = {
        "model": answerer.images(cases, steps=1, samples=1),
        "sampled": answerer.images(cases, settings.sampler_steps, settings.samples),
        "zero-filled": [case.image for case in cases],
        "total variation": [total_variation(case.target.kspace, case.target.sampling) for case in cases],
    }
    volumes: dict[str, list[int]] = defaultdict(list)
    for number, case in enumerate(cases):
        volumes[case.record.volume_id].append(number)
    patients = [cases[numbers[0]].record.patient_id for numbers in volumes.values()]
    ranges = [float(corpus.store.read(volume_id).max()) for volume_id in volumes]

    def by_volume(name: str, metric: Callable[..., float], with_range: bool) -> Score:
        values = []
        for numbers, data_range in zip(volumes.values(), ranges, strict=True):
            prediction = np.stack([made[name][i] for i in numbers])
            target = np.stack([cases[i].target.image for i in numbers])
            values.append(metric(prediction, target, data_range) if with_range else metric(prediction, target))
        return _mean_of(values)

    result = TaskResult()
    for name, metric, higher in (("PSNR, dB", metrics.psnr, True), ("SSIM", metrics.ssim, True), ("NMSE", metrics.nmse, False)):
        scores = {who: by_volume(who, metric, metric is not metrics.nmse) for who in made}
        model, sampled = scores.pop("model"), scores.pop("sampled")
        result.rows.append(_row("reconstruction", name, higher, model, scores, patients, len(cases)))
        if metric is metrics.psnr:
            title = f"{name}, mean of {settings.samples} samples"
            result.rows.append(_row("reconstruction", title, higher, sampled, scores, patients, len(cases)))
    for i in range(min(PICTURES, len(cases))):
        panels = [("zero-filled", made["zero-filled"]), ("total variation", made["total variation"]), ("model", made["model"])]
        result.pictures.append([Panel(name, images[i]) for name, images in panels] + [Panel("truth", cases[i].target.image)])
    return result


def segmentation(
    cases: list[Case], answerer: Answerer, corpus: Corpus, learned: Learned, settings: EvaluationSettings
) -> TaskResult:
    """Dice of every structure, beside an atlas of the training patients' masks."""
    masks = [probability > 0.5 for probability in answerer.images(cases, steps=1, samples=1)]
    truth = [case.target.image > 0.5 for case in cases]
    atlas = [learned.mask(case.record, corpus.volumes[case.record.volume_id]) for case in cases]
    result = TaskResult()
    structures = sorted({str(case.record.structure) for case in cases})
    for structure in ["all structures", *structures]:
        numbers = [i for i, case in enumerate(cases) if structure not in structures or case.record.structure == structure]
        patients = [cases[i].record.patient_id for i in numbers]
        model = _mean_of([metrics.dice(masks[i], truth[i]) for i in numbers])
        base = {"atlas": _mean_of([metrics.dice(atlas[i], truth[i]) for i in numbers])}
        result.rows.append(_row("segmentation", f"Dice, {structure}", True, model, base, patients, len(numbers)))
    for i in range(min(PICTURES, len(cases))):
        name = str(cases[i].record.structure)
        result.pictures.append(
            [Panel("image", cases[i].image), Panel(f"atlas: {name}", atlas[i]), Panel("model", masks[i]), Panel("truth", truth[i])]
        )
    return result


def detection(cases: list[Case], answerer: Answerer, corpus: Corpus, learned: Learned, settings: EvaluationSettings) -> TaskResult:
    """F1 of boxes, and of whether there is anything, beside "nothing" and the training patients' median box."""
    answers = answerer.texts(cases)
    predicted = [parse_boxes(text) for text in answers]
    truth = [[TextBox(b.label, b.row0, b.col0, b.row1, b.col1) for b in case.record.boxes] for case in cases]
    nothing: list[list[TextBox]] = [[] for _ in cases]
    always = [[learned.box] if learned.box else [] for _ in cases]
    patients = [case.record.patient_id for case in cases]
    result = TaskResult()
    for name, score in (("F1 at IoU 0.5", metrics.detection_f1), ("found or not, accuracy", metrics.found_right)):
        base = {"nothing": _of_pairs(score, nothing, truth), "median box": _of_pairs(score, always, truth)}
        result.rows.append(_row("detection", name, True, _of_pairs(score, predicted, truth), base, patients, len(cases)))
    scored = list(zip(predicted, answerer.confidences(cases, answers), strict=True))

    def precision(pairs: Sequence[tuple[Sequence[TextBox], float]], real: Sequence[Sequence[TextBox]]) -> float:
        return metrics.average_precision([boxes for boxes, _ in pairs], real, [confidence for _, confidence in pairs])

    sure = {"nothing": [(boxes, 1.0) for boxes in nothing], "median box": [(boxes, 1.0) for boxes in always]}
    base = {name: _of_pairs(precision, pairs, truth) for name, pairs in sure.items()}
    result.rows.append(_row("detection", "AP at IoU 0.5", True, _of_pairs(precision, scored, truth), base, patients, len(cases)))
    for i in [i for i in range(len(cases)) if truth[i] or predicted[i]][:PICTURES]:
        size = cases[i].image.shape
        result.pictures.append(
            [Panel("truth", cases[i].image, _pixels(truth[i], size)), Panel("model", cases[i].image, _pixels(predicted[i], size))]
        )
    return result


def _pixels(boxes: Sequence[TextBox], size: tuple[int, ...]) -> tuple[tuple[float, float, float, float], ...]:
    rows, columns = size[0] / 1000, size[1] / 1000
    return tuple((box.row0 * rows, box.col0 * columns, box.row1 * rows, box.col1 * columns) for box in boxes)


def diagnosis(cases: list[Case], answerer: Answerer, corpus: Corpus, learned: Learned, settings: EvaluationSettings) -> TaskResult:
    """AUROC of p(yes) and accuracy, beside the training patients' more frequent answer."""
    scores = answerer.yes_probabilities(cases)
    truth = [bool(case.record.positive) for case in cases]
    patients = [case.record.patient_id for case in cases]
    always = [float(learned.positive)] * len(cases)

    def accuracy(predicted: Sequence[float], positive: Sequence[bool]) -> float:
        return float(np.mean([(p > 0.5) == t for p, t in zip(predicted, positive, strict=True)]))

    result = TaskResult()
    for name, score in (("AUROC", metrics.auroc), ("accuracy", accuracy)):
        base = {"majority": _of_pairs(score, always, truth)}
        result.rows.append(_row("diagnosis", name, True, _of_pairs(score, scores, truth), base, patients, len(cases)))
    for i in range(min(PICTURES, len(cases))):
        result.texts.append((cases[i].record.instruction, cases[i].record.response, f"p(yes) = {scores[i]:.2f}"))
    return result


def report(cases: list[Case], answerer: Answerer, corpus: Corpus, learned: Learned, settings: EvaluationSettings) -> TaskResult:
    """Text overlap, and the share of right fields, beside the most frequent training report, of all and of the same sequence."""
    made = answerer.texts(cases)
    truth = [case.record.response for case in cases]
    same = [learned.report] * len(cases)
    of_sequence = [learned.report_of(corpus.volumes[case.record.volume_id]) for case in cases]
    patients = [case.record.patient_id for case in cases]
    result = TaskResult()
    for name, score in (("field F1", metrics.field_f1), ("ROUGE-L", metrics.rouge_l), ("BLEU", metrics.bleu)):
        base = {"most frequent": _of_pairs(score, same, truth), "of its sequence": _of_pairs(score, of_sequence, truth)}
        result.rows.append(_row("report", name, True, _of_pairs(score, made, truth), base, patients, len(cases)))
    for i in range(min(PICTURES, len(cases))):
        result.texts.append((cases[i].record.instruction, truth[i], made[i]))
    return result


EVALUATE: dict[str, Callable[[list[Case], Answerer, Corpus, Learned, EvaluationSettings], TaskResult]] = {
    "reconstruction": reconstruction,
    "segmentation": segmentation,
    "detection": detection,
    "diagnosis": diagnosis,
    "report": report,
}
