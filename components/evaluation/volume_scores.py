"""Scores of whole volumes beside the same volumes read slice by slice: rows of all tasks.

The model's value is that of one pass over the volume; the baseline "slice by slice" has the same weights, questions and volumes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from components.curation.corpus import Corpus
from components.curation.text.header_facts import HeaderFacts
from components.curation.text.template import parse_paragraph
from components.evaluation import metrics
from components.evaluation.baselines import build_atlas, count_reports, majority_answer, median_volume_box
from components.evaluation.results import ResultRow
from components.evaluation.task_result import build_row, mean_score, pair_score
from components.evaluation.verdicts import Score
from components.evaluation.volume_cases import SLICE_BY_SLICE, VolumeCase
from components.progress import track
from components.tasks.calibration import Calibration, fit_calibration
from components.tasks.detection import Detection, shown_boxes, text_boxes, volume_box
from components.tasks.diagnosis import Diagnosis, study_answer
from components.tasks.findings import VolumeOutline, asked_kinds
from components.tasks.known_structures import Shown
from components.tasks.report import Report, complete_report
from components.tasks.segmentation import Segmentation

SENSITIVITY_AT = 1.0
"""False boxes per volume at which the FROC curve is read."""


def fit_volume_calibration(validation: Sequence[VolumeCase]) -> Calibration:
    """Fit the calibration of p(yes) about whole volumes."""
    answers = [study_answer(case.readings.whole(case.record.instruction)) for case in track(validation, "calibration of volumes")]
    return fit_calibration(answers, [bool(case.record.positive) for case in validation])


def score_diagnoses(cases: Sequence[VolumeCase], corpus: Corpus, calibration: Calibration) -> list[ResultRow]:
    """Score p(yes) with the AUROC by patient: a patient counts once for each finding, with the largest p(yes) of the volumes.

    No row, if all answers are the same.
    """
    truth = [bool(case.record.positive) for case in cases]
    units = [f"{case.record.patient_id} {case.record.finding}" for case in cases]
    if not metrics.has_both_answers(truth, units):
        return []
    whole, sliced = [], []
    for case in track(cases, "diagnosis of volumes"):
        readings, question = case.readings, case.readings.sliced(case.record.instruction)
        whole.append(calibration.probability(study_answer(readings.whole(case.record.instruction))))
        sliced.append(Diagnosis().slices_probability(readings.predictor, question, readings.shown_by_slices))
    majority = [float(majority_answer(corpus, Diagnosis.name))] * len(cases)

    def score(values: Sequence[float]) -> Score:
        return metrics.auroc_by_unit(values, truth, units)

    baselines = {SLICE_BY_SLICE: score(sliced), "majority": score(majority)}
    return [_row(Diagnosis.name, "AUROC by patient, whole volumes", score(whole), baselines, cases)]


def score_boxes(cases: Sequence[VolumeCase], corpus: Corpus) -> list[ResultRow]:
    """Score boxes of six edges: F1 at two IoUs, and the sensitivity at one false box per volume (FROC)."""
    found: dict[str, list[list[VolumeOutline]]] = {"whole": [], SLICE_BY_SLICE: [], "nothing": [], "median box": []}
    typical = median_volume_box(corpus)
    for case in track(cases, "boxes of volumes"):
        question = case.readings.whole(case.record.instruction)
        found["whole"].append(_boxes(case, question.shown) or _text_boxes(case))
        found[SLICE_BY_SLICE].append(_boxes(case, case.readings.shown_by_slices) or [])
        found["nothing"].append([])
        found["median box"].append([VolumeOutline.of_box(typical, case.readings.shape)] if typical else [])
    truth = [list(map(volume_box, case.record.boxes)) for case in cases]
    shapes = [case.readings.shape for case in cases]
    boxes = {
        name: [[one.normalize(shape) for one in ones] for ones, shape in zip(listed, shapes, strict=True)]
        for name, listed in found.items()
    }
    rows = []
    for least in (0.3, 0.5):

        def f1(predicted: Sequence[Any], true: Sequence[Any], least: float = least) -> float:
            return metrics.detection_f1(predicted, true, least)

        scores = {name: pair_score(f1, listed, truth) for name, listed in boxes.items()}
        rows.append(_row(Detection.name, f"3-D F1 at IoU {least}, whole volumes", scores.pop("whole"), scores, cases))
    hits = {
        name: [metrics.froc_hits(ones, true, shape) for ones, true, shape in zip(listed, truth, shapes, strict=True)]
        for name, listed in found.items()
    }
    froc = {name: _froc_score(listed) for name, listed in hits.items()}
    title = f"FROC sensitivity at {SENSITIVITY_AT:g} false box, whole volumes"
    return [*rows, _row(Detection.name, title, froc.pop("whole"), froc, cases)]


def _boxes(case: VolumeCase, shown: Shown | None) -> list[VolumeOutline] | None:
    """Return the boxes of the findings of a volume; None if the model knows none of the findings in question."""
    if shown is None or not asked_kinds(case.record.instruction, tuple(shown.structures)):
        return None
    return shown_boxes(shown, case.record.instruction, case.readings.spacing_mm, pixel_area=1)


def _text_boxes(case: VolumeCase) -> list[VolumeOutline]:
    """Return the boxes that the model writes, all with the same confidence, if it knows none of the findings by name."""
    question = case.readings.whole(case.record.instruction)
    if question.shown is not None and asked_kinds(case.record.instruction, tuple(question.shown.structures)):
        return []
    return [VolumeOutline.of_box(box, case.readings.shape) for box in text_boxes(question.generate(case.readings.max_new_tokens))]


def _froc_score(hits: Sequence[metrics.FrocHits]) -> Score:
    return lambda chosen: metrics.froc_sensitivity([hits[i] for i in chosen], SENSITIVITY_AT)


def score_masks(cases: Sequence[VolumeCase], corpus: Corpus) -> list[ResultRow]:
    """Score masks of whole volumes with Dice and HD95 in mm, beside an atlas of the training patients' masks."""
    atlas = build_atlas(corpus)
    dice: dict[str, list[float]] = {}
    distance: dict[str, list[float]] = {}
    for case in track(cases, "masks of volumes"):
        record, readings = case.record, case.readings
        truth = corpus.store.read(record.volume_id, "labels") == record.label_value
        predicted = {
            "whole": Segmentation().decode_study(readings.whole(record.instruction), "").mask,
            SLICE_BY_SLICE: Segmentation().decode(readings.predictor, readings.sliced(record.instruction), "").mask,
            "atlas": np.stack([atlas.mask_at(record.structure or "", readings.record, index) for index in range(len(truth))]),
        }
        for name, mask in predicted.items():
            assert mask is not None
            dice.setdefault(name, []).append(metrics.dice(mask > 0, truth))
            distance.setdefault(name, []).append(metrics.hd95(mask > 0, truth, readings.spacing_mm))
    rows = []
    for title, higher, values in (("Dice, whole volumes", True, dice), ("HD95, mm, whole volumes", False, distance)):
        scores = {name: mean_score(listed) for name, listed in values.items()}
        rows.append(_row(Segmentation.name, title, scores.pop("whole"), scores, cases, higher))
    return rows


