"""Answers that need no network: what a model must beat to be worth anything. What they learn is from training patients only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curation.corpus import Corpus
from components.curation.table_rows import InstructionRecord, VolumeRecord
from model_core.boxes import TextBox

TV_WEIGHT, TV_ITERATIONS = 0.001, 600
"""The best of six weights and four iteration counts on training patients."""
LEVELS = 8
"""Heights of the atlas, from the first slice to the last."""
SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Shares of training masks above which the atlas may call a pixel the structure's; training patients choose among them."""
Place = tuple[str, str, int]
"""Structure, plane, height."""


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


def _place(structure: str, volume: VolumeRecord, index: int) -> Place:
    return structure, volume.plane or "", min(int(LEVELS * index / volume.slices), LEVELS - 1)


@dataclass
class Learned:
    """What the training patients say without looking at the image in question.

    Attributes:
        atlas: place -> mean mask (H, W) of training slices there; share: structure -> the mean above which it is taken for it.
        report: the most frequent report of all; reports: sequence -> the most frequent of its reports.
        positive: the more frequent diagnosis; box: the median box.
    """

    atlas: dict[Place, NDArray[np.float32]] = field(default_factory=dict)
    share: dict[str, float] = field(default_factory=dict)
    report: str = ""
    reports: dict[str | None, str] = field(default_factory=dict)
    positive: bool = False
    box: TextBox | None = None

    def mask(self, record: InstructionRecord, volume: VolumeRecord) -> NDArray[np.bool_]:
        """Where the structure is in enough of the training slices of this plane and height; empty where none was seen."""
        mean = self.atlas.get(_place(record.structure or "", volume, record.slice_index))
        if mean is None:
            return np.zeros((volume.rows, volume.columns), dtype=np.bool_)
        return mean > self.share[record.structure or ""]

    def report_of(self, volume: VolumeRecord) -> str:
        """The most frequent training report of this sequence, which the header tells; of all where it was never seen."""
        return self.reports.get(volume.sequence, self.report)


def learn(corpus: Corpus) -> Learned:
    """Gather the baselines from the training split."""
    training = [one for one in corpus.instructions if one.split == "train"]
    by_sequence: dict[str | None, Counter[str]] = defaultdict(Counter)
    for one in training:
        if one.task == "report":
            by_sequence[corpus.volumes[one.volume_id].sequence][one.response] += 1
    diagnoses = Counter(bool(one.positive) for one in training if one.task == "diagnosis")
    boxes = np.array([[b.row0, b.col0, b.row1, b.col1] for one in training for b in one.boxes])
    labels = Counter(box.label for one in training for box in one.boxes)
    found: TextBox | None = None
    if len(boxes):
        row0, col0, row1, col1 = (int(edge) for edge in np.median(boxes, axis=0))
        found = TextBox(labels.most_common(1)[0][0], row0, col0, row1, col1)
    atlas, share = _atlas(corpus)
    return Learned(
        atlas=atlas,
        share=share,
        report=_most_frequent(sum(by_sequence.values(), Counter())),
        reports={sequence: _most_frequent(reports) for sequence, reports in by_sequence.items()},
        positive=diagnoses[True] > diagnoses[False],
        box=found,
    )


def _most_frequent(texts: Counter[str]) -> str:
    return min(texts, key=lambda text: (-texts[text], text), default="")


def _labelled(corpus: Corpus) -> Iterator[tuple[VolumeRecord, NDArray[np.uint8], dict[int, str]]]:
    """Training volumes with labels, and what their values mean."""
    for _, volume in sorted(corpus.volumes.items()):
        if volume.split == "train" and volume.has_labels:
            yield volume, corpus.store.read(volume.volume_id, "labels"), corpus.label_map(volume.dataset_id)


def _atlas(corpus: Corpus) -> tuple[dict[Place, NDArray[np.float32]], dict[str, float]]:
    """Mean masks, and for every structure the share that gives the best Dice on the training volumes themselves.

    One half for all would be no opponent: a lesion is nowhere in half of the slices, so the atlas would never show one.
    """
    sums: dict[Place, Any] = defaultdict(lambda: 0)
    slices: Counter[Place] = Counter()
    for volume, labels, names in _labelled(corpus):
        for value, name in names.items():
            for index, plane in enumerate(labels):
                place = _place(name.lower(), volume, index)
                sums[place] = sums[place] + (plane == value).astype(np.float32)
                slices[place] += 1
    atlas = {place: total / slices[place] for place, total in sums.items()}
    dice: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for volume, labels, names in _labelled(corpus):
        for value, name in names.items():
            for index in np.flatnonzero((labels == value).any(axis=(1, 2))).tolist():
                truth, mean = labels[index] == value, atlas[_place(name.lower(), volume, index)]
                masks = [mean > share for share in SHARES]
                dice[name.lower()].append(np.array([2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for mask in masks]))
    seen = {structure for structure, _, _ in atlas}
    return atlas, {name: SHARES[int(np.mean(dice[name], axis=0).argmax())] if name in dice else SHARES[-1] for name in sorted(seen)}
