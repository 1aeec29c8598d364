"""Reconstruction: the fully sampled image of an undersampled slice.

Shape letters: K samples, D slices, H rows, W columns, P side of a resampled slice, V tiles, M side of a tile.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.curation.coil_data import read_undersampled
from components.curation.table_rows import InstructionRecord, VolumeInstructionRecord, VolumeRecord
from components.curation.text.instructions import IMAGE_RESPONSE, build_instruction, spread
from components.curation.text.phrasings import Phrasings
from components.curation.text.volume_instructions import build_volume_instruction
from components.provenance import digest
from components.settings import CurationSettings, EvaluationSettings, MaskKind
from components.tasks.base import AnyInstruction, Image, Instruction, Target, Task
from model_core.mri_physics.sampling_masks import center_fraction_of, create_mask, random_mask
from model_core.targets import TARGET_IMAGE

if TYPE_CHECKING:
    from components.curation.corpus import Corpus
    from components.curation.curate_volume import CardFacts, CuratedVolume
    from components.curation.store import VolumeStore
    from components.evaluation.model_answers import AnswerGenerator, Case
    from components.evaluation.task_result import TaskResult
    from components.inference.prediction import Prediction
    from components.inference.predictor import Predictor
    from components.inference.question import Question
    from components.inference.sliding_window import ResampledVolume
    from components.inference.study import StudyQuestion

MASK_KINDS: tuple[MaskKind, ...] = ("random", "equispaced", "magic")
ACCELERATIONS = (2, 3, 4, 5, 6, 7, 8)
"""Masks that training draws for k-space of several coils."""
_LARGEST_SEED = 2**31
_ERROR_GAIN = 4
"""Factor by which error maps are brightened."""


class Reconstruction(Task):
    """Reconstruct an undersampled slice; the target is the fully sampled image."""

    name = "reconstruction"
    weight = 0.2
    target_kind = TARGET_IMAGE
    names_series = True
    cues = ("reconstruct", "recover", "under", "undersampl", "artifact", "accelerat", "alias", "fully sampled", "denois")
    beginnings = (IMAGE_RESPONSE,)
    is_augmented = False  # its k-space is what was measured
    phrasings = Phrasings(
        trained=(
            "Reconstruct the image from this under-sampled MRI data.",
            "This {scan} was acquired with {acceleration}x acceleration. Reconstruct the image from the under-sampled data.",
            "Reconstruct this {acceleration}x under-sampled {scan}.",
            "Recover the image of this under-sampled {scan}.",
            "Recover the fully sampled image.",
            "Remove the artifacts of {acceleration}x acceleration.",
            "Remove the under-sampling artifacts and give the image.",
            "Give the fully sampled image of this {scan}, acquired with acceleration.",
        ),
        held_out=(
            "Recover the fully sampled image of this {scan}, acquired with {acceleration}x acceleration.",
            "Remove the under-sampling artifacts from this {scan}.",
        ),
    )

    def candidates(self, curated: CuratedVolume, card: CardFacts, settings: CurationSettings) -> Iterator[InstructionRecord]:
        """Yield an instruction for each slice and acceleration, if the store has measured k-space."""
        if not curated.record.has_kspace:
            return
        for slice_index in spread(curated.facts.content_slices, settings.slices_per_volume):
            for acceleration in settings.accelerations:
                seed = int(digest(curated.record.dataset_id, curated.record.series_id, slice_index, acceleration)[:15], 16)
                yield build_instruction(
                    curated,
                    self,
                    slice_index,
                    IMAGE_RESPONSE,
                    {"acceleration": str(acceleration)},
                    acceleration=acceleration,
                    centre_fraction=center_fraction_of(acceleration),
                    mask_seed=seed % _LARGEST_SEED,
                )

    def volume_candidates(
        self, curated: CuratedVolume, card: CardFacts, settings: CurationSettings
    ) -> Iterator[VolumeInstructionRecord]:
        """Yield an instruction for each acceleration, with one mask for all slices, if the store has measured k-space."""
        record = curated.record
        for acceleration in settings.accelerations if record.has_kspace else ():
            seed = int(digest(record.dataset_id, record.series_id, "volume", acceleration)[:15], 16) % _LARGEST_SEED
            fields = {"acceleration": acceleration, "centre_fraction": center_fraction_of(acceleration), "mask_seed": seed}
            yield build_volume_instruction(curated, self, IMAGE_RESPONSE, {"acceleration": str(acceleration)}, **fields)

    def is_complete(self, record: AnyInstruction, volume: VolumeRecord) -> bool:  # noqa: D102 (see Task)
        return volume.has_kspace and None not in (record.acceleration, record.centre_fraction, record.mask_seed)

    def is_response(self, record: AnyInstruction) -> bool:  # noqa: D102
        return record.response == IMAGE_RESPONSE

    def vary(self, record: Instruction, volume: VolumeRecord, rng: np.random.Generator) -> Instruction:
        """Draw kind, acceleration and seed of the mask anew for k-space of several coils; the text names the drawn acceleration."""
        if volume.coils == 1:
            return record
        kind, acceleration = MASK_KINDS[rng.integers(len(MASK_KINDS))], int(rng.choice(ACCELERATIONS))
        return record.model_copy(
            update={
                "instruction": re.sub(rf"\b{record.acceleration}x\b", f"{acceleration}x", record.instruction),
                "acceleration": acceleration,
                "centre_fraction": center_fraction_of(acceleration),
                "mask_seed": int(rng.integers(_LARGEST_SEED)),
                "mask_kind": kind,
            }
        )

    def input_and_target(self, record: InstructionRecord, store: VolumeStore) -> tuple[Image, Target]:
        """Undersample the slice's k-space: only the seed of the mask is stored."""
        image: Image = store.read(record.volume_id, "voxels", record.slice_index)
        return _undersample(record, image, store, record.slice_index)

    def volume_input_and_target(
        self, record: VolumeInstructionRecord, store: VolumeStore, slices: NDArray[np.integer[Any]]
    ) -> tuple[Image, Target]:
        """Undersample the k-space of the slices, with one mask for all of them."""
        image: Image = store.read(record.volume_id, "voxels")[slices]
        return _undersample(record, image, store, slices)

    def recognizes(self, answer: str) -> bool:  # noqa: D102
        return answer.startswith(IMAGE_RESPONSE)

    def decode(self, predictor: Predictor, question: Question, answer: str) -> Prediction:
        """Reconstruct every slice."""
        volume, depth = question.volume, len(question.volume.voxels)
        tiles = volume.tiles(range(depth))
        images = predictor.generate_images(question, tiles, IMAGE_RESPONSE, TARGET_IMAGE, self.name)
        residuals = np.stack([samples - volume.crop(tile) for samples, tile in zip(images, tiles, strict=True)])
        samples = volume.scale * np.stack([_add_residual(volume, residual) for residual in volume.blend(tiles, residuals)])
        text = answer.removeprefix(IMAGE_RESPONSE).strip() or f"{self.name} of {depth} slices"
        return question.prediction(self.name, text, tiles, image=samples.mean(0), samples=samples)

    def decode_study(self, study: StudyQuestion, answer: str) -> Prediction:
        """Reconstruct every slice of the named series, from one pass over the study."""
        volume = study.target.volume
        changes = study.generate_samples(IMAGE_RESPONSE, TARGET_IMAGE)
        samples = volume.scale * np.stack([_add_residual(volume, change) for change in changes])
        text = answer.removeprefix(IMAGE_RESPONSE).strip() or f"{self.name} of {samples.shape[1]} slices"
        return study.prediction(self.name, text, samples, image=samples.mean(0))

    def evaluate(self, cases: Sequence[Case], answers: AnswerGenerator, corpus: Corpus, settings: EvaluationSettings) -> TaskResult:
        """Score volumes with fastMRI's metrics: conditional mean (one step) and mean of samples, next to zero filling and TV."""
        from components.evaluation import metrics
        from components.evaluation.baselines import TotalVariation
        from components.evaluation.sweep import sweep_masks
        from components.evaluation.task_result import (
            Panel,
            ScoredUnits,
            TaskResult,
            build_row,
            example_cases,
            mean_score,
            worst_cases,
        )
        from components.tasks.measurements import zero_filled_images

        compressed_sensing = TotalVariation.fit(corpus)
        images = {
            "model": answers.images(cases, steps=1, samples=1),
            "sampled": answers.images(cases, settings.sampler_steps, settings.samples),
            "zero-filled": zero_filled_images([case.target for case in cases]),
            "total variation": [compressed_sensing.reconstruct(case.target, case.record.acceleration) for case in cases],
        }
        if any(case.target.coil_maps is not None for case in cases):
            images["SENSE"] = [case.image for case in cases]
        volumes: dict[str, list[int]] = defaultdict(list)
        for index, case in enumerate(cases):
            volumes[case.record.volume_id].append(index)
        patients = [cases[indices[0]].record.patient_id for indices in volumes.values()]
        ranges = {volume_id: float(corpus.store.read(volume_id).max()) for volume_id in volumes}

        result = TaskResult()
        for name, metric, higher in (("PSNR, dB", metrics.psnr, True), ("SSIM", metrics.ssim, True), ("NMSE", metrics.nmse, False)):
            scores = {
                method: mean_score(_score_volumes(metric, predictions, cases, volumes, ranges))
                for method, predictions in images.items()
            }
            model, sampled = scores.pop("model"), scores.pop("sampled")
            result.rows.append(build_row(self.name, name, higher, model, scores, patients, len(cases), model))
            if metric is metrics.psnr:
                result.units = ScoredUnits(name, model, scores, tuple(volumes))
                title = f"{name}, mean of {settings.samples} samples"
                result.rows.append(build_row(self.name, title, higher, sampled, scores, patients, len(cases)))
        by_case = [
            metrics.ssim(images["model"][i][None], case.target.image[None], float(case.target.image.max()) or 1.0)
            for i, case in enumerate(cases)
        ]

        def panels(i: int, title: str) -> list[Panel]:
            truth, model_image = cases[i].target.image, images["model"][i]
            return [
                Panel("zero-filled", images["zero-filled"][i]),
                Panel("total variation", images["total variation"][i]),
                Panel(title, model_image),
                Panel("truth", truth),
                Panel(f"error x {_ERROR_GAIN}", np.abs(model_image - truth) * _ERROR_GAIN),
            ]

        result.pictures = [panels(i, "model") for i in example_cases(cases, corpus)]
        result.worst_pictures = [panels(i, f"model, SSIM {by_case[i]:.2f}") for i in worst_cases(by_case)]
        result.sweep = sweep_masks(cases, answers, corpus, settings, compressed_sensing)
        return result


