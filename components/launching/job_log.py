"""What a job wrote: every pod followed into a file of its own while the job is waited for, and one log of them all at its end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.launching.job import JobSpec
from components.launching.kubernetes.api_client import Cluster, say
from components.launching.kubernetes.failures import disruption
from components.launching.kubernetes.job_watch import Watches
from components.launching.kubernetes.manifests import JOB_LABEL, PODS
from components.launching.kubernetes.pod_logs import Follower, KeptLog, merged

Object = dict[str, Any]
SAY_EVERY_S = 10.0
STARTED = ("Running", "Succeeded", "Failed")
"""Phases of a pod that has begun to write."""
ENDED = ("Succeeded", "Failed")
DRAIN_S = 60.0


@dataclass
class JobLog:
    """The log of a job, kept beside what it computes."""

    watches: Watches
    job: JobSpec
    key: str
    followers: dict[str, tuple[Follower, KeptLog]] = field(default_factory=dict)
    _said_at: float = 0.0

    @property
    def path(self) -> Path:
        """The whole log, written when the job has ended."""
        return self.job.folder / f"{self.job.name}.log"

    @property
    def _folder(self) -> Path:
        return self.job.folder / "logs"

    def follow(self, pods: Iterable[Object]) -> None:
        """Read every pod that has begun to write, and is not read yet."""
        for pod in pods:
            uid = pod["metadata"]["uid"]
            if uid in self.followers or disruption(pod) or pod.get("status", {}).get("phase") not in STARTED:
                continue
            log = KeptLog(self._folder, pod)
            follower = _KeepingFollower(self.watches.cluster, pod, log, self)
            self.followers[uid] = (follower, log)
            follower.start()

    def ended(self, pod: Object) -> bool:
        """Whether a pod will write nothing more."""
        now = [one for one in self.watches.mirror(PODS).of(self.key) if one["metadata"]["uid"] == pod["metadata"]["uid"]]
        return not now or now[0]["status"].get("phase") in ENDED

    def drain(self) -> None:
        """Let the followers read what is left. The server is asked for the pods: their watch may be behind that of the job."""
        self.follow(self.watches.cluster.collection(PODS, f"{JOB_LABEL}={self.key}")[0])
        until = time.monotonic() + DRAIN_S
        for follower, _ in self.followers.values():
            follower.join(max(until - time.monotonic(), 0.1))

    def close(self) -> None:
        """Follow no longer."""
        for follower, log in self.followers.values():
            follower.stop()
            log.close()

    def lines(self) -> list[str]:
        """What was kept, in the order in which it was written, each line with whose it is."""
        return list(merged(self._folder, self.job.nodes, self.job.processes_per_node))

    def write(self) -> None:
        """Write :attr:`path`, if anything was kept."""
        lines = self.lines()
        if lines:
            self.path.write_text("\n".join(lines) + "\n")

    def progress(self, line: str) -> None:
        """Show rank 0's progress now and then."""
        text = line.partition(" ")[2].removeprefix("rank 0: ")
        if text.startswith(f"{self.job.name} ") and time.monotonic() - self._said_at > SAY_EVERY_S:
            self._said_at = time.monotonic()
            say(text)


class _KeepingFollower(Follower):
    """A follower that writes the kept log, once no other process does."""

    def __init__(self, cluster: Cluster, pod: Object, log: KeptLog, of: JobLog) -> None:
        super().__init__(cluster, pod, lambda: of.ended(pod), self._write)
        self.log, self.of = log, of

    def run(self) -> None:
        """Wait for one's turn, go on where the file ends."""
        pauses = self.cluster.patience.pauses()
        while not self.log.mine():
            if self.ended() or self._halt.wait(next(pauses)):
                return
        self.place = self.log.place()
        super().run()

    def _write(self, line: str) -> None:
        self.log.write(line)
        self.of.progress(line)
