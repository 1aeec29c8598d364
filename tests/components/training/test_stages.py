"""A stage is trained once, goes on where it was killed, and comes out the same to the last bit."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.errors import JobFailed
from components.home import Home
from components.launching import JobSpec, LocalLauncher
from components.launching.local import LocalHandle
from components.settings import Settings, load_settings
from components.training import StageResult, stage_digest, train_stage
from tests.corpora import tiny_corpus


@pytest.fixture(scope="module")
def corpus_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus")).root


def _settings(*overrides: str) -> Settings:
    return load_settings("debug", list(overrides))


def _weights(result: StageResult) -> dict[str, torch.Tensor]:
    return load_file(result.model_dir / "model.safetensors")


class KilledLater(LocalLauncher):
    """Kills the job, without a warning, as soon as it has written a checkpoint."""

    def submit(self, job: JobSpec) -> LocalHandle:
        handle = super().submit(job)
        while not (job.folder / "checkpoint.json").exists() and handle.process.poll() is None:
            time.sleep(0.01)
        handle.process.kill()
        return handle


def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_bits(corpus_root: Path, tmp_path: Path) -> None:
    steps = ("training.vision_pretraining.steps=60", "training.vision_pretraining.checkpoint_every=20")
    settings = _settings(*steps)
    homes = [Home(tmp_path / name, tmp_path / "data") for name in ("whole", "killed")]
    whole = train_stage("vision_pretraining", corpus_root, settings, homes[0], None, None)
    with pytest.raises(JobFailed, match="status -9"):
        train_stage("vision_pretraining", corpus_root, settings, homes[1], None, None, KilledLater())
    resumed = train_stage("vision_pretraining", corpus_root, settings, homes[1], None, None)
    assert whole.resumed_at is None and resumed.resumed_at in (20, 40)
    ours, theirs = _weights(whole), _weights(resumed)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    curves = [[json.loads(line)["loss"] for line in (one.folder / "curve.jsonl").open()] for one in (whole, resumed)]
    assert curves[0] == curves[1] and len(curves[0]) == 60
    assert whole.last_loss < whole.first_loss
    logged = [point.step for point in _history(homes[1], resumed.run_id)]
    assert logged == list(range(60))  # nothing twice

    started = time.monotonic()
    again = train_stage("vision_pretraining", corpus_root, settings, homes[1], None, None)
    assert again == replace(resumed, reused=True, seconds=0.0) and time.monotonic() - started < 2


def _history(home: Home, run_id: str):  # type: ignore[no-untyped-def]
    import mlflow

    return sorted(mlflow.MlflowClient(home.tracking_uri).get_metric_history(run_id, "loss"), key=lambda point: point.step)


def test_two_processes_have_the_loss_of_one(corpus_root: Path, tmp_path: Path) -> None:
    """The contrast of stage 2 spans the samples of all processes, with gradients through the gather."""
    common = ("training.alignment.steps=2",)
    first = {}
    for processes in (1, 2):
        home = Home(tmp_path / str(processes), tmp_path / "data")
        settings = _settings(*common, f"training.processes={processes}", f"training.alignment.micro_batch={4 // processes}")
        result = train_stage("alignment", corpus_root, settings, home, None, None)
        first[processes] = [json.loads(line) for line in (result.folder / "curve.jsonl").open()]
    for one, two in zip(first[1], first[2], strict=True):
        assert two["contrast"] == pytest.approx(one["contrast"], rel=1e-3)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=2e-2)


def test_whatever_decides_the_weights_is_in_the_digest() -> None:
    base = stage_digest("alignment", "corpus", _settings(), None)
    assert base == stage_digest(
        "alignment", "corpus", _settings("evaluation.samples=7", "training.instruction_tuning.steps=9"), None
    )
    others = [
        stage_digest("vision_pretraining", "corpus", _settings(), None),
        stage_digest("alignment", "another corpus", _settings(), None),
        *(
            stage_digest("alignment", "corpus", _settings(change), None)
            for change in ("seed=1", "training.alignment.steps=9", "model.preset=demo", "training.processes=2")
        ),
    ]
    assert len({base, *others}) == 7


def test_a_failed_job_shows_its_log(tmp_path: Path) -> None:
    job = JobSpec("broken", "components.training.worker", (str(tmp_path / "missing.json"),), 1, tmp_path)
    with pytest.raises(JobFailed, match=r"missing\.json(.|\n)*broken\.log"):
        LocalLauncher().submit(job).wait()


class StoppedLater(LocalLauncher):
    """Asks the job to stop as soon as it has written a checkpoint."""

    def submit(self, job: JobSpec) -> LocalHandle:
        handle = super().submit(job)
        while not (job.folder / "checkpoint.json").exists() and handle.process.poll() is None:
            time.sleep(0.01)
        handle.cancel()
        return handle


def test_asked_to_stop_it_keeps_its_last_step_and_is_not_called_finished(corpus_root: Path, tmp_path: Path) -> None:
    settings = _settings("training.vision_pretraining.steps=500", "training.vision_pretraining.checkpoint_every=2")
    home = Home(tmp_path, tmp_path / "data")
    with pytest.raises(JobFailed, match="run again"):
        train_stage("vision_pretraining", corpus_root, settings, home, None, None, StoppedLater())
    (folder,) = home.training.glob("*/checkpoint.json")
    steps = json.loads(folder.read_text())["step"]
    assert 2 <= steps < 500 and len((folder.parent / "curve.jsonl").read_text().splitlines()) == steps
    import mlflow

    run_id = json.loads((folder.parent / "run.json").read_text())["run_id"]
    assert mlflow.MlflowClient(home.tracking_uri).get_run(run_id).info.status == "KILLED"


def test_a_machine_without_a_compiler_trains_all_the_same(
    corpus_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed would compile its communication for two processes; without compiler and ninja they talk through gloo."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    home = Home(tmp_path / "home", tmp_path / "data")
    result = train_stage("alignment", corpus_root, _settings("training.processes=2"), home, None, None)
    assert result.steps == 3
    assert "Going on with gloo" in (result.folder / "alignment.log").read_text()
