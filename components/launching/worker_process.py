"""Run a module as one of several processes: ``python -m components.launching.worker_process module argument ...``.

torchrun's agent sees only the exit status of its workers. Each worker that fails therefore leaves a record with its status and the
text of its exception, from which :mod:`components.launching.elastic_agent` restores both.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from components.errors import OmniMRIError

BAD_CONFIGURATION = 2
"""Exit status of an error that no restart can fix: the job fails at once."""
RECORDS, AGENT = "OMNIMRI_FAILURE_RECORDS", "OMNIMRI_AGENT"
"""Environment variables: folder of the records, and process id of the agent."""
MAX_CAUSE_CHARACTERS = 1500
LOST_PEER = re.compile(r"(?i)connection (closed|reset|refused)|broken pipe|nccl|gloo|distbackend|rendezvous|tcpstore|timed out")
"""Text of errors that report the failure of another process."""


@dataclass(frozen=True)
class FailureRecord:
    """Failure of one worker.

    Attributes:
        attempt: number of the agent's restart. time_s: end of the worker, seconds since 1970.
        cause: text of the exception, or an empty string if the worker only returned a status.
    """

    rank: int
    attempt: int
    status: int
    time_s: float
    cause: str

    def write(self, folder: Path) -> None:
        """Write the record to a folder; a later record of the same rank replaces it."""
        temporary = folder / f".{self.rank}"
        temporary.write_text(json.dumps(asdict(self)))
        temporary.rename(folder / f"{self.rank}.json")


def read_records(folder: Path) -> list[FailureRecord]:
    """Return the records in a folder, earliest failure first."""
    records = [FailureRecord(**json.loads(path.read_text())) for path in folder.glob("*.json")]
    return sorted(records, key=lambda record: record.time_s)


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
            return _record(1, request.code)
        return _record(request.code, "") if request.code else 0
    except OmniMRIError as error:
        traceback.print_exc()
        return _record(error.exit_code, describe_exception(error))
    except BaseException as error:
        traceback.print_exc()
        return _record(1, describe_exception(error))
    return 0


def _record(status: int, cause: str) -> int:
    """Write the record of this worker's failure, wake the agent if a restart is useless, and return the status."""
    sys.stdout.flush()
    sys.stderr.flush()
    if RECORDS in os.environ:
        rank, attempt = int(os.environ.get("RANK", "0")), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        FailureRecord(rank, attempt, status, time.time(), cause).write(Path(os.environ[RECORDS]))
        if status == BAD_CONFIGURATION:
            os.kill(int(os.environ[AGENT]), signal.SIGUSR1)
    return status


if __name__ == "__main__":
    sys.exit(run_module(sys.argv[1], sys.argv[2:]))
