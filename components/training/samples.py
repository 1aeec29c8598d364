"""From the curated corpus to single samples: slices, slices with a description, instructions with what they ask for.

Shape letters: D slices, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curation.corpus import Corpus
from components.curation.store import VolumeStore
from components.curation.table_rows import InstructionRecord, Split
from components.curation.undersampling import sampling_mask, undersample
from components.settings import TASKS, MixtureSettings, TaskName
from components.training.mixture import Mixture, Source
from model_core.batch import TARGET_IMAGE, TARGET_MASK, TARGET_NONE

Image = NDArray[np.float32]
KEPT_OPEN = 512
"""Arrays of the store that stay open between reads."""
TASK_WEIGHTS: dict[TaskName, float] = {
    "reconstruction": 0.2,
    "segmentation": 0.35,
    "detection": 0.15,
    "diagnosis": 0.15,
    "report": 0.15,
}
"""How instructions are shared among tasks. Masks need most: every structure is a task of its own."""


@dataclass(frozen=True)
class SliceRef:
    """A slice of a curated volume."""

    volume_id: str
    index: int


@dataclass(frozen=True)
class Target:
    """What a sample asks the image decoder for, (H, W) each.

    Attributes:
        kind: TARGET_NONE | TARGET_IMAGE | TARGET_MASK.
        image: magnitude or {0, 1} mask.
        kspace: complex64 measured k-space, zeros elsewhere.
        sampling: bool, True = measured.
    """

    kind: int
    image: Image
    kspace: NDArray[np.complex64]
    sampling: NDArray[np.bool_]


@dataclass
class Samples:
    """The samples of one split, by source.

    Attributes:
        slices: every slice that shows something.
        instructions: by task.
        numbers: volume_id -> number; groups: volume_id -> number of its (sequence, plane, anatomy).
    """

    corpus: Corpus
    slices: list[SliceRef] = field(default_factory=list)
    instructions: dict[str, list[InstructionRecord]] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)

    @cached_property
    def store(self) -> VolumeStore:
        """The corpus's, which keeps open what it has read last."""
        return VolumeStore(self.corpus.store.root, keep=KEPT_OPEN)

    @classmethod
    def of(cls, corpus: Corpus, split: Split) -> Samples:
        """All samples of a split, in an order that depends on nothing but the corpus."""
        volumes = [volume for _, volume in sorted(corpus.volumes.items()) if volume.split == split]
        kinds = sorted({(v.sequence or "", v.plane or "", v.anatomy or "") for v in volumes})
        instructions: dict[str, list[InstructionRecord]] = {task: [] for task in TASKS}
        for record in corpus.instructions:
            if record.split == split:
                instructions[record.task].append(record)
        return cls(
            corpus=corpus,
            slices=[SliceRef(v.volume_id, index) for v in volumes for index in range(v.slices)],
            instructions=instructions,
            numbers={v.volume_id: number for number, v in enumerate(volumes)},
            groups={v.volume_id: kinds.index((v.sequence or "", v.plane or "", v.anatomy or "")) for v in volumes},
        )

    def mixture(self, shares: MixtureSettings, seed: int) -> Mixture:
        """Table 2's categories as sources; the instructions' share goes to the tasks that have any, by :data:`TASK_WEIGHTS`."""
        sources = [
            Source("image_only", len(self.slices), shares.image_only),
            Source("paired", len(self.slices), shares.paired),
        ]
        present = [task for task in TASKS if self.instructions[task]]
        if shares.instruction > 0 and not present:
            raise ValueError("the mixture asks for instructions and the corpus has none: curate a dataset with labels or k-space")
        whole = sum(TASK_WEIGHTS[task] for task in present)
        sources += [Source(task, len(self.instructions[task]), shares.instruction * TASK_WEIGHTS[task] / whole) for task in present]
        return Mixture([source for source in sources if source.weight > 0], seed)

    def block(self, ref: SliceRef, slices: int) -> Image:
        """``slices`` consecutive slices around a slice (D, H, W); a shorter volume repeats its last."""
        depth = self.corpus.volumes[ref.volume_id].slices
        start = min(max(ref.index - slices // 2, 0), max(depth - slices, 0))
        voxels: Image = self.store.read(ref.volume_id, "voxels", slice(start, min(start + slices, depth)))
        return np.pad(voxels, ((0, slices - len(voxels)), (0, 0), (0, 0)), mode="edge")

    def image(self, ref: SliceRef) -> Image:
        """One slice, (H, W)."""
        image: Image = self.store.read(ref.volume_id, "voxels", ref.index)
        return image

    def text(self, ref: SliceRef) -> str:
        """Description of the slice's volume."""
        return self.corpus.descriptions[ref.volume_id].text

    def input_and_target(self, record: InstructionRecord) -> tuple[Image, Target]:
        """The image that an instruction shows, and what it asks for."""
        return input_and_target(self.corpus, record, self.store)


def input_and_target(corpus: Corpus, record: InstructionRecord, store: VolumeStore | None = None) -> tuple[Image, Target]:
    """The (H, W) input image of an instruction and its target. Undersampling happens here: only its seed is stored."""
    store = store or corpus.store
    image: Image = store.read(record.volume_id, "voxels", record.slice_index)
    nothing: Any = np.zeros(image.shape, np.complex64), np.zeros(image.shape, np.bool_)
    if record.task == "reconstruction":
        assert record.acceleration is not None and record.centre_fraction is not None and record.mask_seed is not None
        columns = sampling_mask(image.shape[1], record.acceleration, record.centre_fraction, record.mask_seed)
        zero_filled, measured = undersample(store.read(record.volume_id, "kspace", record.slice_index), columns)
        return zero_filled, Target(TARGET_IMAGE, image, measured, np.broadcast_to(columns, image.shape))
    if record.task == "segmentation":
        mask = store.read(record.volume_id, "labels", record.slice_index) == record.label_value
        return image, Target(TARGET_MASK, mask.astype(np.float32), *nothing)
    return image, Target(TARGET_NONE, np.zeros_like(image), *nothing)
