"""Checkpoints: whole or not used, kept by their rule, and good for any number of processes."""

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
from tests.components.training.test_stages import after_a_checkpoint
from tests.helpers.corpora import tiny_corpus
from tests.helpers.forked import ForkedJob, ForkedLauncher


def _written(folder: Path, steps: list[int], **rule: int) -> Checkpoints:
    """Checkpoints of a stage that has come so far, of two files each."""
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
def test_the_newest_are_kept_and_one_of_every_so_many(tmp_path: Path, rule: dict[str, int], kept: list[int]) -> None:
    assert _written(tmp_path, [10, 20, 30, 40, 50], **rule).complete_steps() == kept
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == sorted(checkpoint_tag(step) for step in kept)


@pytest.mark.parametrize("fault", ["a bit", "cut", "missing"])
def test_one_that_is_damaged_is_set_aside_and_the_one_before_is_used(
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


def test_when_all_are_damaged_nothing_is_trained_in_silence(tmp_path: Path) -> None:
    checkpoints = _written(tmp_path, [10])
    (checkpoints.root / checkpoint_tag(10) / "weights.pt").write_bytes(b"")
    with pytest.raises(JobFailed, match="every checkpoint is damaged"):
        checkpoints.last_valid()


def test_one_without_a_manifest_or_a_name_does_not_count(tmp_path: Path) -> None:
    """Killed while writing, or before the curve was on disk."""
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


def _instructions(processes: int, zero_stage: int, steps: int = 12) -> Settings:
    """Eight samples a step, however many processes share them."""
    stage = "training.instruction_tuning"
    return load_settings(
        "debug",
        [
            f"{stage}.steps={steps}",
            f"{stage}.checkpoint_every=4",
            f"{stage}.micro_batch={8 // processes}",
            f"training.processes={processes}",
            f"training.zero_stage={zero_stage}",
        ],
    )


def _continued(corpus_root: Path, folder: Path, zero_stage: int, before: int, after: int) -> tuple[StageResult, StageResult]:
    """A stage begun by so many processes, killed, and gone on with by others; and the same undisturbed, by the latter."""
    homes = [Home(folder / name, folder / "data") for name in ("moved", "whole")]
    with pytest.raises(JobFailed, match="-9"):
        settings = _instructions(before, zero_stage)
        train_stage("instruction_tuning", corpus_root, settings, homes[0], None, None, after_a_checkpoint(ForkedJob.kill))
    settings = _instructions(after, zero_stage)
    moved, whole = (train_stage("instruction_tuning", corpus_root, settings, home, None, None, ForkedLauncher()) for home in homes)
    return moved, whole


def _assert_same_training(moved: StageResult, whole: StageResult) -> None:
    assert moved.resumed_at in (4, 8) and moved.digest == whole.digest and moved.steps == whole.steps == 12
    for ours, theirs in zip(*(read_lines(one.folder / "curve.jsonl") for one in (moved, whole)), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4), ours["step"]
    ours, theirs = (load_file(one.model_dir / "model.safetensors") for one in (moved, whole))
    for name, weights in theirs.items():
        torch.testing.assert_close(ours[name], weights, atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_begun_by_two_processes_it_is_gone_on_with_by_one(corpus_root: Path, tmp_path: Path, zero_stage: int) -> None:
    """The losses are those of an undisturbed run, and so are the weights and the decoder's average."""
    _assert_same_training(*_continued(corpus_root, tmp_path, zero_stage, before=2, after=1))


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_begun_by_some_processes_it_is_gone_on_with_by_others(
    corpus_root: Path, tmp_path: Path, zero_stage: int, before: int, after: int
) -> None:
    _assert_same_training(*_continued(corpus_root, tmp_path, zero_stage, before, after))


def test_a_broken_slice_is_left_out_and_the_record_says_so(tmp_path: Path) -> None:
    """Voxels that are no numbers: back to the checkpoint, on with other data, as a run does that knows beforehand."""
    import mlflow

    corpus = tiny_corpus(tmp_path / "corpus")
    volume = min(one for one, record in corpus.volumes.items() if record.split == "train")
    voxels = corpus.store.read(volume)
    voxels[3] = np.nan
    corpus.store.write(volume, "voxels", voxels)
    stage = "training.vision_pretraining"
    steps = [f"{stage}.steps=9", f"{stage}.checkpoint_every=4"]
    homes = [Home(tmp_path / name, tmp_path / "data") for name in ("surprised", "warned", "strict")]
    surprised = _pretrain(corpus, homes[0], steps)
    record = read_json(surprised.folder / "rollbacks.json")
    assert 1 <= surprised.rollbacks == len(record) <= 3 and "not finite" in record[0]["reason"]
    assert all(torch.isfinite(tensor).all() for tensor in load_file(surprised.model_dir / "model.safetensors").values())
    tags = mlflow.MlflowClient(homes[0].tracking_uri).get_run(surprised.run_id).data.tags
    assert f"step {record[0]['at']} back to {record[0]['to']}" in tags["omnimri.rollbacks"]
    assert [point["step"] for point in read_lines(surprised.folder / "curve.jsonl")] == list(range(9))

    warned = _pretrain(corpus, homes[1], steps, rollbacks=record)
    ours, theirs = (load_file(one.model_dir / "model.safetensors") for one in (surprised, warned))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    with pytest.raises(JobFailed, match="failed: the loss is not finite"):
        _pretrain(corpus, homes[2], [*steps, "training.max_rollbacks=0"])


def _pretrain(corpus: Corpus, home: Home, overrides: list[str], rollbacks: list[dict[str, object]] | None = None) -> StageResult:
    def know(spec: JobSpec) -> None:
        if rollbacks is not None:
            write_json(spec.folder / "rollbacks.json", rollbacks)

    settings = load_settings("debug", overrides)
    launcher = ForkedLauncher(before=know)
    return train_stage("vision_pretraining", corpus.root, settings, home, None, None, launcher)


def test_what_a_checkpoint_is_made_of_is_written_down(tmp_path: Path) -> None:
    manifest = json.loads((_written(tmp_path, [10]).root / checkpoint_tag(10) / "manifest.json").read_text())
    assert manifest["step"] == 10 and manifest["world"] == 1 and set(manifest["files"]) == {"weights.pt", "optimizer.pt"}
