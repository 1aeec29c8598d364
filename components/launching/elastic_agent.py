"""Run the processes of one node under torchrun's agent: ``python -m components.launching.elastic_agent [options] -- module ...``.

``torchrun`` itself ends with status 1 whatever the status of its workers, after a summary that hides their exceptions, and restarts
them a fixed number of times whatever ended them. This module calls the same agent, ends with the status of the worker that failed
first and with the text of its exception as the last line, and restarts workers only where that may help (:class:`RestartPolicy`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.launching import worker_process
from components.launching.job import INTERRUPTED
from components.launching.worker_process import BAD_CONFIGURATION, FailureRecord, Fault, read_records
from components.processes import end_with_parent

TERMINATION_LOG = Path("/dev/termination-log")
"""File from which Kubernetes reads why a container ended; it exists only in a container of a pod."""
SHORT_ATTEMPT_S, MAX_SHORT_ATTEMPTS = 60.0, 20
"""So many attempts in a row that lose their peers within so short a time are a fault of the network, not of a peer."""
WATCHDOG_S = 300.0
"""NCCL aborts the process some minutes after it has lost a peer; an earlier abort is a crash of its own."""
SAME_EVENT_S = 120.0
"""Time within which faults of several nodes are one event."""
RESULT = "result.finished"
"""File that tells pods which start later that the job has its result."""
UNLIMITED = 1_000_000
"""``--max-restarts`` of torchrun where :class:`RestartPolicy` decides."""


@dataclass
class RestartPolicy:
    """Decides whether the workers of a node are restarted in place.

    A failure that would occur again (an exception of the program, a wrong setting) ends the job at once. A fault of the machine is
    counted: all nodes and pods of a submission share ``limit`` restarts, one file for each in ``ledger``; nodes that fail together,
    as when their storage does, count one. A lost peer or a request to stop is not counted: the node where it happened counts it, or
    nobody does, as for an eviction.

    Attributes:
        limit: number of counted restarts. nodes: number of nodes of the job. node: index of this one.
        ledger: folder on the volume that all nodes share; None = this node counts alone.
        attempt: names the pods that started together, all of which must finish together.
    """

    limit: int
    nodes: int = 1
    node: int = 0
    ledger: Path | None = None
    attempt: str = ""
    has_finished: bool = False  # the workers of this node have
    _used: int = 0
    _shared: set[str] = field(default_factory=set)
    _short_attempts: int = 0
    _started: float = field(default_factory=time.monotonic)

    def permits_restart(self, failure: FailureRecord) -> bool:
        """Return whether the workers may be restarted after a failure, and count the restart if it counts."""
        lasted_s, self._started = time.monotonic() - self._started, time.monotonic()
        fault = failure.fault
        if fault is Fault.peer and self.nodes == 1:
            fault = Fault.machine
        if self.nodes > 1 and failure.status == 128 + signal.SIGABRT and lasted_s >= WATCHDOG_S:
            fault = Fault.peer
        if fault in (Fault.program, Fault.configuration):
            return False
        if fault is Fault.machine:
            return self._use_one(failure)
        self._short_attempts = self._short_attempts + 1 if lasted_s < SHORT_ATTEMPT_S else 0
        return self._short_attempts < MAX_SHORT_ATTEMPTS

    def _use_one(self, failure: FailureRecord) -> bool:
        """Count one restart; return False if none is left. A volume that fails, too, leaves this node to count alone."""
        self._used += 1
        if self.ledger is None:
            return self._used <= self.limit
        try:
            self.ledger.mkdir(parents=True, exist_ok=True)
            while True:
                entries = sorted(self.ledger.glob("*.restart"))
                if any(map(self._is_same_event, entries)):
                    return True
                if len(entries) >= self.limit:
                    return False
                with contextlib.suppress(FileExistsError), (self.ledger / f"{len(entries)}.restart").open("x") as entry:
                    entry.write(f"{self.node}\n{failure.cause}\n")
                    return True
        except OSError:
            return self._used <= self.limit

    def _is_same_event(self, entry: Path) -> bool:
        """Return whether another node has just counted what this node counts now; each entry answers once."""
        is_recent = time.time() - entry.stat().st_mtime < SAME_EVENT_S
        if entry.name in self._shared or not is_recent or entry.read_text().partition("\n")[0] == str(self.node):
            return False
        self._shared.add(entry.name)
        return True

    def mark_finished(self, has_first_rank: bool) -> None:
        """Record that the workers of this node have finished; those of rank 0 have written the result."""
        self.has_finished = True
        if self.ledger is not None:
            with contextlib.suppress(OSError):  # only a pod that starts later would read it
                self.ledger.mkdir(parents=True, exist_ok=True)
                (self.ledger / (RESULT if has_first_rank else f"{self.attempt}-{self.node}.finished")).touch()

    def finished_elsewhere(self) -> bool | None:
        """Return whether other nodes have finished the job with its result (True) or without it (False); None = they have not."""
        if self.ledger is None:
            return None
        if (self.ledger / RESULT).exists():
            return True
        return False if list(self.ledger.glob(f"{self.attempt}-*.finished")) else None


def run_agent(options: list[str], job: list[str], policy: RestartPolicy | None = None) -> int:
    """Run a module in the processes that the options of ``torchrun`` describe, and return the status of the first failure.

    Args:
        options: options of ``torchrun``. job: module and its arguments. policy: decides about restarts; None = no restarts.

    Raises:
        RendezvousError: the other nodes cannot be reached, or one of them has ended the job.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousClosedError
    from torch.distributed.launcher import api
    from torch.distributed.run import parse_args, run

    def stop(number: int, _: Any) -> None:
        raise SignalException("asked to stop", sigval=signal.Signals(number))

    with tempfile.TemporaryDirectory(prefix="omnimri-failures-") as folder:
        os.environ[worker_process.RECORDS] = folder
        if policy is not None:
            # torchrun has no parameter for the class of its agent.
            setattr(api, "LocalElasticAgent", _build_agent_class(policy, Path(folder)))  # noqa: B010
            options = [*options, f"--max-restarts={UNLIMITED}"]
        options = [f"--log-dir={folder}/logs", *options]  # its own default is a folder that stays in /tmp
        previous = signal.signal(signal.SIGTERM, stop)  # torchrun itself handles it only while workers run
        try:
            run(parse_args([*options, "-m", worker_process.__name__, *job]))
        except ChildFailedError as error:
            statuses = {rank: failure.exitcode for rank, failure in error.failures.items()}
            return _report(find_root_cause(statuses, read_records(Path(folder))))
        except SignalException as received:
            records = read_records(Path(folder))
            return records[-1].status if records else 128 + received.sigval
        finally:
            signal.signal(signal.SIGTERM, previous)
        if policy is not None and not policy.has_finished:
            raise RendezvousClosedError("the other nodes have ended the job without this spare one")
        return 0


