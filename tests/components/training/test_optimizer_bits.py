"""Moments of AdamW with 8 bits: hardly other losses, a third less memory, and resuming on the same number of processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from components.errors import BadInput, JobFailed
from components.files import read_json, read_lines, write_json
from components.home import Home
from components.registries import PLUGINS
from components.settings import Settings, StageName, load_settings
from components.training import StageResult, engine, stage_digest, stage_jobs, train_stage
from components.training.engine import LARGEST_8BIT_GROUP, parameter_groups, split_groups
from model_core import OmniMRIConfig
from model_core.accounting import MOMENT_BYTES, build_meta_model
from model_core.objectives import InstructionTuning
from tests.helpers.corpora import tiny_corpus
from tests.helpers.forked import ForkedJob, ForkedLauncher, after_first_checkpoint
from tests.helpers.mlflow_store import new_home

STAGE: StageName = "instruction_tuning"
STEPS = 6
SMALL = 4096
"""Numbers of a tensor below which bitsandbytes keeps float32 moments."""


@pytest.fixture(scope="module")
def corpus_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus")).root


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Trainings that are not killed are here, each of them once."""
    return new_home(tmp_path_factory.mktemp("home"))


def _settings(bits: int = 8, precision: str = "bfloat16", zero_stage: int = 1, processes: int = 1, rate: float = 1e-3) -> Settings:
    steps = [f"training.{STAGE}.steps={STEPS}", f"training.{STAGE}.checkpoint_every=2", f"training.{STAGE}.warmup_steps=0"]
    steps.append(f"training.{STAGE}.learning_rate={rate}")
    shares = [f"training.processes={processes}", f"training.{STAGE}.micro_batch={4 // processes}"]
    engine = [f"training.optimizer_bits={bits}", f"training.precision={precision}", f"training.zero_stage={zero_stage}"]
    return load_settings("debug", [*steps, *shares, *engine])


def _trained(corpus_root: Path, home: Home, settings: Settings) -> StageResult:
    return train_stage(STAGE, corpus_root, settings, home, None, None, ForkedLauncher())


def _kill(corpus_root: Path, home: Home, settings: Settings) -> Path:
    """Train until the first checkpoint has been published; return the stage's folder."""
    with pytest.raises(JobFailed, match="-9"):
        train_stage(STAGE, corpus_root, settings, home, None, None, after_first_checkpoint(ForkedJob.kill))
    (folder,) = (path.parent for path in home.training.glob("*/checkpoint.json"))
    return folder


def _losses(result: StageResult) -> list[float]:
    return [point["loss"] for point in read_lines(result.folder / "curve.jsonl")]


