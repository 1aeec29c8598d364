"""Server that imports libraries once and forks for each job: importing them takes longer than starting a short job.

``python -m components.launching.fork_server MODULE ...`` reads one request for each job from standard input and writes two
lines to standard output: the job's process id, then its exit status. It runs one job at a time and ends with its standard input. A
job runs as the main module of its own process, as if by ``python -m``.

A process that has used a GPU must not fork, so machines with one do not use this module.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from components.processes import end_with_parent
from components.provenance import REPOSITORY

_CHECK_S = 0.05


class ForkedProcess:
    """A job's process, with the methods of :class:`subprocess.Popen` that launchers use."""

    def __init__(self, server: subprocess.Popen[str], module: str, arguments: Sequence[str], log: Path) -> None:
        self._server = server
        request = {"module": module, "arguments": list(arguments), "log": str(log.resolve())}
        with suppress(BrokenPipeError):
            _pipe(server.stdin).write(json.dumps(request) + "\n")
            _pipe(server.stdin).flush()
        try:
            reply = _pipe(server.stdout).readline()
        except BaseException:  # a request to stop while the server imports: it must not start the job afterwards
            _pipe(server.stdin).close()
            raise
        self.pid = int(reply) if reply else server.pid
        self._status: int | None = None if reply else self._end_of_server()

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status: negative for the number of a signal.

        Raises:
            subprocess.TimeoutExpired: the process still runs after ``timeout`` seconds.
        """
        if self._status is None:
            replies = _pipe(self._server.stdout)
            if not select.select([replies], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self._server.args, timeout or 0.0)
            reply = replies.readline()
            self._status = int(reply) if reply else self._end_of_server()
        return self._status

    def _end_of_server(self) -> int:
        """Return the exit status of a server that has ended, which its job survives for no longer than a checkpoint takes."""
        return self._server.wait() or 1

    def poll(self) -> int | None:
        """Return the exit status, or None while the process runs."""
        try:
            return self.wait(0.0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Send a signal unless the process has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ForkServers:
    """The servers of this process: one for each environment, and one more for each job beside another."""

    def __init__(self) -> None:
        self._servers: list[tuple[object, subprocess.Popen[str], ForkedProcess]] = []
        self._owner = os.getpid()

    def start(
        self, module: str, arguments: Sequence[str], log: Path, environment: dict[str, str], imports: Sequence[str]
    ) -> ForkedProcess:
        """Start a job; its output is appended to ``log``.

        Args:
            environment: variables of the job's process.
            imports: modules that the server imports.
        """
        if self._owner != os.getpid():  # a fork of the process that talks to these servers
            self._servers, self._owner = [], os.getpid()
        key = environment, tuple(imports)
        server = self._take_idle(key) or _start_server(environment, imports)
        process = ForkedProcess(server, module, arguments, log)
        self._servers.append((key, server, process))
        return process

    def _take_idle(self, key: object) -> subprocess.Popen[str] | None:
        """Remove an idle server from the list and return it; stop those that have another environment."""
        idle = [entry for entry in self._servers if entry[2].poll() is not None]
        self._servers = [entry for entry in self._servers if entry not in idle]
        usable = [server for its_key, server, _ in idle if its_key == key and server.poll() is None]
        for _, server, _ in idle:
            if server not in usable[:1]:
                _pipe(server.stdin).close()
        return usable[0] if usable else None


def _start_server(environment: dict[str, str], imports: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", __name__, *imports]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        cwd=REPOSITORY,
    )


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def serve(requests: IO[str], replies: IO[str]) -> dict[str, object] | None:
    """Fork for each request; return the request in the process of a job, None in the server at its end."""
    for line in requests:
        if _has_ended(requests, 0.0):
            return None
        pid = os.fork()
        if pid == 0:
            requests.close()
            replies.close()  # open here, it would hide the end of the server
            request: dict[str, object] = json.loads(line)
            return request
        print(pid, file=replies, flush=True)
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if _has_ended(requests, _CHECK_S):
                return None
        print(os.waitstatus_to_exitcode(ended[1]), file=replies, flush=True)
    return None


def _has_ended(requests: IO[str], timeout_s: float) -> bool:
    """Return whether the launcher has ended: it sends no further request before it knows how the job ended."""
    return bool(select.select([requests], [], [], timeout_s)[0])


def main(imports: Sequence[str]) -> None:
    """Serve until standard input ends, or run a job in a process of its own."""
    # A request to stop reaches the whole process group: the job obeys it, and the server tells how the job ended.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    _redirect(os.devnull, 0, 1)  # what libraries print when they are imported is no reply
    gc.disable()  # imports leave no cyclic garbage; looking for it is a seventh of their time
    for name in imports:
        with suppress(Exception):  # the job imports it again, and its log shows the error
            importlib.import_module(name)
    gc.freeze()
    gc.enable()
    sys.stdout.flush()
    server = os.getpid()
    request = serve(requests, replies)
    if request is None:
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_with_parent(server)
    _redirect(str(request["log"]), 1, 2)
    arguments = request["arguments"]
    assert isinstance(arguments, list)
    sys.argv = [str(request["module"]), *arguments]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _redirect(path: str, *descriptors: int) -> None:
    """Let file descriptors read from a file and append to it."""
    opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    for descriptor in descriptors:
        os.dup2(opened, descriptor)
    os.close(opened)


if __name__ == "__main__":
    main(sys.argv[1:])
