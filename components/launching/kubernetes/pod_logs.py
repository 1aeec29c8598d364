"""Logs of pods, each to its end: a line is kept once, whatever breaks on the way.

Every line carries the node's time stamp. After a broken connection, or in a process started anew, the log is asked for from the
whole second of the last line that is kept, and what is known is passed over. Two processes never write one file: the second waits
for the first to end, and then goes on where it stopped.
"""

from __future__ import annotations

import fcntl
import heapq
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kubernetes.client.exceptions import ApiException

from components.launching.kubernetes.api_client import BROKEN, NOT_FOUND, Cluster, hang_up
from components.launching.kubernetes.failures import index_of
from components.launching.kubernetes.manifests import CONTAINER

NOT_STARTED = 400
DIGITS = 9


class Place:
    """How far a log has been read: the last time stamp, and how many of its lines bear it.

    Time stamps are compared as text; they are brought to nine digits first.
    """

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self.stamp, self.count, self._passed = "", 0, 0
        for line in lines:
            self.new(line)

    @property
    def since(self) -> str:
        """What to ask for: kubelets know whole seconds only."""
        return self.stamp[:19] + "Z" if self.stamp else ""

    def again(self) -> None:
        """The log is read again from :attr:`since`."""
        self._passed = 0

    def new(self, line: str) -> bool:
        """Whether a line has not been read before; it counts as read now."""
        stamp = _stamp(line)
        if stamp < self.stamp:
            return False
        if stamp == self.stamp:
            self._passed += 1
            if self._passed <= self.count:
                return False
            self.count = self._passed
            return True
        self.stamp, self.count, self._passed = stamp, 1, 1
        return True


def _stamp(line: str) -> str:
    """``2026-11-24T10:00:00.12Z text`` -> ``2026-11-24T10:00:00.120000000``, which sorts as text."""
    whole, _, fraction = line.partition(" ")[0].removesuffix("Z").partition(".")
    return f"{whole}.{fraction:0<{DIGITS}}"


class Follower(threading.Thread):
    """Reads one pod's log to its end and hands on every whole line once.

    Args:
        pod: the pod; ``ended``: whether nothing more will be written.
        take: gets each line, time stamp included.
    """

    def __init__(self, cluster: Cluster, pod: dict[str, Any], ended: Callable[[], bool], take: Callable[[str], None]) -> None:
        super().__init__(name=f"log-{pod['metadata']['name']}", daemon=True)
        self.cluster, self.pod, self.ended, self.take, self.place = cluster, pod, ended, take, Place()
        self._halt, self._response = threading.Event(), None

    def run(self) -> None:
        """Read, and read again, until the pod has ended and everything has been read."""
        pauses = self.cluster.patience.pauses()
        while not self._halt.is_set():
            last = self.ended()  # asked before the reading, so that the reading has all
            before = (self.place.stamp, self.place.count)
            try:
                self._read(follow=not last)
                if last:
                    return
            except ApiException as error:
                if error.status == NOT_FOUND or (last and error.status == NOT_STARTED):
                    return
            except BROKEN:
                pass
            if (self.place.stamp, self.place.count) != before:
                pauses = self.cluster.patience.pauses()
            self._halt.wait(next(pauses))

    def _read(self, follow: bool) -> None:
        self.place.again()
        name = self.pod["metadata"]["name"]
        for line in self.cluster.log(name, CONTAINER, self.place.since, follow, self._opened):
            if self._halt.is_set():
                return
            if self.place.new(line):
                self.take(line)

    def _opened(self, response: Any) -> None:
        self._response = response

    def stop(self) -> None:
        """End the reading."""
        self._halt.set()
        hang_up(self._response)


class KeptLog:
    """The file of one pod's log; who opened it first writes it."""

    def __init__(self, folder: Path, pod: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{index_of(pod)}.{pod['metadata']['name']}.log"
        self._file = self.path.open("a+")

    def mine(self) -> bool:
        """Whether this process may write; another that does is waited for by asking again."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def place(self) -> Place:
        """Where to go on; half a line, left by a killed process, is removed."""
        self._file.seek(0)
        kept = self._file.read()
        whole = kept[: kept.rfind("\n") + 1]
        if len(whole) < len(kept):
            self._file.truncate(len(whole.encode()))
        place = Place()
        for line in whole.splitlines():
            place.new(line)
        return place

    def write(self, line: str) -> None:
        """Append a line."""
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        """Let others write."""
        self._file.close()


def merged(folder: Path, nodes: int, processes_per_node: int) -> Iterator[str]:
    """The lines of all pods in the order in which they were written, each with whose it is."""
    files = [(int(path.name.partition(".")[0]), path) for path in sorted(folder.glob("*.log"))]
    streams = [[(_stamp(line), index, line) for line in path.read_text(errors="replace").splitlines()] for index, path in files]
    for _, index, line in heapq.merge(*streams, key=lambda item: item[0]):
        yield prefixed(line, index, nodes, processes_per_node)


def prefixed(line: str, index: int, nodes: int, processes_per_node: int) -> str:
    """A line without its time stamp, after the rank that wrote it; torchrun names the rank where several share a pod."""
    text = line.partition(" ")[2]
    if processes_per_node > 1:
        return text if text.startswith("rank ") else f"node {index}: {text}"
    return f"rank {index}: {text}" if nodes > 1 else text