def _assert_same_bits(one: StageResult, other: StageResult) -> None:
    assert _losses(one) == _losses(other)
    ours, theirs = (load_file(result.model_dir / "model.safetensors") for result in (one, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def _kinds(usual: tuple[str, int]) -> list[Any]:
    kinds = [(precision, zero) for precision in ("float32", "bfloat16") for zero in range(4)]
    return [pytest.param(*kind, marks=[] if kind == usual else pytest.mark.slow, id=f"{kind[0]}-zero-{kind[1]}") for kind in kinds]


@pytest.mark.parametrize(("precision", "zero_stage"), _kinds(("bfloat16", 1)))
def test_losses_fall_as_with_32_bits(corpus_root: Path, home: Home, precision: str, zero_stage: int) -> None:
    """Each within 1 %; their sum falls as far below that of the same batches without training, within a tenth."""
    half, whole = (_trained(corpus_root, home, _settings(bits, precision, zero_stage)) for bits in (8, 32))
    still = _trained(corpus_root, home, _settings(32, rate=1e-9))
    assert _losses(half) == pytest.approx(_losses(whole), rel=0.01) and _losses(half) != _losses(whole)
    falls = [sum(_losses(still)) - sum(_losses(result)) for result in (half, whole)]
    assert falls[0] > 0 and falls[0] == pytest.approx(falls[1], rel=0.1)


@pytest.mark.parametrize(("precision", "zero_stage"), _kinds(("bfloat16", 1)))
def test_a_killed_stage_ends_with_the_same_bits_on_its_number_of_processes_only(
    corpus_root: Path, home: Home, tmp_path: Path, precision: str, zero_stage: int
) -> None:
    """Another number is refused before anything is written, with both numbers and the remedy."""
    settings, killed = _settings(8, precision, zero_stage), new_home(tmp_path / "killed")
    whole = _trained(corpus_root, home, settings)
    folder = _kill(corpus_root, killed, settings)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if zero_stage > 0:
        with pytest.raises(BadInput, match=r"processes was 1 .* is 2 now.*with training\.processes=1, or remove") as error:
            _trained(corpus_root, killed, _settings(8, precision, zero_stage, processes=2))
        assert str(folder) in str(error.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    resumed = _trained(corpus_root, killed, settings)
    assert resumed.resumed_at in (2, 4)
    _assert_same_bits(whole, resumed)
    assert {moment.dtype for moment in _moments(resumed, precision, zero_stage) if moment.numel() >= SMALL} == {torch.uint8}


def _optimizer_states(result: StageResult, precision: str, zero_stage: int) -> list[dict[str, Any]]:
    """Return what bitsandbytes keeps for each tensor; DeepSpeed's checkpoint has classes of its own, and was just written."""
    rank = ("bf16_" if precision == "bfloat16" else "") + "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    file = result.folder / "checkpoints" / f"step-{STEPS:06d}" / (rank if zero_stage else "mp_rank_00_model_states.pt")
    if zero_stage:
        optimizer = torch.load(file, weights_only=False)["optimizer_state_dict"]
        optimizer = optimizer["base_optimizer_state"] if zero_stage < 3 else optimizer["optimizer_state_dict"]
    else:
        optimizer = torch.load(file, weights_only=False)["optimizer"]
        optimizer = optimizer.get("optimizer_state_dict", optimizer)
    return [{**state.pop("__bnb_optimizer_quant_state__", {}), **state} for state in optimizer["state"].values()]


def _moments(result: StageResult, precision: str, zero_stage: int) -> list[Tensor]:
    states = _optimizer_states(result, precision, zero_stage)
    return [state[name] for state in states for name in ("state1", "state2")]


def test_a_checkpoint_holds_the_moments_that_the_accounting_counts(corpus_root: Path, home: Home) -> None:
    """A byte for each and a float32 scale for each 256, in tensors: nothing that could run when it is loaded."""
    states = _optimizer_states(_trained(corpus_root, home, _settings()), "bfloat16", 1)
    assert {type(value) for state in states for value in state.values()} == {Tensor, int}
    moments = sum(state[name].nbytes for state in states for name in ("state1", "state2", "absmax1", "absmax2"))
    trained = sum(state["state1"].numel() for state in states)
    assert moments == pytest.approx(MOMENT_BYTES[8] * trained, abs=2 * 4 * len(states))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_moments_of_small_tensors_are_float32(corpus_root: Path, home: Home, precision: str) -> None:
    """Without ZeRO each parameter is a tensor; with it, all that have the same weight decay are one."""
    moments = _moments(_trained(corpus_root, home, _settings(8, precision, 0)), precision, 0)
    assert all(moment.dtype == (torch.uint8 if moment.numel() >= SMALL else torch.float32) for moment in moments)
    assert len({moment.dtype for moment in moments}) == 2


@pytest.mark.slow
def test_the_training_process_refuses_it_too(corpus_root: Path, tmp_path: Path) -> None:
    killed, settings = new_home(tmp_path / "killed"), _settings()
    folder = _kill(corpus_root, killed, settings)
    for manifest in folder.glob("checkpoints/*/manifest.json"):
        write_json(manifest, {**read_json(manifest), "world": 2})
    (job,) = (job for job in stage_jobs("corpus", settings, killed) if job.name == STAGE)
    with pytest.raises(JobFailed, match=r"BadInput: .*training\.processes was 2"):
        ForkedLauncher().submit(replace(job, folder=folder, arguments=(str(folder / "job.json"),))).wait()


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_without_zero_another_number_of_processes_resumes(
    corpus_root: Path, home: Home, tmp_path: Path, before: int, after: int
) -> None:
    """Each process has all moments."""
    moved = new_home(tmp_path / "moved")
    _kill(corpus_root, moved, _settings(8, "float32", 0, before))
    resumed, whole = (_trained(corpus_root, one, _settings(8, "float32", 0, count)) for one, count in ((moved, after), (home, 1)))
    assert resumed.resumed_at in (2, 4) and resumed.digest == whole.digest
    assert _losses(resumed) == pytest.approx(_losses(whole), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_two_processes_train_what_one_trains(corpus_root: Path, home: Home, tmp_path: Path, zero_stage: int) -> None:
    """Within the roundings of moments, whose blocks lie elsewhere; killed, two resume with the same bits."""
    alone, settings = _trained(corpus_root, home, _settings(8, "float32", zero_stage)), _settings(8, "float32", zero_stage, 2)
    shared, killed = (new_home(tmp_path / name) for name in ("shared", "killed"))
    two = _trained(corpus_root, shared, settings)
    assert _losses(two) == pytest.approx(_losses(alone), rel=0.01)
    _kill(corpus_root, killed, settings)
    resumed = _trained(corpus_root, killed, settings)
    assert resumed.resumed_at in (2, 4)
    _assert_same_bits(two, resumed)


def test_no_group_is_larger_than_the_kernel_can_count() -> None:
    """ZeRO 1 and 2 make one tensor of a group; of 0.5b it had more than 2^31 numbers, which ends a process without an error."""
    whole = parameter_groups(InstructionTuning(build_meta_model(OmniMRIConfig.from_preset("0.5b"))), 0.05)
    parts = split_groups(whole, LARGEST_8BIT_GROUP)
    sizes = [[sum(p.numel() for p in group["params"]) for group in groups] for groups in (whole, parts)]
    assert max(sizes[0]) > 2**31 > 2 * max(sizes[1]) - 1 and sum(sizes[0]) == sum(sizes[1])
    order = [[(id(p), group["weight_decay"]) for group in groups for p in group["params"]] for groups in (whole, parts)]
    assert order[0] == order[1]


def test_a_parameter_larger_than_a_group_has_its_own() -> None:
    sizes = [3, 9, 2, 2, 3]
    parts = split_groups([{"params": [torch.empty(size) for size in sizes], "weight_decay": 0.1}, {"params": []}], 6)
    assert [[len(p) for p in part["params"]] for part in parts] == [[3], [9], [2, 2], [3]]


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_a_stage_of_many_groups_trains_and_resumes(
    corpus_root: Path, home: Home, tmp_path: Path, zero_stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses are those of two groups within 1 %."""
    two_groups = _trained(corpus_root, home, _settings(8, "bfloat16", zero_stage))
    monkeypatch.setattr(engine, "LARGEST_8BIT_GROUP", LARGEST_8BIT_GROUP)  # restored after the plugin has changed it, here, too
    monkeypatch.setenv(PLUGINS, "tests.helpers.toys.many_groups")
    settings, many, killed = _settings(8, "bfloat16", zero_stage), new_home(tmp_path / "many"), new_home(tmp_path / "killed")
    whole = _trained(corpus_root, many, settings)
    assert _losses(whole) == pytest.approx(_losses(two_groups), rel=0.01)
    _kill(corpus_root, killed, settings)
    _assert_same_bits(whole, _trained(corpus_root, killed, settings))
    if zero_stage == 1:
        assert len(_optimizer_states(whole, "bfloat16", 1)) > 4


def test_an_optimizer_on_the_host_has_32_bits() -> None:
    with pytest.raises(BadInput, match="set offload_optimizer to false, or optimizer_bits to 32"):
        load_settings("debug", ["training.offload_optimizer=true", "training.optimizer_bits=8"])


def test_the_bits_decide_the_weights_of_every_stage() -> None:
    for stage in load_settings("debug").training.stages:
        assert len({stage_digest(stage, _settings(bits), "corpus") for bits in (32, 8)}) == 2
