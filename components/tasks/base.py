"""Base class of the tasks: the decisions that depend on the task, from the instructions of a volume to the scores of a model.

Task modules import no PyTorch at import time: curation, validation and the command line use them, too.

Shape letters: H rows, W columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from components.curation.text.phrasings import Phrasings
from components.settings import CurationSettings, EvaluationSettings
from model_core.targets import TARGET_MASK, TARGET_NONE

if TYPE_CHECKING:
    from components.curation.corpus import Corpus
    from components.curation.curate_volume import CardFacts, CuratedVolume
    from components.curation.store import VolumeStore
    from components.curation.table_rows import InstructionRecord, VolumeInstructionRecord, VolumeRecord
    from components.evaluation.model_answers import AnswerGenerator, Case
    from components.evaluation.results import ResultRow
    from components.evaluation.task_result import TaskResult
    from components.evaluation.volume_cases import VolumeCases
    from components.inference.prediction import Prediction
    from components.inference.predictor import Predictor
    from components.inference.question import Question
    from components.inference.study import StudyQuestion

AnyInstruction: TypeAlias = "InstructionRecord | VolumeInstructionRecord"
Image = NDArray[np.float32]
Instruction = TypeVar("Instruction", "InstructionRecord", "VolumeInstructionRecord")


@dataclass(frozen=True)
class Target:
    """Target of the image decoder for one sample; the arrays are (H, W), of a volume (D, H, W).

    k-space and sensitivities of several coils have an axis of coils before the rows.

    Attributes:
        kind: TARGET_NONE, TARGET_IMAGE or TARGET_MASK.
        image: magnitude or {0, 1} mask; zeros without a target.
        kspace: complex64 measured k-space, zeros elsewhere.
        sampling: bool, True = measured.
        coil_maps: complex64 sensitivities; None = one coil.
    """

    kind: int
    image: Image
    kspace: NDArray[np.complex64]
    sampling: NDArray[np.bool_]
    coil_maps: NDArray[np.complex64] | None = None

    @classmethod
    def none(cls, image: Image) -> Target:
        """Return the target of a sample that requests text only."""
        return cls(TARGET_NONE, np.zeros_like(image), np.zeros(image.shape, np.complex64), np.zeros(image.shape, np.bool_))

    @classmethod
    def mask(cls, mask: NDArray[np.bool_]) -> Target:
        """Return the target of a sample that requests a mask."""
        no_kspace, no_sampling = np.zeros(mask.shape, np.complex64), np.zeros(mask.shape, np.bool_)
        return cls(TARGET_MASK, mask.astype(np.float32), no_kspace, no_sampling)

    def slices(self, indices: NDArray[np.integer[Any]]) -> Target:
        """Return the target of some slices of a volume."""
        maps = None if self.coil_maps is None else self.coil_maps[indices]
        return Target(self.kind, self.image[indices], self.kspace[indices], self.sampling[indices], maps)


class Task(ABC):
    """One task of instruction tuning.

    Attributes:
        name: name in the registry, in the corpus, in settings and in results.
        phrasings: ways to word the instruction.
        weight: relative share of the task among the instructions of a training mixture.
        target_kind: TARGET_NONE, TARGET_IMAGE or TARGET_MASK: output of the image decoder that an answer includes.
        is_paired: instructions have a finding or none (``boxes`` or ``positive``); the corpus has equally many of each.
        answers_yes_or_no: the response begins with yes or no; validation checks the share of yes.
        needs_findings: instructions exist only for datasets whose labels, boxes or diagnoses state whether there is a lesion.
        is_augmented: training varies contrast and position of the image, of boxes in the response and of a mask; an image target
            must not be augmented.
        states_sizes: the response states sizes in millimeters: training moves the image but does not scale it.
        names_series: about a study, an instruction names the series that it means; else it holds for the study.
        is_free_text: answers have no form of their own: every answer that no other task recognizes belongs to this task, and the
            command line shows it while it is generated.
        cues: beginnings of words, or of words in a row, by which a question of the task is recognized before the model reads it
            (:mod:`components.tasks.scope`); empty = the words of its phrasings.
        beginnings: how answers of the task begin; generation is held to them where the question's words name the task. Empty = in
            any way.
    """

    name: ClassVar[str]
    phrasings: ClassVar[Phrasings]
    weight: ClassVar[float]
    target_kind: ClassVar[int] = TARGET_NONE
    is_paired: ClassVar[bool] = False
    answers_yes_or_no: ClassVar[bool] = False
    needs_findings: ClassVar[bool] = False
    is_augmented: ClassVar[bool] = True
    states_sizes: ClassVar[bool] = False
    names_series: ClassVar[bool] = False
    is_free_text: ClassVar[bool] = False
    cues: ClassVar[tuple[str, ...]] = ()
    beginnings: ClassVar[tuple[str, ...]] = ()

    # Curation

    @property
    def all_phrasings(self) -> tuple[Phrasings, ...]:
        """Every set of phrasings that the task's instructions use."""
        return (self.phrasings,)

    @abstractmethod
    def candidates(self, curated: CuratedVolume, card: CardFacts, settings: CurationSettings) -> Iterator[InstructionRecord]:
        """Yield every instruction about a volume, from records and slice facts alone (no voxel is read)."""

    def volume_candidates(
        self, curated: CuratedVolume, card: CardFacts, settings: CurationSettings
    ) -> Iterator[VolumeInstructionRecord]:
        """Yield every instruction about a volume as a whole; none by default."""
        yield from ()

    def is_complete(self, record: AnyInstruction, volume: VolumeRecord) -> bool:
        """Return whether an instruction has the fields, and its volume the arrays, that the task needs."""
        return True

    def is_response(self, record: AnyInstruction) -> bool:
        """Return whether the response has the form of the task and agrees with the other fields of the instruction."""
        return bool(record.response)

    # Training and evaluation

    def input_and_target(self, record: InstructionRecord, store: VolumeStore) -> tuple[Image, Target]:
        """Read the (H, W) input image of an instruction and its target for the image decoder."""
        image: Image = store.read(record.volume_id, "voxels", record.slice_index)
        return image, Target.none(image)

    def volume_input_and_target(
        self, record: VolumeInstructionRecord, store: VolumeStore, slices: NDArray[np.integer[Any]]
    ) -> tuple[Image, Target]:
        """Read some slices of the volume of an instruction, (D, H, W), and their target."""
        image: Image = store.read(record.volume_id, "voxels")[slices]
        if not record.label_values:
            return image, Target.none(image)
        return image, Target.mask(np.isin(store.read(record.volume_id, "labels")[slices], record.label_values))

    def vary(self, record: Instruction, volume: VolumeRecord, rng: np.random.Generator) -> Instruction:
        """Return the instruction of one draw of training: by default, the same for every draw.

        Args:
            record: instruction of the corpus.
            volume: its volume.
            rng: random numbers of the draw.
        """
        return record

    def training_group(self, record: InstructionRecord) -> str:
        """Return the group of a training instruction; a mixture draws from all groups of a task alike, however small they are."""
        return ""

    def case_group(self, record: InstructionRecord) -> object:
        """Return the group of a held-out instruction; evaluation selects cases from all groups in turn."""
        return None

    @abstractmethod
    def evaluate(self, cases: Sequence[Case], answers: AnswerGenerator, corpus: Corpus, settings: EvaluationSettings) -> TaskResult:
        """Score a model's answers to held-out cases, next to baselines from the training split of the corpus."""

    def score_volumes(self, cases: VolumeCases, corpus: Corpus, result: TaskResult) -> list[ResultRow]:
        """Return rows about whole volumes beside the same volumes read slice by slice; none by default."""
        return []

    # Inference

    def recognizes(self, answer: str) -> bool:
        """Return whether an answer has the form of this task and of no other."""
        return False

    def decode(self, predictor: Predictor, question: Question, answer: str) -> Prediction:
        """Turn the answer about the first tile into a prediction for the whole volume."""
        return question.prediction(self.name, answer, [question.first_tile])

    def decode_study(self, study: StudyQuestion, answer: str) -> Prediction:
        """Turn the answer about the whole volumes of a study into a prediction."""
        return study.prediction(self.name, answer)

    def __repr__(self) -> str:
        return f"<task {self.name}>"


def read_finding(record: InstructionRecord, store: VolumeStore) -> tuple[Image, Target]:
    """Read the (H, W) slice of an instruction, and the mask of the findings it is about; no target without labels of them."""
    image: Image = store.read(record.volume_id, "voxels", record.slice_index)
    if not record.label_values:
        return image, Target.none(image)
    return image, Target.mask(np.isin(store.read(record.volume_id, "labels", record.slice_index), record.label_values))


def has_finding(record: AnyInstruction) -> bool:
    """Return whether the true answer of an instruction asserts a finding."""
    return bool(record.boxes) or bool(record.positive)
