"""The five tasks: predictions, baselines, rows and pictures of each.

Shape letters: D slices, H rows, W columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curation.corpus import Corpus
from components.curation.table_rows import VolumeRecord
from components.curation.undersampling import undersample
from components.evaluation import metrics
from components.evaluation.answers import Answerer, Case
from components.evaluation.baselines import Learned, total_variation
from components.evaluation.intervals import interval
from components.evaluation.masks import mask_of
from components.evaluation.results import ResultRow, SweepRow
from components.evaluation.verdicts import Score, verdict
from components.provenance import digest
from components.settings import EvaluationSettings
from model_core.boxes import TextBox, parse_boxes

PICTURES, WORST = 4, 4
"""The first cases: structures, answers and patients take turns in their order, so that no kind is left out. And the worst."""
ERROR_GAIN = 4
"""Error maps are shown so many times as bright."""
PLAIN = "Reconstruct the image from this under-sampled MRI data."
"""The sweep's question: a trained phrasing that names no acceleration."""


@dataclass(frozen=True)
class Panel:
    """One image of the page; boxes are (row0, col0, row1, col1) in pixels."""

    title: str
    image: NDArray[Any]
    boxes: tuple[tuple[float, float, float, float], ...] = ()


@dataclass(frozen=True)
class Unit:
    """What a task is judged by first: the metric, its score, and the volume of every unit that it counts."""

    metric: str
    score: Score
    volumes: tuple[str, ...]


@dataclass
class TaskResult:
    """One task's rows and what the page shows of it.

    Attributes:
        pictures, texts: examples, as rows of panels and as (question, truth, answer).
        worst_pictures, worst_texts: the same of the cases with the lowest score, worst first.
        unit: for subgroups.
        structures: name -> Dice of every case; roc: p(yes) and truth of every case.
        sweep: reconstruction under other masks.
    """

    rows: list[ResultRow] = field(default_factory=list)
    pictures: list[list[Panel]] = field(default_factory=list)
    texts: list[tuple[str, str, str]] = field(default_factory=list)
    worst_pictures: list[list[Panel]] = field(default_factory=list)
    worst_texts: list[tuple[str, str, str]] = field(default_factory=list)
    unit: Unit | None = None
    structures: dict[str, list[float]] = field(default_factory=dict)
    roc: tuple[list[float], list[bool]] | None = None
    sweep: list[SweepRow] = field(default_factory=list)


def _worst(scores: Sequence[float]) -> list[int]:
    """Cases with the lowest scores, worst first."""
    return sorted(range(len(scores)), key=lambda i: (scores[i], i))[:WORST]


def _row(
    task: str,
    metric: str,
    higher: bool,
    model: Score,
    baselines: Mapping[str, Score],
    patients: Sequence[str],
    cases: int,
    spread: Score | None = None,
) -> ResultRow:
    """Evaluate the scores on all units, compare with the best baseline, and bootstrap ``spread`` where it is given."""
    everything = range(len(patients))
    values = {name: score(everything) for name, score in baselines.items()}
    best = (max if higher else min)(values, key=lambda name: values[name])
    against_best = verdict(model, baselines[best], patients, higher)
    across = None if spread is None else interval(spread, patients)
    return ResultRow(task, metric, higher, model(everything), values, against_best, cases, len(set(patients)), across)


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
        result.rows.append(_row("reconstruction", name, higher, model, scores, patients, len(cases), model))
        if metric is metrics.ssim:
            result.unit = Unit(name, model, tuple(volumes))
        if metric is metrics.psnr:
            title = f"{name}, mean of {settings.samples} samples"
            result.rows.append(_row("reconstruction", title, higher, sampled, scores, patients, len(cases)))
    each = [
        metrics.ssim(made["model"][i][None], case.target.image[None], float(case.target.image.max()) or 1.0)
        for i, case in enumerate(cases)
    ]

    def panels(i: int, title: str) -> list[Panel]:
        truth, ours = cases[i].target.image, made["model"][i]
        return [
            Panel("zero-filled", cases[i].image),
            Panel("total variation", made["total variation"][i]),
            Panel(title, ours),
            Panel("truth", truth),
            Panel(f"error x {ERROR_GAIN}", np.abs(ours - truth) * ERROR_GAIN),
        ]

    result.pictures = [panels(i, "model") for i in range(min(PICTURES, len(cases)))]
    result.worst_pictures = [panels(i, f"model, SSIM {each[i]:.2f}") for i in _worst(each)]
    result.sweep = _sweep(cases, answerer, corpus, settings)
    return result


