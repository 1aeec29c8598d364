"""Each stage trains its modules only, touches all their parameters in every batch, and reduces its loss."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.batch import IGNORE, ImageBatch, PairedBatch, SequenceBatch, select_slices
from model_core.heads.image_decoder import Conditions, ImageDecoder
from model_core.losses.reduction import Step
from model_core.mri_physics.fourier import fft2c, ifft2c
from model_core.mri_physics.sense import KSpaceMeasurement
from model_core.noise import Noise
from model_core.objectives import (
    Alignment,
    InstructionTuning,
    MultimodalPretraining,
    Objective,
    VisionPretraining,
    instruction_tuning,
    multimodal_pretraining,
    vision_pretraining,
)
from model_core.processing import Processor, Series
from model_core.sequences import stack_grids
from model_core.targets import TARGET_IMAGE, TARGET_MASK, TARGET_NONE
from model_core.tokenization import special_ids, train_tokenizer

SIZE, BATCH = 32, 4


@pytest.fixture
def processor() -> Processor:
    return Processor(train_tokenizer(["Reconstruct. Segment the grey matter. Is there a lesion? yes no T1 T2"], 300))


@pytest.fixture
def model(processor: Processor) -> OmniMRIForConditionalGeneration:
    torch.manual_seed(0)
    ids = special_ids(processor.tokenizer)
    return OmniMRIForConditionalGeneration(OmniMRIConfig.from_preset("debug", len(processor.tokenizer), **ids))


def _images() -> torch.Tensor:
    """Four volumes, two of each kind: smooth blobs."""
    grid = torch.linspace(-1, 1, SIZE)
    radius = grid[:, None] ** 2 + grid[None] ** 2
    return torch.stack([torch.exp(-radius * (1 + i)) for i in range(BATCH)]).view(BATCH, 1, 1, SIZE, SIZE)


def _sequences(model: OmniMRIForConditionalGeneration, processor: Processor, kinds: list[int]) -> SequenceBatch:
    tokens = model.image_tokens_for(1, SIZE, SIZE)
    words = {TARGET_IMAGE: ("Reconstruct.", "<image>"), TARGET_MASK: ("Segment.", "<seg>"), TARGET_NONE: ("Is there?", "yes")}
    encoded = [processor.encode(*words[kind], tokens) for kind in kinds]
    ids, mask = processor.pad([sequence.input_ids for sequence in encoded])
    labels, _ = processor.pad([sequence.labels for sequence in encoded], IGNORE)
    image = _images()
    kind = torch.tensor(kinds)
    sampling = (torch.arange(SIZE) % 2 == 0).expand(BATCH, 1, SIZE, SIZE) & (kind == TARGET_IMAGE).view(-1, 1, 1, 1)
    kspace = torch.where(sampling, fft2c(image[:, 0].to(torch.complex64)), 0)
    target = torch.where((kind == TARGET_MASK).view(-1, 1, 1, 1, 1), (image > 0.5).float(), image)
    pixels = torch.where((kind == TARGET_IMAGE).view(-1, 1, 1, 1, 1), ifft2c(kspace).abs()[:, None], image)
    return SequenceBatch(ids, mask, labels, pixels, torch.tensor([True, False] * 2), target, kind, kspace[:, None], sampling)


def test_an_image_of_several_coils_beside_one_of_one_coil_trains_through_the_agreement_with_all_coils(
    model: OmniMRIForConditionalGeneration, processor: Processor
) -> None:
    """The first of two reconstructions has two coils."""
    batch = _sequences(model, processor, [TARGET_IMAGE, TARGET_MASK, TARGET_NONE, TARGET_IMAGE])
    maps = torch.zeros(BATCH, 2, 1, SIZE, SIZE, dtype=torch.complex64)
    maps[1:, 0] = 1
    angle = torch.linspace(0.2, 1.3, SIZE).expand(SIZE, SIZE)
    maps[0, :, 0] = torch.stack([angle.cos(), 1j * angle.sin()])
    kspace = KSpaceMeasurement(torch.empty(0), batch.sampling_BDHW, maps).encode(batch.target_B1DHW[:, 0].to(torch.complex64))
    measured = KSpaceMeasurement(kspace, batch.sampling_BDHW, maps)
    pixels = torch.where(batch.sampling_BDHW.flatten(1).any(1).view(-1, 1, 1, 1, 1), measured.adjoint().abs()[:, None], _images())
    batch = replace(batch, kspace_BCDHW=kspace, coil_maps_BCDHW=maps, pixel_values_B1DHW=pixels)
    losses = InstructionTuning(model)(batch)
    losses.total.backward()
    gradient = model.image_decoder.output.weight.grad
    assert torch.isfinite(losses.total) and gradient is not None and torch.isfinite(gradient).all() and gradient.abs().sum() > 0
    assert batch.measured.has_coils_B.tolist() == [True, False, False, False]


def test_half_of_the_reconstructions_start_from_the_own_estimate_by_their_seeds(
    model: OmniMRIForConditionalGeneration, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever other samples are in the batch; masks never do."""
    batch, chosen = _sequences(model, processor, [TARGET_IMAGE, TARGET_MASK, TARGET_IMAGE, TARGET_IMAGE]), []
    refine = ImageDecoder.refine

    def recorded(self: ImageDecoder, conditions: Conditions, is_refined_B: Tensor) -> Conditions:
        chosen.append(is_refined_B.tolist())
        return refine(self, conditions, is_refined_B)

    monkeypatch.setattr(ImageDecoder, "refine", recorded)
    seeds = torch.arange(40).view(10, BATCH)
    with torch.no_grad():
        for seed_B in seeds:
            InstructionTuning(model)(replace(batch, seed_B=seed_B))
            InstructionTuning(model)(replace(batch, seed_B=seed_B.flip(0)))
    straight, flipped = torch.tensor(chosen[::2]), torch.tensor(chosen[1::2])
    assert not straight[:, 1].any() and 0.2 < straight[:, [0, 2, 3]].float().mean() < 0.8
    assert torch.equal(straight[:, 0], flipped[:, 3]) and torch.equal(straight[:, 3], flipped[:, 0])


