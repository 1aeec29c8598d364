"""A stage of a plugin: one module and one entry, then settings, digests and the trainer process know it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from components import registries
from components.errors import BadInput
from components.files import read_lines
from components.registries import PLUGINS, STAGES
from components.settings import Settings, load_settings
from components.training import stage_digest, stage_inputs, stage_jobs, train_stage
from tests.helpers.corpora import tiny_corpus
from tests.helpers.forked import ForkedLauncher
from tests.helpers.mlflow_store import new_home

PLUGIN = "tests.helpers.toys.toy_stage"
STAGE = "segmentation_tuning"
SIZES = {"steps": 2, "micro_batch": 2, "warmup_steps": 0, "checkpoint_every": 1, "mixture": {"instruction": 1}}


@pytest.fixture(autouse=True)
def plugin() -> Iterator[None]:
    """Register the stage for each test of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PLUGINS, PLUGIN)
        assert STAGE in STAGES
        yield
        del STAGES._entries[STAGE], registries._imported[PLUGIN], sys.modules[PLUGIN]
        STAGES._objects.pop(STAGE, None)


def _settings(**changes: float) -> Settings:
    return load_settings("debug", [f"training.{STAGE}={yaml.safe_dump({**SIZES, **changes}, default_flow_style=True)}"])


def test_it_is_trained_after_the_four_where_the_profile_mentions_it(tmp_path: Path) -> None:
    home = new_home(tmp_path)
    assert _settings().training.stages_until() == (*STAGES.built_in, STAGE)
    assert load_settings("debug").training.stages_until() == STAGES.built_in
    assert [job.name for job in stage_jobs("corpus", _settings(), home)][-1] == STAGE
    assert _settings().training.last_stage("5") == STAGE
    with pytest.raises(BadInput, match="no such stage in this profile"):
        load_settings("debug").training.stage(STAGE)


def test_its_own_settings_are_validated_stored_and_part_of_its_digest() -> None:
    settings = _settings(penalty=0.5)
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings
    assert stage_digest(STAGE, settings, "corpus") != stage_digest(STAGE, _settings(penalty=0.25), "corpus")
    with pytest.raises(BadInput, match=rf"training\.{STAGE}\.penalty"):
        _settings(penalty=-1)


def test_the_code_of_a_plugin_is_part_of_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    with_plugin = stage_inputs("alignment", load_settings("debug"), "corpus")["code of training"]
    monkeypatch.setenv(PLUGINS, "")
    assert stage_inputs("alignment", load_settings("debug"), "corpus")["code of training"] != with_plugin


def test_the_trainer_process_imports_and_trains_it(tmp_path: Path) -> None:
    corpus, home = tiny_corpus(tmp_path / "corpus"), new_home(tmp_path / "home")
    result = train_stage(STAGE, corpus.root, _settings(), home, None, None, ForkedLauncher())
    points = read_lines(result.folder / "curve.jsonl")
    assert result.steps == len(points) == 2 and (result.model_dir / "model.safetensors").exists()
    assert all(point["l2"] > 0 and point["task/segmentation"] > 0 for point in points)
    assert not any(name.startswith("task/") and name != "task/segmentation" for point in points for name in point)