def _sweep(cases: list[Case], answerer: Answerer, corpus: Corpus, settings: EvaluationSettings) -> list[SweepRow]:
    """The same fully sampled slices under every kind of mask at every acceleration, patients in turn."""
    slices = list({(case.record.volume_id, case.record.slice_index): case for case in cases}.values())[: settings.sweep_cases]
    rows: list[SweepRow] = []
    for kind in settings.masks if slices else ():
        for acceleration in settings.accelerations:
            asked = []
            for case in slices:
                record = case.record.model_copy(update={"instruction": PLAIN, "acceleration": acceleration})
                seed = int(digest(answerer.seed, kind, acceleration, record.volume_id, record.slice_index)[:12], 16)
                columns = mask_of(kind, case.image.shape[1], acceleration, seed)
                zero_filled, measured = undersample(corpus.store.read(record.volume_id, "kspace", record.slice_index), columns)
                sampling = np.broadcast_to(columns, case.image.shape)
                asked.append(Case(record, zero_filled, replace(case.target, kspace=measured, sampling=sampling)))
            made = {
                "model": answerer.images(asked, steps=1, samples=1),
                "total variation": [total_variation(case.target.kspace, case.target.sampling) for case in asked],
                "zero-filled": [case.image for case in asked],
            }
            values: dict[str, dict[str, float]] = {}
            for who, images in made.items():
                pairs = [(image[None], case.target.image[None]) for image, case in zip(images, asked, strict=True)]
                values.setdefault("PSNR, dB", {})[who] = float(np.mean([metrics.psnr(a, b, float(b.max())) for a, b in pairs]))
                values.setdefault("SSIM", {})[who] = float(np.mean([metrics.ssim(a, b, float(b.max())) for a, b in pairs]))
                values.setdefault("NMSE", {})[who] = float(np.mean([metrics.nmse(a, b) for a, b in pairs]))
            rows.append(SweepRow(kind, acceleration, values, len(asked)))
    return rows


def segmentation(
    cases: list[Case], answerer: Answerer, corpus: Corpus, learned: Learned, settings: EvaluationSettings
) -> TaskResult:
    """Dice and HD95 of every structure, beside an atlas of the training patients' masks."""
    masks = [probability > 0.5 for probability in answerer.images(cases, steps=1, samples=1)]
    truth = [case.target.image > 0.5 for case in cases]
    atlas = [learned.mask(case.record, corpus.volumes[case.record.volume_id]) for case in cases]
    spacing = [_spacing(corpus.volumes[case.record.volume_id]) for case in cases]
    overlaps = [metrics.dice(mask, real) for mask, real in zip(masks, truth, strict=True)]
    result = TaskResult()
    structures = sorted({str(case.record.structure) for case in cases})
    for structure in ["all structures", *structures]:
        numbers = [i for i, case in enumerate(cases) if structure not in structures or case.record.structure == structure]
        patients = [cases[i].record.patient_id for i in numbers]
        model = _mean_of([overlaps[i] for i in numbers])
        base = {"atlas": _mean_of([metrics.dice(atlas[i], truth[i]) for i in numbers])}
        result.rows.append(_row("segmentation", f"Dice, {structure}", True, model, base, patients, len(numbers), model))
        if structure in structures:
            result.structures[structure] = [overlaps[i] for i in numbers]
            far = _mean_of([metrics.hd95(masks[i], truth[i], spacing[i]) for i in numbers])
            base = {"atlas": _mean_of([metrics.hd95(atlas[i], truth[i], spacing[i]) for i in numbers])}
            result.rows.append(_row("segmentation", f"HD95, mm, {structure}", False, far, base, patients, len(numbers), far))
    result.unit = Unit("Dice", _mean_of(overlaps), tuple(case.record.volume_id for case in cases))

    def panels(i: int, title: str) -> list[Panel]:
        wrong = Panel("wrong", masks[i] ^ truth[i])
        return [
            Panel(str(cases[i].record.structure), cases[i].image),
            Panel("atlas", atlas[i]),
            Panel(title, masks[i]),
            Panel("truth", truth[i]),
            wrong,
        ]

    result.pictures = [panels(i, "model") for i in range(min(PICTURES, len(cases)))]
    result.worst_pictures = [panels(i, f"model, Dice {overlaps[i]:.2f}") for i in _worst(overlaps)]
    return result


