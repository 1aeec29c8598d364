"""Detection: the boxes of all lesions on a slice, as text.

Boxes and their names are those of the parts of the findings among the structures that the model knows
(:mod:`components.tasks.findings`): the edges of a lesion of 10 pixels lie within one visual token of 16. A finding that is in no
label map is read off the mask which the image decoder predicts from the state of the prompt, and named by the text. The network is
trained on the text as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.curation.table_rows import BoxRecord, InstructionRecord, VolumeBoxRecord, VolumeInstructionRecord
from components.curation.text.instructions import build_instruction, spread
from components.curation.text.phrasings import Phrasings
from components.curation.text.structure_names import lesion_values
from components.curation.text.volume_instructions import build_volume_instruction
from components.settings import CurationSettings, EvaluationSettings
from components.tasks.base import AnyInstruction, Image, Target, Task, read_finding
from components.tasks.findings import (
    VolumeOutline,
    asked_kinds,
    edges_by_slice,
    find_outlines,
    find_volume_outlines,
    find_volume_parts,
    sum_kinds,
)
from components.tasks.known_structures import Shown
from model_core.boxes import BOX_TOKEN, GRID, NO_LESION, TextBox, VolumeBox, format_boxes, parse_boxes
from model_core.targets import TARGET_MASK

if TYPE_CHECKING:
    from components.curation.corpus import Corpus
    from components.curation.curate_volume import CardFacts, CuratedVolume
    from components.curation.store import VolumeStore
    from components.evaluation.model_answers import AnswerGenerator, Case
    from components.evaluation.results import ResultRow
    from components.evaluation.task_result import TaskResult
    from components.evaluation.volume_cases import VolumeCases
    from components.inference.prediction import FoundVolumeBox, Prediction
    from components.inference.predictor import Predictor
    from components.inference.question import Question
    from components.inference.study import StudyQuestion

NAME_TOKENS = 8
"""Largest number of tokens of a finding's name."""
_NAME = re.compile(r"[a-z][a-z ]*")


