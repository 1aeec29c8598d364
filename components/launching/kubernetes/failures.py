"""What the objects of a job say: where it is, what it waits for, and which of the known failures has happened.

Pure functions of what the API server returned, so that every row of the fault table is a test without a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from components.launching.job import JobState
from components.launching.kubernetes.pod_entrypoint import BAD_CONFIGURATION

Object = dict[str, Any]


class FailureKind(StrEnum):
    """The classes of failures that need different answers."""

    evicted = "evicted"
    node_lost = "node lost"
    preempted = "preempted"
    out_of_memory = "out of memory"
    image = "image"
    unschedulable = "unschedulable"
    configuration = "configuration"
    deadline = "deadline"
    program = "program"


RESUMABLE = frozenset({FailureKind.evicted, FailureKind.node_lost, FailureKind.preempted})
"""The cluster took the machine away; the job is as sound as before."""

HOPELESS_IMAGE = frozenset({"InvalidImageName", "ErrImageNeverPull", "ErrImageNeverPullPolicy"})
_IMAGE = HOPELESS_IMAGE | {"ImagePullBackOff", "ErrImagePull", "ImageInspectError", "RegistryUnavailable"}
_CONFIGURATION = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "InvalidConfiguration"})
_DISRUPTIONS = {
    "PreemptionByScheduler": FailureKind.preempted,
    "PreemptionByKubeScheduler": FailureKind.preempted,
    "EvictionByEvictionAPI": FailureKind.evicted,
    "TerminationByKubelet": FailureKind.evicted,
    "DeletionByTaintManager": FailureKind.node_lost,
    "DeletionByPodGC": FailureKind.node_lost,
}
_REASONS = {
    "Evicted": FailureKind.evicted,
    "Preempting": FailureKind.preempted,
    "Shutdown": FailureKind.evicted,
    "NodeShutdown": FailureKind.evicted,
    "Terminated": FailureKind.evicted,
    "NodeLost": FailureKind.node_lost,
}


@dataclass(frozen=True)
class Failure:
    """One failure: its class, what happened and what to do."""

    kind: FailureKind
    what: str
    remedy: str


@dataclass(frozen=True)
class Observation:
    """A job as its objects show it.

    Attributes:
        detail: what it waits for; empty when it waits for nothing.
        trouble: a failure that has not ended the job yet, but does if it lasts (image, machine, configuration).
        failure: why it failed.
    """

    state: JobState
    detail: str = ""
    trouble: Failure | None = None
    failure: Failure | None = None


def condition(thing: Object, kind: str) -> Object | None:
    """A condition of an object's status that holds now."""
    found = (c for c in thing.get("status", {}).get("conditions") or [] if c.get("type") == kind and c.get("status") == "True")
    return next(found, None)


def index_of(pod: Object) -> int:
    """Which node of its job a pod is."""
    metadata = pod["metadata"]
    key = "batch.kubernetes.io/job-completion-index"
    return int(metadata.get("labels", {}).get(key) or metadata.get("annotations", {}).get(key) or 0)


def disruption(pod: Object) -> FailureKind | None:
    """Which disruption took the pod's machine away, if one did."""
    target = condition(pod, "DisruptionTarget")
    if target is not None:
        return _DISRUPTIONS.get(target.get("reason", ""), FailureKind.evicted)
    return _REASONS.get(pod.get("status", {}).get("reason", ""))


