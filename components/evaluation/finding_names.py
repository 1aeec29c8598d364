"""Names of findings: the parts of validation patients' masks that the weights of kinds are fitted on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from components.curation.corpus import Corpus
from components.evaluation.case_selection import select_task_cases
from components.evaluation.metrics import iou
from components.evaluation.model_answers import AnswerGenerator, load_cases
from components.tasks.detection import Detection, box_of_record, case_finding_masks
from components.tasks.findings import find_parts
from components.tasks.kind_weights import FoundPart, fit_kind_weights

CASES = 400
"""Largest number of validation slices."""
LEAST_OVERLAP = 0.2
"""IoU of a part's box and a true box, from which the part is of that finding."""


def measure_kind_weights(answers: AnswerGenerator, corpus: Corpus) -> dict[str, float]:
    """Fit the weights of kinds on slices of validation patients with findings; none if these are of one kind."""
    return fit_kind_weights(list(_found_parts(answers, corpus))) if answers.known.label_maps else {}


def _found_parts(answers: AnswerGenerator, corpus: Corpus) -> Iterator[FoundPart]:
    """Yield the parts of masks that overlap a true finding, with evidence that is not weighed."""
    records = [record for record in select_task_cases(corpus, Detection.name, "validation", CASES, answers.seed) if record.boxes]
    cases, weighed = load_cases(corpus, records), answers.known
    answers.known = replace(weighed, kind_weights=dict.fromkeys(weighed.kinds, 1.0))
    try:
        masks = case_finding_masks(answers, cases)
    finally:
        answers.known = weighed
    for case, (mask_HW, by_kind) in zip(cases, masks, strict=True):
        truth = [box_of_record(box) for box in case.record.boxes]
        for outline, inside in find_parts(mask_HW, by_kind, corpus.volumes[case.record.volume_id].spacing_mm[1:]):
            box = outline.normalize(outline.kind, case.image.shape)
            nearest = max(truth, key=lambda one: iou(box, one))
            if iou(box, nearest) >= LEAST_OVERLAP:
                yield FoundPart({kind: float(values[inside].sum()) for kind, values in by_kind.items()}, nearest.label)
