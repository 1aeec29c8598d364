"""The environment that a command sets before it starts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from components.errors import BadInput
from components.home import Home
from flows.cli.environment import drop_traceback, set_defaults


@pytest.mark.parametrize(
    ("error", "traceback"), [(BadInput("no such file", remedy="name another"), False), (ValueError("?"), True)]
)
def test_a_user_facing_error_is_logged_without_a_traceback(
    error: Exception, traceback: bool, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.cli.environment.os.environ", {})
    set_defaults(Home(tmp_path / "home", tmp_path / "data"))
    logger = logging.getLogger("prefect.flow_runs")
    assert drop_traceback in logger.filters
    logger = logging.getLogger("a run")  # Prefect's own logger does not propagate to pytest
    logger.addFilter(drop_traceback)
    try:
        raise error
    except Exception:
        logger.exception("Encountered exception during execution: %r", error)
    assert ("Traceback" in caplog.text) == traceback and str(error) in caplog.text
