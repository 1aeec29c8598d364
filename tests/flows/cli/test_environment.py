"""The environment that a command sets before it starts."""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from components.errors import BadInput, JobFailed
from components.home import Home
from components.processes import STOP_SIGNALS
from flows.cli import main, run_log
from flows.cli.environment import drop_traceback, set_defaults
from flows.server.supervisor import SERVICES, running_services
from tests.helpers.faulty_files import FaultyDisk


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


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_request_to_stop_ends_a_command_with_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    """Whatever runs, its cleanup takes place, and the status is that of the signal."""
    cleaned: list[bool] = []

    def command() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        except Exception:  # a handler of errors does not stop it
            pass
        finally:
            cleaned.append(True)

    monkeypatch.setattr(main, "app", command)
    monkeypatch.setattr(main, "set_defaults", lambda home: None)
    monkeypatch.setattr(run_log, "enable", lambda: None)
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    try:
        with pytest.raises(SystemExit) as ended:
            main.main()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert ended.value.code == 128 + number and cleaned
    assert "stopped on request" in capsys.readouterr().err


def test_a_home_that_cannot_be_written_does_not_keep_help_from_being_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.cli.environment.os.environ", {})
    with FaultyDisk(tmp_path, errno.EACCES, lasting=True).mounted() as disk:
        set_defaults(Home(tmp_path / "home", tmp_path / "data"))
    assert disk.failed


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_record_of_services_means_that_none_run(tmp_path: Path, content: str) -> None:
    (tmp_path / SERVICES).write_text(content)
    assert running_services(Home(tmp_path, tmp_path / "data")) is None


def test_an_error_of_the_tracking_store_is_a_sentence_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@db/mlflow")
    home = Home(tmp_path, tmp_path / "data")
    described = main.describe_error(MlflowException("Run 'x' not found", error_code=RESOURCE_DOES_NOT_EXIST), home)
    assert isinstance(described, JobFailed) and "not found" in str(described) and "secret" not in str(described)
    assert main.describe_error(ValueError("a bug"), home) is None