def failure_of(pod: Object) -> Failure | None:
    """Why a pod failed; None for a pod that did not."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    kind = disruption(pod)
    if kind is not None:
        return Failure(
            kind, f"{name}: {kind} ({status.get('message') or _said(pod)})", "run again: it goes on from its last checkpoint"
        )
    for container in status.get("containerStatuses") or []:
        ended = container.get("state", {}).get("terminated") or {}
        if ended.get("reason") == "OOMKilled":
            return Failure(
                FailureKind.out_of_memory,
                f"{name}: the memory limit was exceeded",
                "raise kubernetes.memory, or lower training.<stage>.micro_batch; run again: it goes on from its last checkpoint",
            )
        if ended and ended.get("exitCode", 0) != 0:
            message = (ended.get("message") or "").strip()
            what = f"{name}: ended with status {ended['exitCode']}" + (f":\n{message}" if message else "")
            if ended["exitCode"] == BAD_CONFIGURATION:
                return Failure(FailureKind.configuration, what, "mend the settings that the message names")
            return Failure(FailureKind.program, what, "see the log")
    if status.get("phase") == "Failed":
        return Failure(FailureKind.program, f"{name}: {status.get('message') or status.get('reason') or 'failed'}", "see the log")
    return None


def _said(pod: Object) -> str:
    target = condition(pod, "DisruptionTarget") or {}
    return str(target.get("message") or target.get("reason") or "no reason given")


def trouble_of(pod: Object) -> Failure | None:
    """What keeps a pod from starting, if something does."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = container.get("state", {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message") or ""
        if reason in _IMAGE:
            return Failure(
                FailureKind.image,
                f"{name}: {reason}: {container.get('image', 'image')}: {message}".rstrip(": "),
                "check kubernetes.image and kubernetes.pull_secrets, and that the nodes reach the registry",
            )
        if reason in _CONFIGURATION:
            return Failure(
                FailureKind.configuration,
                f"{name}: {reason}: {message}",
                "a Secret, a claim or a mount that the pod names is missing: see kubernetes.secrets and kubernetes.volumes",
            )
    for scheduled in status.get("conditions") or []:
        if scheduled.get("type") == "PodScheduled" and scheduled.get("status") == "False":
            return Failure(
                FailureKind.unschedulable,
                f"{name}: {scheduled.get('message') or scheduled.get('reason')}",
                "lower kubernetes.nodes, gpus_per_node, cpu or memory, check kubernetes.node_selector, or add machines",
            )
    return None


def worst(failures: Iterable[Failure | None]) -> Failure | None:
    """The failure that explains the others: one that needs a person first, then a disruption, then the program's own.

    A lost machine makes the processes elsewhere fail too, and so does a process without memory; the reverse never happens.
    """
    order = [
        FailureKind.out_of_memory,
        FailureKind.configuration,
        FailureKind.preempted,
        FailureKind.node_lost,
        FailureKind.evicted,
    ]
    known = [failure for failure in failures if failure is not None]
    return min(known, key=lambda failure: order.index(failure.kind) if failure.kind in order else len(order), default=None)


def observe(main: Object | None, pods: list[Object]) -> Observation:
    """Where a job is.

    Args:
        main: the Job, JobSet or TrainJob; None = there is none (any more).
        pods: its pods, those that ended included.
    """
    if main is None:
        return Observation(JobState.gone)
    if condition(main, "Complete") or condition(main, "Completed"):
        return Observation(JobState.succeeded)
    ended = condition(main, "Failed") or condition(main, "FailureTarget")
    if ended is not None:
        return Observation(JobState.failed, failure=_why(ended, pods))
    if main.get("spec", {}).get("suspend"):
        queue = main["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
        return Observation(JobState.queued, f"waits for quota in queue {queue}" if queue else "is suspended")
    living = [pod for pod in pods if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")]
    trouble = next(filter(None, map(trouble_of, living)), None)
    if trouble is not None:
        waiting = JobState.pending if trouble.kind is FailureKind.unschedulable else JobState.starting
        return Observation(waiting, trouble.what, trouble=trouble)
    if any(pod.get("status", {}).get("phase") == "Running" for pod in living):
        return Observation(JobState.running)
    if any(pod.get("spec", {}).get("nodeName") for pod in living):
        return Observation(JobState.starting, "fetches its image and mounts its volumes")
    lost = [pod for pod in pods if disruption(pod)]
    return Observation(
        JobState.pending, f"lost a machine ({disruption(lost[-1])}), waits for another" if lost else "waits for a machine"
    )


def _why(ended: Object, pods: list[Object]) -> Failure:
    """The failure behind the condition ``Failed``: what the pods say counts for more than what the controller says."""
    reason, message = ended.get("reason", ""), ended.get("message", "")
    if reason == "DeadlineExceeded":
        return Failure(
            FailureKind.deadline,
            f"ran into its time limit: {message}",
            "raise kubernetes.time_limit_hours; run again: it goes on from its last checkpoint",
        )
    newest = {index_of(pod): pod for pod in sorted(pods, key=lambda pod: pod["metadata"].get("creationTimestamp", ""))}
    found = worst(map(failure_of, newest.values()))
    return found or Failure(FailureKind.program, f"{reason}: {message}", "see the log")
