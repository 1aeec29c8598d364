"""Prefect's temporary server: it starts while libraries are imported, and its failure is told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.errors import JobFailed
from flows.server import temporary_server
from flows.server.temporary_server import API_URL, TemporaryServer, await_server, kept_server, launch_server_early
from tests.helpers.ports import free_port

SERVE = """
import http.server, sys
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""


def start(*words: str, port: int) -> TemporaryServer:
    """Return a server that this program implements instead of Prefect, which takes seconds to start."""
    process = subprocess.Popen([sys.executable, "-S", "-c", *words])
    return TemporaryServer(process, f"http://127.0.0.1:{port}/api")


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TemporaryServer]:
    """A server that an early launch starts."""
    port = free_port()
    server = start(SERVE, str(port), port=port)
    monkeypatch.setattr(TemporaryServer, "launch", lambda: server)
    monkeypatch.setattr(temporary_server, "_server", None)
    monkeypatch.setenv(API_URL, "")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.chdir(tmp_path)
    yield server
    server.stop()
    assert server.process.poll() is not None


def test_clients_find_the_server_by_its_address_and_it_is_none_that_stays(
    launched: TemporaryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kept_server() is None or not kept_server()
    launch_server_early()
    assert temporary_server.os.environ[API_URL] == launched.address and kept_server() is None
    await_server()
    monkeypatch.setenv(API_URL, "http://prefect:4200/api")
    assert kept_server() == "http://prefect:4200/api"


def test_no_server_is_started_beside_one_that_the_environment_names(
    launched: TemporaryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(API_URL, "http://prefect:4200/api")
    launch_server_early()
    await_server()
    assert temporary_server._server is None and kept_server() == "http://prefect:4200/api"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prefect/profiles.toml", ""),
        (".env", "PREFECT_API_URL=http://prefect:4200/api"),
        ("prefect.toml", ""),
        ("pyproject.toml", "[tool.prefect.api]\nurl = 'http://prefect:4200/api'"),
    ],
)
def test_no_server_is_started_before_prefect_has_read_a_settings_file(
    name: str, content: str, launched: TemporaryServer, tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    launch_server_early()
    assert temporary_server._server is None


def test_a_server_that_does_not_start_is_named_with_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIMRI_HOME", str(tmp_path))
    (tmp_path / "prefect").mkdir()
    with pytest.raises(JobFailed, match="did not start \\(status 3\\)"):
        start("raise SystemExit(3)", port=free_port()).wait()


def test_a_database_that_is_none_ends_the_real_server_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one test here that starts Prefect: it must end by itself instead of trying again without end."""
    monkeypatch.setenv("OMNIMRI_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{tmp_path}/prefect/prefect.db")
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "prefect.db").write_text("another program's file " * 100)
    with pytest.raises(JobFailed, match="did not start") as caught:
        TemporaryServer.launch().wait()
    assert str(tmp_path / "prefect") in str(caught.value)
