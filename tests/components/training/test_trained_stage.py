"""A stage is trained once, resumes after a kill, and ends with the same bits."""

import json
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.errors import JobFailed
from components.files import read_lines
from components.home import Home
from components.launching import JobSpec, LocalLauncher
from components.settings import Settings, StageName, load_settings
from components.training import StageResult, stage_digest, train_stage
from components.training.trained_stage import is_trained
from tests.helpers.corpora import tiny_corpus
from tests.helpers.forked import ForkedJob, ForkedLauncher, after_first_checkpoint
from tests.helpers.mlflow_store import new_home


@pytest.fixture(scope="module")
def corpus_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus")).root


def _settings(*overrides: str) -> Settings:
    return load_settings("debug", list(overrides))


def _weights(result: StageResult) -> dict[str, torch.Tensor]:
    return load_file(result.model_dir / "model.safetensors")


def test_a_killed_stage_resumes_and_ends_with_the_same_bits(corpus_root: Path, tmp_path: Path) -> None:
    steps = ("training.vision_pretraining.steps=24", "training.vision_pretraining.checkpoint_every=8")
    settings = _settings("training.zero_stage=0", *steps)  # as the demo; other kinds: test_precision.py
    homes = [new_home(tmp_path / name) for name in ("whole", "killed")]
    whole = train_stage("vision_pretraining", corpus_root, settings, homes[0], None, None, ForkedLauncher())
    with pytest.raises(JobFailed, match="-9"):
        train_stage("vision_pretraining", corpus_root, settings, homes[1], None, None, after_first_checkpoint(ForkedJob.kill))
    resumed = train_stage("vision_pretraining", corpus_root, settings, homes[1], None, None, ForkedLauncher())
    assert whole.resumed_at is None and resumed.resumed_at in (8, 16)
    ours, theirs = _weights(whole), _weights(resumed)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    curves = [[json.loads(line)["loss"] for line in (result.folder / "curve.jsonl").open()] for result in (whole, resumed)]
    assert curves[0] == curves[1] and len(curves[0]) == 24
    assert whole.last_loss < whole.first_loss
    logged = [point.step for point in _history(homes[1], resumed.run_id)]
    assert logged == list(range(24))  # no step twice

    submitted: list[JobSpec] = []
    again = train_stage("vision_pretraining", corpus_root, settings, homes[1], None, None, ForkedLauncher(before=submitted.append))
    assert again == replace(resumed, reused=True, seconds=0.0) and not submitted

    weights = again.model_dir / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert not is_trained(again.folder)
    repaired = train_stage(
        "vision_pretraining", corpus_root, settings, homes[1], None, None, ForkedLauncher(before=submitted.append)
    )
    assert not repaired.reused and len(submitted) == 1 and is_trained(repaired.folder)
    assert all(torch.equal(ours[name], tensor) for name, tensor in _weights(repaired).items())


def _history(home: Home, run_id: str):  # type: ignore[no-untyped-def]
    import mlflow

    return sorted(mlflow.MlflowClient(home.tracking_uri).get_metric_history(run_id, "loss"), key=lambda point: point.step)


@pytest.mark.parametrize("stage", [pytest.param("vision_pretraining", marks=pytest.mark.slow), "instruction_tuning"])
def test_two_processes_have_the_losses_of_one(corpus_root: Path, tmp_path: Path, stage: StageName) -> None:
    """Contrasts span the samples of all processes, noise belongs to the sample, and means are over the tokens of the whole step."""
    curves = {}
    for processes in (1, 2):
        home = new_home(tmp_path / str(processes))
        settings = _settings(
            f"training.{stage}.steps=4", f"training.processes={processes}", f"training.{stage}.micro_batch={8 // processes}"
        )
        result = train_stage(stage, corpus_root, settings, home, None, None, ForkedLauncher())
        curves[processes] = read_lines(result.folder / "curve.jsonl")
    for one, two in zip(curves[1], curves[2], strict=True):
        for name in one.keys() & {"loss", "patch_contrast", "text", "image", "load_balance", "task/segmentation", "gradient_norm"}:
            assert two[name] == pytest.approx(one[name], rel=1e-4), name


def test_the_digest_covers_everything_that_decides_the_weights() -> None:
    base = stage_digest("alignment", _settings(), "corpus")
    assert base == stage_digest("alignment", _settings("evaluation.samples=7", "training.instruction_tuning.steps=9"), "corpus")
    others = [
        stage_digest("vision_pretraining", _settings(), "corpus"),
        stage_digest("alignment", _settings(), "another corpus"),
        *(
            stage_digest("alignment", _settings(change), "corpus")
            for change in ("seed=1", "training.alignment.steps=9", "model.preset=demo", "training.processes=2")
        ),
    ]
    assert len({base, *others}) == 7


