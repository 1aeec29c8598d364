"""Fields of pods and jobs: phases, machines, indices, and the kind of disruption that took a machine away."""

from __future__ import annotations

import datetime

from components.launching.kubernetes.failures import FailureKind
from components.launching.kubernetes.manifests import NODES_ANNOTATION, Object

FINISHED_PHASES = ("Succeeded", "Failed")
_DISRUPTION_REASONS = {
    "PreemptionByScheduler": FailureKind.preempted,
    "PreemptionByKubeScheduler": FailureKind.preempted,
    "EvictionByEvictionAPI": FailureKind.evicted,
    "TerminationByKubelet": FailureKind.evicted,
    "DeletionByTaintManager": FailureKind.node_lost,
    "DeletionByPodGC": FailureKind.node_lost,
    "DeletionByDeviceTaintManager": FailureKind.node_lost,
}
_STATUS_REASONS = {
    "Evicted": FailureKind.evicted,
    "Preempting": FailureKind.preempted,
    "Shutdown": FailureKind.evicted,
    "NodeShutdown": FailureKind.evicted,
    "Terminated": FailureKind.evicted,
    "NodeLost": FailureKind.node_lost,
}


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
    return int((metadata.get("labels") or {}).get(key) or (metadata.get("annotations") or {}).get(key) or 0)


def node_count(main: Object) -> int:
    """Return the number of nodes of a Job, JobSet or TrainJob, without spare ones."""
    spec, annotations = main.get("spec", {}), main.get("metadata", {}).get("annotations") or {}
    if NODES_ANNOTATION in annotations:
        return int(annotations[NODES_ANNOTATION])
    if "replicatedJobs" in spec:
        return int(spec["replicatedJobs"][0]["template"]["spec"]["completions"])
    return int(spec.get("completions") or spec.get("trainer", {}).get("numNodes") or 1)


def pod_phase(pod: Object) -> str:
    """Return the phase of a pod, or an empty string before the first status."""
    return str(pod.get("status", {}).get("phase", ""))


def machine(pod: Object) -> str:
    """Return the name of the machine on which a pod runs, or an empty string."""
    return str(pod.get("spec", {}).get("nodeName") or "")


def deletion_deadline(pod: Object) -> datetime.datetime | None:
    """Return when the grace period of a deleted pod that still runs ends, or None for any other pod.

    Kubernetes writes the end of the grace period, not the time of the request, into ``deletionTimestamp``.
    """
    stamp = pod["metadata"].get("deletionTimestamp")
    if not stamp or pod_phase(pod) in FINISHED_PHASES:
        return None
    return datetime.datetime.fromisoformat(stamp)


def disruption_kind(pod: Object) -> FailureKind | None:
    """Return the kind of disruption that took the pod's machine away, or None."""
    target = true_condition(pod, "DisruptionTarget")
    if target is not None:
        return _DISRUPTION_REASONS.get(target.get("reason", ""), FailureKind.evicted)
    status = pod.get("status", {})
    kind = _STATUS_REASONS.get(str(status.get("reason") or ""))
    # A kubelet that refuses a pod starts no container: OutOfcpu, TopologyAffinityError, UnexpectedAdmissionError, NodeAffinity ...
    is_refused = pod_phase(pod) == "Failed" and machine(pod) and not status.get("containerStatuses")
    return kind or (FailureKind.refused if is_refused else None)


def is_unconfirmed_loss(pod: Object) -> bool:
    """Return whether the control plane deletes a pod because its node is silent, and the node has not confirmed the pod's end.

    The pod is replaced only after that confirmation: it might still write checkpoints.
    """
    target = true_condition(pod, "DisruptionTarget") or {}
    return target.get("reason") == "DeletionByTaintManager" and pod_phase(pod) not in FINISHED_PHASES
