"""Prefect's temporary server for one command, in a session of its own: ``python -m flows.server.temporary_server SOCKET PARENT``.

Batch systems, service managers, ``timeout`` and Ctrl-C send their signal to the whole process group. A server in the same group
would end first, and the command would then wait for it to record its own end. In its own session the server outlives the command as
long as it is needed: it is stopped at exit, or by the kernel when the command is killed.

The server starts while the command imports its libraries, so nothing here imports Prefect. Clients find it by ``PREFECT_API_URL``.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from components.errors import JobFailed
from components.home import Home
from components.machine_faults import find_write_fault
from components.processes import end_with_parent

API_URL = "PREFECT_API_URL"
APPLICATION = "prefect.server.api.server:create_app"
_POLL_S = 0.05


@dataclass
class TemporaryServer:
    """A server and its address; it listens from the beginning, and answers when it has started."""

    process: subprocess.Popen[bytes]
    address: str

    @classmethod
    def launch(cls) -> TemporaryServer:
        """Start the server without waiting for it. It is stopped at exit, after what was registered later."""
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen(socket.SOMAXCONN)
            own = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
            command = [sys.executable, "-m", __name__, str(listening.fileno()), str(os.getpid())]
            process = subprocess.Popen(command, env={**os.environ, **own}, start_new_session=True, pass_fds=[listening.fileno()])
            server = cls(process, f"http://127.0.0.1:{listening.getsockname()[1]}/api")
        atexit.register(server.stop)
        return server

    def wait(self) -> None:
        """Wait until the server answers.

        Raises:
            MachineFault: its folder cannot be written.
            JobFailed: it ends, or does not answer in time.
        """
        deadline = time.monotonic() + int(os.environ.get("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180"))
        while self.process.poll() is None and (remaining := deadline - time.monotonic()) > 0:
            if self._answers(remaining):
                return
            time.sleep(_POLL_S)
        status = self.process.poll()
        self.stop()
        home = Home.open()
        if fault := find_write_fault(home.prefect):
            raise fault
        raise JobFailed(
            f"did not start (status {status})" if status is not None else "does not answer in time",
            where="Prefect's temporary server",
            remedy=f"the log of this command has its message; its database is in {home.prefect}",
        )

    def _answers(self, timeout_s: float) -> bool:
        """Return whether the server answers within a time; it closes the connection when it ends."""
        address = f"{self.address}/health"
        with suppress(OSError), urllib.request.urlopen(address, timeout=timeout_s) as reply:  # noqa: S310 (our own address)
            return bool(reply.status == 200)
        return False

    def stop(self) -> None:
        """Stop the server and wait for its end."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


_server: TemporaryServer | None = None


def kept_server() -> str | None:
    """Return the address of a server that outlives this command; None if there is only the temporary one."""
    address = os.environ.get(API_URL)
    return None if _server is not None and address == _server.address else address


def launch_server() -> None:
    """Start the temporary server of this process, unless it has one or ``PREFECT_API_URL`` names a server, and name it there."""
    global _server
    if not os.environ.get(API_URL):
        _server = TemporaryServer.launch()
        os.environ[API_URL] = _server.address


def launch_server_early() -> None:
    """Start the temporary server before Prefect is imported, unless a settings file of Prefect may name another server."""
    if not any(path.is_file() for path in _settings_files()) and not _in_pyproject():
        launch_server()


def await_server() -> None:
    """Wait until the temporary server of this process answers; return at once if it has none.

    Raises:
        MachineFault, JobFailed: it does not start.
    """
    if _server is not None and os.environ.get(API_URL) == _server.address:
        _server.wait()


def _settings_files() -> list[Path]:
    """Return the files from which Prefect reads settings, besides ``pyproject.toml``."""
    prefect_home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH", prefect_home / "profiles.toml"))
    return [profiles, Path(".env"), Path("prefect.toml")]


def _in_pyproject() -> bool:
    """Return whether the current folder's ``pyproject.toml`` has settings of Prefect."""
    with suppress(OSError, ValueError):
        return "prefect" in tomllib.loads(Path("pyproject.toml").read_text()).get("tool", {})
    return False


def main(descriptor: int, parent: int) -> None:
    """Serve until stopped, or until the parent process ends.

    Args:
        descriptor: of the socket that listens.
        parent: process id of the command.
    """
    end_with_parent(parent)
    import uvicorn

    config = uvicorn.Config(APPLICATION, factory=True, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    server.run(sockets=[socket.socket(fileno=descriptor)])
    sys.exit(0 if server.started else 1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
