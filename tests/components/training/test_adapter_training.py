"""A backbone that is trained by low-rank adapters: its own weights stay, and the exported model has no adapters any more."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from components.errors import BadInput, JobFailed
from components.files import read_lines
from components.home import Home
from components.settings import Settings, StageName, load_settings
from components.training import StageResult, prepare_tokenizer, stage_digest, train_stage
from components.training.dense_checkpoint import upcycled_model
from model_core import OmniMRIForConditionalGeneration
from model_core.accounting import OPTIMIZER_BYTES, count_frozen_parameters, count_parameters
from model_core.adapters import add_adapters, is_adapted
from model_core.processing import Processor
from tests.helpers.corpora import tiny_corpus
from tests.helpers.forked import ForkedJob, ForkedLauncher, after_first_checkpoint
from tests.helpers.mlflow_store import new_home
from tests.helpers.qwen_checkpoint import write_qwen_checkpoint

STAGE: StageName = "instruction_tuning"
RANK, STEPS = 4, 6


@pytest.fixture(scope="module")
def corpus_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus")).root


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen_checkpoint(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Trainings that are not killed are here, each of them once."""
    return new_home(tmp_path_factory.mktemp("home"))


def _settings(qwen: Path, precision: str = "float32", zero_stage: int = 0, *more: str) -> Settings:
    model = [f"model.tokenizer={qwen}", f"model.backbone={qwen}"]
    steps = [f"training.{STAGE}.steps={STEPS}", f"training.{STAGE}.checkpoint_every=2"]
    engine = [f"training.precision={precision}", f"training.zero_stage={zero_stage}", f"training.adapter_rank={RANK}"]
    return load_settings("debug", [*model, *steps, *engine, *more])


def _trained(corpus_root: Path, home: Home, settings: Settings) -> StageResult:
    return train_stage(STAGE, corpus_root, settings, home, None, None, ForkedLauncher())


def _exported(result: StageResult) -> dict[str, Tensor]:
    return load_file(result.model_dir / "model.safetensors")


def _untrained(corpus_root: Path, home: Home, settings: Settings) -> OmniMRIForConditionalGeneration:
    tokenizer = Processor.from_pretrained(prepare_tokenizer(corpus_root, settings, home)).tokenizer
    torch.manual_seed(settings.seed)
    assert settings.model.backbone is not None
    return upcycled_model(settings.model.backbone, settings.model.preset, tokenizer, settings.model.codes)


def _checkpoint(result: StageResult, file: str = "mp_rank_00_model_states.pt") -> dict[str, Any]:
    """Return a file of DeepSpeed's last checkpoint, which contains classes of DeepSpeed; this test has just written it."""
    content: dict[str, Any] = torch.load(result.folder / "checkpoints" / f"step-{STEPS:06d}" / file, weights_only=False)
    return content


def _network(result: StageResult) -> dict[str, Tensor]:
    """Return the parameters and buffers of the network with adapters in the last checkpoint, by name."""
    state = _checkpoint(result)["module"]
    return {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}


