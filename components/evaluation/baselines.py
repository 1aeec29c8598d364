"""Answers that need no network: what a model must beat to be worth anything. What they learn is from training patients only."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curation.corpus import Corpus
from components.curation.records import InstructionRecord, VolumeRecord
from model_core.boxes import TextBox

TV_WEIGHT, TV_ITERATIONS = 0.001, 600
"""The best of six weights and four iteration counts on training patients."""
LEVELS = 8
"""Heights of the atlas, from the first slice to the last."""


def total_variation(kspace_HW: NDArray[np.complex64], sampling_HW: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Compressed sensing with total variation (Lustig 2007) by sigpy: single coil, magnitude of the result."""
    import sigpy.mri

    scale = float(np.abs(kspace_HW).max()) or 1.0
    result = sigpy.mri.app.TotalVariationRecon(
        (kspace_HW / scale)[None],
        np.ones((1, *kspace_HW.shape), dtype=np.complex64),
        TV_WEIGHT,
        weights=sampling_HW[None].astype(np.float32),
        max_iter=TV_ITERATIONS,
        show_pbar=False,
    ).run()
    return np.asarray(np.abs(result) * scale, dtype=np.float32)


def _level(volume: VolumeRecord, index: int) -> int:
    return min(int(LEVELS * index / volume.slices), LEVELS - 1)


@dataclass
class Learned:
    """What the training patients say without looking at the image in question.

    Attributes:
        atlas: (structure, level) -> mean mask (H, W) of training slices at that height.
        report: the most frequent report; positive: the more frequent diagnosis; box: the median box.
    """

    atlas: dict[tuple[str, int], NDArray[np.float32]] = field(default_factory=dict)
    report: str = ""
    positive: bool = False
    box: TextBox | None = None

    def mask(self, record: InstructionRecord, volume: VolumeRecord) -> NDArray[np.bool_]:
        """Where the structure is in at least half of the training slices of this height; empty where none was seen."""
        mean = self.atlas.get((record.structure or "", _level(volume, record.slice_index)))
        return np.zeros((volume.rows, volume.columns), dtype=np.bool_) if mean is None else mean > 0.5


def learn(corpus: Corpus) -> Learned:
    """Gather the baselines from the training split."""
    training = [one for one in corpus.instructions if one.split == "train"]
    reports = Counter(one.response for one in training if one.task == "report")
    diagnoses = Counter(bool(one.positive) for one in training if one.task == "diagnosis")
    boxes = np.array([[b.row0, b.col0, b.row1, b.col1] for one in training for b in one.boxes])
    labels = Counter(box.label for one in training for box in one.boxes)
    found: TextBox | None = None
    if len(boxes):
        row0, col0, row1, col1 = (int(edge) for edge in np.median(boxes, axis=0))
        found = TextBox(labels.most_common(1)[0][0], row0, col0, row1, col1)
    return Learned(
        atlas=_atlas(corpus),
        report=min(reports, key=lambda text: (-reports[text], text), default=""),
        positive=diagnoses[True] > diagnoses[False],
        box=found,
    )


def _atlas(corpus: Corpus) -> dict[tuple[str, int], NDArray[np.float32]]:
    sums: dict[tuple[str, int], Any] = defaultdict(lambda: 0)
    by_level: Counter[tuple[str, int]] = Counter()
    for volume in corpus.volumes.values():
        if volume.split != "train" or not volume.has_labels:
            continue
        labels = corpus.store.read(volume.volume_id, "labels")
        for value, name in corpus.label_map(volume.dataset_id).items():
            for index, plane in enumerate(labels):
                key = (name.lower(), _level(volume, index))
                sums[key] = sums[key] + (plane == value).astype(np.float32)
                by_level[key] += 1
    return {key: total / by_level[key] for key, total in sums.items()}
