"""Training at every precision and ZeRO stage: resumed and exported without loss, equal within rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.errors import JobFailed
from components.files import read_lines
from components.home import Home
from components.settings import Settings, StageName, load_settings
from components.training import StageResult, train_stage
from tests.helpers.corpora import tiny_corpus
from tests.helpers.forked import ForkedJob, ForkedLauncher, after_first_checkpoint
from tests.helpers.mlflow_store import new_home

STEPS = 6


@pytest.fixture(scope="module")
def corpus_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus")).root


def _settings(stage: StageName, precision: str, zero_stage: int, offload: bool = False) -> Settings:
    steps = f"training.{stage}.steps={STEPS}", f"training.{stage}.checkpoint_every=2"
    return load_settings(
        "debug",
        [*steps, f"training.precision={precision}", f"training.zero_stage={zero_stage}", f"training.offload_optimizer={offload}"],
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Trainings that are not killed are here, each of them once."""
    return new_home(tmp_path_factory.mktemp("home"))


def _trained(
    corpus_root: Path, home: Home, stage: StageName, precision: str, zero_stage: int, offload: bool = False
) -> StageResult:
    return train_stage(stage, corpus_root, _settings(stage, precision, zero_stage, offload), home, None, None, ForkedLauncher())


def _losses(result: StageResult) -> list[float]:
    return [point["loss"] for point in read_lines(result.folder / "curve.jsonl")]


def _weights(result: StageResult) -> dict[str, torch.Tensor]:
    return load_file(result.model_dir / "model.safetensors")


SINGLE_GPU = ("bfloat16", 1)
"""The kind of that profile; that of the demo, float32 with ZeRO-0, is in test_trained_stage.py."""
KINDS = [
    pytest.param(
        precision, zero, False, marks=[] if (precision, zero) == SINGLE_GPU else pytest.mark.slow, id=f"{precision}-zero-{zero}"
    )
    for precision in ("float32", "bfloat16")
    for zero in range(4)
] + [pytest.param("bfloat16", zero, True, marks=pytest.mark.slow, id=f"bfloat16-zero-{zero}-offload") for zero in (1, 2, 3)]


@pytest.mark.parametrize(("precision", "zero_stage", "offload"), KINDS)
def test_a_killed_stage_ends_with_the_same_bits(
    corpus_root: Path, home: Home, tmp_path: Path, precision: str, zero_stage: int, offload: bool
) -> None:
    stage: StageName = "instruction_tuning"
    whole = _trained(corpus_root, home, stage, precision, zero_stage, offload)
    killed = new_home(tmp_path / "killed")
    with pytest.raises(JobFailed, match="-9"):
        settings = _settings(stage, precision, zero_stage, offload)
        train_stage(stage, corpus_root, settings, killed, None, None, after_first_checkpoint(ForkedJob.kill))
    resumed = _trained(corpus_root, killed, stage, precision, zero_stage, offload)
    assert resumed.resumed_at in (2, 4) and _losses(whole) == _losses(resumed)
    ours, theirs = _weights(whole), _weights(resumed)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("zero_stage", [pytest.param(zero, marks=[] if zero == 1 else pytest.mark.slow) for zero in (1, 2, 3)])
def test_an_optimizer_on_the_host_takes_the_same_steps(corpus_root: Path, home: Home, zero_stage: int) -> None:
    """Up to roundings: DeepSpeed divides the gradients at another point, and a weight may be rounded to the next bfloat16."""
    stage: StageName = "instruction_tuning"
    plain, moved = (_trained(corpus_root, home, stage, "bfloat16", zero_stage, offload) for offload in (False, True))
    assert plain.folder.name != moved.folder.name, "a GPU rounds otherwise than its host"
    assert _losses(plain) == pytest.approx(_losses(moved), rel=1e-3)
    ours, theirs = _weights(plain), _weights(moved)
    apart, size = (sum(float(x.double().square().sum()) for x in xs) for xs in ([ours[n] - theirs[n] for n in ours], ours.values()))
    assert apart < 1e-8 * size


@pytest.mark.parametrize("stage", [pytest.param("multimodal_pretraining", marks=pytest.mark.slow), "instruction_tuning"])
def test_losses_equal_those_of_float32_within_rounding(corpus_root: Path, home: Home, stage: StageName) -> None:
    """The contrasts of stages 1 and 2 differ in their first steps: a fresh network hardly distinguishes images, and the contrasts
    amplify the small differences, including rounding."""
    half, single = (_trained(corpus_root, home, stage, precision, 1) for precision in ("bfloat16", "float32"))
    for ours, theirs in zip(_losses(half), _losses(single), strict=True):
        assert ours == pytest.approx(theirs, rel=0.01)
    weights = _weights(half)
    assert all(
        tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in weights.values() if tensor.is_floating_point()
    )


@pytest.mark.parametrize("zero_stage", [pytest.param(zero, marks=[] if zero == 1 else pytest.mark.slow) for zero in range(4)])
def test_exported_weights_are_those_of_the_optimizer(corpus_root: Path, home: Home, zero_stage: int) -> None:
    """They are not the copies in bfloat16, except with ZeRO-0, which keeps nothing else. Frozen weights are as they were."""
    weights = _weights(_trained(corpus_root, home, "vision_pretraining", "bfloat16", zero_stage))
    matrices = {name: tensor for name, tensor in weights.items() if tensor.ndim > 1 and tensor.any()}
    rounded = {name for name, tensor in matrices.items() if torch.equal(tensor, tensor.bfloat16().float())}
    frozen = {name for name in matrices if name.startswith("backbone.")}
    assert frozen and not rounded & frozen
    assert any(name.startswith("vision.") for name in rounded) == (zero_stage == 0)