def _distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the distance of the parameters of two backbones."""
    names = [name for name in theirs if name.startswith("backbone.")]
    return sum(float((ours[name] - theirs[name]).square().sum()) for name in names) ** 0.5


def test_training_changes_adapters_and_what_has_none(corpus_root: Path, home: Home, qwen: Path) -> None:
    """Frozen weights keep their bits. Norms, routers and embeddings are trained as without adapters."""
    settings = _settings(qwen)
    before, after = _untrained(corpus_root, home, settings), _network(_trained(corpus_root, home, settings))
    original = dict(before.backbone.state_dict())
    add_adapters(before.backbone, RANK)
    frozen = {name for name in before.backbone.state_dict() if is_adapted(name)}
    assert len(frozen) == before.config.num_hidden_layers * (4 + 3 + 3 + 2)  # attention, its biases, shared and routed experts
    for name, tensor in before.backbone.state_dict().items():
        trained = after[f"backbone.{name}"]
        if name in frozen:
            assert torch.equal(trained, original[name.replace(".base_layer", "")]), name
        elif ".lora_A." not in name:  # drawn anew
            assert not torch.equal(trained, tensor), name


def test_the_exported_model_has_no_adapters_and_computes_the_same(
    corpus_root: Path, home: Home, qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within roundings of float32. It loads where ``peft`` is not installed."""
    settings = _settings(qwen)
    result, adapted = _trained(corpus_root, home, settings), _untrained(corpus_root, home, settings)
    start = adapted.state_dict()
    add_adapters(adapted.backbone, RANK)
    own = {name: tensor for name, tensor in _network(result).items() if not name.startswith("image_decoder.")}
    assert not adapted.load_state_dict(own, strict=False).unexpected_keys
    monkeypatch.setitem(sys.modules, "peft", None)
    exported, report = OmniMRIForConditionalGeneration.from_pretrained(result.model_dir, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert exported.state_dict().keys() == start.keys()
    for name in ("self_attn.q_proj.weight", "mlp.experts.gate_up_proj", "mlp.shared_expert.down_proj.weight"):
        key = f"backbone.layers.1.{name}"
        assert not torch.equal(exported.state_dict()[key], start[key])
    ids = torch.arange(4, 60).view(2, -1)
    with torch.no_grad():
        torch.testing.assert_close(exported.eval()(ids).logits, adapted.eval()(ids).logits, atol=1e-5, rtol=1e-5)


SINGLE_GPU = ("bfloat16", 1, False)
KINDS = [
    pytest.param(*kind, marks=[] if kind == SINGLE_GPU else pytest.mark.slow, id="-".join(map(str, kind)))
    for kind in [
        *((precision, zero, False) for precision in ("float32", "bfloat16") for zero in range(4)),
        *(("bfloat16", zero, True) for zero in (1, 2, 3)),
    ]
]


@pytest.mark.parametrize(("precision", "zero_stage", "offload"), KINDS)
def test_a_killed_stage_ends_with_the_same_bits(
    corpus_root: Path, home: Home, qwen: Path, tmp_path: Path, precision: str, zero_stage: int, offload: bool
) -> None:
    """In bfloat16 with activation checkpointing, as in the profile ``single_gpu``."""
    memory = [f"training.offload_optimizer={offload}", f"training.activation_checkpointing={precision == 'bfloat16'}"]
    settings = _settings(qwen, precision, zero_stage, *memory)
    whole, killed = _trained(corpus_root, home, settings), new_home(tmp_path / "killed")
    with pytest.raises(JobFailed, match="-9"):
        train_stage(STAGE, corpus_root, settings, killed, None, None, after_first_checkpoint(ForkedJob.kill))
    resumed = _trained(corpus_root, killed, settings)
    curves = [read_lines(result.folder / "curve.jsonl") for result in (whole, resumed)]
    assert resumed.resumed_at in (2, 4) and [point["loss"] for point in curves[0]] == [point["loss"] for point in curves[1]]
    ours, theirs = _exported(whole), _exported(resumed)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    start = _untrained(corpus_root, home, settings).state_dict()
    biases = [name for name in start if name.startswith("backbone.") and name.endswith("proj.bias")]
    assert biases and all(torch.equal(ours[name], start[name]) for name in biases), "frozen, and without adapters"


def test_a_checkpoint_holds_the_states_that_the_accounting_counts(corpus_root: Path, home: Home, qwen: Path) -> None:
    """Two bytes for each weight, twelve more for a trained one: AdamW's moments and the weight in float32.

    The accounting counts all that could be trained. Stage 4 uses no visual-token head and no mask token, and adds heads of its own.
    """
    result = _trained(corpus_root, home, _settings(qwen, "bfloat16", 1))
    model = _untrained(corpus_root, home, _settings(qwen))
    buffers = {name for name, _ in model.named_buffers()} | {"lm_head.weight"}  # tied
    own = {name: tensor for name, tensor in _network(result).items() if name not in buffers}
    total = sum(row.total for row in count_parameters(model.config, RANK))
    frozen = sum(count_frozen_parameters(model.config, RANK).values())
    assert {tensor.dtype for tensor in own.values()} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in own.values()) == total
    assert sum(tensor.numel() for name, tensor in own.items() if is_adapted(name)) == frozen
    optimizer = _checkpoint(result, "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")["optimizer_state_dict"]
    heads = {name: tensor for name, tensor in _checkpoint(result)["module"].items() if name.startswith("structures.")}
    unused = [tensor for name, tensor in own.items() if name.startswith("visual_head.") or name == "vision.mask_token"]
    trained = total - frozen + sum(tensor.numel() for tensor in heads.values()) - sum(tensor.numel() for tensor in unused)
    moments = [tensor for state in optimizer["base_optimizer_state"]["state"].values() for tensor in state.values() if tensor.ndim]
    states = sum(tensor.nbytes for tensor in (*moments, *optimizer["single_partition_of_fp32_groups"]))
    padding = sum(optimizer["group_paddings"])
    assert states == OPTIMIZER_BYTES * (trained + padding) and padding < 8


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", range(4))
def test_two_processes_train_what_one_trains(corpus_root: Path, home: Home, qwen: Path, tmp_path: Path, zero_stage: int) -> None:
    """Within roundings, also where the two resume from the checkpoint of one."""
    alone, two = _trained(corpus_root, home, _settings(qwen)), ("training.processes=2", f"training.{STAGE}.micro_batch=2")
    whole, killed = new_home(tmp_path / "whole"), new_home(tmp_path / "killed")
    shared = _trained(corpus_root, whole, _settings(qwen, "float32", zero_stage, *two))
    with pytest.raises(JobFailed, match="-9"):
        one = _settings(qwen, "float32", zero_stage)
        train_stage(STAGE, corpus_root, one, killed, None, None, after_first_checkpoint(ForkedJob.kill))
    resumed = _trained(corpus_root, killed, _settings(qwen, "float32", zero_stage, *two))
    assert resumed.resumed_at in (2, 4)
    ours, start = _exported(alone), _untrained(corpus_root, home, _settings(qwen)).state_dict()
    curve = read_lines(alone.folder / "curve.jsonl")
    for result in (shared, resumed):
        for point, theirs in zip(curve, read_lines(result.folder / "curve.jsonl"), strict=True):
            assert theirs["loss"] == pytest.approx(point["loss"], rel=1e-4)
            assert theirs["gradient_norm"] == pytest.approx(point["gradient_norm"], rel=1e-3)
        theirs = _exported(result)
        assert theirs.keys() == ours.keys()
        assert _distance(theirs, ours) < 0.1 * _distance(start, ours), "of the way from the weights before training"


def test_adapters_need_a_pretrained_backbone() -> None:
    with pytest.raises(BadInput, match=r"adapter_rank freezes the backbone.*set model\.backbone"):
        load_settings("debug", ["training.adapter_rank=4"])


def test_the_rank_decides_the_weights_of_stages_that_train_the_backbone(qwen: Path) -> None:
    def digests(stage: StageName) -> set[str]:
        return {stage_digest(stage, _settings(qwen, "float32", 0, f"training.adapter_rank={rank}"), "corpus") for rank in (0, 4, 8)}

    assert len(digests("alignment")) == len(digests("instruction_tuning")) == 3
    assert len(digests("vision_pretraining")) == 1
