"""Prefect's temporary server for one command, in a session of its own: ``python -m flows.server.temporary_server PORT PARENT``.

Batch systems, service managers, ``timeout`` and Ctrl-C send their signal to the whole process group. A server in the same group
would end first, and the command would then wait for it to record its own end. In its own session the server outlives the command as
long as it is needed: it is stopped at exit, or by the kernel when the command is killed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from prefect.server.api.server import SubprocessASGIServer

from components.errors import JobFailed
from components.home import Home
from components.machine_faults import find_write_fault
from components.processes import end_with_parent

PORT_TAKEN = 3
"""Status with which uvicorn ends when it cannot listen, and also when the server cannot open its database."""
ATTEMPTS = 3
APPLICATION = "prefect.server.api.server:create_app"


class TemporaryServer(SubprocessASGIServer):
    """The server that Prefect's clients find in place of the one that they would start themselves."""

    def start(self, timeout: int | None = None) -> None:
        """Start the server and wait until it answers.

        Raises:
            MachineFault: its folder cannot be written.
            JobFailed: it ends, or does not answer in time.
        """
        if self.running:
            return
        import atexit

        atexit.register(self.stop)
        deadline = time.monotonic() + (timeout or int(os.environ.get("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")))
        for _ in range(ATTEMPTS):
            self.port = _free_port()
            self.server_process = self._run_uvicorn_command()
            self.running = self._await(deadline)
            if self.running:
                return
            status = self.server_process.poll()
            if status != PORT_TAKEN:
                break
        self.stop()
        home = Home.open()
        if fault := find_write_fault(home.prefect):
            raise fault
        raise JobFailed(
            f"did not start (status {status})" if status is not None else "does not answer in time",
            where="Prefect's temporary server",
            remedy=f"the log of this command has its message; its database is in {home.prefect}",
        )

    def _await(self, deadline: float) -> bool:
        """Return whether the server answers before it ends and before a time of the monotonic clock, seconds."""
        assert self.server_process is not None
        while self.server_process.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.api_url}/health", timeout=5) as reply:  # noqa: S310 (our own address)
                    if reply.status == 200:
                        return True
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        return False

    def _run_uvicorn_command(self) -> subprocess.Popen[bytes]:
        from prefect.settings import get_current_settings

        own = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        command = [sys.executable, "-m", __name__, str(self.port), str(os.getpid())]
        return subprocess.Popen(command, env={**os.environ, **own, **settings}, start_new_session=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main(port: int, parent: int) -> None:
    """Serve until stopped, or until the parent process ends."""
    import uvicorn

    end_with_parent(parent)
    uvicorn.run(APPLICATION, factory=True, host="127.0.0.1", port=port, log_level="error", lifespan="on")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
