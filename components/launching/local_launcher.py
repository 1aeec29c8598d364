"""Run jobs as processes on this machine: a single process directly or by a fork server, several through torchrun's agent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from components.errors import JobFailed
from components.launching.fork_server import ForkedProcess, ForkServers
from components.launching.job import INTERRUPTED, JobSpec, JobState, JobStatus, program_lines
from components.machine_faults import find_write_fault
from components.progress import show_status
from components.provenance import REPOSITORY

GRACE_S, PROGRESS_INTERVAL_S = 60.0, 10.0
TAIL_LINES = 15
ELASTIC_AGENT = "components.launching.elastic_agent"
"""Module that connects several processes. Not imported here: it runs as ``__main__``."""
GPU_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
"""Device files of the drivers of NVIDIA and AMD."""
_fork_servers = ForkServers()


@dataclass
class LocalHandle:
    """A process and its log file."""

    job: JobSpec
    process: subprocess.Popen[bytes] | ForkedProcess
    log: Path
    _last_reported: str = ""

    @property
    def key(self) -> str:
        """Unique name of the job."""
        return self.job.key

    def status(self) -> JobStatus:
        """Return the current status."""
        exit_status = self.process.poll()
        state = JobState.running if exit_status is None else JobState.failed if exit_status else JobState.succeeded
        return JobStatus(self.key, state, f"status {exit_status}" if exit_status else "")

    def wait(self) -> None:
        """Wait until the job succeeds.

        Raises:
            JobFailed: with the last lines of the log and its path.
        """
        try:
            while (exit_status := self._wait_for_exit()) is None:
                self._report_progress()
        except BaseException:
            self.cancel()
            raise
        if exit_status == INTERRUPTED:
            raise JobFailed(
                "stopped on request and wrote a checkpoint",
                where=self.job.name,
                remedy="run again: it resumes from that checkpoint",
            )
        if exit_status != 0:
            if fault := find_write_fault(self.job.folder):  # its own message could not be written either
                raise fault
            tail = "\n".join(program_lines(self.logs().splitlines())[-TAIL_LINES:])
            raise JobFailed(
                f"exited with status {exit_status}:\n{tail}", where=self.job.name, remedy=f"see the full log: {self.log}"
            )

    def _wait_for_exit(self) -> int | None:
        """Return the exit status, or None if the process still runs after :data:`PROGRESS_INTERVAL_S`."""
        try:
            return self.process.wait(PROGRESS_INTERVAL_S)
        except subprocess.TimeoutExpired:
            return None

    def _report_progress(self) -> None:
        """Print the job's latest progress line on standard error, unless it was printed before."""
        lines = [line for line in self.logs().splitlines() if line.startswith(f"{self.job.name} ")]
        if lines and lines[-1] != self._last_reported:
            self._last_reported = lines[-1]
            show_status(self._last_reported)

    def cancel(self) -> None:
        """Send SIGTERM, and SIGKILL after :data:`GRACE_S`."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def logs(self) -> str:
        """Return standard output and standard error so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class LocalLauncher:
    """Launches processes that share this machine's cores.

    Jobs end with the process that started them, so only jobs of this launcher can be found.
    """

    def __init__(self) -> None:
        self._started: list[LocalHandle] = []

    def submit(self, job: JobSpec) -> LocalHandle:
        """Start the job's processes; their output is appended to ``<folder>/<name>.log``."""
        job.folder.mkdir(parents=True, exist_ok=True)
        log = job.folder / f"{job.name}.log"
        environment = {
            **os.environ,
            **job.environment,
            "PYTHONPATH": os.pathsep.join(path for path in (str(REPOSITORY), os.environ.get("PYTHONPATH")) if path),
        }
        # Tools of the virtual environment (ninja) must be found even if it is not activated.
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        threads = max((os.cpu_count() or 1) // job.processes, 1)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        if job.processes == 1:
            # Port 0: torch takes a free one, which no other process needs to know.
            environment.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        process: subprocess.Popen[bytes] | ForkedProcess
        if job.processes == 1 and job.imports and not any(path.exists() for path in GPU_DEVICES):
            process = _fork_servers.start(job.module, job.arguments, log, environment, job.imports)
        else:
            process = _start(job, log, environment)
        self._started.append(LocalHandle(job, process, log))
        return self._started[-1]

    def find(self, key: str) -> LocalHandle:
        """Return a job that this launcher started.

        Raises:
            JobFailed: this launcher started no job with this key.
        """
        for handle in self._started:
            if handle.key == key:
                return handle
        raise JobFailed("no such job", where=key, remedy="local jobs end with the process that started them: submit it again")

    def jobs(self) -> list[JobStatus]:
        """Return the status of the jobs that this launcher started."""
        return [handle.status() for handle in self._started]

    def clean_up(self) -> list[str]:
        """Forget finished jobs and return their keys; their logs are kept."""
        finished = [handle for handle in self._started if handle.status().state.finished]
        self._started = [handle for handle in self._started if handle not in finished]
        return [handle.key for handle in finished]


def _start(job: JobSpec, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a job's process, or the agent that starts several."""
    program = [job.module, *job.arguments]
    if job.processes > 1:
        program = [ELASTIC_AGENT, "--standalone", f"--nproc-per-node={job.processes}", "--", *program]
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", *program], stdout=stream, stderr=subprocess.STDOUT, env=environment, cwd=REPOSITORY
        )
