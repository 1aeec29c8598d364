"""Diagnosis of a job that Kueue has not admitted, from the conditions of its Workload."""

from __future__ import annotations

import datetime
import re
from dataclasses import replace

from components.launching.job import JobState, JobStatus
from components.launching.kubernetes.api_client import Cluster
from components.launching.kubernetes.failures import Failure, FailureKind
from components.launching.kubernetes.manifests import WORKLOADS, Object

SILENT_CONTROLLER_S = 60.0
"""Time without any object of a job after which its controller is called missing."""

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


def diagnose_queue(cluster: Cluster, main: Object) -> Failure | None:
    """Return why Kueue has not admitted a job, or None if it says nothing."""
    queue_name = (main["metadata"].get("labels") or {}).get("kueue.x-k8s.io/queue-name")
    if not queue_name or not cluster.serves(WORKLOADS):
        return None
    workloads, _ = cluster.list_objects(WORKLOADS, f"kueue.x-k8s.io/job-uid={main['metadata']['uid']}")
    if workloads:
        return diagnose_admission(workloads[-1], queue_name)
    age = cluster.now() - datetime.datetime.fromisoformat(main["metadata"]["creationTimestamp"])
    if age.total_seconds() <= SILENT_CONTROLLER_S:
        return None
    text = f"queue {queue_name}: Kueue has made no Workload for the job: does it run, and does it manage this namespace and kind?"
    return Failure(FailureKind.quota, text, "")


def explain_queue(cluster: Cluster, main: Object, status: JobStatus) -> JobStatus:
    """Return the status of a queued job with the reason of its queue; any other status is returned unchanged."""
    failure = diagnose_queue(cluster, main) if status.state is JobState.queued else None
    return replace(status, detail=failure.message) if failure else status
