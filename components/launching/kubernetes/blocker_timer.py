"""Times for which something has blocked a job."""

from __future__ import annotations

from dataclasses import dataclass

from components.launching.job import JobState
from components.launching.kubernetes.failures import Failure, FailureKind
from components.launching.kubernetes.observation import Observation

PATIENT = frozenset({FailureKind.unschedulable, FailureKind.quota, FailureKind.stalled})
"""Failures that may pass; the pending limit is that of all of them together."""


@dataclass
class BlockerTimer:
    """Times of a job that does not run: since when it has not started, and since when the same kind of failure blocks it."""

    since: float = 0.0
    unstarted_since: float | None = None
    kind: FailureKind | None = None

    def waited_s(self, observation: Observation, now: float) -> float:
        """Return for how long pods have been missing or have not started; a queue's time does not count."""
        blocker, waits = observation.blocker, observation.missing or observation.unstarted
        if observation.state is JobState.queued or not (waits or blocker) or (blocker and blocker.kind is FailureKind.unreachable):
            self.unstarted_since = None
            return 0.0
        if self.unstarted_since is None:
            self.unstarted_since = now
        return now - self.unstarted_since

    def blocked_s(self, blocker: Failure | None, now: float) -> float:
        """Return for how long this kind of failure has blocked the job."""
        return now - self.since if blocker and blocker.kind is self.kind else 0.0

    def update(self, blocker: Failure | None, now: float) -> None:
        """Start the time again if another kind of failure blocks the job, or none."""
        kind = blocker.kind if blocker else None
        if kind is None or kind is not self.kind:
            self.since = now
        self.kind = kind

    def remaining_s(self, blocker: Failure | None, limit_s: float, now: float) -> float | None:
        """Return the rest of a failure's time limit; that of failures that take turns starts with the first; None = no failure."""
        if blocker is None:
            return None
        since = self.unstarted_since if blocker.kind in PATIENT and self.unstarted_since is not None else self.since
        return since + limit_s - now


def earliest(*times_s: float | None) -> float | None:
    """Return the shortest of the waiting times; None = no limit."""
    finite = [time_s for time_s in times_s if time_s is not None and time_s != float("inf")]
    return min(finite, default=None)
