"""What a command settles before it starts."""

from __future__ import annotations

import logging

import pytest

from components.errors import BadInput
from flows.environment import explained


@pytest.mark.parametrize(("error", "told"), [(BadInput("no such file", remedy="name another"), False), (ValueError("?"), True)])
def test_an_error_that_says_what_to_do_comes_without_a_traceback(
    error: Exception, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("a run")
    logger.addFilter(explained)
    try:
        raise error
    except Exception:
        logger.exception("Encountered exception during execution: %r", error)
    assert ("Traceback" in caplog.text) == told and str(error) in caplog.text
