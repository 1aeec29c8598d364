"""Jobs as processes of this machine: one process directly, several through ``torchrun``."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from components.errors import JobFailed
from components.launching.job import JobSpec, JobState, JobStatus
from components.provenance import REPOSITORY

GRACE_S, SAY_EVERY_S = 60.0, 10.0
SHOWN_LINES = 15
INTERRUPTED = 75
"""Exit status of a job that was asked to stop, wrote a checkpoint and stopped (EX_TEMPFAIL)."""


@dataclass
class LocalHandle:
    """A process and its log."""

    job: JobSpec
    process: subprocess.Popen[bytes]
    log: Path
    _said: str = ""

    @property
    def key(self) -> str:
        """Its name."""
        return self.job.key

    def status(self) -> JobStatus:
        """Where it is now."""
        ended = self.process.poll()
        state = JobState.running if ended is None else JobState.failed if ended else JobState.succeeded
        return JobStatus(self.key, state, f"status {ended}" if ended else "")

    def wait(self) -> None:
        """Wait for success.

        Raises:
            JobFailed: with the last lines of the log and where the rest is.
        """
        try:
            while (status := self._poll()) is None:
                self._relay()
        except BaseException:
            self.cancel()
            raise
        if status == INTERRUPTED:
            raise JobFailed(
                "was asked to stop and wrote a checkpoint", where=self.job.name, remedy="run again: it goes on from there"
            )
        if status != 0:
            tail = "\n".join(self.logs().splitlines()[-SHOWN_LINES:])
            raise JobFailed(f"ended with status {status}:\n{tail}", where=self.job.name, remedy=f"the whole log: {self.log}")

    def _poll(self) -> int | None:
        """Exit status, or None after a while without one."""
        try:
            return self.process.wait(SAY_EVERY_S)
        except subprocess.TimeoutExpired:
            return None

    def _relay(self) -> None:
        """Show the job's newest line of progress on standard error."""
        lines = [line for line in self.logs().splitlines() if line.startswith(f"{self.job.name} ")]
        if lines and lines[-1] != self._said:
            self._said = lines[-1]
            print(self._said, file=sys.stderr, flush=True)

    def cancel(self) -> None:
        """SIGTERM, and after a minute SIGKILL."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def logs(self) -> str:
        """Standard output and error so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class LocalLauncher:
    """Processes that share this machine's cores. They end with the process that started them, so there are none to find again."""

    def __init__(self) -> None:
        self._started: list[LocalHandle] = []

    def submit(self, job: JobSpec) -> LocalHandle:
        """Start the job's processes; their output goes to ``<folder>/<name>.log``."""
        job.folder.mkdir(parents=True, exist_ok=True)
        log = job.folder / f"{job.name}.log"
        command = [sys.executable, "-m", job.module, *job.arguments]
        environment = {
            **os.environ,
            **job.environment,
            "PYTHONPATH": os.pathsep.join(path for path in (str(REPOSITORY), os.environ.get("PYTHONPATH")) if path),
        }
        # The environment's own tools (ninja) are found though nobody activated it.
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        threads = max((os.cpu_count() or 1) // job.processes, 1)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        if job.processes == 1:
            environment.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))
        else:
            command[1:3] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job.processes}", "-m", job.module]
        with log.open("ab") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment, cwd=REPOSITORY)
        self._started.append(LocalHandle(job, process, log))
        return self._started[-1]

    def find(self, key: str) -> LocalHandle:
        """A job that this launcher started.

        Raises:
            JobFailed: it started none of this name.
        """
        for handle in self._started:
            if handle.key == key:
                return handle
        raise JobFailed("no such job", where=key, remedy="it ended with the process that started it")

    def jobs(self) -> list[JobStatus]:
        """The jobs that this launcher started."""
        return [handle.status() for handle in self._started]

    def clean_up(self) -> list[str]:
        """Forget those that ended; their logs stay."""
        ended = [handle for handle in self._started if handle.status().state.ended]
        self._started = [handle for handle in self._started if handle not in ended]
        return [handle.key for handle in ended]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
