"""The label maps of a batch, for the auxiliary losses of stage 4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from components.training.samples import Samples, StructureMap
from model_core.batch import IGNORE, SequenceBatch
from model_core.processing import Processor


def with_structures(
    batch: SequenceBatch, samples: Samples, processor: Processor, maps: Sequence[StructureMap | None]
) -> SequenceBatch:
    """Return a batch with the label maps of its slices (H, W) or volumes (D, H, W), if the corpus has any; None = not labeled."""
    if not samples.structures:
        return batch
    structures = torch.full((len(maps), *batch.pixel_values_B1DHW.shape[2:]), IGNORE, dtype=torch.long)
    listed = torch.zeros(len(maps), len(samples.structures), dtype=torch.bool)
    for row, labels in enumerate(maps):
        if labels is not None:
            structures[row], listed[row] = torch.from_numpy(labels.numbers), torch.from_numpy(labels.listed)
    names, _ = processor.pad([processor.tokens(name) for name in samples.structures])
    return replace(batch, structures_BDHW=structures, listed_BS=listed, names_SL=names)
