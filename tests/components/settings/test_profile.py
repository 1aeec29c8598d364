"""Settings are typed, and an error names the field and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.errors import BadInput
from components.settings import load_settings, profiles

TABLE_2 = {
    "vision_pretraining": (1.0, 0.0, 0.0),
    "alignment": (0.0, 1.0, 0.0),
    "multimodal_pretraining": (0.0, 0.8, 0.2),
    "instruction_tuning": (0.0, 0.0, 1.0),
}


@pytest.mark.parametrize("profile", profiles())
def test_every_profile_parses_and_keeps_the_papers_mixture(profile: str) -> None:
    training = load_settings(profile).training
    assert list(training.stages) == list(TABLE_2)
    for stage in TABLE_2:
        mixture = training.stage(stage).mixture
        assert (mixture.image_only, mixture.paired, mixture.instruction) == TABLE_2[stage]


def test_an_override_changes_one_field_and_the_digest_of_its_section_alone() -> None:
    before, after = load_settings("demo"), load_settings("demo", ["training.processes=2"])
    assert after.training.processes == 2
    assert before.training.digest() != after.training.digest()
    assert before.curation.digest() == after.curation.digest()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("training.zero_stage=7", "training.zero_stage"),
        ("training.optimizer_bits=16", "training.optimizer_bits"),
        ("curation.matrx=96", "curation.matrx"),
        ("training.alignment.mixture={paired: 0.5}", "must sum to 1"),
        ("curation={validation_fraction: 0.6, test_fraction: 0.6}", "no patients to train on"),
        ("training.alignment.micro_batch=1", "set alignment.micro_batch to 2"),
        ("training.keep_every=70", "no multiple of vision_pretraining.checkpoint_every"),
        ("training.zero_stag=1", r"training\.zero_stag: no such setting or stage"),
        ("training.alignment.stepz=1", r"training\.alignment\.stepz"),
        ("training", "section.field=value"),
    ],
)
def test_an_invalid_override_is_rejected_by_name(override: str, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        load_settings("demo", [override])


def test_a_missing_or_broken_profile_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="choose one of"):
        load_settings("no-such-profile")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(BadInput, match="not YAML"):
        load_settings(str(broken))
