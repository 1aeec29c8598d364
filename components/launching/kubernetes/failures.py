"""Diagnosis of a job from its Kubernetes objects: state, what it waits for, and which known failure occurred.

All functions are pure functions of objects that the API server returned, so that every row of the failure table in
docs/kubernetes.md can be tested without a cluster.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from components.launching.job import JobState
from components.launching.kubernetes.manifests import CONTAINER, NODES_ANNOTATION
from components.launching.kubernetes.pod_entrypoint import FAILED, UNCOUNTED
from components.launching.kubernetes.rejections import classify_rejection
from components.launching.worker_process import BAD_CONFIGURATION, LOST_PEER

Object = dict[str, Any]
FINISHED_PHASES = ("Succeeded", "Failed")
RESUME_HINT = "run again: it resumes from its last checkpoint"
UNREACHABLE_MARGIN_S = 30.0
"""Time beyond a pod's grace period after which its node is called unreachable: covers a slow kubelet and unequal clocks."""
OWN_FINALIZERS = ("foregroundDeletion", "orphan")
"""Finalizers of Kubernetes itself, which its garbage collector removes."""
SHOWN_PODS = 3
"""Number of pods that a message names."""
MAX_CAUSE_LINES = 5
"""A termination message with more lines is the end of the log, of which only the last line is the cause."""


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
_OWN_STORAGE = re.compile(
    r"(?i)emptydir volume .* exceeds the limit|exceeds the total limit of containers|exceeded its local ephemeral"
)
"""Eviction of a pod that exceeds its own limit: its replacement would exceed it as well."""

PERMANENT_IMAGE_REASONS = frozenset({"InvalidImageName", "ErrImageNeverPull", "ErrImageNeverPullPolicy"})
_IMAGE_REASONS = PERMANENT_IMAGE_REASONS | {
    "ImagePullBackOff",
    "ErrImagePull",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
}
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
_RESTART_REASONS = frozenset({"ContainerStatusUnknown", "Unknown"})
"""Reasons of containers that ran when their machine restarted: of the kubelet (status 137), and of containerd (status 255)."""
_START_REASONS = frozenset({"StartError", "ContainerCannotRun"})
_NO_PROGRAM = re.compile(r"executable file not found|no such file or directory|permission denied|exec format error")
"""Message of a container whose image does not fit; any other fault of a start is one of the node, such as its GPU driver."""


@dataclass(frozen=True)
class Failure:
    """One failure: its class, a message and a remedy; ``node``: machine on which it occurred."""

    kind: FailureKind
    message: str
    remedy: str
    node: str = ""


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


# ---- fields of objects


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


# ---- failures of pods


