"""Read the logs of pods to their end: every line is stored exactly once, even when connections break.

Every line carries the node's timestamp. After a broken connection, or in a restarted process, the log is requested from the whole
second of the last stored line, and lines stored before are skipped. Two processes never write the same file: the second one waits
for the first to end, and then continues from the last stored line.
"""

from __future__ import annotations

import datetime
import fcntl
import heapq
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from kubernetes.client.exceptions import ApiException

from components.errors import JobFailed
from components.launching.kubernetes.api_client import CONNECTION_ERRORS, TIMESTAMP, Cluster, LogUnreadable, close_stream
from components.launching.kubernetes.api_errors import error_message
from components.launching.kubernetes.manifests import CONTAINER
from components.launching.kubernetes.pod_fields import node_index

FRACTION_DIGITS = 9
_NEVER_STARTED = re.compile("waiting to start|does not have a host assigned")
"""Message of status 400 for a container that has written nothing."""
LAST_READ_ATTEMPTS = 4
"""Attempts to read the log of a finished pod before it is called unreadable; the pauses between them are those of the policy."""


class ReadPosition:
    """Position in a log: the last timestamp, and the number of lines read with that timestamp.

    Timestamps are converted to UTC, padded to nine fractional digits and compared as text.
    """

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self.timestamp, self.count, self._repeated = "", 0, 0
        for line in lines:
            self.advance(line)

    @property
    def since(self) -> str:
        """Value of ``sinceTime`` for the next request, in whole seconds: kubelets ignore the fraction."""
        return self.timestamp[:19] + "Z" if self.timestamp else ""

    def rewind(self) -> None:
        """Prepare to read the log again from :attr:`since`."""
        self._repeated = 0

    def advance(self, line: str) -> bool:
        """Return whether a line was not read before, and record it as read; a line without a timestamp never counts."""
        timestamp = parse_timestamp(line)
        if not timestamp or timestamp < self.timestamp:
            return False
        if timestamp == self.timestamp:
            self._repeated += 1
            if self._repeated <= self.count:
                return False
            self.count = self._repeated
            return True
        self.timestamp, self.count, self._repeated = timestamp, 1, 1
        return True


def parse_timestamp(line: str) -> str:
    """Convert ``2026-11-24T10:00:00.12Z text`` to ``2026-11-24T10:00:00.120000000``, which sorts as text.

    A line without a timestamp yields an empty string. Some container runtimes write the local time of the node with its offset.
    """
    match = TIMESTAMP.match(line)
    if match is None:
        return ""
    seconds, fraction, offset = match.groups(default="")
    if offset != "Z":
        utc = datetime.datetime.fromisoformat(seconds + offset).astimezone(datetime.UTC)
        seconds = utc.strftime("%Y-%m-%dT%H:%M:%S")
    return f"{seconds}.{fraction:0<{FRACTION_DIGITS}}"


class LogFollower(threading.Thread):
    """Thread that reads one pod's log to its end and passes on every complete line once.

    Args:
        pod: pod to read.
        is_finished: returns whether the pod will write nothing more.
        on_line: receives each line, timestamp included.
    """

    def __init__(
        self, cluster: Cluster, pod: dict[str, Any], is_finished: Callable[[], bool], on_line: Callable[[str], None]
    ) -> None:
        super().__init__(name=f"log-{pod['metadata']['name']}", daemon=True)
        self.cluster, self.pod, self.is_finished, self.on_line = cluster, pod, is_finished, on_line
        self.position = ReadPosition()
        self.fault = ""  # why the end of the log could not be read
        self._halt, self._response = threading.Event(), None

    def run(self) -> None:
        """Read to the end of the log; a fault, also one of the watch of pods, is kept in :attr:`fault`."""
        try:
            self._read_repeatedly()
        except JobFailed as error:  # raised to whoever waits for the job, too
            self.fault = str(error)

    def _read_repeatedly(self) -> None:
        """Read until the pod has finished and its whole log is read, or until its node has failed several times."""
        pauses, failed_last_reads = self.cluster.retry.pauses(), 0
        while not self._halt.is_set() and failed_last_reads < LAST_READ_ATTEMPTS:
            is_last_read = self.is_finished()  # checked before reading, so that the last read sees the whole log
            previous = (self.position.timestamp, self.position.count)
            fault = self._try_read(follow=not is_last_read)
            if is_last_read and fault is None:
                return
            if (self.position.timestamp, self.position.count) != previous:
                pauses, failed_last_reads = self.cluster.retry.pauses(), 0
            failed_last_reads += is_last_read and bool(fault)
            if failed_last_reads == LAST_READ_ATTEMPTS:
                self.fault = fault or ""
                return
            self._halt.wait(next(pauses))

    def _try_read(self, follow: bool) -> str | None:
        """Read the log once; return None if it was read to its end, else why not (empty: the API server was not reached)."""
        try:
            self._read(follow)
        except ApiException as error:
            message = error_message(error)
            is_empty = not follow and error.status == HTTPStatus.BAD_REQUEST and _NEVER_STARTED.search(message)
            if error.status == HTTPStatus.NOT_FOUND:
                self._halt.set()
            return None if is_empty or error.status == HTTPStatus.NOT_FOUND else f"{error.status}: {message}"
        except LogUnreadable as error:
            return str(error)
        except CONNECTION_ERRORS:
            return ""
        return None

    def _read(self, follow: bool) -> None:
        self.position.rewind()
        name = self.pod["metadata"]["name"]
        for line in self.cluster.stream_log(name, CONTAINER, self.position.since, follow, self._set_response):
            if self._halt.is_set():
                return
            if self.position.advance(line):
                self.on_line(line)

    def _set_response(self, response: Any) -> None:
        self._response = response

    def stop(self) -> None:
        """Stop reading."""
        self._halt.set()
        close_stream(self._response)


class LogFile:
    """File with the log of one pod; the process that locks it first writes it."""

    def __init__(self, folder: Path, pod: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{node_index(pod)}.{pod['metadata']['name']}.log"
        self._file = self.path.open("a+")

    def try_lock(self) -> bool:
        """Try to acquire the right to write; return False while another process has it."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def recover_position(self) -> ReadPosition:
        """Return the position after the last complete line; truncate an incomplete line that a killed process left."""
        self._file.seek(0)
        content = self._file.read()
        complete = content[: content.rfind("\n") + 1]
        if len(complete) < len(content):
            self._file.truncate(len(complete.encode()))
        return ReadPosition(complete.splitlines())

    def write(self, line: str) -> None:
        """Append a line."""
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file, which releases the lock."""
        self._file.close()


def merge_logs(folder: Path, nodes: int, processes_per_node: int) -> Iterator[str]:
    """Yield the lines of all pods in the order in which they were written, each prefixed with its rank."""
    streams = []
    for path in sorted(folder.glob("*.log")):
        index = int(path.name.partition(".")[0])
        streams.append([(parse_timestamp(line), index, line) for line in path.read_text(errors="replace").splitlines()])
    for _, index, line in heapq.merge(*streams, key=lambda entry: entry[0]):
        yield prefix_rank(line, index, nodes, processes_per_node)


def prefix_rank(line: str, index: int, nodes: int, processes_per_node: int) -> str:
    """Remove a line's timestamp; where there are several processes, torchrun names the rank, and other lines get their node."""
    text = line.partition(" ")[2]
    return text if nodes * processes_per_node == 1 or text.startswith("rank ") else f"node {index}: {text}"
