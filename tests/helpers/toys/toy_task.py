"""A sixth task, added as a user would add it: name the plane of a slice, in text. A plugin registers it at import."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from components.curation.curate_volume import CardFacts, CuratedVolume
from components.curation.table_rows import InstructionRecord
from components.curation.text.instructions import build_instruction, spread
from components.curation.text.phrasings import Phrasings
from components.registries import TASKS
from components.settings import CurationSettings, EvaluationSettings
from components.tasks.base import Task

if TYPE_CHECKING:
    from components.curation.corpus import Corpus
    from components.evaluation.model_answers import AnswerGenerator, Case
    from components.evaluation.task_result import TaskResult

PLANES = ("axial", "coronal", "sagittal")


class Plane(Task):
    """Name the plane of the acquisition."""

    name = "plane"
    weight = 0.1
    phrasings = Phrasings(trained=("Which plane is this?", "Name the plane."), held_out=("Name the plane of this image.",))

    def candidates(self, curated: CuratedVolume, card: CardFacts, settings: CurationSettings) -> Iterator[InstructionRecord]:
        """Yield one instruction for each volume with a known plane."""
        if curated.record.plane is not None:
            for slice_index in spread(curated.facts.content_slices, 1):
                yield build_instruction(curated, self, slice_index, curated.record.plane, {})

    def recognizes(self, answer: str) -> bool:
        return answer in PLANES

    def evaluate(self, cases: Sequence[Case], answers: AnswerGenerator, corpus: Corpus, settings: EvaluationSettings) -> TaskResult:
        """Score the accuracy, next to the most frequent plane of the training split."""
        from components.evaluation.task_result import TaskResult, build_row, mean_score

        training = [record for record in corpus.instructions if record.split == "train" and record.task == self.name]
        frequent = Counter(record.response for record in training).most_common(1)[0][0]
        truth = np.array([case.record.response for case in cases])
        model, baseline = mean_score(np.array(answers.texts(cases)) == truth), {"most frequent": mean_score(truth == frequent)}
        patients = [case.record.patient_id for case in cases]
        return TaskResult(rows=[build_row(self.name, "accuracy", True, model, baseline, patients, len(cases))])


TASK = Plane()
TASKS.add(TASK.name, f"{__name__}:TASK")
