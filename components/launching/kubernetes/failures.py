"""Diagnosis of a job from its Kubernetes objects: state, what it waits for, and which known failure occurred.

All functions are pure functions of objects that the API server returned, so that every row of the failure table in
docs/kubernetes.md can be tested without a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from components.launching.job import JobState
from components.launching.kubernetes.pod_entrypoint import BAD_CONFIGURATION

Object = dict[str, Any]
FINISHED_PHASES = ("Succeeded", "Failed")
RESUME_HINT = "run again: it resumes from its last checkpoint"


class FailureKind(StrEnum):
    """Classes of failures that need different reactions."""

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
"""The cluster took the machine away; the job itself is not at fault and can be submitted again."""

PERMANENT_IMAGE_REASONS = frozenset({"InvalidImageName", "ErrImageNeverPull", "ErrImageNeverPullPolicy"})
_IMAGE_REASONS = PERMANENT_IMAGE_REASONS | {"ImagePullBackOff", "ErrImagePull", "ImageInspectError", "RegistryUnavailable"}
_CONFIGURATION_REASONS = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "InvalidConfiguration"}
)
_DISRUPTION_REASONS = {
    "PreemptionByScheduler": FailureKind.preempted,
    "PreemptionByKubeScheduler": FailureKind.preempted,
    "EvictionByEvictionAPI": FailureKind.evicted,
    "TerminationByKubelet": FailureKind.evicted,
    "DeletionByTaintManager": FailureKind.node_lost,
    "DeletionByPodGC": FailureKind.node_lost,
}
_STATUS_REASONS = {
    "Evicted": FailureKind.evicted,
    "Preempting": FailureKind.preempted,
    "Shutdown": FailureKind.evicted,
    "NodeShutdown": FailureKind.evicted,
    "Terminated": FailureKind.evicted,
    "NodeLost": FailureKind.node_lost,
}


@dataclass(frozen=True)
class Failure:
    """One failure: its class, a message and a remedy."""

    kind: FailureKind
    message: str
    remedy: str


@dataclass(frozen=True)
class Observation:
    """State of a job according to its objects.

    Attributes:
        detail: what the job waits for; empty if it waits for nothing.
        blocker: a failure that has not ended the job yet, but will if it persists (image, machine, configuration).
        failure: why the job failed.
    """

    state: JobState
    detail: str = ""
    blocker: Failure | None = None
    failure: Failure | None = None


def true_condition(thing: Object, kind: str) -> Object | None:
    """Return the condition of this type from an object's status if it is currently true, else None."""
    for condition in thing.get("status", {}).get("conditions") or []:
        if condition.get("type") == kind and condition.get("status") == "True":
            return dict(condition)
    return None


def node_index(pod: Object) -> int:
    """Return the index of the node of its job that a pod runs."""
    metadata = pod["metadata"]
    key = "batch.kubernetes.io/job-completion-index"
    return int(metadata.get("labels", {}).get(key) or metadata.get("annotations", {}).get(key) or 0)


def pod_phase(pod: Object) -> str:
    """Return the phase of a pod, or an empty string before the first status."""
    return str(pod.get("status", {}).get("phase", ""))


def disruption_kind(pod: Object) -> FailureKind | None:
    """Return the kind of disruption that took the pod's machine away, or None."""
    target = true_condition(pod, "DisruptionTarget")
    if target is not None:
        return _DISRUPTION_REASONS.get(target.get("reason", ""), FailureKind.evicted)
    return _STATUS_REASONS.get(pod.get("status", {}).get("reason", ""))


