"""The tensors that the four stages feed to the network.

Shape letters: B samples, D slices, H rows, W columns, L text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

IGNORE = -100
NO_TASK = -1
"""Value of ``task_B`` for a sample that is not an instruction."""

AnyBatch = TypeVar("AnyBatch", bound="Batch")


@dataclass(kw_only=True)
class Batch:
    """Base: knows how to move its tensors.

    Attributes:
        seed_B: int64, whose random numbers each sample gets, so that they depend on nothing but the sample: not on its place in the
            batch nor on the process that has it. None = PyTorch's own generator.
    """

    seed_B: Tensor | None = None

    def to(self: AnyBatch, device: torch.device | str) -> AnyBatch:
        """The same batch with every tensor on ``device``; from pinned memory, while the processor goes on."""
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})

    def pin_memory(self: AnyBatch) -> AnyBatch:
        """The same batch in page-locked memory, from which a GPU reads while it computes."""
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor.pin_memory() for name, tensor in tensors.items()})


@dataclass
class ImageBatch(Batch):
    """Stage 1 (image-only data).

    Attributes:
        pixel_values_B1DHW: float32, 99.5th percentile = 1.
        volume_B: int64, samples of the same volume carry the same number (patch InfoNCE leaves them out as negatives).
        group_B: int64, number of the (sequence, plane, anatomy) combination (positives of the volume-level loss).
    """

    pixel_values_B1DHW: Tensor
    volume_B: Tensor
    group_B: Tensor


@dataclass
class PairedBatch(Batch):
    """Stage 2 (volume and its description).

    Attributes:
        pixel_values_B1DHW: float32.
        input_ids_BL, attention_mask_BL: int64, the description's text, right-padded.
    """

    pixel_values_B1DHW: Tensor
    input_ids_BL: Tensor
    attention_mask_BL: Tensor


@dataclass
class SequenceBatch(Batch):
    """Stages 3 and 4 (interleaved image and text).

    Attributes:
        input_ids_BL: int64, right-padded. Each image stands as N consecutive ``image_token_id`` (N = tokens of the connector).
        attention_mask_BL: int64, 0 = padding.
        labels_BL: int64, :data:`IGNORE` where no text loss is carried. Aligned with ``input_ids_BL`` (the model shifts).
        pixel_values_B1DHW: float32 input image (for reconstruction: the zero-filled magnitude).
        visual_loss_B: bool, the image block carries the next-visual-token loss (causal); else it is condition only.
        target_B1DHW: float32 target image (TARGET_IMAGE) or {0, 1} mask (TARGET_MASK); zeros where there is none.
        target_kind_B: int64, TARGET_NONE | TARGET_IMAGE | TARGET_MASK.
        kspace_BDHW: complex64 measured single-coil k-space (centred, orthonormal FFT), zeros where not measured.
        sampling_BDHW: bool, True = measured; all False where the sample is not a reconstruction.
        task_B: int64, index into ``tasks`` or :data:`NO_TASK`; None = not known.
        tasks: names of the tasks that ``task_B`` counts.
    """

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    labels_BL: Tensor
    pixel_values_B1DHW: Tensor
    visual_loss_B: Tensor
    target_B1DHW: Tensor
    target_kind_B: Tensor
    kspace_BDHW: Tensor
    sampling_BDHW: Tensor
    task_B: Tensor | None = None
    tasks: tuple[str, ...] = ()
