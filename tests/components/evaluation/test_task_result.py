"""The page shows examples of every anatomy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from components.evaluation.task_result import EXAMPLES, example_cases

ANATOMIES = {"b": "brain", "k": "knee", "h": "heart", "p": "prostate", "m": "breast"}


@pytest.mark.parametrize(
    ("volumes", "among", "shown"),
    [
        ("bbbbbb", None, [0, 1, 2, 3]),
        ("bbbbbk", None, [0, 1, 2, 5]),
        ("bbkhpm", None, [0, 2, 3, 4, 5]),
        ("bb", None, [0, 1]),
        ("bkbkbk", [1, 3, 4, 5], [1, 3, 4, 5]),
        ("bkbkbk", [], []),
    ],
)
def test_the_first_case_of_each_anatomy_is_shown_and_then_the_first_cases(
    volumes: str, among: list[int] | None, shown: list[int]
) -> None:
    cases = [SimpleNamespace(record=SimpleNamespace(volume_id=volume)) for volume in volumes]
    corpus = SimpleNamespace(volumes={key: SimpleNamespace(anatomy=anatomy) for key, anatomy in ANATOMIES.items()})
    assert example_cases(cast(Any, cases), cast(Any, corpus), among) == shown
    assert len(shown) >= min(EXAMPLES, len(volumes if among is None else among))