def test_the_digest_does_not_depend_on_the_number_of_processes() -> None:
    def digest(stage: StageName, processes: int, micro: int, accumulation: int = 1, volumes: float = 0) -> str:
        sizes = [f"training.{stage}.micro_batch={micro}", f"training.{stage}.gradient_accumulation={accumulation}"]
        sizes.append(f"training.{stage}.volume_steps={volumes}")
        return stage_digest(stage, _settings(f"training.processes={processes}", *sizes), "corpus")

    assert digest("alignment", 2, 8) == digest("alignment", 1, 16)
    assert digest("alignment", 2, 8) != digest("alignment", 1, 8, 2)  # fewer texts are compared
    assert digest("instruction_tuning", 2, 8) == digest("instruction_tuning", 1, 8, 2)
    assert digest("instruction_tuning", 2, 8) != digest("instruction_tuning", 2, 16)
    assert digest("instruction_tuning", 2, 8, volumes=0.5) == digest("instruction_tuning", 1, 16, volumes=0.5)
    assert digest("instruction_tuning", 2, 8, volumes=0.5) != digest("instruction_tuning", 1, 8, 2, volumes=0.5)  # of more volumes


def test_a_failed_job_shows_its_log(tmp_path: Path) -> None:
    job = JobSpec("broken", "components.training.trainer", (str(tmp_path / "missing.json"),), 1, tmp_path)
    with pytest.raises(JobFailed, match=r"missing\.json(.|\n)*broken\.log"):
        LocalLauncher().submit(job).wait()


def test_a_stopped_stage_keeps_its_last_step_and_is_not_marked_finished(corpus_root: Path, tmp_path: Path) -> None:
    settings = _settings("training.vision_pretraining.steps=500", "training.vision_pretraining.checkpoint_every=2")
    home = new_home(tmp_path)
    with pytest.raises(JobFailed, match="run again"):
        train_stage("vision_pretraining", corpus_root, settings, home, None, None, after_first_checkpoint(ForkedJob.terminate))
    (folder,) = home.training.glob("*/checkpoint.json")
    steps = json.loads(folder.read_text())["step"]
    assert 2 <= steps < 500 and len((folder.parent / "curve.jsonl").read_text().splitlines()) == steps
    import mlflow

    run_id = json.loads((folder.parent / "run.json").read_text())["run_id"]
    assert mlflow.MlflowClient(home.tracking_uri).get_run(run_id).info.status == "KILLED"


@pytest.mark.slow
def test_training_works_without_a_compiler(corpus_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed compiles its communication for two processes; without compiler and ninja they communicate through gloo."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    home = new_home(tmp_path / "home")
    result = train_stage("alignment", corpus_root, _settings("training.processes=2"), home, None, None)
    assert result.steps == 3
    assert "Falling back to gloo" in (result.folder / "alignment.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_stage_killed_ten_times_at_random_ends_with_the_same_bits(corpus_root: Path, tmp_path: Path) -> None:
    """Instruction tuning: the whole network, and the moving average of the image decoder."""
    stage = "training.instruction_tuning"
    settings = _settings(f"{stage}.steps=120", f"{stage}.checkpoint_every=4")
    homes = [new_home(tmp_path / name) for name in ("whole", "killed")]
    whole = train_stage("instruction_tuning", corpus_root, settings, homes[0], None, None, ForkedLauncher())
    rng, kills = random.Random(whole.seconds), 0

    def kill_somewhere(spec: JobSpec, job: ForkedJob) -> None:
        before = _finished(spec.folder)
        after = before + rng.randint(1, 11)
        while _finished(spec.folder) < after and job.processes[0].exitcode is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))  # in the middle of a step, or of a checkpoint
        job.kill()

    while kills < 10:
        with pytest.raises(JobFailed, match="-9"):
            train_stage("instruction_tuning", corpus_root, settings, homes[1], None, None, ForkedLauncher(started=kill_somewhere))
        kills += 1
    resumed = train_stage("instruction_tuning", corpus_root, settings, homes[1], None, None, ForkedLauncher())
    assert resumed.resumed_at is not None and resumed.steps == 120
    ours, theirs = _weights(whole), _weights(resumed)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    curves = [[point["loss"] for point in read_lines(one.folder / "curve.jsonl")] for one in (whole, resumed)]
    assert curves[0] == curves[1]


def _finished(folder: Path) -> int:
    """Return the finished steps of the published checkpoint."""
    path = folder / "checkpoint.json"
    return int(json.loads(path.read_text())["step"]) if path.exists() else 0