class Detection(Task):
    """Detect lesions; the response lists their boxes or states that there is no lesion."""

    name = "detection"
    weight = 0.15
    is_paired = True
    needs_findings = True
    names_series = True
    cues = ("detect", "locali", "locat", "where", "find", "box", "identif", "position")
    beginnings = (BOX_TOKEN, NO_LESION)
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
        values = lesion_values(card.label_map) if curated.record.has_labels else []
        for slice_index in spread(facts.lesion_slices, settings.slices_per_volume):
            boxes = facts.boxes[slice_index]
            response = format_boxes(map(_text_box, boxes))
            yield build_instruction(curated, self, slice_index, response, words, boxes=boxes, label_values=values)
        for slice_index in spread(facts.lesion_free_slices, settings.slices_per_volume):
            yield build_instruction(curated, self, slice_index, format_boxes([]), words, label_values=values)

    def volume_candidates(
        self, curated: CuratedVolume, card: CardFacts, settings: CurationSettings
    ) -> Iterator[VolumeInstructionRecord]:
        """Yield an instruction if labels or boxes say where the lesions are, or the volume has none for certain."""
        facts, lesion = curated.facts, curated.record.lesion
        if lesion is None or (lesion and not facts.volume_boxes):
            return
        boxes = facts.volume_boxes if lesion else []
        values = lesion_values(card.label_map) if curated.record.has_labels else []
        response = format_boxes(map(volume_box, boxes))
        fields = {"finding": facts.lesion, "boxes": boxes, "label_values": values}
        yield build_volume_instruction(curated, self, response, {"finding": facts.lesion}, **fields)

    def is_response(self, record: AnyInstruction) -> bool:  # noqa: D102 (see Task)
        return set(parse_boxes(record.response)) == set(map(box_of_record, record.boxes))

    def input_and_target(self, record: InstructionRecord, store: VolumeStore) -> tuple[Image, Target]:
        """Read the slice and the mask of its findings; without labels of them, their boxes are filled."""
        image, target = read_finding(record, store)
        return image, target if record.label_values else Target.mask(_fill_boxes(record.boxes, image.shape))

    def case_group(self, record: InstructionRecord) -> object:
        """Return whether there is a lesion: equally many cases have one and none."""
        return bool(record.boxes)

    def recognizes(self, answer: str) -> bool:  # noqa: D102
        return BOX_TOKEN in answer or answer.startswith(NO_LESION)

    def decode(self, predictor: Predictor, question: Question, answer: str) -> Prediction:
        """Read named boxes off the findings of the volume, as reports do, on every slice that shows them."""
        from components.inference.prediction import FoundBox

        volume = question.volume
        tiles = volume.tiles(volume.content_slices)
        mask, by_kind = finding_masks(predictor, question, volume.content_slices, self.name)
        found = find_volume_parts(mask, by_kind, volume.volume.spacing_mm, volume.grid.pixel_area)
        outlines = sorted((index, edges, one.kind) for one, voxels in found for index, edges in edges_by_slice(voxels))
        boxes = [FoundBox(kind, index, *edges) for index, edges, kind in outlines]
        slices = len({box.slice_index for box in boxes})
        text = f"{len(boxes)} boxes on {slices} of {len(volume.content_slices)} slices" if boxes else NO_LESION
        return question.prediction(self.name, text, tiles, boxes=tuple(boxes))

    def decode_study(self, study: StudyQuestion, answer: str) -> Prediction:
        """Read boxes of six edges off the findings of the volume; without label maps of them, those in the answer."""
        kinds = asked_kinds(study.instruction, tuple(study.shown.structures)) if study.shown else {}
        if study.shown and kinds:
            target = study.target.volume
            outlines = shown_boxes(study.shown, study.instruction, target.volume.spacing_mm, target.grid.pixel_area)
            found = tuple(_found_box(outline) for outline in outlines)
        else:
            found = tuple(map(study.target.box_on_source, text_boxes(answer)))
        boxes = tuple(box for one in found for box in one.by_slice)
        text = f"{len(found)} boxes in the volume" if found else NO_LESION
        return study.prediction(self.name, text, boxes=boxes, volume_boxes=found)

    def evaluate(self, cases: Sequence[Case], answers: AnswerGenerator, corpus: Corpus, settings: EvaluationSettings) -> TaskResult:
        """Score boxes with F1 and AP, and images with the accuracy of "lesion or none", next to no box and a median box."""
        from components.evaluation import metrics
        from components.evaluation.baselines import median_box
        from components.evaluation.task_result import (
            Panel,
            ScoredUnits,
            TaskResult,
            build_row,
            example_cases,
            pair_score,
            worst_cases,
        )

        typical = median_box(corpus)
        outlines = [
            find_outlines(mask, by_kind, corpus.volumes[case.record.volume_id].spacing_mm[1:])
            for case, (mask, by_kind) in zip(cases, case_finding_masks(answers, cases), strict=True)
        ]
        predicted = [
            [outline.normalize(outline.kind, case.image.shape) for outline in ones]
            for ones, case in zip(outlines, cases, strict=True)
        ]
        confidences = [max((outline.confidence for outline in ones), default=0.0) for ones in outlines]
        truth = [list(map(_text_box, case.record.boxes)) for case in cases]
        no_boxes: list[list[TextBox]] = [[] for _ in cases]
        median_boxes = [[typical] if typical else [] for _ in cases]
        patients = [case.record.patient_id for case in cases]
        result = TaskResult()
        for name, metric in (
            ("F1 at IoU 0.5", metrics.detection_f1),
            ("F1 at IoU 0.5, any name", metrics.localization_f1),
            ("found or not, accuracy", metrics.presence_accuracy),
        ):
            baselines = {"nothing": pair_score(metric, no_boxes, truth), "median box": pair_score(metric, median_boxes, truth)}
            model = pair_score(metric, predicted, truth)
            result.rows.append(build_row(self.name, name, True, model, baselines, patients, len(cases), model))

        def precision(pairs: Sequence[tuple[Sequence[TextBox], float]], true_boxes: Sequence[Sequence[TextBox]]) -> float:
            return metrics.average_precision([boxes for boxes, _ in pairs], true_boxes, [confidence for _, confidence in pairs])

        certain = {"nothing": [(boxes, 1.0) for boxes in no_boxes], "median box": [(boxes, 1.0) for boxes in median_boxes]}
        baselines = {name: pair_score(precision, pairs, truth) for name, pairs in certain.items()}
        model = pair_score(precision, list(zip(predicted, confidences, strict=True)), truth)
        result.rows.append(build_row(self.name, "AP at IoU 0.5", True, model, baselines, patients, len(cases), model))
        by_case = [metrics.detection_f1([boxes], [true_boxes]) for boxes, true_boxes in zip(predicted, truth, strict=True)]
        volumes = tuple(case.record.volume_id for case in cases)
        f1, median = (pair_score(metrics.detection_f1, boxes, truth) for boxes in (predicted, median_boxes))
        result.units = ScoredUnits("F1 at IoU 0.5", f1, {"median box": median}, volumes)

        def panels(i: int) -> list[Panel]:
            image, size = cases[i].image, cases[i].image.shape
            return [Panel("truth", image, _pixel_edges(truth[i], size)), Panel("model", image, _pixel_edges(predicted[i], size))]

        with_boxes = [i for i in range(len(cases)) if truth[i] or predicted[i]]
        result.pictures = [panels(i) for i in example_cases(cases, corpus, with_boxes)]
        result.worst_pictures = [panels(i) for i in worst_cases(by_case) if by_case[i] < 1]
        return result

    def score_volumes(self, cases: VolumeCases, corpus: Corpus, result: TaskResult) -> list[ResultRow]:  # noqa: D102
        from components.evaluation.volume_scores import score_boxes

        return score_boxes(cases.test[self.name], corpus)


