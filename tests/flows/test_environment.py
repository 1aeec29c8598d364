"""What a command settles before it starts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from components.errors import BadInput
from components.home import Home
from flows.environment import explained, settle


@pytest.mark.parametrize(("error", "told"), [(BadInput("no such file", remedy="name another"), False), (ValueError("?"), True)])
def test_an_error_that_says_what_to_do_comes_without_a_traceback(
    error: Exception, told: bool, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.environment.os.environ", {})
    settle(Home(tmp_path / "home", tmp_path / "data"))
    logger = logging.getLogger("prefect.flow_runs")
    assert explained in logger.filters
    logger = logging.getLogger("a run")  # Prefect's own passes nothing on to pytest
    logger.addFilter(explained)
    try:
        raise error
    except Exception:
        logger.exception("Encountered exception during execution: %r", error)
    assert ("Traceback" in caplog.text) == told and str(error) in caplog.text