def _spacing(volume: VolumeRecord) -> tuple[float, float]:
    """Height and width of a pixel, mm."""
    affine = np.asarray(volume.affine).reshape(4, 4)
    return float(np.linalg.norm(affine[:3, 1])), float(np.linalg.norm(affine[:3, 2]))


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
        ours = _of_pairs(score, predicted, truth)
        result.rows.append(_row("detection", name, True, ours, base, patients, len(cases), ours))
    scored = list(zip(predicted, answerer.confidences(cases, answers), strict=True))

    def precision(pairs: Sequence[tuple[Sequence[TextBox], float]], real: Sequence[Sequence[TextBox]]) -> float:
        return metrics.average_precision([boxes for boxes, _ in pairs], real, [confidence for _, confidence in pairs])

    sure = {"nothing": [(boxes, 1.0) for boxes in nothing], "median box": [(boxes, 1.0) for boxes in always]}
    base = {name: _of_pairs(precision, pairs, truth) for name, pairs in sure.items()}
    ours = _of_pairs(precision, scored, truth)
    result.rows.append(_row("detection", "AP at IoU 0.5", True, ours, base, patients, len(cases), ours))
    right = [metrics.detection_f1([p], [t]) for p, t in zip(predicted, truth, strict=True)]
    result.unit = Unit("F1 at IoU 0.5", _of_pairs(metrics.detection_f1, predicted, truth), tuple(c.record.volume_id for c in cases))

    def panels(i: int) -> list[Panel]:
        image, size = cases[i].image, cases[i].image.shape
        return [Panel("truth", image, _pixels(truth[i], size)), Panel("model", image, _pixels(predicted[i], size))]

    result.pictures = [panels(i) for i in [i for i in range(len(cases)) if truth[i] or predicted[i]][:PICTURES]]
    result.worst_pictures = [panels(i) for i in _worst(right) if right[i] < 1]
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

    result = TaskResult(roc=(scores, truth))
    for name, score, spread in (("AUROC", metrics.auroc, metrics.auroc_by_ranks), ("accuracy", accuracy, accuracy)):
        base = {"majority": _of_pairs(score, always, truth)}
        ours, drawn = _of_pairs(score, scores, truth), _of_pairs(spread, scores, truth)
        result.rows.append(_row("diagnosis", name, True, ours, base, patients, len(cases), drawn))
    result.unit = Unit("accuracy", _of_pairs(accuracy, scores, truth), tuple(case.record.volume_id for case in cases))

    def text(i: int) -> tuple[str, str, str]:
        return cases[i].record.instruction, cases[i].record.response, f"p(yes) = {scores[i]:.2f}"

    result.texts = [text(i) for i in range(min(PICTURES, len(cases)))]
    result.worst_texts = [text(i) for i in _worst([1 - abs(p - t) for p, t in zip(scores, truth, strict=True)])]
    return result


def report(cases: list[Case], answerer: Answerer, corpus: Corpus, learned: Learned, settings: EvaluationSettings) -> TaskResult:
    """Text overlap, and the share of right fields, beside the most frequent training report, of all and of the same sequence."""
    made = answerer.texts(cases)
    truth = [case.record.response for case in cases]
    same = [learned.report] * len(cases)
    of_sequence = [learned.report_of(corpus.volumes[case.record.volume_id]) for case in cases]
    patients = [case.record.patient_id for case in cases]
    result = TaskResult()

    def overlap(texts: Sequence[str]) -> Score:
        return _mean_of(metrics.rouge_l_each(texts, truth))

    for name, of in (
        ("field F1", lambda texts: _of_pairs(metrics.field_f1, texts, truth)),
        ("ROUGE-L", overlap),
        ("BLEU", lambda texts: _of_pairs(metrics.bleu, texts, truth)),
    ):
        ours, base = of(made), {"most frequent": of(same), "of its sequence": of(of_sequence)}
        spread = None if name == "BLEU" else ours  # a thousand corpora of BLEU take longer than all the rest
        result.rows.append(_row("report", name, True, ours, base, patients, len(cases), spread))
    result.unit = Unit("field F1", _of_pairs(metrics.field_f1, made, truth), tuple(case.record.volume_id for case in cases))
    right = [metrics.field_f1([one], [real]) for one, real in zip(made, truth, strict=True)]
    result.texts = [(cases[i].record.instruction, truth[i], made[i]) for i in range(min(PICTURES, len(cases)))]
    result.worst_texts = [(cases[i].record.instruction, truth[i], made[i]) for i in _worst(right)]
    return result


EVALUATE: dict[str, Callable[[list[Case], Answerer, Corpus, Learned, EvaluationSettings], TaskResult]] = {
    "reconstruction": reconstruction,
    "segmentation": segmentation,
    "detection": detection,
    "diagnosis": diagnosis,
    "report": report,
}
