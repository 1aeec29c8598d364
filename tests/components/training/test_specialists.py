"""The networks beside the generalist learn from every labeled slice and every target slice of a batch of stage 4."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from benchmarks.specialists import mask_loss, of_all_processes, reconstruction_loss
from components.settings import load_settings
from model_core.batch import SequenceBatch
from model_core.targets import TARGET_IMAGE

SERIES, SLICES, SIZE = 3, 5, 16


def build_batch() -> SequenceBatch:
    """Return two studies of three series of five slices, with label maps of all slices and images of two."""
    generator = torch.Generator().manual_seed(0)
    slices_BT = torch.tensor([[1, 3], [0, 4]])
    return SequenceBatch(
        input_ids_BL=torch.zeros(2, 1, dtype=torch.long),
        attention_mask_BL=torch.ones(2, 1, dtype=torch.long),
        labels_BL=torch.zeros(2, 1, dtype=torch.long),
        pixel_values_B1DHW=torch.rand(SERIES, 1, SLICES, SIZE, SIZE, generator=generator),
        visual_loss_B=torch.zeros(2, dtype=torch.bool),
        target_B1DHW=torch.rand(2, 1, 2, SIZE, SIZE, generator=generator),
        target_kind_B=torch.full((2,), TARGET_IMAGE),
        kspace_BCDHW=torch.zeros(2, 1, 2, SIZE, SIZE, dtype=torch.complex64),
        sampling_BDHW=torch.zeros(2, 2, SIZE, SIZE, dtype=torch.bool),
        structures_BDHW=torch.randint(0, 3, (2, SLICES, SIZE, SIZE), generator=generator),
        grids_BG3=torch.tensor([[[5, 4, 4], [5, 4, 4]], [[5, 4, 4], [0, 0, 0]]]),
        block_B=torch.tensor([1, 0]),
        slices_BT=slices_BT,
    )


class Recorder(nn.Module):
    """Keeps its input (N, 1, H, W) and returns a number of channels that do not depend on it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.seen = torch.empty(0)

    def forward(self, images_N1HW: Tensor) -> Tensor:
        self.seen = images_N1HW
        return torch.zeros(len(images_N1HW), self.channels, SIZE, SIZE)


ALL = torch.tensor([True, True])


def test_every_slice_of_the_labeled_series_is_seen() -> None:
    batch, network = build_batch(), Recorder(3)
    mask_loss(network, batch, ALL)
    assert torch.equal(network.seen[:, 0], batch.pixel_values_B1DHW[[1, 2]].flatten(0, 2))


def test_masks_without_an_opinion_cost_the_logarithm_of_the_classes_and_their_dice() -> None:
    batch = build_batch()
    shares = torch.stack([(batch.structures_BDHW == value).float().sum() for value in (1, 2)])  # type: ignore[union-attr]
    pixels = 2 * SLICES * SIZE * SIZE
    dice = (2 * shares / 3 + 1) / (pixels / 3 + shares + 1)
    assert mask_loss(Recorder(3), batch, ALL).item() == pytest.approx(float(torch.tensor(3.0).log() + (1 - dice).mean()), rel=1e-5)


def test_only_the_slices_with_a_target_are_reconstructed() -> None:
    batch, network = build_batch(), Recorder(1)
    reconstruction_loss(network, batch, ALL)
    start = torch.stack([batch.pixel_values_B1DHW[1, 0, [1, 3]], batch.pixel_values_B1DHW[2, 0, [0, 4]]]).flatten(0, 1)
    normalized = (start - start.mean((1, 2), keepdim=True)) / (start.std((1, 2), keepdim=True) + 1e-6)
    torch.testing.assert_close(network.seen[:, 0], normalized)


def test_a_network_that_adds_nothing_to_the_target_has_no_loss() -> None:
    batch = build_batch()
    image_BTHW = torch.stack([batch.pixel_values_B1DHW[1, 0, [1, 3]], batch.pixel_values_B1DHW[2, 0, [0, 4]]])
    perfect = replace(batch, target_B1DHW=image_BTHW[:, None])
    assert reconstruction_loss(Recorder(1), perfect, ALL).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("processes", "slices", "volumes"), [(1, 4, 2), (2, 8, 2), (4, 16, 4)])
def test_one_process_sees_the_samples_of_all(processes: int, slices: int, volumes: int) -> None:
    stage = of_all_processes(load_settings("study").training.stage("instruction_tuning"), processes)
    assert (stage.micro_batch, stage.volume_samples) == (slices, volumes)
