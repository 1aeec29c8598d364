"""The network can learn each of the five tasks: four samples, the debug size, seconds, and what it then makes is right.

Every case is a volume of one slice, asked about through :class:`Predictor`, as a user would. The question is the same for all four,
so that the answer can only come from the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from components.curation.curate_volume import resample_volume
from components.curation.resampling import PlaneGrid
from components.evaluation.metrics import dice, iou, psnr
from components.inference import Predictor, Sampling
from components.inference.question import ignore_progress
from components.ingestion.volume import Volume
from components.tasks.base import Image, Target
from components.training.batches import sequence_batch
from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.batch import SequenceBatch
from model_core.boxes import GRID, TextBox, format_boxes
from model_core.mri_physics.fourier import ifft2c
from model_core.mri_physics.sampling_masks import random_mask, undersample
from model_core.objectives import InstructionTuning
from model_core.processing import Processor
from model_core.targets import TARGET_IMAGE
from model_core.tokenization import special_ids, train_tokenizer
from tests.helpers.corpora import EXTENT_MM, tiny_volume

MATRIX, PIXEL_MM = 32, EXTENT_MM / 32
LESION, WHITE_MATTER = 4, 3
REPORTS = (
    "Modality: MRI. Sequence: T2-weighted. Plane: axial. Abnormal Signal Patterns: a hyperintense lesion, left. Summary: stroke.",
    "Modality: MRI. Sequence: T2-weighted. Plane: axial. Abnormal Signal Patterns: none. Summary: a normal brain.",
    "Modality: MRI. Sequence: T2-weighted. Plane: axial. Abnormal Signal Patterns: a lesion near the midline. Summary: tumour.",
    "Modality: MRI. Sequence: T2-weighted. Plane: axial. Abnormal Signal Patterns: none. Summary: widened ventricles, atrophy.",
)


@dataclass(frozen=True)
class Lesson:
    """One sample: what is shown (a volume of one slice, as a user has it), asked and answered."""

    volume: Volume
    instruction: str
    response: str
    image: Image
    target: Target


def _slice(seed: int, lesion: bool) -> Volume:
    """The middle slice of a phantom, with its k-space and labels; with the lesion where it is largest."""
    whole = tiny_volume(seed, "T2-weighted", lesion=lesion, kspace=True, matrix=MATRIX)
    assert whole.labels is not None and whole.kspace is not None
    at = int((whole.labels == LESION).sum((1, 2)).argmax()) if lesion else len(whole.voxels) // 2
    keep = slice(at, at + 1)
    return replace(whole, voxels=whole.voxels[keep], kspace=whole.kspace[keep], labels=whole.labels[keep])


def _shown(volume: Volume) -> Image:
    """The slice as training has it."""
    grid = PlaneGrid.centered((MATRIX, MATRIX), (PIXEL_MM, PIXEL_MM), MATRIX, PIXEL_MM)
    return np.asarray(resample_volume(volume, grid)[0]["voxels"][0], dtype=np.float32)


def _mask(volume: Volume, value: int) -> Image:
    assert volume.labels is not None
    return (volume.labels[0] == value).astype(np.float32)


def _box(volume: Volume) -> TextBox:
    rows, columns = np.nonzero(_mask(volume, LESION))
    edges = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
    return TextBox("lesion", *(min(round(int(edge) * GRID / MATRIX), GRID - 1) for edge in edges))


def _reconstruction() -> list[Lesson]:
    lessons = []
    for seed in range(4):
        volume = _slice(seed, lesion=True)
        assert volume.kspace is not None
        columns = random_mask(MATRIX, 4, 0.08, seed)
        _, measured = undersample(volume.kspace[0, 0], columns)
        given = replace(volume, kspace=measured[None, None], voxels=np.abs(ifft2c(measured))[None].astype(np.float32))
        shown = _shown(given)
        scale = float(given.voxels.max() / shown.max())
        target = Target(
            TARGET_IMAGE,
            volume.voxels[0] / scale,
            (measured / scale).astype(np.complex64),
            np.broadcast_to(columns, (MATRIX, MATRIX)),
        )
        lessons.append(Lesson(given, "Reconstruct this image.", "<image>", shown, target))
    return lessons


def _segmentation() -> list[Lesson]:
    """Two structures of two brains: the query decides what is outlined."""
    lessons = []
    for seed in (0, 1):
        volume = _slice(seed, lesion=True)
        for name, value in (("white matter", WHITE_MATTER), ("lesion", LESION)):
            target = Target.mask(_mask(volume, value) > 0)
            lessons.append(Lesson(volume, f"Segment the {name}.", "<seg>", _shown(volume), target))
    return lessons


def _worded(instruction: str, volumes: list[Volume], responses: list[str]) -> list[Lesson]:
    shown = [_shown(volume) for volume in volumes]
    return [Lesson(v, instruction, r, s, Target.none(s)) for v, r, s in zip(volumes, responses, shown, strict=True)]


def _detection() -> list[Lesson]:
    volumes = [_slice(seed, lesion=True) for seed in range(4)]
    return _worded("Find any lesion.", volumes, [format_boxes([_box(volume)]) for volume in volumes])


def _diagnosis() -> list[Lesson]:
    volumes = [_slice(seed, lesion=seed % 2 == 0) for seed in range(4)]
    return _worded("Is there a lesion?", volumes, ["yes, lesion", "no, no lesion"] * 2)


def _report() -> list[Lesson]:
    return _worded("Report this image.", [_slice(seed, lesion=seed % 2 == 0) for seed in range(4)], list(REPORTS))


def _batch(lessons: list[Lesson], processor: Processor, tokens: int) -> SequenceBatch:
    encoded = [processor.encode(lesson.instruction, lesson.response, tokens) for lesson in lessons]
    targets = [lesson.target for lesson in lessons]
    return sequence_batch(processor, encoded, [lesson.image for lesson in lessons], targets, [False] * len(lessons))


def _learned(lessons: list[Lesson], steps: int, rate: float = 5e-3) -> tuple[Predictor, dict[str, float]]:
    """A predictor trained on the lessons alone, and the last losses."""
    torch.manual_seed(0)
    processor = Processor(train_tokenizer([text for lesson in lessons for text in (lesson.instruction, lesson.response)], 400))
    config = OmniMRIConfig.from_preset("debug", len(processor.tokenizer), **special_ids(processor.tokenizer))
    model = OmniMRIForConditionalGeneration(config)
    objective = InstructionTuning(model)
    parameters = objective.trainable()
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 20) * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)
    )
    batch = _batch(lessons, processor, model.image_tokens_for(1, MATRIX, MATRIX))
    for _ in range(steps):
        loss = objective(batch)
        optimizer.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    return Predictor(model.eval(), processor, MATRIX, PIXEL_MM), {name: float(part) for name, part in loss.parts.items()}


def test_reconstruction() -> None:
    """Four-fold undersampled k-space: at least 6 dB above the zero-filled image, as one prediction and as the mean of draws."""
    lessons = _reconstruction()
    predictor, losses = _learned(lessons, steps=160)
    assert losses["text"] < 0.05
    for lesson in lessons:
        truth = lesson.target.image * float(lesson.volume.voxels.max() / lesson.image.max())
        for sampling in (Sampling(), Sampling(steps=4, sampler="heun", samples=2)):
            made = predictor.predict(lesson.volume, lesson.instruction, sampling).image
            assert made is not None
            assert psnr(made[0], truth, truth.max()) - psnr(lesson.volume.voxels[0], truth, truth.max()) >= 6


def test_segmentation() -> None:
    lessons = _segmentation()
    predictor, losses = _learned(lessons, steps=150)
    assert losses["text"] < 0.05 and losses["mask"] < 0.15
    for lesson in lessons:
        made = predictor.predict(lesson.volume, lesson.instruction).mask
        assert made is not None
        assert dice(made[0] > 0, lesson.target.image > 0) > 0.95


def test_detection() -> None:
    lessons = _detection()
    predictor, losses = _learned(lessons, steps=120)
    assert losses["text"] < 0.05
    for lesson in lessons:
        (box,) = predictor.predict(lesson.volume, lesson.instruction).boxes
        found = TextBox(box.label, *(edge * GRID // MATRIX for edge in (box.row0, box.col0, box.row1, box.col1)))
        assert iou(found, _box(lesson.volume)) > 0.8


def test_diagnosis() -> None:
    lessons = _diagnosis()
    predictor, losses = _learned(lessons, steps=80)
    assert losses["text"] < 0.05
    answers = predictor.predict_many([(lesson.volume, lesson.instruction) for lesson in lessons])
    assert [answer.text.split()[0] for answer in answers] == ["yes", "no", "yes", "no"]
    questions = predictor._read_questions([(lesson.volume, lesson.instruction) for lesson in lessons], Sampling(), ignore_progress)
    assert predictor._first_answers(questions, ignore_progress) == [lesson.response for lesson in lessons]


def test_report() -> None:
    """Word for word, one at a time, many at once, and in pieces while it is written."""
    lessons = _report()
    predictor, losses = _learned(lessons, steps=120)
    assert losses["text"] < 0.05
    answers = predictor.predict_many([(lesson.volume, lesson.instruction) for lesson in lessons])
    assert [answer.text for answer in answers] == list(REPORTS)
    heard: list[str] = []
    said = predictor.predict(lessons[0].volume, lessons[0].instruction, on_text=heard.append)
    assert said.text == "".join(heard) == REPORTS[0]
    pieces = list(predictor.stream(lessons[1].volume, lessons[1].instruction))
    assert "".join(pieces) == REPORTS[1] and len(pieces) > 8
