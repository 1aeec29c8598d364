"""Baselines: answers without a network, which a useful model must exceed. Their statistics come from training patients only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curation.corpus import Corpus
from components.curation.table_rows import InstructionRecord, VolumeRecord
from components.tasks.base import Target
from model_core.boxes import TextBox, VolumeBox

TV_WEIGHTS = (0.00003, 0.0001, 0.0003, 0.001)
"""Candidate weights of total variation, for k-space with a maximum of 1; training patients choose among them."""
TV_SLICES = 8
"""Training slices of an acceleration that choose its weight."""
LEVELS = 8
"""Levels of the atlas, from the first slice to the last."""
THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Candidate thresholds of the mean mask; training patients choose among them."""
AtlasKey = tuple[str, str, int]
"""Structure, plane, level."""


def total_variation(measured: Target, weight: float) -> NDArray[np.float32]:
    """Reconstruct the slice (H, W) of a target by compressed sensing with total variation (Lustig 2007) with sigpy; all its coils.

    The solver is ADMM, whose images hardly change after 40 iterations; sigpy's default, the primal-dual method, needs thousands.

    Args:
        weight: of the total variation, for k-space with a maximum of 1.
    """
    import sigpy.mri

    maps_CHW = np.ones((1, *measured.sampling.shape), dtype=np.complex64) if measured.coil_maps is None else measured.coil_maps
    kspace_CHW = measured.kspace.reshape(maps_CHW.shape)
    scale = float(np.abs(kspace_CHW).max()) or 1.0
    result = sigpy.mri.app.TotalVariationRecon(
        kspace_CHW / scale,
        maps_CHW,
        weight,
        weights=measured.sampling[None].astype(np.float32),
        solver="ADMM",
        rho=3 * weight**0.5,
        max_iter=40,
        max_cg_iter=5,
        show_pbar=False,
    ).run()
    return np.asarray(np.abs(result) * scale, dtype=np.float32)


