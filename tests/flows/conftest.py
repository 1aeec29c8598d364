"""A real Prefect server on SQLite for all tests of a session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from flows.server.supervisor import answers
from tests.helpers.ports import free_port
from tests.helpers.served import wait


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the server, make it that of this process, and yield the address of its API."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    settings = {**clean, "PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=settings, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}/api"
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    try:
        wait(lambda: answers(f"{address}/health"), 1000, "start of the server")
        with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_API_URL: address, PREFECT_HOME: home}):
            patch.setenv("PREFECT_API_URL", address)
            patch.setenv("PREFECT_HOME", str(home))
            yield address
    finally:
        process.terminate()
        process.wait(30)
