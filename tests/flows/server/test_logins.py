"""Logins of the servers: one variable each, kept out of files, required beyond this machine."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest
from mlflow.exceptions import RestException

from components.errors import BadInput
from components.home import Home
from flows.cli.main import describe_error
from flows.server.deploy import Deployment
from flows.server.logins import MLFLOW_LOGIN, PREFECT_LOGIN, Logins
from flows.server.supervisor import Addresses, Supervisor
from tests.helpers.ports import free_port

PASSWORD = "correct:horse battery"
BOTH = {PREFECT_LOGIN: f"lab:{PASSWORD}", MLFLOW_LOGIN: f"lab:{PASSWORD}"}


@pytest.mark.parametrize("login", ["lab", ":long enough to count", "lab:short", "lab:"])
@pytest.mark.parametrize("name", [PREFECT_LOGIN, MLFLOW_LOGIN])
def test_a_login_without_user_or_with_a_short_password_is_refused(name: str, login: str) -> None:
    with pytest.raises(BadInput, match="USER:PASSWORD") as refused:
        Logins.read({name: login})
    assert name in str(refused.value) and "long enough" not in str(refused.value) and "short" not in str(refused.value)


@pytest.mark.parametrize("known", [(), (PREFECT_LOGIN,), (MLFLOW_LOGIN,)])
def test_other_machines_need_logins_unless_forced(known: tuple[str, ...]) -> None:
    logins = Logins.read({name: BOTH[name] for name in known})
    logins.require_for("127.0.0.1", is_forced=False)
    logins.require_for("0.0.0.0", is_forced=True)
    with pytest.raises(BadInput, match="--without-login") as refused:
        logins.require_for("0.0.0.0", is_forced=False)
    assert all((name in str(refused.value)) == (name not in known) for name in BOTH)
    Logins.read(BOTH).require_for("0.0.0.0", is_forced=False)


def test_clients_get_the_logins_and_no_file_contains_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, login in BOTH.items():
        monkeypatch.setenv(name, login)
    home, logins = Home(tmp_path / "home", tmp_path / "data"), Logins.read(os.environ)
    supervisor = Supervisor(home, Addresses(), Deployment(), [], print, logins)
    worker = supervisor.children["worker"].environment
    assert worker["PREFECT_API_AUTH_STRING"] == f"lab:{PASSWORD}" and worker["MLFLOW_TRACKING_PASSWORD"] == PASSWORD
    home.mlflow.mkdir(parents=True)
    assert logins.prepare_mlflow(home)["MLFLOW_AUTH_ADMIN_PASSWORD"] == PASSWORD
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and PASSWORD in path.read_text()]
    words = [word for child in supervisor.children.values() for word in child.command]
    assert PASSWORD not in repr(logins) and not any(PASSWORD in word for word in words)


def test_mlflow_lets_nobody_in_without_the_login(tmp_path: Path) -> None:
    """The real server, below a path that addresses must quote, with the users of an earlier start."""
    home, port = Home(tmp_path / "a b?%41#", tmp_path / "data"), free_port()
    home.mlflow.mkdir(parents=True)
    (home.mlflow / "login.db").write_text("users of an earlier start")
    logins = Logins.read({MLFLOW_LOGIN: f"lab:{PASSWORD}"})
    supervisor = Supervisor(home, Addresses(mlflow_port=port), Deployment(), [], print, logins)
    child = supervisor.children["mlflow"]
    child.environment |= logins.prepare_mlflow(home)
    child.start()
    try:
        supervisor._await("mlflow", f"http://127.0.0.1:{port}/health")
        ask = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0"
        logged_in = [None, ("lab", "wrong password"), ("lab", PASSWORD)]
        assert [httpx.get(ask, auth=auth, timeout=60).status_code for auth in logged_in] == [401, 401, 200]
    finally:
        child.stop()


def test_a_refused_request_names_the_variable(tmp_path: Path) -> None:
    error = RestException({"error_code": "UNAUTHENTICATED", "message": "failed with error code 401 != 200"})
    described = describe_error(error, Home(tmp_path, tmp_path))
    assert described is not None and MLFLOW_LOGIN in str(described) and described.exit_code == 2
