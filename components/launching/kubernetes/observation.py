"""State of a job according to its Kubernetes objects: what it waits for, or why it failed.

All functions are pure functions of objects that the API server returned.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from components.launching.job import JobState, JobStatus
from components.launching.kubernetes.failures import RESUME_HINT, Failure, FailureKind, select_root_cause
from components.launching.kubernetes.manifests import Object
from components.launching.kubernetes.pod_failures import (
    diagnose_blocker,
    diagnose_failure,
    diagnose_silent_node,
    diagnose_unreachable,
)
from components.launching.kubernetes.pod_fields import (
    FINISHED_PHASES,
    deletion_deadline,
    disruption_kind,
    is_unconfirmed_loss,
    machine,
    node_count,
    node_index,
    pod_phase,
    true_condition,
)

OWN_FINALIZERS = ("foregroundDeletion", "orphan")
"""Finalizers of Kubernetes itself, which its garbage collector removes."""
SHOWN_PODS = 3
"""Number of pods that a message names."""


@dataclass(frozen=True)
class Observation:
    """State of a job according to its objects.

    Attributes:
        detail: what the job waits for; empty if it waits for nothing.
        blocker: a failure that has not ended the job yet, but will if it persists (image, machine, configuration).
        failure: why the job failed.
        missing: number of nodes that have no pod. unstarted: number of nodes whose container has not started.
        progress: what the training itself reports.
    """

    state: JobState
    detail: str = ""
    blocker: Failure | None = None
    failure: Failure | None = None
    missing: int = 0
    unstarted: int = 0
    progress: str = ""


def observe(
    main: Object | None, pods: list[Object], jobs: Sequence[Object] = (), now: datetime.datetime | None = None
) -> Observation:
    """Derive the state of a job from its objects.

    Args:
        main: the Job, JobSet or TrainJob; None = it does not exist (anymore).
        pods: pods of the job, finished ones included.
        jobs: Jobs of a JobSet, whose conditions tell why it failed.
        now: current time; None = that of this machine.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    if main is None:
        return Observation(JobState.deleted)
    if true_condition(main, "Complete") or true_condition(main, "Completed"):
        return Observation(JobState.succeeded)
    failed = true_condition(main, "Failed") or true_condition(main, "FailureTarget")
    if failed is not None:
        return Observation(JobState.failed, failure=_diagnose_job(failed, pods, jobs))
    if main["metadata"].get("deletionTimestamp"):
        return observe_deletion(pods, now, main)
    if main.get("spec", {}).get("suspend"):
        queue = (main["metadata"].get("labels") or {}).get("kueue.x-k8s.io/queue-name")
        return Observation(JobState.queued, f"waits for quota in queue {queue}" if queue else "is suspended")
    return _observe_pods(main, pods, now)


def observe_deletion(pods: list[Object], now: datetime.datetime, main: Object | None = None) -> Observation:
    """Return what the deletion of a job waits for: pods that still run, or finalizers that other controllers have set."""
    unreachable = next(filter(None, (diagnose_unreachable(pod, now) for pod in pods)), None)
    if unreachable is not None:
        return Observation(JobState.deleting, f"{unreachable.message}; {unreachable.remedy}", blocker=unreachable)
    names = [pod["metadata"]["name"] for pod in pods if pod_phase(pod) not in FINISHED_PHASES]
    more = f" and {len(names) - SHOWN_PODS} more" if len(names) > SHOWN_PODS else ""
    if names:
        return Observation(JobState.deleting, f"waits for the end of {', '.join(names[:SHOWN_PODS])}{more}")
    finalizers = [name for name in (main or {}).get("metadata", {}).get("finalizers") or [] if name not in OWN_FINALIZERS]
    return Observation(JobState.deleting, f"waits for the finalizer {', '.join(finalizers)}" if finalizers else "")


