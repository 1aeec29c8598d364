"""Stages trained by processes that have their libraries already: forks of a server that imported them once, no new interpreters."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from components.errors import JobFailed
from components.launching import JobSpec
from components.launching.local_launcher import INTERRUPTED

PRELOADED = ["components.training.trainer", "components.training.figures", "deepspeed", "mlflow.tracking", "matplotlib.figure"]


def _work(path: Path, log: Path, rank: int, world: int, port: int, environment: dict[str, str]) -> None:
    """Run ``python -m components.training.trainer`` as one of several processes."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdout = sys.stderr = os.fdopen(stream, "w", buffering=1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    alone = {"PATH": "", "TORCH_EXTENSIONS_DIR": str(log.parent / "extensions")}  # no compiler: processes talk through gloo
    os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="127.0.0.1", **alone, **environment)
    import faulthandler

    import torch

    faulthandler.register(signal.SIGUSR1, file=stream, all_threads=False)  # where it is, for whoever finds it waiting
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
        """As :meth:`components.launching.job.JobHandle.wait`."""
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
        """Without a warning."""
        for process in self.processes:
            process.kill()
            process.join()

    def terminate(self) -> None:
        """Ask all to stop."""
        for process in self.processes:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, signal.SIGTERM)

    cancel = terminate


@dataclass
class ForkedLauncher:
    """Starts jobs so. ``before`` is called with each before it runs, ``started`` when it does: to disturb it."""

    before: Callable[[JobSpec], None] = field(default=lambda spec: None)
    started: Callable[[JobSpec, ForkedJob], None] = field(default=lambda spec, job: None)
    environment: dict[str, str] = field(default_factory=dict)

    def submit(self, job: JobSpec) -> ForkedJob:
        """Start a job's processes."""
        self.before(job)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = job.folder / f"{job.name}.log"
        arguments = Path(job.arguments[0]), log
        processes: list[BaseProcess] = [
            context.Process(target=_work, args=(*arguments, rank, job.processes, port, {**job.environment, **self.environment}))
            for rank in range(job.processes)
        ]
        for process in processes:
            process.start()
        running = ForkedJob(job.key, processes, log)
        self.started(job, running)
        return running
