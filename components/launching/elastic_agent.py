"""Run the processes of one node under torchrun's agent: ``python -m components.launching.elastic_agent [options] -- module ...``.

``torchrun`` itself ends with status 1 whatever the status of its workers, after a summary that hides their exceptions. This module
calls the same agent, and ends with the status of the worker that failed first, and with the text of its exception as the last line.
A worker that ends with :data:`~components.launching.worker_process.BAD_CONFIGURATION` stops all others at once, without restarts.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from components.launching import worker_process
from components.launching.worker_process import BAD_CONFIGURATION, LOST_PEER, FailureRecord, read_records

TERMINATION_LOG = Path("/dev/termination-log")
"""File from which Kubernetes reads why a container ended; it exists only in a container of a pod."""


def run_agent(options: list[str], job: list[str]) -> int:
    """Run a module in the processes that the options of ``torchrun`` describe, and return the status of the first failure.

    Args:
        options: options of ``torchrun``. job: module and its arguments.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    with tempfile.TemporaryDirectory(prefix="omnimri-failures-") as folder:
        os.environ.update({worker_process.RECORDS: folder, worker_process.AGENT: str(os.getpid())})

        def stop(number: int, _: Any) -> None:
            raise SignalException("a worker found a wrong configuration", sigval=signal.Signals.SIGTERM)

        signal.signal(signal.SIGUSR1, stop)
        try:
            run(parse_args([*options, "-m", worker_process.__name__, *job]))
        except ChildFailedError as error:
            statuses = {rank: failure.exitcode for rank, failure in error.failures.items()}
            return _report(*find_root_cause(statuses, read_records(Path(folder))))
        except SignalException as received:
            return _end_after_signal(received.sigval, read_records(Path(folder)))
        return 0


def find_root_cause(statuses: dict[int, int], records: list[FailureRecord]) -> tuple[int, int, str]:
    """Return rank, exit status and cause of the failure that explains the others.

    The first exception counts that does not report a lost connection; else a signal (the kernel without memory, a crash), which
    leaves no record; else the first record. The agent itself ends the remaining workers by SIGTERM.

    Args:
        statuses: exit statuses by rank, negative for a signal. records: records of the workers, earliest first.
    """
    last_attempt = max((record.attempt for record in records), default=0)
    candidates = [record for record in records if record.rank in statuses and record.attempt == last_attempt]
    first = next((record for record in candidates if not LOST_PEER.search(record.cause)), None)
    signalled = {rank: -status for rank, status in statuses.items() if status < 0 and status != -signal.SIGTERM}
    if first is None and signalled:
        rank, number = next(iter(signalled.items()))
        return rank, 128 + number, f"ended by signal {signal.Signals(number).name}"
    if first is None and candidates:
        first = candidates[0]
    if first is not None:
        return first.rank, first.status, first.cause
    rank, status = next(iter(statuses.items()))
    return rank, status if status > 0 else 128 - status, ""


def _end_after_signal(received: signal.Signals, records: list[FailureRecord]) -> int:
    """Return the status after a stop: of a wrong configuration, else what the workers returned after they were asked to stop."""
    for record in records:
        if record.status == BAD_CONFIGURATION:
            return _report(record.rank, record.status, record.cause)
    return records[-1].status if records else 128 + received


def _report(rank: int, status: int, cause: str) -> int:
    """Print the cause as the last line of the log, store it where Kubernetes reads it, and return the status."""
    text = f"rank {rank}: {cause or f'exited with status {status}'}"
    print(text, file=sys.stderr, flush=True)
    if TERMINATION_LOG.exists():
        TERMINATION_LOG.write_text(text)
    return status


if __name__ == "__main__":
    separator = sys.argv.index("--")
    sys.exit(run_agent(sys.argv[1:separator], sys.argv[separator + 1 :]))