def diagnose_failure(pod: Object) -> Failure | None:
    """Return why a pod failed, or None for a pod that did not fail."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    kind = disruption_kind(pod)
    if kind is FailureKind.evicted and _OWN_STORAGE.search(status.get("message") or _disruption_message(pod)):
        message = f"{name}: {status.get('message') or _disruption_message(pod)}"
        return Failure(FailureKind.storage, message, f"raise kubernetes.scratch; {RESUME_HINT}", machine(pod))
    if kind is not None:
        reason = status.get("message") or status.get("reason") or _disruption_message(pod)
        remedy = _refusal_remedy(machine(pod)) if kind is FailureKind.refused else RESUME_HINT
        return Failure(kind, f"{name}: {kind} ({reason})", remedy, machine(pod))
    ended = {
        container.get("name"): container.get("state", {}).get("terminated") or {}
        for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    }
    failure = _diagnose_container(name, ended.pop(CONTAINER, {}), machine(pod))
    if failure is not None or status.get("phase") != "Failed":
        return failure
    for container, terminated in ended.items():  # injected ones, whose end ends no running pod
        if terminated.get("exitCode"):
            message = f"{name}: the injected container {container} ended with status {terminated['exitCode']}"
            reason = terminated.get("reason", "")
            return Failure(FailureKind.killed, f"{message} ({reason})", "see the log", machine(pod))
    message = status.get("message") or status.get("reason") or "failed"
    return Failure(FailureKind.killed, f"{name}: {message}", "see the log", machine(pod))


def _diagnose_container(pod_name: str, terminated: Object, node: str) -> Failure | None:
    """Return why a container failed, given its state ``terminated``; None if it did not fail."""
    if terminated.get("reason") == "OOMKilled":
        return Failure(
            FailureKind.out_of_memory,
            f"{pod_name}: the memory limit was exceeded",
            f"raise kubernetes.memory, or lower training.<stage>.micro_batch; {RESUME_HINT}",
            node,
        )
    if terminated.get("reason") in _RESTART_REASONS:
        return Failure(FailureKind.node_lost, f"{pod_name}: node lost (node {node or 'unknown'} restarted)", RESUME_HINT, node)
    if terminated.get("reason") in _START_REASONS:
        text = f"{terminated['reason']}: {terminated.get('message') or 'no message'}"
        if _NO_PROGRAM.search(text):
            return Failure(FailureKind.image, f"{pod_name}: {text}", "check kubernetes.image: it cannot run this program", node)
        return Failure(FailureKind.refused, f"{pod_name}: {FailureKind.refused} ({text})", _refusal_remedy(node), node)
    exit_code = terminated.get("exitCode", 0)
    if exit_code == 0:
        return None
    lines = (terminated.get("message") or "").strip().splitlines()
    cause = "\n".join(lines if len(lines) <= MAX_CAUSE_LINES else lines[-1:])
    message = f"{pod_name}: exited with status {exit_code}" + (f": {cause}" if cause else "")
    if exit_code == BAD_CONFIGURATION:
        return Failure(FailureKind.configuration, message, "fix the settings that the message names", node)
    kind = FailureKind.stopped if exit_code in UNCOUNTED else FailureKind.program if exit_code == FAILED else FailureKind.killed
    return Failure(kind, message, "see the log", node)


def _refusal_remedy(node: str) -> str:
    return f"check node {node}, lower the request, or exclude the node: kubernetes.excluded_machines; {RESUME_HINT}"


def _disruption_message(pod: Object) -> str:
    target = true_condition(pod, "DisruptionTarget") or {}
    return str(target.get("message") or target.get("reason") or "no reason given")


def diagnose_unreachable(pod: Object, now: datetime.datetime) -> Failure | None:
    """Return the failure of a node that does not confirm the end of a deleted pod, as a machine without power; else None.

    Such a pod is neither replaced nor deleted before somebody confirms that its machine is off: it might still write.
    """
    deadline, node = deletion_deadline(pod), machine(pod)
    if deadline is None or not node or now < deadline + datetime.timedelta(seconds=UNREACHABLE_MARGIN_S):
        return None
    return Failure(
        FailureKind.unreachable,
        f"{pod['metadata']['name']}: node {node} does not confirm that the pod has stopped (due at {deadline:%H:%M:%S} UTC)",
        _unreachable_remedy(node),
        node,
    )


def diagnose_silent_node(pod: Object) -> Failure | None:
    """Return the failure of a node whose kubelet has stopped reporting; else None.

    The control plane then calls a running pod not ready, although its containers were; it deletes the pod some minutes later.
    """
    node = machine(pod)
    is_silent = not pod["metadata"].get("deletionTimestamp") and true_condition(pod, "ContainersReady") and _is_unready(pod)
    if not is_silent or pod_phase(pod) != "Running":
        return None
    message = f"{pod['metadata']['name']}: node {node} has stopped reporting"
    return Failure(FailureKind.unreachable, message, _unreachable_remedy(node), node)


def _is_unready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions") or []
    return any(condition.get("type") == "Ready" and condition.get("status") == "False" for condition in conditions)


def _unreachable_remedy(node: str) -> str:
    return (
        f"if the machine is off: kubectl taint nodes {node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute; "
        f"if it does not come back: kubectl delete node {node}"
    )


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
                machine(pod),
            )
        if reason in _CONFIGURATION_REASONS:
            return Failure(
                FailureKind.configuration,
                f"{name}: {reason}: {message}",
                "create the missing Secret, claim or mount: see kubernetes.secrets and kubernetes.volumes",
                machine(pod),
            )
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return _diagnose_unscheduled(name, condition)
    return None


def _diagnose_unscheduled(pod_name: str, condition: Object) -> Failure:
    """Return why the scheduler found no machine: an object that does not exist, or no room."""
    message = str(condition.get("message") or condition.get("reason"))
    rejection = classify_rejection(message)
    if rejection.missing:
        return Failure(FailureKind.configuration, f"{pod_name}: {message}", rejection.remedy)
    if condition.get("reason") == "SchedulingGated":
        return Failure(FailureKind.stalled, f"{pod_name}: {message}", f"kubectl describe pod {pod_name}: who sets its gates?")
    if "allocate all claims" in message:
        return Failure(FailureKind.unschedulable, f"{pod_name}: {message}", "check kubernetes.resource_claims, or wait for devices")
    return Failure(
        FailureKind.unschedulable,
        f"{pod_name}: {message}",
        "lower kubernetes.nodes, gpus_per_node, cpu or memory, check kubernetes.node_selector and tolerations, or add machines",
    )


_EVENT_REMEDIES = {
    "FailedMount": "check kubernetes.volumes, and the storage driver on the node",
    "FailedAttachVolume": "check kubernetes.volumes: a volume of access mode ReadWriteOnce serves one node",
    "FailedMapVolume": "check kubernetes.volumes, and the storage driver on the node",
    "FailedCreatePodSandBox": "check the network plugin and the container runtime of the node, or exclude it",
    "NetworkNotReady": "check the network plugin of the node, or exclude it",
    "FailedPrepareDynamicResources": "check the driver of kubernetes.resource_claims on the node",
    "FailedToRetrieveImagePullSecret": "check kubernetes.pull_secrets",
}
"""Remedies by the reason of a pod's newest warning; the setting that excludes a node is named in :func:`diagnose_stalled`."""


