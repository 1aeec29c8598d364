"""Checkpoints: complete or ignored, deleted by a rule, and usable by any number of processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from components.curation.corpus import Corpus
from components.errors import JobFailed
from components.files import read_json, read_lines, write_json
from components.home import Home
from components.launching import JobSpec
from components.settings import Settings, load_settings
from components.training import StageResult, train_stage
from components.training.checkpoints import Checkpoints, checkpoint_tag
from tests.helpers.corpora import tiny_corpus
from tests.helpers.forked import ForkedJob, ForkedLauncher, after_first_checkpoint
from tests.helpers.mlflow_store import new_home


def _written(folder: Path, steps: list[int], **rule: int) -> Checkpoints:
    """Write checkpoints of these steps, of two files each."""
    checkpoints = Checkpoints(folder, **rule)
    for step in steps:
        checkpoints.clear(step)
        for name in ("weights.pt", "optimizer.pt"):
            (checkpoints.root / checkpoint_tag(step) / name).write_bytes(f"{name} {step}".encode() * 100)
        checkpoints.seal(step, {"zero_stage": 1})
        checkpoints.publish(step)
    return checkpoints


@pytest.mark.parametrize(
    ("rule", "kept"), [({"newest": 1}, [50]), ({"newest": 3}, [50, 40, 30]), ({"newest": 2, "every": 20}, [50, 40, 20])]
)
def test_the_newest_checkpoints_and_one_of_every_interval_are_kept(tmp_path: Path, rule: dict[str, int], kept: list[int]) -> None:
    assert _written(tmp_path, [10, 20, 30, 40, 50], **rule).complete_steps() == kept
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == sorted(checkpoint_tag(step) for step in kept)


@pytest.mark.parametrize("fault", ["a bit", "cut", "missing"])
def test_a_damaged_checkpoint_is_set_aside_and_the_previous_one_is_used(
    tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = _written(tmp_path, [10, 20])
    file = checkpoints.root / checkpoint_tag(20) / "optimizer.pt"
    whole = bytearray(file.read_bytes())
    whole[37] ^= 1
    file.unlink() if fault == "missing" else file.write_bytes(whole if fault == "a bit" else whole[:50])
    assert checkpoints.last_valid() == 10
    assert "step-000020 is damaged (optimizer.pt)" in capsys.readouterr().out
    assert checkpoints.last_valid() == 10


def test_training_fails_if_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    checkpoints = _written(tmp_path, [10])
    (checkpoints.root / checkpoint_tag(10) / "weights.pt").write_bytes(b"")
    with pytest.raises(JobFailed, match="every checkpoint is damaged"):
        checkpoints.last_valid()


def test_a_checkpoint_without_manifest_or_publication_is_ignored(tmp_path: Path) -> None:
    """The process was killed while writing, or before the metrics were on disk."""
    checkpoints = _written(tmp_path, [10])
    checkpoints.clear(20)
    (checkpoints.root / checkpoint_tag(20) / "weights.pt").write_bytes(b"half")
    assert checkpoints.last_valid() == 10
    checkpoints.seal(20, {})
    assert checkpoints.last_valid() == 10
    checkpoints.publish(20)
    assert checkpoints.last_valid() == 20


@pytest.fixture(scope="module")
def corpus_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus")).root


def _instructions(processes: int, zero_stage: int, steps: int = 6) -> Settings:
    """Return settings with eight samples per step for any number of processes; every second step uses two volumes or studies."""
    stage = "training.instruction_tuning"
    return load_settings(
        "debug",
        [
            f"{stage}.steps={steps}",
            f"{stage}.checkpoint_every=2",
            f"{stage}.micro_batch={8 // processes}",
            f"{stage}.volume_steps=0.5",
            f"{stage}.volume_slices=4",
            f"training.processes={processes}",
            f"training.zero_stage={zero_stage}",
        ],
    )


def _continued(corpus_root: Path, folder: Path, zero_stage: int, before: int, after: int) -> tuple[StageResult, StageResult]:
    """Train a stage with one number of processes, kill it, resume with another; and train the same without interruption."""
    homes = [new_home(folder / name) for name in ("moved", "whole")]
    with pytest.raises(JobFailed, match="-9"):
        settings = _instructions(before, zero_stage)
        train_stage("instruction_tuning", corpus_root, settings, homes[0], None, None, after_first_checkpoint(ForkedJob.kill))
    settings = _instructions(after, zero_stage)
    moved, whole = (train_stage("instruction_tuning", corpus_root, settings, home, None, None, ForkedLauncher()) for home in homes)
    return moved, whole


def _assert_same_training(moved: StageResult, whole: StageResult) -> None:
    assert moved.resumed_at in (2, 4) and moved.digest == whole.digest and moved.steps == whole.steps == 6
    for ours, theirs in zip(*(read_lines(one.folder / "curve.jsonl") for one in (moved, whole)), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4), ours["step"]
    ours, theirs = (load_file(one.model_dir / "model.safetensors") for one in (moved, whole))
    for name, weights in theirs.items():
        torch.testing.assert_close(ours[name], weights, atol=2e-4, rtol=1e-3, msg=name)


def test_one_process_resumes_the_training_of_two(corpus_root: Path, tmp_path: Path) -> None:
    """Losses, weights and the decoder's moving average equal those of an uninterrupted run, all partitioned (ZeRO-3)."""
    _assert_same_training(*_continued(corpus_root, tmp_path, zero_stage=3, before=2, after=1))


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_resumes_the_training(
    corpus_root: Path, tmp_path: Path, zero_stage: int, before: int, after: int
) -> None:
    _assert_same_training(*_continued(corpus_root, tmp_path, zero_stage, before, after))


