"""Training in forks of a server process that has imported the libraries once, without starting new interpreters."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from components.errors import JobFailed
from components.launching import JobSpec
from components.launching.job import INTERRUPTED
from components.training.trained_stage import IMPORTS
from tests.helpers.ports import free_port

PRELOADED = ["components.training.trainer", *IMPORTS]


def _run_trainer(path: Path, log: Path, rank: int, world: int, port: int, environment: dict[str, str]) -> None:
    """Run ``python -m components.training.trainer`` as one of several processes."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdout = sys.stderr = os.fdopen(stream, "w", buffering=1)
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    without_compiler = {"PATH": "", "TORCH_EXTENSIONS_DIR": str(log.parent / "extensions")}  # processes communicate through gloo
    os.environ.update(
        {name: str(value) for name, value in variables.items()}, MASTER_ADDR="127.0.0.1", **without_compiler, **environment
    )
    import faulthandler

    import torch

    faulthandler.register(signal.SIGUSR1, file=stream, all_threads=False)  # prints the stack of a hanging process
    from components.training.trainer import main

    torch.set_num_threads(1)
    sys.exit(main(path))


@dataclass
class ForkedJob:
    """The processes of a job."""

    key: str
    processes: list[BaseProcess]
    log: Path

    def wait(self) -> None:
        """Wait as :meth:`components.launching.job.JobHandle.wait` does."""
        while all(process.exitcode in (None, 0) for process in self.processes) and any(p.exitcode is None for p in self.processes):
            time.sleep(0.02)
        statuses = {process.exitcode for process in self.processes} - {None}
        if statuses - {0, INTERRUPTED}:
            self.kill()
        for process in self.processes:
            process.join()
        if INTERRUPTED in statuses:
            raise JobFailed(
                "stopped on request and wrote a checkpoint", where=self.key, remedy="run again: it resumes from that checkpoint"
            )
        if statuses != {0}:
            raise JobFailed(f"ended with {statuses}:\n{self.log.read_text()[-3000:]}", where=self.key)

    def kill(self) -> None:
        """Send SIGKILL to all processes."""
        for process in self.processes:
            process.kill()
            process.join()

    def terminate(self) -> None:
        """Send SIGTERM to all processes."""
        for process in self.processes:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, signal.SIGTERM)

    cancel = terminate


@dataclass
class ForkedLauncher:
    """Launcher of forked jobs; ``before`` is called with each job before it starts, ``started`` after, to disturb it."""

    before: Callable[[JobSpec], None] = field(default=lambda spec: None)
    started: Callable[[JobSpec, ForkedJob], None] = field(default=lambda spec, job: None)
    environment: dict[str, str] = field(default_factory=dict)

    def submit(self, job: JobSpec) -> ForkedJob:
        """Start a job's processes."""
        self.before(job)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        port = free_port() if job.processes > 1 else 0
        log = job.folder / f"{job.name}.log"
        arguments = Path(job.arguments[0]), log
        processes: list[BaseProcess] = [
            context.Process(
                target=_run_trainer, args=(*arguments, rank, job.processes, port, {**job.environment, **self.environment})
            )
            for rank in range(job.processes)
        ]
        for process in processes:
            process.start()
        running = ForkedJob(job.key, processes, log)
        self.started(job, running)
        return running


def after_first_checkpoint(disturb: Callable[[ForkedJob], None]) -> ForkedLauncher:
    """Return a launcher that disturbs a job as soon as it has published a checkpoint."""

    def wait(spec: JobSpec, job: ForkedJob) -> None:
        while not (spec.folder / "checkpoint.json").exists() and job.processes[0].exitcode is None:
            time.sleep(0.01)
        disturb(job)

    return ForkedLauncher(started=wait)