_HARMLESS_EVENTS = frozenset({"DNSConfigForming"})
"""Warnings of pods that start nevertheless: the node has more than three name servers, for example."""


def diagnose_stalled(pods: Sequence[Object], events: Sequence[Object]) -> Failure | None:
    """Return why pods have not started although their status tells nothing; None for no pods.

    The kubelet and volume controllers tell what they fail at only in events: a volume that cannot be mounted or that another node
    still uses, a network plugin, a driver of devices. A pod that no scheduler looks at has neither status nor events.

    Args:
        pods: pods whose container has not started.
        events: events of the namespace, oldest first; the newest one of a pod counts, since an earlier fault may be over.
    """
    relevant = [event for event in events if event.get("reason") not in _HARMLESS_EVENTS]
    newest = {event.get("involvedObject", {}).get("uid"): event for event in relevant}
    for pod in pods:
        event = newest.get(pod["metadata"]["uid"], {})
        if event.get("type") != "Warning":
            continue
        message = f"{pod['metadata']['name']}: {event.get('reason')}: {event.get('message', '')}"
        rejection = classify_rejection(message)
        if rejection.missing:
            return Failure(FailureKind.configuration, message, rejection.remedy, machine(pod))
        remedy = _EVENT_REMEDIES.get(event.get("reason", ""), f"kubectl describe pod {pod['metadata']['name']}")
        if remedy.endswith("exclude it"):
            remedy += f": kubernetes.excluded_machines {machine(pod)}"
        return Failure(FailureKind.stalled, message, remedy, machine(pod))
    return _diagnose_silence(pods[0], newest) if pods else None