def score_reports(cases: Sequence[VolumeCase], corpus: Corpus) -> list[ResultRow]:
    """Score reports: fields, the side of lesions, and the facts of the header, also where the model is not shown the header."""
    frequent = count_reports(corpus, Report.name)
    texts: dict[str, list[str]] = {"whole": [], SLICE_BY_SLICE: [], "most frequent": []}
    silent: dict[str, list[str]] = {"whole": [], SLICE_BY_SLICE: [], "most frequent": []}
    for case in track(cases, "reports of volumes"):
        readings, asked = case.readings, case.record.instruction
        header, volumetry = HeaderFacts.of_volume(readings.volume.volume), readings.predictor.volumetry
        question, without = readings.whole(asked), readings.without_header
        whole, sliced = question.generate(readings.max_new_tokens), readings.report_of_slice(asked)
        texts["whole"].append(complete_report(whole, readings.volume, question.shown, header, volumetry))
        texts[SLICE_BY_SLICE].append(complete_report(sliced, readings.volume, readings.shown_by_slices, header, volumetry))
        silent["whole"].append(without.whole(asked).generate(readings.max_new_tokens))
        silent[SLICE_BY_SLICE].append(without.report_of_slice(asked))
        for reports in (texts, silent):
            reports["most frequent"].append(frequent.for_volume(readings.record))
    truth = [case.record.response for case in cases]
    fields = {name: pair_score(metrics.field_f1, listed, truth) for name, listed in texts.items()}
    rows = [_row(Report.name, "field F1, whole volumes", fields.pop("whole"), fields, cases)]
    sided = [index for index, text in enumerate(truth) if metrics.lesion_sides(text)]
    if sided:
        right = {name: [float(metrics.same_sides(listed[i], truth[i])) for i in sided] for name, listed in texts.items()}
        rows.append(_share_row("side of lesions right, whole volumes", right, [cases[i] for i in sided]))
    for title, reports in (("with the header", texts), ("without the header", silent)):
        facts = {name: list(map(_header_share, listed, cases)) for name, listed in reports.items()}
        rows.append(_share_row(f"header facts right {title}, whole volumes", facts, cases))
    return rows


def _header_share(text: str, case: VolumeCase) -> float:
    """Return the share of the facts known from the header of a volume that a report states rightly."""
    facts, stated = HeaderFacts.of_volume(case.readings.volume.volume).fields, parse_paragraph(text)
    return sum(stated.get(name) == fact for name, fact in facts.items()) / len(facts)


def _share_row(title: str, right: Mapping[str, Sequence[float]], cases: Sequence[VolumeCase]) -> ResultRow:
    scores = {name: mean_score(listed) for name, listed in right.items()}
    return _row(Report.name, title, scores.pop("whole"), scores, cases)


def _row(
    task: str, metric: str, model: Score, baselines: dict[str, Score], cases: Sequence[VolumeCase], higher_is_better: bool = True
) -> ResultRow:
    patients = [case.record.patient_id for case in cases]
    return build_row(task, metric, higher_is_better, model, baselines, patients, len(cases), model)
