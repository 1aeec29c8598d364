"""Known failures of a job on a cluster: their kinds, what follows from a kind, and which of several explains the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from components.launching.worker_process import LOST_PEER

RESUME_HINT = "run again: it resumes from its last checkpoint"


class FailureKind(StrEnum):
    """Classes of failures that need different reactions."""

    evicted = "evicted"
    node_lost = "node lost"
    refused = "refused by its node"
    preempted = "preempted"
    out_of_memory = "out of memory"
    storage = "out of local storage"
    image = "image"
    unschedulable = "unschedulable"
    stalled = "not started"
    quota = "quota"
    impossible = "impossible"
    unreachable = "node unreachable"
    configuration = "configuration"
    deadline = "deadline"
    program = "program"
    killed = "killed"
    stopped = "stopped"


RESUMABLE = frozenset({FailureKind.evicted, FailureKind.node_lost, FailureKind.refused, FailureKind.preempted})
"""The cluster took the machine away; the job itself is not at fault and can be submitted again."""
HOPELESS = frozenset({FailureKind.out_of_memory, FailureKind.storage, FailureKind.image})
"""Failures that come back in every pod that replaces the failed one, as long as nobody changes the settings."""
REPLACED = RESUMABLE | {FailureKind.killed, FailureKind.stopped}
"""Failures of a pod that the cluster replaces."""
OF_THE_MACHINE = frozenset({FailureKind.node_lost, FailureKind.refused, FailureKind.killed})
"""Failures that count against the machine where they happened."""
SERIOUS = (
    FailureKind.out_of_memory,
    FailureKind.storage,
    FailureKind.configuration,
    FailureKind.image,
    *sorted(RESUMABLE, reverse=True),
    FailureKind.program,
    FailureKind.killed,
)
"""Failures that explain others, most serious first."""


@dataclass(frozen=True)
class Failure:
    """One failure: its class, a message and a remedy; ``node``: machine on which it occurred."""

    kind: FailureKind
    message: str
    remedy: str
    node: str = ""


def select_root_cause(failures: Iterable[Failure | None]) -> Failure | None:
    """Return the failure that explains the others: one that a person must fix, then a disruption, then a failure of the program.

    A lost machine or a process without memory makes the processes on other nodes fail too; the reverse never happens. Failures
    that only report a lost connection, and pods that were stopped, come last.
    """

    def rank(failure: Failure) -> int:
        if failure.kind is FailureKind.stopped:
            return len(SERIOUS) + 1
        if failure.kind is FailureKind.program and LOST_PEER.search(failure.message):
            return len(SERIOUS)
        return SERIOUS.index(failure.kind)

    return min((failure for failure in failures if failure is not None), key=rank, default=None)