def _observe_pods(main: Object, pods: list[Object], now: datetime.datetime) -> Observation:
    """Derive the state of an unfinished job from its pods."""
    active = [pod for pod in pods if pod_phase(pod) not in FINISHED_PHASES]
    staying = [pod for pod in active if deletion_deadline(pod) is None]
    nodes, succeeded = node_count(main), {node_index(pod) for pod in pods if pod_phase(pod) == "Succeeded"}
    missing = max(nodes - len({node_index(pod) for pod in staying} | succeeded), 0)
    unreachable = next(filter(None, (diagnose_unreachable(pod, now) for pod in active)), None)
    if len(succeeded) >= nodes or true_condition(main, "SuccessCriteriaMet"):
        waits_for = f"; {unreachable.message}; {unreachable.remedy}" if unreachable else ""  # the node of a spare pod
        return Observation(JobState.running, f"all nodes have finished{waits_for}")
    if unreachable is not None and missing:  # no spare node takes over
        return Observation(JobState.pending, f"{unreachable.message}; {unreachable.remedy}", unreachable, missing=missing)
    blockers = list(filter(None, map(diagnose_blocker, staying)))
    if blockers and len(staying) - len(blockers) + len(succeeded) < nodes:  # more than spare nodes are blocked
        blocker = blockers[0]
        state = JobState.starting if blocker.kind is FailureKind.image or blocker.node else JobState.pending
        return Observation(state, blocker.message, blocker=blocker, missing=missing)
    disrupted = [pod for pod in pods if disruption_kind(pod)]
    if missing and disrupted:
        unconfirmed = [pod["metadata"]["name"] for pod in active if is_unconfirmed_loss(pod)]
        waits_for = f"waits until it confirms the end of {unconfirmed[0]}" if unconfirmed else "waits for another"
        return Observation(JobState.pending, f"lost a machine ({disruption_kind(disrupted[-1])}), {waits_for}", missing=missing)
    if missing and active:
        return Observation(JobState.pending, f"{nodes - missing} of {nodes} pods exist", missing=missing)
    unstarted = max(nodes - len({node_index(pod) for pod in staying if pod_phase(pod) == "Running"} | succeeded), 0)
    if not unstarted:
        silent = unreachable or next(filter(None, map(diagnose_silent_node, active)), None)
        detail = f"{silent.message}; {silent.remedy}" if silent else ""
        return Observation(JobState.running, detail, progress=_describe_progress(main))
    state, detail = JobState.pending, "waits for a machine"
    if any(machine(pod) and pod_phase(pod) != "Running" for pod in staying):
        state, detail = JobState.starting, "pulls its image and mounts its volumes"
    return Observation(state, _count_started(nodes, unstarted) + detail, missing=missing, unstarted=unstarted)


def _count_started(nodes: int, unstarted: int) -> str:
    """Return how many nodes have started, or an empty string if none has."""
    return f"{nodes - unstarted} of {nodes} nodes have started, the next " if unstarted < nodes else ""


def _describe_progress(main: Object) -> str:
    """Return the progress that a TrainJob reports in ``status.trainerStatus`` (Trainer 2.2 and later), or an empty string."""
    status = main.get("status", {}).get("trainerStatus") or {}
    parts = [f"{status['progressPercentage']} %"] if "progressPercentage" in status else []
    parts += [f"{metric['name']} {metric['value']}" for metric in status.get("metrics") or []]
    if "estimatedRemainingSeconds" in status:
        parts.append(f"about {status['estimatedRemainingSeconds'] / 60:.0f} min left")
    return ", ".join(parts)


def _diagnose_job(failed: Object, pods: list[Object], jobs: Sequence[Object]) -> Failure:
    """Return the failure behind the condition ``Failed``; the status of pods takes precedence over the controller's message.

    A JobSet names its own reason; that of its Job (a time limit) is in the Job's condition.
    """
    conditions = [failed, *filter(None, (true_condition(job, "Failed") or true_condition(job, "FailureTarget") for job in jobs))]
    for condition in conditions:
        if condition.get("reason") == "DeadlineExceeded":
            return Failure(
                FailureKind.deadline,
                f"exceeded its time limit: {condition.get('message', '')}",
                f"raise kubernetes.time_limit_hours; {RESUME_HINT}",
            )
    oldest_first = sorted(pods, key=lambda pod: pod["metadata"].get("creationTimestamp", ""))
    newest_by_node = {node_index(pod): pod for pod in oldest_first}
    root_cause = select_root_cause(map(diagnose_failure, newest_by_node.values()))
    reason, message = failed.get("reason", ""), failed.get("message", "")
    return root_cause or Failure(FailureKind.program, f"{reason}: {message}", "see the log")


def build_status(
    key: str, main: Object, pods: list[Object], jobs: Sequence[Object] = (), now: datetime.datetime | None = None
) -> JobStatus:
    """Return a job as a row of the list of jobs; ``jobs``: the Jobs of a JobSet."""
    observation = observe(main, pods, jobs, now)
    detail = observation.failure.message if observation.failure else observation.detail or observation.progress
    return JobStatus(key, observation.state, detail, node_count(main), main["metadata"].get("creationTimestamp") or "")
