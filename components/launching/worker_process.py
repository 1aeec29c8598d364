"""Run a module as one of several processes: ``python -m components.launching.worker_process module argument ...``.

torchrun's agent sees only the exit status of its workers. Each worker that fails therefore leaves a record with its status, the
text of its exception, and whose fault it is, from which :mod:`components.launching.elastic_agent` decides about a restart.
"""

from __future__ import annotations

import errno
import json
import os
import re
import runpy
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from components.errors import MachineFault, OmniMRIError
from components.launching.job import INTERRUPTED

BAD_CONFIGURATION = 2
"""Exit status of a wrong setting, which a person must fix."""
RECORDS = "OMNIMRI_FAILURE_RECORDS"
"""Environment variable: folder of the records."""
MAX_CAUSE_CHARACTERS = 1500
LOST_PEER = re.compile(
    r"(?i)connection (was )?(closed|reset|refused|aborted)|broken pipe|nccl|gloo|dist(backend|network|store)?error|rendezvous|"
    r"tcpstore|timed out|wait timeout|no route to host|network is unreachable|monitored ?barrier"
)
"""Text of errors that report the failure of another process."""
_MACHINE = re.compile(r"CUDA error|CUBLAS_STATUS|CUDNN_STATUS|NVML|killed by signal|exited unexpectedly")
_PROGRAM = re.compile(r"out of memory|device-side assert")
_MACHINE_ERRORS = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOTCONN, errno.ENODEV})


class Fault(StrEnum):
    """Origin of a failure, which decides about a restart.

    ``configuration`` and ``program`` would fail again in the same way. ``machine``: a crash, a device, storage; a restart may help.
    ``peer``: another process failed first. ``stopped``: somebody asked the process to stop.
    """

    configuration = "configuration"
    program = "program"
    machine = "machine"
    peer = "peer"
    stopped = "stopped"


@dataclass(frozen=True)
class FailureRecord:
    """Failure of one worker.

    Attributes:
        time_s: end of the worker, seconds since 1970.
        cause: text of the exception, or an empty string if the worker only returned a status.
    """

    rank: int
    status: int
    time_s: float
    cause: str
    fault: Fault = Fault.program

    def write(self, folder: Path) -> None:
        """Write the record to a folder; a later record of the same rank replaces it."""
        temporary = folder / f".{self.rank}"
        temporary.write_text(json.dumps(asdict(self)))
        temporary.rename(folder / f"{self.rank}.json")


def read_records(folder: Path) -> list[FailureRecord]:
    """Return the records in a folder, earliest failure first."""
    fields = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    records = [FailureRecord(**{**entry, "fault": Fault(entry["fault"])}) for entry in fields]
    return sorted(records, key=lambda record: record.time_s)


def classify_status(status: int) -> Fault:
    """Return whose fault the exit status of a worker without an exception reports."""
    return {BAD_CONFIGURATION: Fault.configuration, INTERRUPTED: Fault.stopped}.get(status, Fault.program)


def classify_exception(error: BaseException) -> Fault:
    """Return whose fault an exception is; a lack of GPU memory is one of the settings, and comes back."""
    if isinstance(error, MachineFault):
        return Fault.machine
    if isinstance(error, OmniMRIError):
        return classify_status(error.exit_code)
    if isinstance(error, OSError) and error.filename is not None:
        return Fault.machine if error.errno in _MACHINE_ERRORS else Fault.program
    text = describe_exception(error)
    if _PROGRAM.search(text):
        return Fault.program
    if LOST_PEER.search(text):
        return Fault.peer
    is_machine = _MACHINE.search(text) or (isinstance(error, OSError) and error.errno in _MACHINE_ERRORS)
    return Fault.machine if is_machine else Fault.program


def describe_exception(error: BaseException) -> str:
    """Return the text of an exception as the last lines of its traceback show it; a long text keeps its end."""
    text = str(error) if isinstance(error, OmniMRIError) else "".join(traceback.format_exception_only(error))
    return text.strip()[-MAX_CAUSE_CHARACTERS:]


def run_module(module: str, arguments: list[str]) -> int:
    """Run a module as ``__main__``; return its exit status, and leave a record of a failure."""
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as request:
        if isinstance(request.code, str):
            print(request.code, file=sys.stderr)
            return _record(1, request.code, Fault.program)
        return _record(request.code, "", classify_status(request.code)) if request.code else 0
    except BaseException as error:
        traceback.print_exc()
        status = error.exit_code if isinstance(error, OmniMRIError) else 1
        return _record(status, describe_exception(error), classify_exception(error))
    return 0


def _record(status: int, cause: str, fault: Fault) -> int:
    """Write the record of this worker's failure and return its status."""
    sys.stdout.flush()
    sys.stderr.flush()
    if RECORDS in os.environ:
        FailureRecord(int(os.environ.get("RANK", "0")), status, time.time(), cause, fault).write(Path(os.environ[RECORDS]))
    return status


if __name__ == "__main__":
    sys.exit(run_module(sys.argv[1], sys.argv[2:]))
