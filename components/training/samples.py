"""Single samples of the curated corpus: slices, slices with a description, instructions with their targets.

Shape letters: D slices, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from components.curation.corpus import Corpus
from components.curation.store import VolumeStore
from components.curation.table_rows import InstructionRecord, Split, VolumeInstructionRecord
from components.registries import TASKS
from components.settings import MixtureSettings
from components.tasks.base import Image, Target
from components.training.mixture import Mixture, Source

OPEN_ARRAYS = 512
"""Arrays of the store that stay open between reads."""


def source_name(task: str, group: str) -> str:
    """Return the name of a mixture's source: the task, and its group if it has any."""
    return f"{task}/{group}" if group else task


def task_of_source(source: str) -> str:
    """Return the task of a mixture's source."""
    return source.partition("/")[0]


@dataclass(frozen=True)
class SliceRef:
    """A slice of a curated volume, by its index."""

    volume_id: str
    index: int


@dataclass(frozen=True)
class StructureMap:
    """The labeled structures of a slice or volume.

    Attributes:
        numbers: (H, W) int64, of a volume (D, H, W), 0 = none, n = the n-th of :attr:`Samples.structures`.
        listed: (S,) bool, structures that the label map distinguishes.
    """

    numbers: NDArray[np.int64]
    listed: NDArray[np.bool_]


@dataclass
class Samples:
    """The samples of one split, by source.

    Attributes:
        slices: every slice of the split.
        instructions: instructions by task.
        numbers: volume_id -> number of the volume; groups: volume_id -> number of its (sequence, plane, anatomy).
        split: the split.
    """

    corpus: Corpus
    slices: list[SliceRef] = field(default_factory=list)
    instructions: dict[str, list[InstructionRecord]] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    split: Split = "train"

    @cached_property
    def store(self) -> VolumeStore:
        """The corpus's store, which keeps recently read arrays open."""
        return VolumeStore(self.corpus.store.root, keep=OPEN_ARRAYS)

    @classmethod
    def from_corpus(cls, corpus: Corpus, split: Split) -> Samples:
        """Return all samples of a split, in an order that depends only on the corpus."""
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
            split=split,
        )

    @cached_property
    def volume_instructions(self) -> dict[str, list[VolumeInstructionRecord]]:
        """Instructions about volumes and studies by task."""
        instructions: dict[str, list[VolumeInstructionRecord]] = {task: [] for task in TASKS}
        for record in self.corpus.volume_instructions:
            if record.split == self.split:
                instructions[record.task].append(record)
        return instructions

    def volume_mixture(self, seed: int) -> Mixture:
        """Return the mixture of instructions about volumes and studies, by the weights of the tasks that have any.

        Raises:
            ValueError: the corpus has none.
        """
        present = [task for task in TASKS if self.volume_instructions[task]]
        if not present:
            raise ValueError("volume_steps is above 0 and the corpus has no instructions about volumes: curate labels or k-space")
        total = sum(TASKS[task].weight for task in present)
        sources = [Source(task, len(self.volume_instructions[task]), TASKS[task].weight / total) for task in present]
        return Mixture(sources, seed)

    def mixture(self, shares: MixtureSettings, seed: int) -> Mixture:
        """Return the mixture of the data categories (Table 2 of the paper).

        The share of instructions is divided among the tasks that have any, by their weights, and that of a task evenly among its
        groups (:meth:`components.tasks.base.Task.training_group`).

        Raises:
            ValueError: the corpus has no samples of a category with a share.
        """
        sources = [
            Source("image_only", len(self.slices), shares.image_only),
            Source("paired", len(self.slices), shares.paired),
        ]
        present = [task for task in TASKS if self.instructions[task]]
        if shares.instruction > 0 and not present:
            raise ValueError("the mixture contains instructions and the corpus has none: curate a dataset with labels or k-space")
        total = sum(TASKS[task].weight for task in present)
        for task in present:
            groups = self.groups_of(task)
            share = shares.instruction * TASKS[task].weight / total / len(groups)
            sources += [Source(source_name(task, group), len(records), share) for group, records in groups.items()]
        return Mixture([source for source in sources if source.weight > 0], seed)

    def groups_of(self, task: str) -> dict[str, list[InstructionRecord]]:
        """Return group -> instructions of a task, sorted by group."""
        groups: dict[str, list[InstructionRecord]] = {}
        for record in self.instructions[task]:
            groups.setdefault(TASKS[task].training_group(record), []).append(record)
        return dict(sorted(groups.items()))

    @cached_property
    def _sources(self) -> dict[str, list[InstructionRecord]]:
        """Name of a mixture's source -> its instructions."""
        return {source_name(task, group): records for task in self.instructions for group, records in self.groups_of(task).items()}

    def instruction(self, source: str, index: int) -> InstructionRecord:
        """Return an instruction of a source of :meth:`mixture`."""
        return self._sources[source][index]

    def block(self, ref: SliceRef, slices: int) -> Image:
        """Return ``slices`` consecutive slices around a slice, (D, H, W); a shorter volume repeats its last slice."""
        depth = self.corpus.volumes[ref.volume_id].slices
        start = min(max(ref.index - slices // 2, 0), max(depth - slices, 0))
        voxels: Image = self.store.read(ref.volume_id, "voxels", slice(start, min(start + slices, depth)))
        return np.pad(voxels, ((0, slices - len(voxels)), (0, 0), (0, 0)), mode="edge")

    def image(self, ref: SliceRef) -> Image:
        """Return one slice, (H, W)."""
        image: Image = self.store.read(ref.volume_id, "voxels", ref.index)
        return image

    def text(self, ref: SliceRef) -> str:
        """Return the description of the slice's volume."""
        return self.corpus.descriptions[ref.volume_id].text

    @cached_property
    def structures(self) -> tuple[str, ...]:
        """Names of all structures of the corpus's label maps, sorted."""
        return tuple(sorted({name for names in self._structure_names.values() for name in names.values()}))

    @cached_property
    def _structure_names(self) -> dict[str, dict[int, str]]:
        """Dataset with label maps -> label value -> name of the structure."""
        datasets = sorted({volume.dataset_id for volume in self.corpus.volumes.values() if volume.has_labels})
        maps = {dataset: self.corpus.label_map(dataset) for dataset in datasets}
        return {dataset: {value: name.lower() for value, name in names.items() if value} for dataset, names in maps.items()}

    def structure_map(self, record: InstructionRecord | VolumeInstructionRecord) -> StructureMap | None:
        """Return the structures of an instruction's slice or volume; None without a label map."""
        volume = self.corpus.volumes[record.volume_id]
        if not volume.has_labels:
            return None
        names = self._structure_names[volume.dataset_id]
        numbers = np.zeros(256, np.int64)
        for value, name in names.items():
            numbers[value] = self.structures.index(name) + 1
        listed = np.isin(self.structures, list(names.values()))
        index = record.slice_index if isinstance(record, InstructionRecord) else None
        return StructureMap(numbers[self.store.read(record.volume_id, "labels", index)], listed)

    def input_and_target(self, record: InstructionRecord) -> tuple[Image, Target]:
        """Return the input image of an instruction and its target."""
        return TASKS[record.task].input_and_target(record, self.store)