def _cases(model: OmniMRIForConditionalGeneration, processor: Processor) -> list[tuple[Objective, Any]]:
    ids, mask = processor.pad([processor.encode_description(text) for text in ("T1", "T2 lesion", "Segment", "grey matter")])
    return [
        (VisionPretraining(model), ImageBatch(_images(), torch.arange(BATCH), torch.arange(BATCH) % 2)),
        (Alignment(model), PairedBatch(_images(), ids, mask)),
        (MultimodalPretraining(model), _sequences(model, processor, [TARGET_NONE] * BATCH)),
        (InstructionTuning(model), _sequences(model, processor, [TARGET_IMAGE, TARGET_MASK, TARGET_NONE, TARGET_MASK])),
    ]


@pytest.mark.parametrize("stage", range(4))
def test_every_trained_parameter_gets_a_gradient_and_no_other(
    model: OmniMRIForConditionalGeneration, processor: Processor, stage: int
) -> None:
    objective, batch = _cases(model, processor)[stage]
    parameters = objective.trainable()
    objective.begin(iter([batch]))
    objective(batch).total.backward()
    assert all(parameter.grad is not None for parameter in parameters)
    trained = {id(parameter) for parameter in parameters}
    assert all(parameter.grad is None for parameter in objective.parameters() if id(parameter) not in trained)


class _CpuNoise(Noise):
    """Generate random numbers on the CPU for every device: a GPU's own numbers differ."""

    def __init__(self, seed_B: Tensor | None, count: int, device: torch.device) -> None:
        super().__init__(seed_B, count, torch.device("cpu"))
        self.target_device = device

    def normal(self, *shape: int) -> Tensor:
        return super().normal(*shape).to(self.target_device)

    def uniform(self, *shape: int) -> Tensor:
        return super().uniform(*shape).to(self.target_device)