def diagnose_failure(pod: Object) -> Failure | None:
    """Return why a pod failed, or None for a pod that did not fail."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    kind = disruption_kind(pod)
    if kind is not None:
        reason = status.get("message") or _disruption_message(pod)
        return Failure(kind, f"{name}: {kind} ({reason})", RESUME_HINT)
    for container in status.get("containerStatuses") or []:
        terminated = container.get("state", {}).get("terminated") or {}
        failure = _diagnose_container(name, terminated)
        if failure is not None:
            return failure
    if status.get("phase") == "Failed":
        message = status.get("message") or status.get("reason") or "failed"
        return Failure(FailureKind.program, f"{name}: {message}", "see the log")
    return None


def _diagnose_container(pod_name: str, terminated: Object) -> Failure | None:
    """Return why a container failed, given its state ``terminated``; None if it did not fail."""
    if terminated.get("reason") == "OOMKilled":
        return Failure(
            FailureKind.out_of_memory,
            f"{pod_name}: the memory limit was exceeded",
            f"raise kubernetes.memory, or lower training.<stage>.micro_batch; {RESUME_HINT}",
        )
    exit_code = terminated.get("exitCode", 0)
    if exit_code == 0:
        return None
    output = (terminated.get("message") or "").strip()
    message = f"{pod_name}: exited with status {exit_code}" + (f":\n{output}" if output else "")
    if exit_code == BAD_CONFIGURATION:
        return Failure(FailureKind.configuration, message, "fix the settings that the message names")
    return Failure(FailureKind.program, message, "see the log")


def _disruption_message(pod: Object) -> str:
    target = true_condition(pod, "DisruptionTarget") or {}
    return str(target.get("message") or target.get("reason") or "no reason given")


def diagnose_blocker(pod: Object) -> Failure | None:
    """Return what prevents a pod from starting, or None."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = container.get("state", {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message") or ""
        if reason in _IMAGE_REASONS:
            return Failure(
                FailureKind.image,
                f"{name}: {reason}: {container.get('image', 'image')}: {message}".rstrip(": "),
                "check kubernetes.image and kubernetes.pull_secrets, and that the nodes reach the registry",
            )
        if reason in _CONFIGURATION_REASONS:
            return Failure(
                FailureKind.configuration,
                f"{name}: {reason}: {message}",
                "create the missing Secret, claim or mount: see kubernetes.secrets and kubernetes.volumes",
            )
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return Failure(
                FailureKind.unschedulable,
                f"{name}: {condition.get('message') or condition.get('reason')}",
                "lower kubernetes.nodes, gpus_per_node, cpu or memory, check kubernetes.node_selector, or add machines",
            )
    return None


def select_root_cause(failures: Iterable[Failure | None]) -> Failure | None:
    """Return the failure that explains the others: one that a person must fix, then a disruption, then a failure of the program.

    A lost machine or a process without memory makes the processes on other nodes fail too; the reverse never happens.
    """
    order = [
        FailureKind.out_of_memory,
        FailureKind.configuration,
        FailureKind.preempted,
        FailureKind.node_lost,
        FailureKind.evicted,
    ]
    actual = [failure for failure in failures if failure is not None]
    return min(actual, key=lambda failure: order.index(failure.kind) if failure.kind in order else len(order), default=None)


def observe(main: Object | None, pods: list[Object]) -> Observation:
    """Derive the state of a job from its objects.

    Args:
        main: the Job, JobSet or TrainJob; None = it does not exist (anymore).
        pods: pods of the job, finished ones included.
    """
    if main is None:
        return Observation(JobState.deleted)
    if true_condition(main, "Complete") or true_condition(main, "Completed"):
        return Observation(JobState.succeeded)
    failed = true_condition(main, "Failed") or true_condition(main, "FailureTarget")
    if failed is not None:
        return Observation(JobState.failed, failure=_diagnose_job(failed, pods))
    if main.get("spec", {}).get("suspend"):
        queue = main["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
        return Observation(JobState.queued, f"waits for quota in queue {queue}" if queue else "is suspended")
    return _observe_pods(pods)


def _observe_pods(pods: list[Object]) -> Observation:
    """Derive the state of an unfinished job from its pods."""
    active = [pod for pod in pods if pod_phase(pod) not in FINISHED_PHASES]
    blocker = next(filter(None, map(diagnose_blocker, active)), None)
    if blocker is not None:
        state = JobState.pending if blocker.kind is FailureKind.unschedulable else JobState.starting
        return Observation(state, blocker.message, blocker=blocker)
    if any(pod_phase(pod) == "Running" for pod in active):
        return Observation(JobState.running)
    if any(pod.get("spec", {}).get("nodeName") for pod in active):
        return Observation(JobState.starting, "pulls its image and mounts its volumes")
    disrupted = [pod for pod in pods if disruption_kind(pod)]
    if disrupted:
        return Observation(JobState.pending, f"lost a machine ({disruption_kind(disrupted[-1])}), waits for another")
    return Observation(JobState.pending, "waits for a machine")


def _diagnose_job(failed: Object, pods: list[Object]) -> Failure:
    """Return the failure behind the condition ``Failed``; the status of pods takes precedence over the controller's message."""
    reason, message = failed.get("reason", ""), failed.get("message", "")
    if reason == "DeadlineExceeded":
        return Failure(
            FailureKind.deadline,
            f"exceeded its time limit: {message}",
            f"raise kubernetes.time_limit_hours; {RESUME_HINT}",
        )
    oldest_first = sorted(pods, key=lambda pod: pod["metadata"].get("creationTimestamp", ""))
    newest_by_node = {node_index(pod): pod for pod in oldest_first}
    root_cause = select_root_cause(map(diagnose_failure, newest_by_node.values()))
    return root_cause or Failure(FailureKind.program, f"{reason}: {message}", "see the log")
