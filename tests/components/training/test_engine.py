"""Parameter groups, learning rate schedule, accumulation of micro-batches, activation checkpointing, cost and metrics."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from components.curation.corpus import Corpus
from components.registries import STAGES
from components.settings import StageName, load_settings
from components.training.batches import StageBatches
from components.training.cost import batch_flops, batch_tokens, peak_flops
from components.training.engine import StepResult, learning_rate, parameter_groups
from components.training.metrics_log import MetricsLog
from components.training.samples import Samples
from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.accounting import SampleSize, estimate_costs
from model_core.adapters import add_adapters
from model_core.batch import SequenceBatch
from model_core.losses.reduction import Step
from model_core.objectives import Objective
from model_core.processing import Processor
from model_core.tokenization import special_ids


def _stage(corpus: Corpus, processor: Processor, stage: StageName, micro: int = 6) -> tuple[Objective, StageBatches]:
    torch.manual_seed(0)
    ids = special_ids(processor.tokenizer)
    settings = load_settings("debug", [f"training.{stage}.micro_batch={micro}"]).training.stage(stage)
    model = OmniMRIForConditionalGeneration(OmniMRIConfig.from_preset("debug", len(processor.tokenizer), **ids))
    objective = STAGES[stage].build_objective(model, settings)
    return objective, StageBatches(
        STAGES[stage], Samples.from_corpus(corpus, "train"), settings, objective.model.config, processor, 0
    )


def test_norms_biases_and_tables_do_not_decay(corpus: Corpus, processor: Processor) -> None:
    objective, _ = _stage(corpus, processor, "instruction_tuning")
    decayed, rest = ({id(p) for p in group["params"]} for group in parameter_groups(objective, 0.05))
    for name, parameter in objective.named_parameters():
        free = any(word in name for word in ("norm", "bias", "embed_tokens", "kind")) or parameter.ndim < 2
        if parameter.requires_grad:
            assert (id(parameter) in rest) is free and (id(parameter) in decayed) is not free, name


def test_the_learning_rate_warms_up_and_ends_at_a_tenth() -> None:
    settings = load_settings("demo", ["training.alignment.steps=100"]).training.stage("alignment")
    rates = [learning_rate(step, settings) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4) and max(rates) == rates[9] == pytest.approx(1e-3) and rates[100] == pytest.approx(1e-4)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def _rows(batch: SequenceBatch, rows: slice) -> SequenceBatch:
    by_sample = [f.name for f in fields(batch) if f.name.rpartition("_")[2].startswith("B")]
    tensors = {name: getattr(batch, name)[rows] for name in by_sample if isinstance(getattr(batch, name), Tensor)}
    return replace(batch, **tensors)


@pytest.mark.parametrize("stage", ["multimodal_pretraining", "instruction_tuning"])
def test_micro_batches_add_up_to_the_whole(corpus: Corpus, processor: Processor, stage: StageName) -> None:
    """Micro-batches of two and four samples: every token and every image has the same weight as in a batch of six."""
    objective, maker = _stage(corpus, processor, stage)
    whole = maker[0][0]
    parts = [_rows(whole, slice(0, 2)), _rows(whole, slice(2, None))]
    step = Step.of([objective.counts(part) for part in parts])
    expected, separate = objective(whole).parts, [objective(part, step).parts for part in parts]
    for name in {"text", "visual", "image", "mask", "structures"} & expected.keys():
        torch.testing.assert_close(sum(part[name] for part in separate), expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("stage", "rank"), [("vision_pretraining", 0), ("instruction_tuning", 0), ("instruction_tuning", 4)])
def test_activation_checkpointing_gives_the_same_gradients(
    corpus: Corpus, processor: Processor, stage: StageName, rank: int
) -> None:
    gradients = []
    for checkpointing in (False, True):
        objective, maker = _stage(corpus, processor, stage)
        if rank:
            add_adapters(objective.model.backbone, rank)
        objective.train()
        if checkpointing:
            objective.model.gradient_checkpointing_enable({"use_reentrant": False})
            assert any(getattr(module, "gradient_checkpointing", False) for module in objective.modules())
        parameters = objective.trainable()
        objective(maker[0][0]).total.backward()
        gradients.append([parameter.grad for parameter in parameters])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_operations_are_three_forward_passes_of_what_is_trained(corpus: Corpus, processor: Processor) -> None:
    objective, maker = _stage(corpus, processor, "vision_pretraining")
    batch = maker[0][0]
    encoder = estimate_costs(objective.model.config, SampleSize(1, 32, 32, 64))[0]
    assert encoder.part == "Swin encoder"
    assert batch_flops(objective, batch) == 2 * 3 * 6 * encoder.flops  # masked and whole, six images
    assert batch_tokens(objective, batch) == 6 * objective.model.image_tokens_for(1, 32, 32)
    assert 1e8 < peak_flops("float32") < 1e14


def test_the_metrics_log_has_throughput_and_expert_load(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in range(4):
        load = torch.tensor([[3, 1], [0, 4]]) if step < 2 else torch.tensor([[1, 3], [4, 0]])
        log.add(step, StepResult(2.0 - step, {"text": 1.0}, {"report": 3.0}, 0.5, 1e-3, 8, 100, 1e6, load), 0.01, 0.19)
        if step % 2:
            log.write()
    point = log.points[0]
    assert point["data_wait_share"] == pytest.approx(0.05) and point["samples_per_second"] == pytest.approx(40)
    assert point["tokens_per_second"] == pytest.approx(500) and point["mfu"] == pytest.approx(1e6 / 0.2 / peak_flops("float32"))
    log.add(4, StepResult(float("nan"), {}, {}, 0.5, 1e-3, 8, 100, 1e6, None), 0.01, 0.19)
    assert [point["step"] for point in log.saved_points] == [0, 1, 2, 3]  # the last step may be undone
    resumed = MetricsLog.resume(tmp_path, 2)
    assert [point["step"] for point in resumed.points] == [0, 1]
    steps, share = log.expert_load()
    assert steps == [2, 4] and share.tolist() == [[[0.75, 0.25], [0, 1]], [[0.25, 0.75], [1, 0]]]
    assert resumed.expert_load()[0] == [2]
