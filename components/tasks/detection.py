"""Detection: the boxes of all lesions on a slice, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from components.curation.curate_volume import CardFacts, CuratedVolume
from components.curation.table_rows import BoxRecord, InstructionRecord
from components.curation.text.instructions import build_instruction, spread
from components.curation.text.phrasings import Phrasings
from components.settings import CurationSettings, EvaluationSettings
from components.tasks.base import Task
from model_core.boxes import BOX_TOKEN, NO_LESION, TextBox, format_boxes, parse_boxes

if TYPE_CHECKING:
    from components.curation.corpus import Corpus
    from components.evaluation.model_answers import AnswerGenerator, Case
    from components.evaluation.task_result import TaskResult
    from components.inference.prediction import FoundBox, Prediction
    from components.inference.predictor import Predictor
    from components.inference.question import Question

SAME_BOX = 0.5
"""Intersection over union from which boxes of overlapping tiles are the same finding."""


class Detection(Task):
    """Detect lesions; the response lists their boxes or states that there is no lesion."""

    name = "detection"
    weight = 0.15
    is_paired = True
    needs_findings = True
    phrasings = Phrasings(
        trained=(
            "Identify and localize any {finding} in this image.",
            "Detect any {finding} in this {scan}.",
            "Where is a {finding} in this image?",
            "Find any {finding} and give its box.",
            "Localize every {finding} in this {scan}.",
            "Detect and localize any {finding}.",
            "Give the box of every {finding} in this image.",
            "Find every {finding} in this image.",
        ),
        held_out=(
            "Find every {finding} in this {scan} and give its box.",
            "Localize any {finding}.",
        ),
    )

    def candidates(self, curated: CuratedVolume, card: CardFacts, settings: CurationSettings) -> Iterator[InstructionRecord]:
        """Yield an instruction for slices with lesions, and for slices that have none for certain."""
        facts = curated.facts
        words = {"finding": facts.lesion}
        for slice_index in spread(facts.lesion_slices, settings.slices_per_volume):
            boxes = facts.boxes[slice_index]
            response = format_boxes(map(_text_box, boxes))
            yield build_instruction(curated, self, slice_index, response, words, boxes=boxes)
        for slice_index in spread(facts.lesion_free_slices, settings.slices_per_volume):
            yield build_instruction(curated, self, slice_index, format_boxes([]), words)

    def is_response(self, record: InstructionRecord) -> bool:  # noqa: D102 (see Task)
        return set(parse_boxes(record.response)) == set(map(_text_box, record.boxes))

    def case_group(self, record: InstructionRecord) -> object:
        """Return whether there is a lesion: equally many cases have one and none."""
        return bool(record.boxes)

    def recognizes(self, answer: str) -> bool:  # noqa: D102
        return BOX_TOKEN in answer or answer.startswith(NO_LESION)

    def decode(self, predictor: Predictor, question: Question, answer: str) -> Prediction:
        """Detect boxes on every slice with content."""
        from components.inference.prediction import FoundBox

        volume = question.volume
        tiles = volume.tiles(volume.content_slices)
        boxes: list[FoundBox] = []
        for tile, text in zip(tiles, predictor.generate_texts(question, tiles, self.name), strict=True):
            for box in parse_boxes(text):
                row0, col0, row1, col1 = volume.box_to_source_grid(tile, box)
                if row0 < row1 and col0 < col1:  # a thin box may vanish between two pixels of a coarser image
                    boxes.append(FoundBox(box.label, tile.index, row0, col0, row1, col1))
        if len(volume.corners) > 1:
            boxes = drop_duplicate_boxes(boxes)
        slices = len({box.slice_index for box in boxes})
        text = f"{len(boxes)} boxes on {slices} of {len(volume.content_slices)} slices" if boxes else NO_LESION
        return question.prediction(self.name, text, tiles, boxes=tuple(boxes))

    def evaluate(self, cases: Sequence[Case], answers: AnswerGenerator, corpus: Corpus, settings: EvaluationSettings) -> TaskResult:
        """Score boxes with F1 and AP, and images with the accuracy of "lesion or none", next to no box and a median box."""
        from components.evaluation import metrics
        from components.evaluation.baselines import median_box
        from components.evaluation.task_result import EXAMPLES, Panel, ScoredUnits, TaskResult, build_row, pair_score, worst_cases

        typical = median_box(corpus)
        texts = answers.texts(cases)
        predicted = [parse_boxes(text) for text in texts]
        truth = [list(map(_text_box, case.record.boxes)) for case in cases]
        no_boxes: list[list[TextBox]] = [[] for _ in cases]
        median_boxes = [[typical] if typical else [] for _ in cases]
        patients = [case.record.patient_id for case in cases]
        result = TaskResult()
        for name, metric in (("F1 at IoU 0.5", metrics.detection_f1), ("found or not, accuracy", metrics.presence_accuracy)):
            baselines = {"nothing": pair_score(metric, no_boxes, truth), "median box": pair_score(metric, median_boxes, truth)}
            model = pair_score(metric, predicted, truth)
            result.rows.append(build_row(self.name, name, True, model, baselines, patients, len(cases), model))

        def precision(pairs: Sequence[tuple[Sequence[TextBox], float]], true_boxes: Sequence[Sequence[TextBox]]) -> float:
            return metrics.average_precision([boxes for boxes, _ in pairs], true_boxes, [confidence for _, confidence in pairs])

        certain = {"nothing": [(boxes, 1.0) for boxes in no_boxes], "median box": [(boxes, 1.0) for boxes in median_boxes]}
        baselines = {name: pair_score(precision, pairs, truth) for name, pairs in certain.items()}
        model = pair_score(precision, list(zip(predicted, answers.confidences(cases, texts), strict=True)), truth)
        result.rows.append(build_row(self.name, "AP at IoU 0.5", True, model, baselines, patients, len(cases), model))
        by_case = [metrics.detection_f1([boxes], [true_boxes]) for boxes, true_boxes in zip(predicted, truth, strict=True)]
        volumes = tuple(case.record.volume_id for case in cases)
        result.units = ScoredUnits("F1 at IoU 0.5", pair_score(metrics.detection_f1, predicted, truth), volumes)

        def panels(i: int) -> list[Panel]:
            image, size = cases[i].image, cases[i].image.shape
            return [Panel("truth", image, _pixel_edges(truth[i], size)), Panel("model", image, _pixel_edges(predicted[i], size))]

        with_boxes = [i for i in range(len(cases)) if truth[i] or predicted[i]]
        result.pictures = [panels(i) for i in with_boxes[:EXAMPLES]]
        result.worst_pictures = [panels(i) for i in worst_cases(by_case) if by_case[i] < 1]
        return result


def drop_duplicate_boxes(boxes: Sequence[FoundBox]) -> list[FoundBox]:
    """Drop boxes that overlapping tiles found a second time: keep the largest of each group, in the original order."""

    def area(row0: int, col0: int, row1: int, col1: int) -> int:
        return max(row1 - row0, 0) * max(col1 - col0, 0)

    def size(box: FoundBox) -> int:
        return area(box.row0, box.col0, box.row1, box.col1)

    def is_same(a: FoundBox, b: FoundBox) -> bool:
        shared = area(max(a.row0, b.row0), max(a.col0, b.col0), min(a.row1, b.row1), min(a.col1, b.col1))
        overlap = shared / (size(a) + size(b) - shared)
        return (a.label, a.slice_index) == (b.label, b.slice_index) and overlap >= SAME_BOX

    kept: list[FoundBox] = []
    for box in sorted(boxes, key=size, reverse=True):
        if not any(is_same(box, other) for other in kept):
            kept.append(box)
    return [box for box in boxes if box in kept]


def _text_box(box: BoxRecord) -> TextBox:
    return TextBox(box.label, box.row0, box.col0, box.row1, box.col1)


def _pixel_edges(boxes: Sequence[TextBox], size: tuple[int, ...]) -> tuple[tuple[float, float, float, float], ...]:
    """Convert text coordinates to pixels of an image of the given size."""
    rows, columns = size[0] / 1000, size[1] / 1000
    return tuple((box.row0 * rows, box.col0 * columns, box.row1 * rows, box.col1 * columns) for box in boxes)


TASK = Detection()