def _build_agent_class(policy: RestartPolicy, records: Path) -> type:
    """Return a subclass of torchrun's agent that asks the policy before it restarts workers."""
    from torch.distributed.elastic.agent.server.api import WorkerState
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    class RestartingAgent(LocalElasticAgent):
        def _monitor_workers(self, worker_group: Any) -> Any:
            result = super()._monitor_workers(worker_group)
            if result.state is WorkerState.SUCCEEDED:
                policy.mark_finished(any(worker.global_rank == 0 for worker in worker_group.workers))
            elif result.is_failed():
                statuses = {rank: failure.exitcode for rank, failure in result.failures.items()}
                failure = find_root_cause(statuses, read_records(records))
                if policy.permits_restart(failure):
                    print(f"{describe_failure(failure)}; restarting the processes of this node", file=sys.stderr, flush=True)
                    for path in records.glob("*.json"):
                        path.unlink()
                else:
                    self._remaining_restarts = 0
            return result

    return RestartingAgent


def find_root_cause(statuses: dict[int, int], records: list[FailureRecord]) -> FailureRecord:
    """Return the failure that explains the others.

    The first exception counts that does not report a lost connection; else a signal (the kernel without memory, a crash), which
    leaves no record; else the first record. The agent itself ends the remaining workers by SIGTERM.

    Args:
        statuses: exit statuses by rank, negative for a signal. records: records of the workers, earliest first.
    """
    candidates = [record for record in records if record.rank in statuses]
    first = next((record for record in candidates if record.fault not in (Fault.peer, Fault.stopped)), None)
    signalled = {rank: -status for rank, status in statuses.items() if status < 0 and status != -signal.SIGTERM}
    if first is None and signalled:
        rank, number = next(iter(signalled.items()))
        cause = f"ended by signal {signal.Signals(number).name}"
        return FailureRecord(rank, 128 + number, time.time(), cause, Fault.machine)
    if first is not None or candidates:
        return first or candidates[0]
    rank, status = next(iter(statuses.items()))
    known = {BAD_CONFIGURATION: Fault.configuration, INTERRUPTED: Fault.stopped, -signal.SIGTERM: Fault.stopped}
    fault = known.get(status, Fault.machine)  # without a record, the interpreter itself has ended
    return FailureRecord(rank, status if status > 0 else 128 - status, time.time(), "", fault)


def describe_failure(failure: FailureRecord) -> str:
    """Return rank and cause of a failure."""
    return f"rank {failure.rank}: {failure.cause or f'exited with status {failure.status}'}"


def _report(failure: FailureRecord) -> int:
    """Print the cause as the last line of the log, store it where Kubernetes reads it, and return the status."""
    text = describe_failure(failure)
    print(text, file=sys.stderr, flush=True)
    if TERMINATION_LOG.exists():
        TERMINATION_LOG.write_text(text)
    return failure.status


if __name__ == "__main__":
    end_with_parent()  # of a local launcher; in a pod, there is none
    separator = sys.argv.index("--")
    sys.exit(run_agent(sys.argv[1:separator], sys.argv[separator + 1 :]))