def case_finding_masks(answers: AnswerGenerator, cases: Sequence[Case]) -> list[tuple[Image, dict[str, Image]]]:
    """Return the mask of findings, and kind -> probability (H, W) of those that each case asks about.

    Where the model knows none of them, both are the mask of the prompt, under the name that the model gives it.
    """
    masks: list[tuple[Image, dict[str, Image]]] = []
    for case, shown in zip(cases, answers.structures(cases), strict=True):
        by_kind = sum_kinds(shown.structures, asked_kinds(case.record.instruction, tuple(shown.structures))) if shown else {}
        masks.append((shown.mask if shown else case.image, by_kind))
    unknown = [i for i, (_, by_kind) in enumerate(masks) if not by_kind]
    prompted = [cases[i] for i in unknown]
    images, texts = answers.images(prompted, steps=1, samples=1, marker=""), answers.texts(prompted, BOX_TOKEN, NAME_TOKENS)
    for i, image, text in zip(unknown, images, texts, strict=True):
        masks[i] = image, {finding_name(text): image}
    return masks


def finding_masks(
    predictor: Predictor, question: Question, slices: Sequence[int], task: str
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """Return mask and kind -> probability (D, H, W) of the findings of a question, as :func:`case_finding_masks`."""
    from components.inference.question import ignore_progress

    shown = predictor.structures(question, slices, task)
    if shown is not None and (kinds := asked_kinds(question.instruction, tuple(shown.structures))):
        return shown.mask, sum_kinds(shown.structures, kinds)
    tiles, volume = question.volume.tiles(slices), question.volume
    mask = volume.to_source_grid(volume.blend(tiles, predictor.generate_images(question, tiles, "", TARGET_MASK, task)).mean(0))
    quiet = replace(question, progress=ignore_progress)
    [text] = predictor.generate_texts(quiet, [question.first_tile], task, BOX_TOKEN, NAME_TOKENS)
    return mask, {finding_name(text): mask}


def shown_boxes(shown: Shown, question: str, spacing_mm: Sequence[float], pixel_area: float) -> list[VolumeOutline]:
    """Return the boxes of the findings of a volume that a question asks about, as :func:`find_volume_outlines`."""
    kinds = asked_kinds(question, tuple(shown.structures))
    return find_volume_outlines(shown.mask, sum_kinds(shown.structures, kinds), spacing_mm, pixel_area)


def _found_box(outline: VolumeOutline) -> FoundVolumeBox:
    from components.inference.prediction import FoundVolumeBox

    (slice0, slice1), (row0, row1), (column0, column1) = outline.slices, outline.rows, outline.columns
    return FoundVolumeBox(outline.kind, slice0, row0, column0, slice1, row1, column1)


def finding_name(text: str) -> str:
    """Return the name that the model gives to a box: the first words of its answer after :data:`BOX_TOKEN`."""
    name = _NAME.match(text.removeprefix(BOX_TOKEN).strip())
    return name.group().strip() if name else "lesion"


def box_of_record(box: BoxRecord) -> TextBox:
    """Return a box of the tables, of four edges or of six, in the form of the text."""
    return volume_box(box) if isinstance(box, VolumeBoxRecord) else _text_box(box)


def _text_box(box: BoxRecord) -> TextBox:
    return TextBox(box.label, box.row0, box.col0, box.row1, box.col1)


def text_boxes(answer: str) -> list[VolumeBox]:
    """Return the boxes of six edges in an answer."""
    return [box for box in parse_boxes(answer) if isinstance(box, VolumeBox)]


def volume_box(box: VolumeBoxRecord) -> VolumeBox:
    """Return a box of the tables in the form of the text."""
    return VolumeBox(box.label, box.row0, box.col0, box.row1, box.col1, box.slice0, box.slice1)


def _fill_boxes(boxes: Sequence[BoxRecord], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return a (H, W) mask that is True inside of the boxes."""
    mask = np.zeros(size, np.bool_)
    for row0, col0, row1, col1 in _pixel_edges([_text_box(box) for box in boxes], size):
        mask[round(row0) : max(round(row1), round(row0) + 1), round(col0) : max(round(col1), round(col0) + 1)] = True
    return mask


def _pixel_edges(boxes: Sequence[TextBox], size: tuple[int, ...]) -> tuple[tuple[float, float, float, float], ...]:
    """Convert text coordinates to pixels of an image of the given size."""
    rows, columns = size[0] / GRID, size[1] / GRID
    return tuple((box.row0 * rows, box.col0 * columns, box.row1 * rows, box.col1 * columns) for box in boxes)


TASK = Detection()