@dataclass(frozen=True)
class TotalVariation:
    """Total variation with the weights that suit the training patients.

    Attributes:
        weights: acceleration -> weight with the best mean PSNR on training slices.
    """

    weights: dict[int, float]

    @classmethod
    def fit(cls, corpus: Corpus) -> TotalVariation:
        """Choose the weights."""
        from components.evaluation import metrics
        from components.evaluation.model_answers import load_cases

        def score(targets: list[Target], weight: float) -> float:
            return float(
                np.mean([metrics.psnr(total_variation(one, weight), one.image, float(one.image.max())) for one in targets])
            )

        records: dict[int, list[InstructionRecord]] = defaultdict(list)
        for record in _training_instructions(corpus, "reconstruction"):
            records[record.acceleration or 1].append(record)
        weights = {}
        for acceleration, found in sorted(records.items()):
            chosen = found[:: -(-len(found) // TV_SLICES)]
            targets = [case.target for case in load_cases(corpus, chosen)]
            weights[acceleration] = max(TV_WEIGHTS, key=partial(score, targets))
        return cls(weights)

    def reconstruct(self, measured: Target, acceleration: int | None) -> NDArray[np.float32]:
        """Reconstruct the slice (H, W) of a target with the weight of the most similar acceleration."""
        nearest = min(self.weights, key=lambda known: abs(np.log(known / (acceleration or 1))), default=None)
        return total_variation(measured, TV_WEIGHTS[1] if nearest is None else self.weights[nearest])


@dataclass(frozen=True)
class Atlas:
    """Mean masks of the training patients.

    Attributes:
        means: (structure, plane, level) -> mean mask (H, W) of the training slices.
        thresholds: structure -> value of the mean above which a pixel is assigned to the structure.
    """

    means: dict[AtlasKey, NDArray[np.float32]]
    thresholds: dict[str, float]

    def mask(self, record: InstructionRecord, volume: VolumeRecord) -> NDArray[np.bool_]:
        """Return the atlas's mask of the instruction's structure at its plane and level; empty without training slices there."""
        return self.mask_at(record.structure or "", volume, record.slice_index)

    def mask_at(self, structure: str, volume: VolumeRecord, index: int) -> NDArray[np.bool_]:
        """Return the mask of a structure at the plane and level of a slice of a volume."""
        mean = self.means.get(_atlas_key(structure, volume, index))
        if mean is None:
            return np.zeros((volume.rows, volume.columns), dtype=np.bool_)
        return mean > self.thresholds[structure]


def build_atlas(corpus: Corpus) -> Atlas:
    """Average the training masks; choose for every structure the threshold with the best Dice on the training volumes themselves.

    One threshold of 0.5 for all would be a weak baseline: no pixel is lesion in half of the slices, so it would never show one.
    """
    sums: dict[AtlasKey, Any] = defaultdict(lambda: 0)
    slices: Counter[AtlasKey] = Counter()
    for volume, labels, names in _labeled_volumes(corpus):
        for value, name in names.items():
            for index, label_slice in enumerate(labels):
                key = _atlas_key(name.lower(), volume, index)
                sums[key] = sums[key] + (label_slice == value).astype(np.float32)
                slices[key] += 1
    means = {key: total / slices[key] for key, total in sums.items()}
    dice: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for volume, labels, names in _labeled_volumes(corpus):
        for value, name in names.items():
            for index in np.flatnonzero((labels == value).any(axis=(1, 2))).tolist():
                mean = means[_atlas_key(name.lower(), volume, index)]
                dice[name.lower()].append(_dice_by_threshold(mean, labels[index] == value))
    structures = sorted({structure for structure, _, _ in means})
    best = {name: THRESHOLDS[int(np.mean(values, axis=0).argmax())] for name, values in dice.items()}
    return Atlas(means, {name: best.get(name, THRESHOLDS[-1]) for name in structures})


def _atlas_key(structure: str, volume: VolumeRecord, index: int) -> AtlasKey:
    return structure, volume.plane or "", min(int(LEVELS * index / volume.slices), LEVELS - 1)


def _dice_by_threshold(mean: NDArray[np.float32], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    masks = [mean > threshold for threshold in THRESHOLDS]
    return np.array([2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for mask in masks])


def _labeled_volumes(corpus: Corpus) -> Iterator[tuple[VolumeRecord, NDArray[np.uint8], dict[int, str]]]:
    """Yield the training volumes with labels, and the names of the label values."""
    for _, volume in sorted(corpus.volumes.items()):
        if volume.split == "train" and volume.has_labels:
            yield volume, corpus.store.read(volume.volume_id, "labels"), corpus.label_map(volume.dataset_id)


@dataclass(frozen=True)
class FrequentReports:
    """Most frequent training reports.

    Attributes:
        overall: the most frequent of all.
        by_sequence: sequence -> the most frequent of its reports.
    """

    overall: str
    by_sequence: dict[str | None, str]

    def for_volume(self, volume: VolumeRecord) -> str:
        """Return the most frequent report of the volume's sequence, or of all if the training split lacks the sequence."""
        return self.by_sequence.get(volume.sequence, self.overall)


def count_reports(corpus: Corpus, task: str) -> FrequentReports:
    """Find the most frequent responses of a task in the training split."""
    by_sequence: dict[str | None, Counter[str]] = defaultdict(Counter)
    for record in _training_instructions(corpus, task):
        by_sequence[corpus.volumes[record.volume_id].sequence][record.response] += 1
    return FrequentReports(
        overall=_most_frequent(sum(by_sequence.values(), Counter())),
        by_sequence={sequence: _most_frequent(reports) for sequence, reports in by_sequence.items()},
    )


def majority_answer(corpus: Corpus, task: str) -> bool:
    """Return whether most answers of a task in the training split are positive."""
    answers = Counter(bool(record.positive) for record in _training_instructions(corpus, task))
    return answers[True] > answers[False]


def median_box(corpus: Corpus) -> TextBox | None:
    """Return the box with the median edges and the most frequent label of the training split; None without boxes."""
    boxes = [box for record in corpus.instructions if record.split == "train" for box in record.boxes]
    if not boxes:
        return None
    edges = np.array([[box.row0, box.col0, box.row1, box.col1] for box in boxes])
    label = Counter(box.label for box in boxes).most_common(1)[0][0]
    return TextBox(label, *(int(edge) for edge in np.median(edges, axis=0)))


def median_volume_box(corpus: Corpus) -> VolumeBox | None:
    """Return :func:`median_box` of the training volumes, with six edges."""
    training = [row for row in corpus.volume_instructions if row.split == "train" and row.scope == "volume"]
    boxes = [box for row in training for box in row.boxes]
    if not boxes:
        return None
    edges = np.array([[box.row0, box.col0, box.row1, box.col1, box.slice0, box.slice1] for box in boxes])
    label = Counter(box.label for box in boxes).most_common(1)[0][0]
    return VolumeBox(label, *(int(edge) for edge in np.median(edges, axis=0)))


def _training_instructions(corpus: Corpus, task: str) -> list[InstructionRecord]:
    return [record for record in corpus.instructions if record.split == "train" and record.task == task]


def _most_frequent(texts: Counter[str]) -> str:
    """Return the most frequent text, the first in alphabetical order of equals; empty without texts."""
    return min(texts, key=lambda text: (-texts[text], text), default="")