def _diagnose_silence(pod: Object, newest: dict[Any, Object]) -> Failure:
    """Return the failure of a pod that has not started and about which nobody has recorded a warning."""
    name, remedy = pod["metadata"]["name"], f"kubectl describe pod {pod['metadata']['name']}"
    if machine(pod):
        progress = newest.get(pod["metadata"]["uid"], {}).get("message") or "no event tells why"
        return Failure(FailureKind.stalled, f"{name}: has not started on node {machine(pod)} ({progress})", remedy, machine(pod))
    message = f"{name}: no scheduler has looked for a machine yet"
    return Failure(FailureKind.stalled, message, f"check kubernetes.scheduler and kubernetes.resource_claims: {remedy}")


def diagnose_rejection(message: str, nodes: int) -> Failure:
    """Return the failure behind the message of an event: the cluster refuses to create a pod of a job with so many nodes."""
    message = re.sub(r'^Error creating: |pods "[^"]+" is forbidden: ', "", message)  # the name differs with each attempt
    rejection = classify_rejection(message)
    if rejection.quota is None:
        return Failure(FailureKind.configuration, message, rejection.remedy)
    excess = rejection.quota.excess(nodes)
    if excess:
        return Failure(FailureKind.impossible, f"{message}: {nodes} nodes need {excess}, which is never free", rejection.remedy)
    return Failure(FailureKind.quota, message, rejection.remedy)


_NEVER_ADMITTED = (
    (r"doesn't exist|does not exist|is inactive|isn't active", "check kubernetes.queue: kubectl get localqueues"),
    (r"unavailable in ClusterQueue", "add the resource to the ClusterQueue's coveredResources, or correct kubernetes.devices"),
    (r"(doesn't|does not) match ClusterQueue selector", "check kubernetes.namespace and the ClusterQueue's namespaceSelector"),
    (
        r"untolerated taint|(doesn't|does not) match node affinity",
        "check kubernetes.tolerations and node_selector: kubectl describe resourceflavors",
    ),
    (
        r"(doesn't|does not) support TopologyAwareScheduling|no requested topology level",
        "check kubernetes.topology: kubectl describe resourceflavors",
    ),
)
"""Messages of Kueue that do not pass by waiting, and their remedies."""


def diagnose_admission(workload: Object, queue: str) -> Failure:
    """Return why Kueue does not admit a job yet, according to the conditions of its Workload."""
    status = workload.get("status", {})
    conditions = {condition["type"]: condition for condition in status.get("conditions") or []}
    reserved = conditions.get("QuotaReserved", {})
    reason, message = str(reserved.get("reason", "")), str(reserved.get("message", ""))
    checks = [check for check in status.get("admissionChecks") or [] if check.get("state") != "Ready"]
    rejected = [check for check in checks if check.get("state") == "Rejected"]
    if rejected:
        return Failure(
            FailureKind.configuration, f"queue {queue}: {_describe_checks(rejected)}", "ask who runs this admission check"
        )
    if workload.get("spec", {}).get("active") is False:
        evicted = conditions.get("Evicted", {})
        why = evicted.get("message") or evicted.get("reason") or "by an administrator"
        remedy = f"kubectl describe workload {workload.get('metadata', {}).get('name', '')}; run again when it may be admitted"
        return Failure(FailureKind.configuration, f"queue {queue}: the workload is deactivated ({why})", remedy)
    if reserved.get("status") == "True":
        text = _describe_checks(checks) or "waits for its admission checks"
        return Failure(FailureKind.quota, f"queue {queue}: {text}", "")
    text = f"queue {queue}: {message or 'waits for quota'}"
    if reason == "ExceedsMaxQuota" or "> maximum capacity" in message:
        return Failure(FailureKind.impossible, text, "lower kubernetes.nodes or resources, or raise the quota of the ClusterQueue")
    fits_elsewhere = "insufficient unused quota" in message  # another flavor will do when it is free
    for pattern, remedy in () if fits_elsewhere else _NEVER_ADMITTED:
        if re.search(pattern, message):
            return Failure(FailureKind.configuration, text, remedy)
    return Failure(FailureKind.quota, text, "")


def _describe_checks(checks: list[Object]) -> str:
    return "; ".join(f"{check['name']}: {check.get('message') or check.get('state')}" for check in checks)


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


# ---- state of a job


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
