"""The network can overfit each of the tasks: four samples, the debug size, seconds of training, then correct answers.

Every case is a volume of one slice that :class:`Predictor` receives as a user's image. The instruction is the same for all four, so
that the answer can only depend on the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from components.curation.curate_volume import resample_volume
from components.curation.resampling import PlaneGrid
from components.curation.text.header_facts import HeaderFacts
from components.evaluation.metrics import dice, iou, psnr
from components.inference import Predictor, Sampling
from components.inference.question import ignore_progress
from components.ingestion.volume import Volume
from components.tasks.base import Image, Target
from components.training.batches import collate_sequences
from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.batch import SequenceBatch
from model_core.boxes import GRID, TextBox, format_boxes
from model_core.mri_physics.fourier import ifft2c_numpy
from model_core.mri_physics.sampling_masks import random_mask, undersample
from model_core.objectives import InstructionTuning
from model_core.processing import Processor
from model_core.targets import TARGET_IMAGE
from model_core.tokenization import special_ids, train_tokenizer
from tests.helpers.corpora import EXTENT_MM, tiny_volume

MATRIX, PIXEL_MM = 32, EXTENT_MM / 32
LESION, WHITE_MATTER = 4, 3
HEADER = "Modality: MRI. Sequence: T2-weighted. Plane: axial. Field strength: 3.0 T."
REPORTS = (
    f"{HEADER} Abnormal Signal Patterns: a hyperintense lesion, left. Summary: stroke.",
    f"{HEADER} Abnormal Signal Patterns: none. Summary: a normal brain.",
    f"{HEADER} Abnormal Signal Patterns: a lesion near the midline. Summary: tumour.",
    f"{HEADER} Abnormal Signal Patterns: none. Summary: widened ventricles, atrophy.",
)


@dataclass(frozen=True)
class TrainingCase:
    """One sample: the volume of one slice that a user has, its instruction and response, and the training image and target."""

    volume: Volume
    instruction: str
    response: str
    image: Image
    target: Target


def _slice(seed: int, lesion: bool) -> Volume:
    """Return the middle slice of a phantom, or the slice with the largest lesion, with its k-space and labels."""
    whole = tiny_volume(seed, "T2-weighted", lesion=lesion, kspace=True, matrix=MATRIX)
    assert whole.labels is not None and whole.kspace is not None
    index = int((whole.labels == LESION).sum((1, 2)).argmax()) if lesion else len(whole.voxels) // 2
    middle = slice(index, index + 1)
    return replace(whole, voxels=whole.voxels[middle], kspace=whole.kspace[middle], labels=whole.labels[middle])


def _training_image(volume: Volume) -> Image:
    """Return the slice as training uses it."""
    grid = PlaneGrid.centered((MATRIX, MATRIX), (PIXEL_MM, PIXEL_MM), MATRIX, PIXEL_MM)
    return np.asarray(resample_volume(volume, grid)[0]["voxels"][0], dtype=np.float32)


def _mask(volume: Volume, value: int) -> Image:
    assert volume.labels is not None
    return (volume.labels[0] == value).astype(np.float32)


def _box(volume: Volume) -> TextBox:
    rows, columns = np.nonzero(_mask(volume, LESION))
    edges = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
    return TextBox("lesion", *(min(round(int(edge) * GRID / MATRIX), GRID - 1) for edge in edges))


def _reconstruction() -> list[TrainingCase]:
    cases = []
    for seed in range(4):
        volume = _slice(seed, lesion=True)
        assert volume.kspace is not None
        columns = random_mask(MATRIX, 4, 0.08, seed)
        _, measured = undersample(volume.kspace[0, 0], columns)
        undersampled = replace(volume, kspace=measured[None, None], voxels=np.abs(ifft2c_numpy(measured))[None].astype(np.float32))
        image = _training_image(undersampled)
        scale = float(undersampled.voxels.max() / image.max())
        target = Target(
            TARGET_IMAGE,
            volume.voxels[0] / scale,
            (measured / scale).astype(np.complex64),
            np.broadcast_to(columns, (MATRIX, MATRIX)),
        )
        cases.append(TrainingCase(undersampled, "Reconstruct this image.", "<image>", image, target))
    return cases


def _segmentation() -> list[TrainingCase]:
    """Return two structures of two brains: the instruction decides the structure."""
    cases = []
    for seed in (0, 1):
        volume = _slice(seed, lesion=True)
        for name, value in (("white matter", WHITE_MATTER), ("lesion", LESION)):
            target = Target.mask(_mask(volume, value) > 0)
            cases.append(TrainingCase(volume, f"Segment the {name}.", "<seg>", _training_image(volume), target))
    return cases


def _text_cases(instruction: str, volumes: list[Volume], responses: list[str]) -> list[TrainingCase]:
    images = [_training_image(volume) for volume in volumes]
    return [TrainingCase(v, instruction, r, i, Target.none(i)) for v, r, i in zip(volumes, responses, images, strict=True)]


def _detection() -> list[TrainingCase]:
    volumes = [_slice(seed, lesion=True) for seed in range(4)]
    cases = _text_cases("Find any lesion.", volumes, [format_boxes([_box(volume)]) for volume in volumes])
    return [replace(case, target=Target.mask(_mask(case.volume, LESION) > 0)) for case in cases]


def _diagnosis() -> list[TrainingCase]:
    volumes = [_slice(seed, lesion=seed % 2 == 0) for seed in range(4)]
    return _text_cases("Is there a lesion?", volumes, ["yes, lesion", "no, no lesion"] * 2)


def _report() -> list[TrainingCase]:
    return _text_cases("Report this image.", [_slice(seed, lesion=seed % 2 == 0) for seed in range(4)], list(REPORTS))


def _batch(cases: list[TrainingCase], processor: Processor, tokens: int) -> SequenceBatch:
    questions = [HeaderFacts.of_volume(case.volume).before(case.instruction) for case in cases]
    encoded = [processor.encode(question, case.response, tokens) for question, case in zip(questions, cases, strict=True)]
    targets = [case.target for case in cases]
    return collate_sequences(processor, encoded, [case.image for case in cases], targets, [False] * len(cases))


def _train(cases: list[TrainingCase], steps: int, rate: float = 5e-3) -> tuple[Predictor, dict[str, float]]:
    """Train a predictor on the cases only; return it with the last losses."""
    torch.manual_seed(0)
    processor = Processor(train_tokenizer([text for case in cases for text in (case.instruction, case.response)], 400))
    config = OmniMRIConfig.from_preset("debug", len(processor.tokenizer), **special_ids(processor.tokenizer))
    model = OmniMRIForConditionalGeneration(config)
    objective = InstructionTuning(model)
    parameters = objective.trainable()
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 20) * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)
    )
    batch = _batch(cases, processor, model.image_tokens_for(1, MATRIX, MATRIX))
    for _ in range(steps):
        loss = objective(batch)
        optimizer.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    return Predictor(model.eval(), processor, MATRIX, PIXEL_MM), {name: float(part) for name, part in loss.parts.items()}


def test_reconstruction() -> None:
    """At least 6 dB above the zero-filled image of four-fold undersampled k-space, in one step and as the mean of samples."""
    cases = _reconstruction()
    predictor, losses = _train(cases, steps=160)
    assert losses["text"] < 0.05
    for case in cases:
        truth = case.target.image * float(case.volume.voxels.max() / case.image.max())
        for sampling in (Sampling(), Sampling(steps=4, sampler="heun", samples=2)):
            image = predictor.predict(case.volume, case.instruction, sampling).image
            assert image is not None
            assert psnr(image[0], truth, truth.max()) - psnr(case.volume.voxels[0], truth, truth.max()) >= 6


def test_segmentation() -> None:
    cases = _segmentation()
    predictor, losses = _train(cases, steps=150)
    assert losses["text"] < 0.05 and losses["mask"] < 0.15
    for case in cases:
        mask = predictor.predict(case.volume, case.instruction).mask
        assert mask is not None
        assert dice(mask[0] > 0, case.target.image > 0) > 0.95


def test_detection() -> None:
    cases = _detection()
    predictor, losses = _train(cases, steps=180)
    assert losses["text"] < 0.05
    for case in cases:
        (box,) = predictor.predict(case.volume, case.instruction).boxes
        predicted = TextBox(box.label, *(edge * GRID // MATRIX for edge in (box.row0, box.col0, box.row1, box.col1)))
        assert iou(predicted, _box(case.volume)) > 0.8


def test_diagnosis() -> None:
    cases = _diagnosis()
    predictor, losses = _train(cases, steps=80)
    assert losses["text"] < 0.05
    answers = predictor.predict_many([(case.volume, case.instruction) for case in cases])
    assert [answer.text.split()[0] for answer in answers] == ["yes", "no", "yes", "no"]
    questions = predictor._read_questions([(case.volume, case.instruction) for case in cases], Sampling(), ignore_progress)
    assert predictor._first_answers(questions, ignore_progress) == [case.response for case in cases]


def test_report() -> None:
    """The exact text, one at a time, in a batch, and streamed."""
    cases = _report()
    predictor, losses = _train(cases, steps=120)
    assert losses["text"] < 0.05
    answers = predictor.predict_many([(case.volume, case.instruction) for case in cases])
    assert [answer.text for answer in answers] == list(REPORTS)
    streamed: list[str] = []
    prediction = predictor.predict(cases[0].volume, cases[0].instruction, on_text=streamed.append)
    assert prediction.text == "".join(streamed) == REPORTS[0]
    pieces = list(predictor.stream(cases[1].volume, cases[1].instruction))
    assert "".join(pieces) == REPORTS[1] and len(pieces) > 8
