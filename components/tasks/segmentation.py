"""Segmentation: the mask of a structure that the instruction names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.curation.table_rows import InstructionRecord, VolumeInstructionRecord, VolumeRecord
from components.curation.text.instructions import MASK_RESPONSE, build_instruction, spread
from components.curation.text.phrasings import Phrasings
from components.curation.text.volume_instructions import build_volume_instruction
from components.settings import CurationSettings, EvaluationSettings
from components.tasks.base import AnyInstruction, Image, Target, Task
from model_core.targets import TARGET_MASK

if TYPE_CHECKING:
    from components.curation.corpus import Corpus
    from components.curation.curate_volume import CardFacts, CuratedVolume
    from components.curation.store import VolumeStore
    from components.evaluation.model_answers import AnswerGenerator, Case
    from components.evaluation.results import ResultRow
    from components.evaluation.task_result import TaskResult
    from components.evaluation.volume_cases import VolumeCases
    from components.inference.prediction import Prediction
    from components.inference.predictor import Predictor
    from components.inference.question import Question
    from components.inference.study import StudyQuestion


class Segmentation(Task):
    """Segment a structure; the target is its mask."""

    name = "segmentation"
    weight = 0.35  # the largest: every structure is a problem of its own
    target_kind = TARGET_MASK
    names_series = True
    cues = ("segment", "outlin", "delineat", "contour", "mask", "mark", "show", "highlight", "trace")
    beginnings = (MASK_RESPONSE,)
    phrasings = Phrasings(
        trained=(
            "Segment the {structure} in this {scan}.",
            "Segment the {structure}.",
            "Show the {structure} in this image.",
            "Outline the {structure}.",
            "Give the mask of the {structure} in this {scan}.",
            "Mark the {structure} in this {scan}.",
            "Delineate the {structure}.",
            "Make a mask that shows the {structure}.",
        ),
        held_out=(
            "Outline the {structure} in this {scan}.",
            "Give a mask of the {structure}.",
        ),
    )

    def candidates(self, curated: CuratedVolume, card: CardFacts, settings: CurationSettings) -> Iterator[InstructionRecord]:
        """Yield an instruction for each structure and slice that shows it."""
        for value, slices in sorted(curated.facts.structure_slices.items()):
            structure = card.label_map[value].lower()
            for slice_index in spread(slices, settings.slices_per_volume):
                words = {"structure": structure}
                yield build_instruction(curated, self, slice_index, MASK_RESPONSE, words, structure=structure, label_value=value)

    def volume_candidates(
        self, curated: CuratedVolume, card: CardFacts, settings: CurationSettings
    ) -> Iterator[VolumeInstructionRecord]:
        """Yield an instruction for each structure that the volume shows."""
        for value in sorted(curated.facts.structure_slices):
            structure = card.label_map[value].lower()
            fields = {"structure": structure, "label_value": value}
            yield build_volume_instruction(curated, self, MASK_RESPONSE, {"structure": structure}, **fields)

    def is_complete(self, record: AnyInstruction, volume: VolumeRecord) -> bool:  # noqa: D102 (see Task)
        return volume.has_labels and record.label_value in volume.label_values

    def is_response(self, record: AnyInstruction) -> bool:  # noqa: D102
        return record.response == MASK_RESPONSE

    def input_and_target(self, record: InstructionRecord, store: VolumeStore) -> tuple[Image, Target]:
        """Read the slice and the mask of the structure."""
        image: Image = store.read(record.volume_id, "voxels", record.slice_index)
        return image, Target.mask(store.read(record.volume_id, "labels", record.slice_index) == record.label_value)

    def volume_input_and_target(
        self, record: VolumeInstructionRecord, store: VolumeStore, slices: NDArray[np.integer[Any]]
    ) -> tuple[Image, Target]:
        """Read the slices and the mask of the structure on them."""
        image: Image = store.read(record.volume_id, "voxels")[slices]
        return image, Target.mask(store.read(record.volume_id, "labels")[slices] == record.label_value)

    def training_group(self, record: InstructionRecord) -> str:
        """Return the structure: tissues are on every slice, findings on few."""
        return str(record.structure)

    def case_group(self, record: InstructionRecord) -> object:
        """Return the structure: every structure has equally many cases."""
        return record.structure

    def recognizes(self, answer: str) -> bool:  # noqa: D102
        return answer.startswith(MASK_RESPONSE)

    def decode(self, predictor: Predictor, question: Question, answer: str) -> Prediction:
        """Segment every slice; the mask of one without tissue is empty."""
        volume, depth = question.volume, len(question.volume.voxels)
        tiles, shown = volume.tiles(range(depth)), volume.tiles_with_tissue(range(depth))
        masks = predictor.generate_images(question, shown, MASK_RESPONSE, TARGET_MASK, self.name)
        samples = np.stack([volume.to_source_grid(sample) for sample in volume.blend(shown, masks)])
        text = answer.removeprefix(MASK_RESPONSE).strip() or f"{self.name} of {depth} slices"
        return question.prediction(self.name, text, tiles, mask=(samples.mean(0) > 0.5).astype(np.uint8), samples=samples)

    def decode_study(self, study: StudyQuestion, answer: str) -> Prediction:
        """Segment every slice of the named series, from one pass over the study."""
        volume = study.target.volume
        samples = np.stack([volume.to_source_grid(sample) for sample in study.generate_samples(MASK_RESPONSE, TARGET_MASK)])
        text = answer.removeprefix(MASK_RESPONSE).strip() or f"{self.name} of {samples.shape[1]} slices"
        return study.prediction(self.name, text, samples, mask=(samples.mean(0) > 0.5).astype(np.uint8))

    def evaluate(self, cases: Sequence[Case], answers: AnswerGenerator, corpus: Corpus, settings: EvaluationSettings) -> TaskResult:
        """Score every structure with Dice and HD95, next to an atlas of the training patients' masks."""
        from components.evaluation import metrics
        from components.evaluation.baselines import build_atlas
        from components.evaluation.task_result import (
            Panel,
            ScoredUnits,
            TaskResult,
            build_row,
            example_cases,
            mean_score,
            worst_cases,
        )

        atlas = build_atlas(corpus)
        masks = [probability > 0.5 for probability in answers.images(cases, steps=1, samples=1)]
        truth = [case.target.image > 0.5 for case in cases]
        atlas_masks = [atlas.mask(case.record, corpus.volumes[case.record.volume_id]) for case in cases]
        spacing = [corpus.volumes[case.record.volume_id].spacing_mm[1:] for case in cases]
        dice = [metrics.dice(mask, true_mask) for mask, true_mask in zip(masks, truth, strict=True)]
        atlas_dice = [metrics.dice(mask, true_mask) for mask, true_mask in zip(atlas_masks, truth, strict=True)]
        result = TaskResult()
        structures = sorted({str(case.record.structure) for case in cases})
        for structure in ["all structures", *structures]:
            indices = [i for i, case in enumerate(cases) if structure not in structures or case.record.structure == structure]
            patients = [cases[i].record.patient_id for i in indices]
            model = mean_score([dice[i] for i in indices])
            baseline = {"atlas": mean_score([atlas_dice[i] for i in indices])}
            row = build_row(self.name, f"Dice, {structure}", True, model, baseline, patients, len(indices), model)
            result.rows.append(row)
            if structure in structures:
                result.structures[structure] = [dice[i] for i in indices]
                distance = mean_score([metrics.hd95(masks[i], truth[i], spacing[i]) for i in indices])
                baseline = {"atlas": mean_score([metrics.hd95(atlas_masks[i], truth[i], spacing[i]) for i in indices])}
                title = f"HD95, mm, {structure}"
                row = build_row(self.name, title, False, distance, baseline, patients, len(indices), distance)
                result.rows.append(row)
        volumes = tuple(case.record.volume_id for case in cases)
        result.units = ScoredUnits("Dice", mean_score(dice), {"atlas": mean_score(atlas_dice)}, volumes)

        def panels(i: int, title: str) -> list[Panel]:
            return [
                Panel(str(cases[i].record.structure), cases[i].image),
                Panel("atlas", atlas_masks[i]),
                Panel(title, masks[i]),
                Panel("truth", truth[i]),
                Panel("wrong", masks[i] ^ truth[i]),
            ]

        result.pictures = [panels(i, "model") for i in example_cases(cases, corpus)]
        result.worst_pictures = [panels(i, f"model, Dice {dice[i]:.2f}") for i in worst_cases(dice)]
        return result

    def score_volumes(self, cases: VolumeCases, corpus: Corpus, result: TaskResult) -> list[ResultRow]:  # noqa: D102
        from components.evaluation.volume_scores import score_masks

        return score_masks(cases.test[self.name], corpus)


TASK = Segmentation()