def test_a_broken_slice_is_skipped_and_recorded(tmp_path: Path) -> None:
    """NaN voxels cause a rollback to the checkpoint and other data, as in a run that has the rollback recorded."""
    import mlflow

    corpus = tiny_corpus(tmp_path / "corpus")
    volume = min(one for one, record in corpus.volumes.items() if record.split == "train")
    voxels = corpus.store.read(volume)
    voxels[3] = np.nan
    corpus.store.write(volume, "voxels", voxels)
    stage = "training.vision_pretraining"
    steps = [f"{stage}.steps=9", f"{stage}.checkpoint_every=4"]
    homes = [new_home(tmp_path / name) for name in ("unprepared", "prepared", "strict")]
    unprepared = _pretrain(corpus, homes[0], steps)
    record = read_json(unprepared.folder / "rollbacks.json")
    assert 1 <= unprepared.rollbacks == len(record) <= 3 and "not finite" in record[0]["reason"]
    assert all(torch.isfinite(tensor).all() for tensor in load_file(unprepared.model_dir / "model.safetensors").values())
    tags = mlflow.MlflowClient(homes[0].tracking_uri).get_run(unprepared.run_id).data.tags
    assert f"step {record[0]['at']} back to {record[0]['to']}" in tags["omnimri.rollbacks"]
    assert [point["step"] for point in read_lines(unprepared.folder / "curve.jsonl")] == list(range(9))

    prepared = _pretrain(corpus, homes[1], steps, rollbacks=record)
    ours, theirs = (load_file(one.model_dir / "model.safetensors") for one in (unprepared, prepared))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    with pytest.raises(JobFailed, match="failed: the loss is not finite"):
        _pretrain(corpus, homes[2], [*steps, "training.max_rollbacks=0"])


def _pretrain(corpus: Corpus, home: Home, overrides: list[str], rollbacks: list[dict[str, object]] | None = None) -> StageResult:
    def write_rollbacks(spec: JobSpec) -> None:
        if rollbacks is not None:
            write_json(spec.folder / "rollbacks.json", rollbacks)

    settings = load_settings("debug", overrides)
    launcher = ForkedLauncher(before=write_rollbacks)
    return train_stage("vision_pretraining", corpus.root, settings, home, None, None, launcher)


def test_the_manifest_lists_the_files_of_a_checkpoint(tmp_path: Path) -> None:
    manifest = json.loads((_written(tmp_path, [10]).root / checkpoint_tag(10) / "manifest.json").read_text())
    assert manifest["step"] == 10 and manifest["world"] == 1 and set(manifest["files"]) == {"weights.pt", "optimizer.pt"}
