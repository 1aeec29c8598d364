"""Held-out volumes that a model reads in two ways: whole, in one pass, and slice by slice, as ``omnimri predict`` does.

Both ways have the same weights and questions. A volume is encoded once for all questions about it, and once more for each further
pass of masks.

Shape letters: D slices, H rows, W columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from components.curation.corpus import Corpus
from components.curation.resampling import PlaneGrid
from components.curation.table_rows import Split, VolumeInstructionRecord, VolumeRecord
from components.evaluation.case_selection import interleave
from components.evaluation.model_answers import AnswerGenerator
from components.inference.predictor import Predictor
from components.inference.question import Question
from components.inference.sliding_window import ResampledVolume
from components.inference.study import Study, StudyQuestion, StudySeries
from components.ingestion.volume import Acquisition, Volume
from components.provenance import digest
from components.registries import TASKS
from components.settings import EvaluationSettings
from components.tasks.base import Task
from components.tasks.calibration import Calibration
from components.tasks.known_structures import Shown

VOLUMES = "whole volumes"
"""Name of the cases in ``cases.json``."""
SLICE_BY_SLICE = "slice by slice"
"""Name of the baseline: the same model and volume, read slice by slice."""


@dataclass(frozen=True)
class VolumeReadings:
    """A held-out volume, read whole and slice by slice.

    Attributes:
        record: of the volume.
        volume: on the network's own grid.
        predictor: the model.
        max_new_tokens: of generated text.
    """

    record: VolumeRecord
    volume: ResampledVolume
    predictor: Predictor
    max_new_tokens: int

    @cached_property
    def study(self) -> Study:
        """The whole volume as the network sees it."""
        return Study(self.predictor, (StudySeries(self.volume),))

    @cached_property
    def without_header(self) -> VolumeReadings:
        """The same volume with a header that states nothing about the acquisition."""
        silent = Acquisition(anatomy=self.record.anatomy)
        return replace(self, volume=replace(self.volume, volume=replace(self.volume.volume, acquisition=silent)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        depth, height, width = self.volume.voxels.shape
        return depth, height, width

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance of slices, rows and columns, mm."""
        return tuple(self.volume.volume.spacing_mm)

    def whole(self, instruction: str) -> StudyQuestion:
        """Return a question about the whole volume."""
        return StudyQuestion(self.study, instruction)

    def sliced(self, instruction: str) -> Question:
        """Return a question that is answered slice by slice."""
        return Question(self.volume, instruction)

    @cached_property
    def shown_by_slices(self) -> Shown | None:
        """Findings and known structures of every slice with content, each slice on its own."""
        return self.predictor.structures(self.sliced(""), self.volume.content_slices, "detection")

    def report_of_slice(self, instruction: str) -> str:
        """Return the text about the middle slice, which a report slice by slice rests on."""
        question = self.sliced(instruction)
        [text] = self.predictor.generate_texts(question, [question.first_tile], "report", max_new_tokens=self.max_new_tokens)
        return text


@dataclass(frozen=True)
class VolumeCase:
    """A held-out question about a whole volume."""

    record: VolumeInstructionRecord
    readings: VolumeReadings


@dataclass(frozen=True)
class VolumeCases:
    """Questions about whole volumes of test patients, and of the validation patients on whom a calibration is fitted."""

    test: dict[str, list[VolumeCase]]
    validation: dict[str, list[VolumeCase]]

    @property
    def volumes(self) -> list[str]:
        """Ids of the test volumes, sorted."""
        return sorted({case.record.volume_id for cases in self.test.values() for case in cases})

    @classmethod
    def load(cls, corpus: Corpus, answers: AnswerGenerator, settings: EvaluationSettings, calibration: Calibration) -> VolumeCases:
        """Select volumes and read them; the slices are read with a given calibration of p(yes)."""

        def cases(split: Split, tasks: Sequence[str]) -> dict[str, list[VolumeCase]]:
            chosen = select_volumes(corpus, split, settings.volumes, answers.seed)
            readings = {volume_id: read_volume(corpus, volume_id, answers, settings, calibration) for volume_id in chosen}
            by_task: dict[str, list[VolumeCase]] = {task: [] for task in tasks}
            for record in _questions(corpus, chosen, answers.seed):
                if record.task in by_task:
                    by_task[record.task].append(VolumeCase(record, readings[record.volume_id]))
            return by_task

        yes_or_no = [name for name, task in TASKS.items() if task.answers_yes_or_no]
        return cls(cases("test", list(TASKS)), cases("validation", yes_or_no))


def select_volumes(corpus: Corpus, split: Split, count: int, seed: int) -> list[str]:
    """Return at most ``count`` volumes of a split with questions: patients in turn, with and without lesions and masks alike.

    The first two are with and without a lesion, and have masks, if there are such.
    """
    asked = {row.volume_id for row in corpus.volume_instructions if row.scope == "volume" and row.split == split}
    groups: dict[tuple[bool | None, bool], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for volume_id in sorted(asked, key=lambda one: digest(seed, one)):
        record = corpus.volumes[volume_id]
        groups[record.lesion, record.has_labels][record.patient_id].append(volume_id)
    ordered = sorted(groups, key=lambda group: (not group[1], str(group[0])))
    return interleave([interleave(list(groups[group].values())) for group in ordered])[:count]


def _questions(corpus: Corpus, volumes: Sequence[str], seed: int) -> list[VolumeInstructionRecord]:
    """Return the questions about volumes, in their order; where a task has several for a volume, the volumes have them in turn.

    A diagnosis asks about every finding.
    """
    by_volume: dict[tuple[str, str], list[VolumeInstructionRecord]] = defaultdict(list)
    for row in corpus.volume_instructions:
        if row.scope == "volume":
            by_volume[row.volume_id, row.task].append(row)
    chosen = []
    for number, volume_id in enumerate(volumes):
        for name, task in TASKS.items():
            rows = sorted(by_volume[volume_id, name], key=lambda row: (row.structure or "", digest(seed, row.sample_id)))
            chosen += _in_turn(task, rows, number)
    return chosen


def _in_turn(task: Task, rows: list[VolumeInstructionRecord], number: int) -> list[VolumeInstructionRecord]:
    return rows if task.answers_yes_or_no or not rows else [rows[number % len(rows)]]


def read_volume(
    corpus: Corpus,
    volume_id: str,
    answers: AnswerGenerator,
    settings: EvaluationSettings,
    calibration: Calibration = Calibration(),  # noqa: B008 (frozen)
) -> VolumeReadings:
    """Read a volume of the store, which is on the grid of the network."""
    record = corpus.volumes[volume_id]
    voxels: NDArray[np.float32] = corpus.store.read(volume_id, "voxels").astype(np.float32)
    acquisition = Acquisition(
        modality=record.modality,
        sequence=record.sequence,
        plane=record.plane,
        anatomy=record.anatomy,
        field_strength_t=record.field_strength_t,
    )
    volume = Volume(voxels, np.asarray(record.affine).reshape(4, 4), acquisition)
    _, row_mm, column_mm = volume.spacing_mm
    grid = PlaneGrid.centered((record.rows, record.columns), (row_mm, column_mm), record.rows, row_mm)
    predictor = Predictor(
        answers.model,
        answers.processor,
        record.rows,
        row_mm,
        answers.known,
        calibration,
        familiar=answers.familiar,
        volumetry=answers.volumetry,
    )
    resampled = ResampledVolume(volume, grid, record.rows, voxels, 1.0, ((0, 0),))
    return VolumeReadings(record, resampled, predictor, settings.max_new_tokens)
