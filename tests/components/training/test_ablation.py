"""Each part of the network that the ablation benchmark turns off is a setting that decides the weights."""

from __future__ import annotations

import pytest

from benchmarks.ablation import PARTS, WHOLE
from components.settings import load_settings
from components.training.trained_stage import stage_digest
from model_core import OmniMRIConfig


@pytest.mark.parametrize("part", sorted(PARTS))
def test_a_run_without_a_part_is_another_run(part: str) -> None:
    variant = PARTS[part]
    whole, without = load_settings("demo"), load_settings("demo", list(variant.overrides))
    same = stage_digest("instruction_tuning", whole, "corpus") == stage_digest("instruction_tuning", without, "corpus")
    assert same == (not variant.overrides) and (variant.overrides or variant.stages != WHOLE.stages)


def test_the_codes_of_the_settings_are_those_of_the_network() -> None:
    default = OmniMRIConfig.from_preset("demo")
    codes = load_settings("demo").model.codes
    assert {name: getattr(default, name) for name in codes} == codes
    assert (
        OmniMRIConfig.from_preset(
            "demo", **load_settings("demo", ["model.position_frequencies=0"]).model.codes
        ).position_frequencies
        == 0
    )