def _undersample(
    record: InstructionRecord | VolumeInstructionRecord,
    image: Image,
    store: VolumeStore,
    index: int | NDArray[np.integer[Any]],
) -> tuple[Image, Target]:
    """Return the image that reconstruction starts from, and the target ``image`` of an instruction with the measured k-space."""
    assert record.acceleration is not None and record.centre_fraction is not None and record.mask_seed is not None
    if record.mask_kind == "random":
        mask = random_mask(image.shape[-1], record.acceleration, record.centre_fraction, record.mask_seed)
    else:
        mask = create_mask(record.mask_kind, image.shape[-1], record.acceleration, record.mask_seed)
    measured = read_undersampled(store, record.volume_id, mask, index)
    return measured.image, Target(TARGET_IMAGE, image, measured.kspace, measured.sampling, measured.coil_maps)


def _score_volumes(
    metric: Callable[..., float],
    predictions: Sequence[Image],
    cases: Sequence[Case],
    volumes: Mapping[str, Sequence[int]],
    ranges: Mapping[str, float],
) -> list[float]:
    """Apply a metric to the slices of each volume (volume_id -> indices of its cases); PSNR and SSIM use the volume's maximum."""
    from components.evaluation.metrics import nmse

    scores = []
    for volume_id, indices in volumes.items():
        prediction = np.stack([predictions[i] for i in indices])
        target = np.stack([cases[i].target.image for i in indices])
        scores.append(metric(prediction, target) if metric is nmse else metric(prediction, target, ranges[volume_id]))
    return scores


def _add_residual(volume: ResampledVolume, residual_DPP: NDArray[np.float32]) -> NDArray[np.float32]:
    """Add the network's change to the image on the source's own grid (D, H, W), and enforce agreement with the measurement there.

    The network's grid may be coarser than the source's: adding the change rather than replacing the image keeps every source pixel.
    """
    import torch

    from components.inference.sliding_window import BATCH, slice_batches
    from model_core.mri_physics.sense import enforce_data_consistency

    measured = volume.measured
    source = volume.volume.voxels / np.float32(volume.scale) if volume.first_image is None else volume.first_image
    image = np.clip(source + volume.to_source_grid(residual_DPP), 0, None)
    if measured is None:
        return image
    batches = slice_batches(measured, BATCH)
    return np.concatenate(
        [enforce_data_consistency(torch.from_numpy(image[rows])[:, None], batch)[:, 0].numpy() for rows, batch in batches]
    )


TASK = Reconstruction()
