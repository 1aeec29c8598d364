"""The input tensors of the network in the four training stages.

Shape letters: B samples, R chosen ones of them, G image blocks of a sequence, D slices, T target slices, H rows, W columns, L text
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from model_core.mri_physics.sense import KSpaceMeasurement

IGNORE = -100
NO_TASK = -1
"""Value of ``task_B`` for a sample that is not an instruction."""

AnyBatch = TypeVar("AnyBatch", bound="Batch")


@dataclass(kw_only=True)
class Batch:
    """Base of the batches: moves its tensors between devices.

    Attributes:
        seed_B: int64, seed of the random numbers of each sample. They depend on the sample only, not on its index in the batch nor
            on the process that computes it. None = PyTorch's global generator.
    """

    seed_B: Tensor | None = None

    def to(self: AnyBatch, device: torch.device | str) -> AnyBatch:
        """Return the batch with every tensor on ``device``; the copy from pinned memory is asynchronous."""
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})

    def pin_memory(self: AnyBatch) -> AnyBatch:
        """Return the batch in page-locked memory, from which copies to a GPU overlap with its computation."""
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor.pin_memory() for name, tensor in tensors.items()})


@dataclass
class ImageBatch(Batch):
    """Batch of stage 1: images alone.

    Attributes:
        pixel_values_B1DHW: float32, 99.5th percentile = 1.
        volume_B: int64, number of the volume; the patch InfoNCE excludes samples of the same volume from the negatives.
        group_B: int64, number of the (sequence, plane, anatomy) combination; the positives of the volume-level loss.
    """

    pixel_values_B1DHW: Tensor
    volume_B: Tensor
    group_B: Tensor


@dataclass
class PairedBatch(Batch):
    """Batch of stage 2: volumes and their descriptions.

    Attributes:
        pixel_values_B1DHW: float32.
        input_ids_BL, attention_mask_BL: int64, text of the description, right-padded.
    """

    pixel_values_B1DHW: Tensor
    input_ids_BL: Tensor
    attention_mask_BL: Tensor


@dataclass(frozen=True)
class StructureLabels:
    """Label maps of the samples of a batch, for the auxiliary losses.

    Attributes:
        structures_BDHW: int64, 0 = none of the listed structures, s = that of ``names_SL[s - 1]``; :data:`IGNORE` in a sample
            without a label map.
        listed_BS: bool, structures that the label map of a sample distinguishes.
        names_SL: int64, tokens of the name of each structure, right-padded.
    """

    structures_BDHW: Tensor
    listed_BS: Tensor
    names_SL: Tensor


@dataclass
class SequenceBatch(Batch):
    """Batch of stages 3 and 4: interleaved images and text.

    Attributes:
        input_ids_BL: int64, right-padded. Each image occupies N consecutive ``image_token_id`` (N = tokens of the connector).
        attention_mask_BL: int64, 0 = padding.
        labels_BL: int64, :data:`IGNORE` at tokens without a text loss. Aligned with ``input_ids_BL`` (the model shifts).
        pixel_values_B1DHW: float32 input image (for reconstruction: what it starts from). With ``grids_BG3`` the images of
            all sequences, in the order of the sequences and of their blocks.
        visual_loss_B: bool, True = the image has the next-visual-token loss (its block is causal); False = it is a condition only.
        target_B1DHW: float32 target image (TARGET_IMAGE) or {0, 1} mask (TARGET_MASK); zeros without a target.
        target_kind_B: int64, TARGET_NONE | TARGET_IMAGE | TARGET_MASK.
        kspace_BCDHW: complex64 measured k-space (centered, orthonormal FFT), zeros where not measured.
        sampling_BDHW: bool, True = measured; all False for a sample that is not a reconstruction.
        coil_maps_BCDHW: complex64 sensitivities, see :class:`~model_core.mri_physics.sense.KSpaceMeasurement`; None = C is 1.
        task_B: int64, index into ``tasks`` or :data:`NO_TASK`; None = unknown.
        tasks: names of the tasks to which ``task_B`` refers.
        structures_BDHW, listed_BS, names_SL: the fields of :class:`StructureLabels`; None = no sample has a label map.
        grids_BG3: int64, grids of the image blocks of each sequence, zeros after its last; None = one image each.
        block_B: int64, block (from 0) of each sequence that target, k-space and label map belong to; None = the first.
        slices_BT: int64, slices of that image that have the target (and k-space): T of its D; None = all. Decoding is independent
            by slice, so that a few of them teach the decoder.
    """

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    labels_BL: Tensor
    pixel_values_B1DHW: Tensor
    visual_loss_B: Tensor
    target_B1DHW: Tensor
    target_kind_B: Tensor
    kspace_BCDHW: Tensor
    sampling_BDHW: Tensor
    coil_maps_BCDHW: Tensor | None = None
    task_B: Tensor | None = None
    tasks: tuple[str, ...] = ()
    structures_BDHW: Tensor | None = None
    listed_BS: Tensor | None = None
    names_SL: Tensor | None = None
    grids_BG3: Tensor | None = None
    block_B: Tensor | None = None
    slices_BT: Tensor | None = None

    @property
    def measured(self) -> KSpaceMeasurement:
        """The measurements of the samples."""
        return KSpaceMeasurement(self.kspace_BCDHW, self.sampling_BDHW, self.coil_maps_BCDHW)

    @property
    def target_block_B(self) -> Tensor:
        """Block (from 0) of each sequence that its target belongs to, int64."""
        return torch.zeros_like(self.target_kind_B) if self.block_B is None else self.block_B

    @property
    def image_B(self) -> Tensor:
        """Index of the image that the target of each sample belongs to, int64."""
        if self.grids_BG3 is None:
            return torch.arange(len(self.target_kind_B), device=self.target_kind_B.device)
        blocks_B = (self.grids_BG3.prod(-1) > 0).sum(-1)
        return blocks_B.cumsum(0) - blocks_B + self.target_block_B

    @property
    def labeled_B(self) -> Tensor:
        """Samples with a label map, bool."""
        if self.structures_BDHW is None:
            return torch.zeros_like(self.target_kind_B, dtype=torch.bool)
        return (self.structures_BDHW != IGNORE).flatten(1).any(-1)

    def structure_labels(self, rows_R: Tensor) -> StructureLabels:
        """Return the label maps of some samples, given by number; without any, those of one structure that no sample lists."""
        if self.structures_BDHW is None or self.listed_BS is None or self.names_SL is None:
            pixels = self.pixel_values_B1DHW[self.image_B[rows_R]][:, 0]
            listed = torch.zeros(len(pixels), 1, dtype=torch.bool, device=pixels.device)
            return StructureLabels(torch.full_like(pixels, IGNORE, dtype=torch.long), listed, self.input_ids_BL[:1, :1])
        return StructureLabels(self.structures_BDHW[rows_R], self.listed_BS[rows_R], self.names_SL)


def select_slices(values: Tensor, slices_BT: Tensor | None, axis: int) -> Tensor:
    """Return T slices of every sample, along ``axis``; all of them if ``slices_BT`` is None."""
    if slices_BT is None:
        return values
    shape = [1] * values.dim()
    shape[0], shape[axis] = slices_BT.shape
    size = list(values.shape)
    size[axis] = slices_BT.shape[1]
    return values.gather(axis, slices_BT.view(shape).expand(size))
