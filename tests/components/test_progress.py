"""Progress: one line for each step where there is no terminal, bars and lines on a terminal, nothing without a display."""

from __future__ import annotations

import re
from io import StringIO

import pytest

from components.progress import hide_bars, report, show_on, show_status, step, track


class Terminal(StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def work(fail: bool = False) -> None:
    with step("curate") as running:
        assert list(track(range(3), "volumes")) == [0, 1, 2]
        show_status("half done")
        if fail:
            raise ValueError
        running.result = "3 volumes [new]"


def test_a_file_gets_one_line_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    stream = StringIO()
    with show_on(stream):
        work()
        report("warning: one split is empty")
    first, second = stream.getvalue().splitlines()
    assert re.fullmatch(r"curate {23}3 volumes \[new\] \(0\.\d s\)", first) and second == "warning: one split is empty"
    assert capsys.readouterr().err == "half done\n"


def test_a_step_that_fails_is_named() -> None:
    stream = StringIO()
    with pytest.raises(ValueError), show_on(stream):
        work(fail=True)
    assert re.fullmatch(r"curate +failed \(0\.\d s\)\n", stream.getvalue())


def test_a_terminal_gets_the_same_lines_and_no_bar_stays(capsys: pytest.CaptureFixture[str]) -> None:
    stream = Terminal()
    with show_on(stream):
        work()
        hide_bars()
    assert "3 volumes [new] (0." in stream.getvalue() and capsys.readouterr().err == ""


def test_without_a_display_steps_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    work()
    report("not shown")
    assert capsys.readouterr() == ("", "half done\n")
