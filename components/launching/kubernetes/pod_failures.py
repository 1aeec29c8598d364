"""Diagnosis of pods: why one failed, why it does not start, and whether its machine still reports.

All functions are pure functions of objects that the API server returned, so that every row of the failure table in
docs/kubernetes.md can be tested without a cluster.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import Any

from components.launching.kubernetes.failures import RESUME_HINT, Failure, FailureKind
from components.launching.kubernetes.manifests import CONTAINER, Object
from components.launching.kubernetes.pod_entrypoint import FAILED, UNCOUNTED
from components.launching.kubernetes.pod_fields import deletion_deadline, disruption_kind, machine, pod_phase, true_condition
from components.launching.kubernetes.rejections import classify_rejection
from components.launching.worker_process import BAD_CONFIGURATION

UNREACHABLE_MARGIN_S = 30.0
"""Time beyond a pod's grace period after which its node is called unreachable: covers a slow kubelet and unequal clocks."""
MAX_CAUSE_LINES = 5
"""A termination message with more lines is the end of the log, of which only the last line is the cause."""
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
_RESTART_REASONS = frozenset({"ContainerStatusUnknown", "Unknown"})
"""Reasons of containers that ran when their machine restarted: of the kubelet (status 137), and of containerd (status 255)."""
_START_REASONS = frozenset({"StartError", "ContainerCannotRun"})
_NO_PROGRAM = re.compile(r"executable file not found|no such file or directory|permission denied|exec format error")
"""Message of a container whose image does not fit; any other fault of a start is one of the node, such as its GPU driver."""


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
    """Return why pods have not started although their status states no cause; None for no pods.

    The kubelet and volume controllers report some faults only in events: a volume that cannot be mounted or that another node
    still uses, a network plugin, a driver of devices. A pod that no scheduler handles has neither status nor events.

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
