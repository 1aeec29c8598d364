"""What ``omnimri predict`` prints of its answers."""

from __future__ import annotations

import numpy as np
import pytest

from components.inference.prediction import Prediction
from flows.cli.predict import _print_predictions


@pytest.mark.parametrize(
    ("streamed", "printed"),
    [
        ("", "One lesion, left.\n"),
        ("One lesion, left. ", ""),  # as it was written
        ("No lesion.", "One lesion, left.\n"),  # the masks show one: the answer on the screen is that of the files
    ],
)
def test_the_last_words_on_the_screen_are_those_of_the_files(
    streamed: str, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = Prediction("report", "One lesion, left.", (0,), np.eye(4), np.zeros((4, 4), np.float32))
    _print_predictions([answer], [[]], False, streamed, None)
    shown = capsys.readouterr()
    assert shown.out == printed
    assert ("header" in shown.err) == bool(streamed and printed)
