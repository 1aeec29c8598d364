"""Log of a job: follow every pod into a file of its own while the job runs, and merge the files when it has finished."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from components.launching.job import JobSpec
from components.launching.kubernetes.api_client import report
from components.launching.kubernetes.job_watch import Informers
from components.launching.kubernetes.manifests import JOB_LABEL, PODS, Object
from components.launching.kubernetes.pod_fields import FINISHED_PHASES, disruption_kind, pod_phase
from components.launching.kubernetes.pod_logs import LogFile, LogFollower, merge_logs, parse_timestamp

PROGRESS_INTERVAL_S = 10.0
STARTED_PHASES = ("Running", *FINISHED_PHASES)
"""Phases of a pod that may have written output."""
DRAIN_TIMEOUT_S = 60.0


@dataclass
class JobLog:
    """Log of a job, stored in the job's folder; ``since``: time at which the job was created, as the API server writes it."""

    informers: Informers
    job: JobSpec
    key: str
    since: str = ""
    followers: dict[str, tuple[LogFollower, LogFile]] = field(default_factory=dict)
    _finished_uids: set[str] = field(default_factory=set)
    _unread_uids: set[str] = field(default_factory=set)
    _last_report_at: float = 0.0

    @property
    def path(self) -> Path:
        """Path of the merged log, written when the job has finished."""
        return self.job.folder / f"{self.job.name}.log"

    @property
    def _folder(self) -> Path:
        return self.job.folder / "logs"

    def follow(self, pods: Iterable[Object]) -> None:
        """Start a follower for every pod that has started and has none yet."""
        for pod in pods:
            uid = pod["metadata"]["uid"]
            if uid in self.followers or disruption_kind(pod) or pod_phase(pod) not in STARTED_PHASES:
                continue
            file = LogFile(self._folder, pod)
            follower = _FileFollower(self, pod, file)
            self.followers[uid] = (follower, file)
            follower.start()

    def is_finished(self, pod: Object) -> bool:
        """Return whether a pod will write nothing more."""
        uid = pod["metadata"]["uid"]
        if uid in self._finished_uids:
            return True
        for current in self.informers.get(PODS).objects_of(self.key):
            if current["metadata"]["uid"] == uid:
                return pod_phase(current) in FINISHED_PHASES
        return True

    def drain(self) -> None:
        """Let the followers read the rest of the log.

        Lists the pods from the API server, because the informer of pods may be behind that of jobs.
        """
        pods, _ = self.informers.cluster.list_objects(PODS, f"{JOB_LABEL}={self.key}")
        active_uids = {pod["metadata"]["uid"] for pod in pods if pod_phase(pod) not in FINISHED_PHASES}
        self.follow(pods)
        self._finished_uids |= self.followers.keys() - active_uids
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        for follower, _ in self.followers.values():
            follower.join(max(deadline - time.monotonic(), 0.1))
        self._report_unread()

    def _report_unread(self) -> None:
        """Report each pod whose log could not be read to its end, once."""
        for uid, (follower, _) in self.followers.items():
            if uid not in self._unread_uids and (follower.fault or follower.is_alive()):
                self._unread_uids.add(uid)
                name, reason = follower.pod["metadata"]["name"], follower.fault or "no end within a minute"
                report(f"{self.job.name}: the log of {name} cannot be read ({reason}); later: kubectl logs {name}")

    @property
    def covers_all_nodes(self) -> bool:
        """Return whether a pod of every node of this job has started before, in this process or an earlier one."""
        indices = {path.name.partition(".")[0] for path in self._folder.glob("*.log") if self._belongs_to_job(path)}
        return len(indices) >= self.job.nodes

    def _belongs_to_job(self, path: Path) -> bool:
        """Return whether a log was written by this job, not by an earlier one with the same folder."""
        if any(file.path == path for _, file in self.followers.values()):
            return True
        with path.open(errors="replace") as lines:
            return parse_timestamp(lines.readline())[: len("2026-11-28T12:00:00")] >= self.since.removesuffix("Z")

    def close(self) -> None:
        """Stop all followers and close their files."""
        for follower, file in self.followers.values():
            follower.stop()
            file.close()

    def lines(self) -> list[str]:
        """Return the stored lines in the order in which they were written, each prefixed with its rank."""
        return list(merge_logs(self._folder, self.job.nodes, self.job.processes_per_node))

    def write(self) -> None:
        """Write the merged log to :attr:`path` unless it is empty."""
        lines = self.lines()
        if lines:
            self.path.write_text("\n".join(lines) + "\n")

    def report_progress(self, line: str) -> None:
        """Show progress lines of rank 0, at most one in :data:`PROGRESS_INTERVAL_S`."""
        text = line.partition(" ")[2].removeprefix("rank 0: ")
        if text.startswith(f"{self.job.name} ") and time.monotonic() - self._last_report_at > PROGRESS_INTERVAL_S:
            self._last_report_at = time.monotonic()
            report(text)


class _FileFollower(LogFollower):
    """Log follower that writes the log file as soon as no other process does."""

    def __init__(self, job_log: JobLog, pod: Object, file: LogFile) -> None:
        super().__init__(job_log.informers.cluster, pod, lambda: job_log.is_finished(pod), self._write)
        self.job_log, self.file = job_log, file

    def _read_repeatedly(self) -> None:
        """Wait for the lock of the file, then continue from its last complete line."""
        pauses = self.cluster.retry.pauses()
        while not self.file.try_lock():
            if self.is_finished() or self._halt.wait(next(pauses)):
                return
        self.position = self.file.recover_position()
        super()._read_repeatedly()

    def _write(self, line: str) -> None:
        self.file.write(line)
        self.job_log.report_progress(line)