@pytest.mark.gpu
@pytest.mark.parametrize("stage", range(4))
def test_a_gpu_computes_the_loss_and_the_gradients_of_a_cpu(
    model: OmniMRIForConditionalGeneration, processor: Processor, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU runs the Triton kernels in float32, the CPU the reference implementations.

    Weights are doubled: with new weights all images have nearly equal features, and their contrast would be a difference of nearly
    equal numbers.
    """
    for module in (vision_pretraining, multimodal_pretraining, instruction_tuning):
        monkeypatch.setattr(module, "Noise", _CpuNoise)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    objective, batch = _cases(model, processor)[stage]
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.mul_(2 if parameter.ndim >= 2 else 1)
    batch = replace(batch, seed_B=torch.arange(BATCH))
    parameters = objective.trainable()
    objective.begin(iter([batch]))
    results = {}
    for device in ("cpu", "cuda"):
        loss = objective.to(device)(batch.to(torch.device(device))).total
        objective.zero_grad()
        loss.backward()
        results[device] = loss.item(), torch.cat([parameter.grad.double().cpu().flatten() for parameter in parameters])
    (loss, gradient), (on_gpu, gradient_on_gpu) = results["cpu"], results["cuda"]
    assert on_gpu == pytest.approx(loss, rel=1e-5)
    assert float((gradient_on_gpu - gradient).norm() / gradient.norm()) < 1e-4


def test_a_label_map_teaches_whatever_the_instruction_is(model: OmniMRIForConditionalGeneration, processor: Processor) -> None:
    """Its loss falls for a batch of questions, and is a mean over labeled samples however they are split."""
    batch = _sequences(model, processor, [TARGET_NONE] * BATCH)
    structures = (batch.pixel_values_B1DHW[:, 0] > 0.5).long()
    structures[3] = IGNORE
    listed = torch.tensor([[True], [True], [True], [False]])
    names, _ = processor.pad([processor.tokens("grey matter")])
    batch = replace(batch, structures_BDHW=structures, listed_BS=listed, names_SL=names, seed_B=torch.arange(BATCH))
    objective = InstructionTuning(model)
    parameters = objective.trainable()
    whole = objective(batch)
    own = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor) and name != "names_SL"}
    halves = [replace(batch, **{name: value[rows] for name, value in own.items()}) for rows in (slice(0, 2), slice(2, 4))]
    step = Step.of([objective.counts(half) for half in halves])
    parts = [objective(half, step).parts["structures"] for half in halves]
    torch.testing.assert_close(sum(parts), whole.parts["structures"], atol=1e-4, rtol=1e-4)
    whole.total.backward()
    assert all(parameter.grad is not None for parameter in parameters)
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        objective(batch).total.backward()
        optimizer.step()
    assert objective(batch).parts["structures"] < 0.7 * whole.parts["structures"]


def test_a_batch_without_image_targets_still_touches_everything(
    model: OmniMRIForConditionalGeneration, processor: Processor
) -> None:
    for objective, visual in ((InstructionTuning(model), True), (MultimodalPretraining(model), False)):
        batch = _sequences(model, processor, [TARGET_NONE] * BATCH)
        batch.visual_loss_B = torch.full((BATCH,), visual)
        parameters = objective.trainable()
        objective.zero_grad()
        loss = objective(batch)
        loss.total.backward()
        assert all(parameter.grad is not None for parameter in parameters)
        assert loss.parts.get("visual", loss.parts.get("mask")) == 0


@pytest.mark.parametrize("kind", [MultimodalPretraining, InstructionTuning])
def test_a_batch_without_text_to_predict_still_touches_everything(
    model: OmniMRIForConditionalGeneration, processor: Processor, kind: type[Objective]
) -> None:
    objective, batch = kind(model), _sequences(model, processor, [TARGET_IMAGE] * BATCH)
    batch.labels_BL = torch.full_like(batch.labels_BL, IGNORE)
    parameters = objective.trainable()
    loss = objective(batch)
    loss.total.backward()
    assert loss.parts["text"] == 0 and all(parameter.grad is not None for parameter in parameters)


@pytest.mark.parametrize("stage", range(4))
def test_the_loss_falls(model: OmniMRIForConditionalGeneration, processor: Processor, stage: int) -> None:
    """Train on one batch with fixed noise."""
    objective, batch = _cases(model, processor)[stage]
    optimizer = torch.optim.AdamW(objective.trainable(), lr=3e-3)
    objective.begin(iter([batch]))
    losses = []
    for _ in range(40):
        torch.manual_seed(0)
        loss = objective(batch).total
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_the_visual_target_is_white(model: OmniMRIForConditionalGeneration) -> None:
    torch.manual_seed(0)
    images = torch.rand(64, 1, 1, SIZE, SIZE)
    model.fit_visual_target([images])
    tokens = model.visual_target(model.vision(images)).flatten(0, 1)
    torch.testing.assert_close(torch.cov(tokens.T), torch.eye(tokens.shape[1]), atol=2e-2, rtol=0)


def test_the_visual_target_is_fitted_on_slices_and_volumes_as_they_come(model: OmniMRIForConditionalGeneration) -> None:
    """As many as asked for, and no more: a step of volumes may be the first."""
    torch.manual_seed(0)
    slices, volumes = torch.rand(8, 1, 1, SIZE, SIZE), torch.rand(4, 1, 4, SIZE, SIZE)
    batches = [cast(SequenceBatch, SimpleNamespace(pixel_values_B1DHW=pixels)) for pixels in (volumes, slices, volumes)]
    MultimodalPretraining(model).begin(iter(batches), images=10)
    tokens = [model.visual_target(model.vision(pixels)).flatten(0, 1) for pixels in (volumes, slices[:6])]
    torch.testing.assert_close(torch.cov(torch.cat(tokens).T), torch.eye(tokens[0].shape[1]), atol=2e-2, rtol=0)


def test_masked_modeling_averages_over_masked_pixels_only(model: OmniMRIForConditionalGeneration) -> None:
    """SimMIM: the mean absolute error over the masked squares, six tenths of the image."""
    objective = VisionPretraining(model)
    images = _images()
    torch.manual_seed(3)
    loss = objective(ImageBatch(images, torch.arange(BATCH), torch.arange(BATCH))).parts["masked_l1"]
    torch.manual_seed(3)
    _, restored = objective.restore(images)
    hidden = restored != images
    assert float(hidden.float().mean()) == pytest.approx(0.6, abs=0.04)
    torch.testing.assert_close(loss, (restored - images).abs()[hidden].mean())


def test_the_visual_loss_of_a_zero_head_is_the_mean_square_of_the_velocity(
    model: OmniMRIForConditionalGeneration, processor: Processor
) -> None:
    """The head starts as zero: the loss is ``E || eps - z ||^2 / size`` = 1 + the mean square of the whitened target."""
    objective = MultimodalPretraining(model, draws=64)
    batch = _sequences(model, processor, [TARGET_NONE] * BATCH)
    objective.begin(iter([batch]))
    z = model.visual_target(model.vision(batch.pixel_values_B1DHW))[batch.visual_loss_B]
    assert float(objective(batch).parts["visual"]) == pytest.approx(1 + float(z.square().mean()), rel=0.05)


def test_every_response_has_the_same_weight(model: OmniMRIForConditionalGeneration, processor: Processor) -> None:
    """The text loss of stage 4 is the mean over responses of the mean over their tokens, by PyTorch's own cross-entropy.

    A token counts as much as the network is wrong about it.
    """
    batch = _sequences(model, processor, [TARGET_NONE, TARGET_MASK, TARGET_NONE, TARGET_NONE])
    logits = model(batch.input_ids_BL, batch.attention_mask_BL, batch.pixel_values_B1DHW).logits
    response_losses = []
    for rows, labels in zip(logits, batch.labels_BL, strict=True):
        losses = torch.nn.functional.cross_entropy(rows[:-1], labels[1:], ignore_index=IGNORE, reduction="none")[
            labels[1:] != IGNORE
        ]
        weights = 1 - (-losses).exp() + instruction_tuning.LEAST_WEIGHT
        response_losses.append((losses * weights).sum() / weights.sum())
    torch.testing.assert_close(InstructionTuning(model)(batch).parts["text"], torch.stack(response_losses).mean())


@pytest.mark.parametrize("objective_type", [MultimodalPretraining, InstructionTuning])
def test_a_volume_of_one_slice_has_the_loss_of_the_slice(
    model: OmniMRIForConditionalGeneration, processor: Processor, objective_type: type[Objective]
) -> None:
    """The same bits: a block with a grid of its own, whose only slice is the target."""
    batch = replace(_sequences(model, processor, [TARGET_IMAGE, TARGET_MASK, TARGET_NONE, TARGET_MASK]), seed_B=torch.arange(BATCH))
    objective = objective_type(model)
    grids = stack_grids([[model.config.image_grid(1, SIZE, SIZE)]] * BATCH)
    one_slice = torch.zeros(BATCH, 1, dtype=torch.long)
    volumes = replace(batch, grids_BG3=grids, block_B=one_slice[:, 0], slices_BT=one_slice)
    assert torch.equal(objective(volumes).total, objective(batch).total)


def test_a_study_trains_what_a_slice_trains(model: OmniMRIForConditionalGeneration, processor: Processor) -> None:
    """Two samples of three and two volumes; two target slices, of the second and of the first volume."""
    torch.manual_seed(0)
    depth, grid = 6, model.config.image_grid(6, SIZE, SIZE)
    series = [[Series(grid, "T1"), Series(grid, "T2"), Series(grid)], [Series(grid), Series(grid, "T1")]]
    packed = processor.pack([processor.encode_study("Segment.", "<seg>", one) for one in series])
    structures = torch.zeros(2, depth, SIZE, SIZE, dtype=torch.long)
    structures[:, 2:4, 8:20, 8:20] = 1
    slices = torch.tensor([[2, 5], [0, 3]])
    batch = SequenceBatch(
        packed.input_ids_BL,
        packed.attention_mask_BL,
        packed.labels_BL,
        torch.rand(5, 1, depth, SIZE, SIZE),
        torch.zeros(2, dtype=torch.bool),
        select_slices(structures, slices, 1)[:, None].float(),
        torch.full((2,), TARGET_MASK),
        torch.zeros(2, 2, SIZE, SIZE, dtype=torch.complex64),
        torch.zeros(2, 2, SIZE, SIZE, dtype=torch.bool),
        structures_BDHW=structures,
        listed_BS=torch.ones(2, 1, dtype=torch.bool),
        names_SL=torch.tensor([[20, 21]]),
        grids_BG3=packed.grids_BG3,
        block_B=torch.tensor([1, 0]),
        slices_BT=slices,
    )
    assert batch.image_B.tolist() == [1, 3]
    objective = InstructionTuning(model)
    parameters = objective.trainable()
    objective.begin(iter([batch]))
    objective(batch).total.backward()
    assert all(parameter.grad is not None for parameter in parameters)
    passes = objective.passes(batch)
    assert passes["Swin encoder"] == 15 and passes["backbone"] == 6 and passes["image decoder"] == pytest.approx(2)
