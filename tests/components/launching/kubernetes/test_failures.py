"""Diagnosis of objects as a real control plane writes them: state, cause and remedy."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from components.launching import JobState
from components.launching.kubernetes.admission import diagnose_admission
from components.launching.kubernetes.failures import FailureKind, select_root_cause
from components.launching.kubernetes.observation import observe
from components.launching.kubernetes.pod_failures import (
    diagnose_blocker,
    diagnose_failure,
    diagnose_rejection,
    diagnose_silent_node,
)

NOW = datetime.datetime(2026, 11, 28, 12, 0, 0, tzinfo=datetime.UTC)


def build_job(**changes: Any) -> dict[str, Any]:
    return {"kind": "Job", "metadata": {"name": "j", "labels": {}}, "spec": {"completions": 2}, "status": {}, **changes}


def build_pod(index: int, phase: str = "Running", **fields: Any) -> dict[str, Any]:
    labels = {"batch.kubernetes.io/job-completion-index": str(index)}
    metadata = {"name": f"j-{index}-x", "labels": labels, **fields.pop("metadata", {})}
    return {"metadata": metadata, "spec": {"nodeName": f"machine-{index}"}, "status": {"phase": phase, **fields}}


def terminated(status: int, reason: str = "Error", message: str = "") -> list[dict[str, Any]]:
    return [{"name": "node", "state": {"terminated": {"exitCode": status, "reason": reason, "message": message}}}]


@pytest.mark.parametrize(("seconds", "told"), [(-60, False), (29, False), (30, True), (3600, True)])
def test_a_node_that_does_not_confirm_the_end_of_a_pod_is_named_with_the_command(seconds: float, told: bool) -> None:
    """``deletionTimestamp`` is the end of the grace period; the machine is called unreachable 30 s later."""
    due = (NOW - datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    pods = [build_pod(0), build_pod(1, metadata={"deletionTimestamp": due})]
    observation = observe(build_job(), pods, now=NOW)
    assert observation.state is JobState.pending
    assert ("j-1-x: node machine-1 does not confirm" in observation.detail) == told
    command = "kubectl taint nodes machine-1 node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
    assert (command in observation.detail) == told
    deleting = observe(build_job(metadata={"name": "j", "deletionTimestamp": due}), pods, now=NOW)
    assert deleting.state is JobState.deleting and (command in deleting.detail) == told


def test_a_deletion_names_the_finalizer_of_another_controller() -> None:
    finalizers = ["foregroundDeletion", "example.org/billing"]
    deleted = build_job(metadata={"name": "j", "deletionTimestamp": "2026-11-28T12:00:00Z", "finalizers": finalizers})
    assert observe(deleted, []).detail == "waits for the finalizer example.org/billing"


def test_a_deletion_names_a_few_of_its_pods() -> None:
    deleted = build_job(metadata={"name": "j", "deletionTimestamp": "2026-11-28T12:00:00Z"})
    assert observe(deleted, [build_pod(n) for n in range(100)]).detail == "waits for the end of j-0-x, j-1-x, j-2-x and 97 more"


def test_a_job_with_fewer_pods_than_nodes_is_not_called_running() -> None:
    assert observe(build_job(), [build_pod(0), build_pod(1)]).state is JobState.running
    observation = observe(build_job(), [build_pod(0)])
    assert (observation.state, observation.detail, observation.missing) == (JobState.pending, "1 of 2 pods exist", 1)


@pytest.mark.parametrize("job", [build_job(), build_job(status={"conditions": [{"type": "SuccessCriteriaMet", "status": "True"}]})])
def test_a_job_whose_pods_have_succeeded_is_not_called_pending(job: dict[str, Any]) -> None:
    observation = observe(job, [build_pod(0, "Succeeded"), build_pod(1, "Succeeded")])
    assert (observation.state, observation.detail) == (JobState.running, "all nodes have finished")


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (137, "OOMKilled", FailureKind.out_of_memory),
        (137, "ContainerStatusUnknown", FailureKind.node_lost),
        (255, "Unknown", FailureKind.node_lost),
        (137, "Error", FailureKind.killed),
        (75, "Error", FailureKind.stopped),
        (69, "Error", FailureKind.stopped),
        (2, "Error", FailureKind.configuration),
        (1, "Error", FailureKind.program),
    ],
)
def test_status_137_has_several_causes(status: int, reason: str, kind: FailureKind) -> None:
    failure = diagnose_failure(build_pod(0, "Failed", containerStatuses=terminated(status, reason)))
    assert failure is not None and failure.kind is kind and failure.node == "machine-0"


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ('Usage of EmptyDir volume "scratch" exceeds the limit "20Gi". ', FailureKind.storage),
        ("Pod ephemeral local storage usage exceeds the total limit of containers 20Gi. ", FailureKind.storage),
        ('Container node exceeded its local ephemeral storage limit "20Gi". ', FailureKind.storage),
        ("The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: 2Mi. ", FailureKind.evicted),
    ],
)
def test_a_pod_evicted_for_its_own_use_of_local_storage_is_told_apart(message: str, kind: FailureKind) -> None:
    """Its replacement would be evicted as well; that of a machine whose disk others have filled would not."""
    target = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": message}
    failure = diagnose_failure(build_pod(0, "Failed", reason="Evicted", message=message, conditions=[target]))
    assert (
        failure is not None and failure.kind is kind and ("kubernetes.scratch" in failure.remedy) == (kind is FailureKind.storage)
    )


def test_an_injected_container_does_not_hide_the_exception() -> None:
    proxy = [{"name": "istio-proxy", "state": {"terminated": {"exitCode": 137, "reason": "Error"}}}]
    pod = build_pod(0, "Failed", containerStatuses=[*proxy, *terminated(1, message="rank 0: ValueError: the loss")])
    failure = diagnose_failure(pod)
    assert failure is not None and "ValueError: the loss" in failure.message


def test_an_injected_container_is_looked_at_only_in_a_failed_pod() -> None:
    proxy = [{"name": "istio-proxy", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]
    own = [{"name": "node", "state": {"running": {}}}]
    assert diagnose_failure(build_pod(0, "Running", containerStatuses=[*proxy, *own])) is None
    failure = diagnose_failure(build_pod(0, "Failed", containerStatuses=[*proxy, *terminated(0)]))
    assert failure is not None and failure.kind is FailureKind.killed and "istio-proxy ended with status 137" in failure.message


def test_an_injected_container_that_fails_before_the_training_starts_is_named() -> None:
    mesh = [{"name": "istio-init", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]
    own = [{"name": "node", "state": {"waiting": {"reason": "PodInitializing"}}}]
    failure = diagnose_failure(build_pod(0, "Failed", initContainerStatuses=mesh, containerStatuses=own))
    assert failure is not None and "the injected container istio-init ended with status 1 (Error)" in failure.message


def test_a_scheduling_gate_that_nobody_removes_is_not_called_a_lack_of_machines() -> None:
    gate = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "blocked due to scheduling gates"}
    blocker = diagnose_blocker(build_pod(0, "Pending", conditions=[gate]))
    assert blocker is not None and blocker.kind is FailureKind.stalled and "who sets its gates" in blocker.remedy


def test_a_finished_job_whose_spare_node_has_no_power_names_it() -> None:
    """The Job controller calls the job complete only when that pod has ended."""
    pods = [
        build_pod(0, "Succeeded"),
        build_pod(1, "Succeeded"),
        build_pod(2, metadata={"deletionTimestamp": "2026-11-28T11:00:00Z"}),
    ]
    observation = observe(build_job(), pods, now=NOW)
    assert observation.detail.startswith("all nodes have finished; j-2-x: node machine-2 does not confirm")


def test_a_lost_machine_is_not_said_to_be_replaced_before_it_confirms_the_end_of_its_pod() -> None:
    target = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
    lost = build_pod(1, conditions=[target], metadata={"deletionTimestamp": "2026-11-28T12:00:00Z"})
    assert observe(build_job(), [build_pod(0), lost], now=NOW).detail.endswith("waits until it confirms the end of j-1-x")
    lost["status"]["phase"] = "Failed"
    assert observe(build_job(), [build_pod(0), lost], now=NOW).detail.endswith("waits for another")


def test_pods_that_were_stopped_are_not_the_root_cause() -> None:
    statuses = [(69, "another node has ended the job"), (137, ""), (1, "rank 1: ValueError: the loss"), (75, "")]
    pods = [build_pod(i, "Failed", containerStatuses=terminated(status, message=text)) for i, (status, text) in enumerate(statuses)]
    cause = select_root_cause(map(diagnose_failure, pods))
    assert cause is not None and "ValueError: the loss" in cause.message


@pytest.mark.parametrize(
    ("ready", "containers_ready", "deleted", "told"),
    [
        ("False", "True", False, True),
        ("True", "True", False, False),
        ("False", "False", False, False),
        ("False", "True", True, False),
    ],
)
def test_a_running_pod_that_only_the_control_plane_calls_not_ready_is_on_a_silent_machine(
    ready: str, containers_ready: str, deleted: bool, told: bool
) -> None:
    conditions = [{"type": "Ready", "status": ready}, {"type": "ContainersReady", "status": containers_ready}]
    metadata = {"deletionTimestamp": "2026-11-28T12:00:00Z"} if deleted else {}
    failure = diagnose_silent_node(build_pod(1, conditions=conditions, metadata=metadata))
    assert (failure is not None) == told
    assert failure is None or (failure.node == "machine-1" and "kubectl taint nodes machine-1" in failure.remedy)


def test_the_cause_is_the_last_line_of_a_long_termination_message() -> None:
    log = "\n".join(f"line {n}" for n in range(80)) + "\nrank 1: ValueError: the loss"
    failure = diagnose_failure(build_pod(0, "Failed", containerStatuses=terminated(1, message=log)))
    assert failure is not None and failure.message == "j-0-x: exited with status 1: rank 1: ValueError: the loss"


def test_a_lost_connection_is_not_the_root_cause() -> None:
    messages = ["rank 0: RuntimeError: Connection closed by peer", "rank 1: ValueError: the loss"]
    pods = [build_pod(i, "Failed", containerStatuses=terminated(1, message=text)) for i, text in enumerate(messages)]
    cause = select_root_cause(map(diagnose_failure, pods))
    assert cause is not None and "ValueError: the loss" in cause.message


@pytest.mark.parametrize(
    ("message", "kind", "remedy"),
    [
        (
            '0/2 nodes are available: persistentvolumeclaim "x" not found. not found',
            FailureKind.configuration,
            "kubernetes.volumes",
        ),
        ("0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.", FailureKind.configuration, "storage class"),
        ('pod "omnimri/j-0-x": ResourceClaim not created yet', FailureKind.configuration, "kubernetes.resource_claims"),
        ("0/2 nodes are available: 2 cannot allocate all claims.", FailureKind.unschedulable, "kubernetes.resource_claims"),
        ("0/2 nodes are available: 2 Insufficient nvidia.com/gpu.", FailureKind.unschedulable, "gpus_per_node"),
    ],
)
def test_what_the_scheduler_says_is_told_apart(message: str, kind: FailureKind, remedy: str) -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    blocker = diagnose_blocker(build_pod(0, "Pending", conditions=[condition]))
    assert blocker is not None and blocker.kind is kind and remedy in blocker.remedy and message in blocker.message


QUOTA = 'pods "j-1-x" is forbidden: exceeded quota: omnimri, requested: {r}, used: {u}, limited: {l}'


@pytest.mark.parametrize(
    ("message", "nodes", "kind"),
    [
        (QUOTA.format(r="requests.cpu=4", u="requests.cpu=8", l="requests.cpu=8"), 2, FailureKind.quota),
        (QUOTA.format(r="requests.cpu=4", u="requests.cpu=4", l="requests.cpu=6"), 2, FailureKind.impossible),
        (
            QUOTA.format(r="limits.memory=1Ti,pods=1", u="limits.memory=0,pods=2", l="limits.memory=2Ti,pods=2"),
            2,
            FailureKind.quota,
        ),
        (QUOTA.format(r="limits.memory=1Ti", u="limits.memory=0", l="limits.memory=1536Gi"), 2, FailureKind.impossible),
        ('error looking up service account omnimri/training: serviceaccount "training" not found', 2, FailureKind.configuration),
        ('pods "x" is forbidden: no PriorityClass with name high was found', 2, FailureKind.configuration),
        ('admission webhook "policy" denied the request: no latest tags', 2, FailureKind.configuration),
        (
            "pods \"x\" is forbidden: ValidatingAdmissionPolicy 'digests' with binding 'all' denied request: failed expression",
            2,
            FailureKind.configuration,
        ),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest": hostNetwork', 2, FailureKind.configuration),
        ("maximum cpu usage per Container is 8, but limit is 96", 2, FailureKind.configuration),
    ],
)
def test_a_quota_that_can_never_fit_is_told_apart_from_one_in_use(message: str, nodes: int, kind: FailureKind) -> None:
    failure = diagnose_rejection(message, nodes)
    assert failure.kind is kind and message.partition("is forbidden: ")[2] in failure.message and failure.remedy


@pytest.mark.parametrize(
    ("reason", "message", "kind"),
    [
        ("Inadmissible", "LocalQueue training doesn't exist", FailureKind.configuration),
        ("Inadmissible", "ClusterQueue omnimri is inactive", FailureKind.configuration),
        ("Pending", "insufficient unused quota for nvidia.com/gpu in flavor omnimri-gpu, 8 more needed", FailureKind.quota),
        (
            "Pending",
            "insufficient quota for nvidia.com/gpu in flavor f, request > maximum capacity (32 > 8)",
            FailureKind.impossible,
        ),
        ("ExceedsMaxQuota", "too large", FailureKind.impossible),
        (
            "Pending",
            "couldn't assign flavors to pod set main: resource rdma/hca unavailable in ClusterQueue",
            FailureKind.configuration,
        ),
        ("Inadmissible", "Workload namespace doesn't match ClusterQueue selector", FailureKind.configuration),
        (
            "Pending",
            "couldn't assign flavors to pod set main: untolerated taint {team mri NoSchedule} in flavor f",
            FailureKind.configuration,
        ),
        (
            "Pending",
            "flavor a doesn't match node affinity, insufficient unused quota for cpu in flavor b, 8 more needed",
            FailureKind.quota,
        ),
    ],
)
def test_the_reason_of_a_queue_is_told(reason: str, message: str, kind: FailureKind) -> None:
    conditions = [{"type": "QuotaReserved", "status": "False", "reason": reason, "message": message}]
    failure = diagnose_admission({"status": {"conditions": conditions}}, "training")
    assert failure.kind is kind and failure.message == f"queue training: {message}"


@pytest.mark.parametrize(
    ("workload", "kind", "text"),
    [
        ({"spec": {"active": False}}, FailureKind.configuration, "deactivated (by an administrator)"),
        (
            {
                "spec": {"active": False},
                "status": {"conditions": [{"type": "Evicted", "status": "True", "message": "requeuing limit exceeded"}]},
            },
            FailureKind.configuration,
            "deactivated (requeuing limit exceeded)",
        ),
        (
            {"status": {"admissionChecks": [{"name": "budget", "state": "Rejected", "message": "no money"}]}},
            FailureKind.configuration,
            "budget: no money",
        ),
        (
            {
                "status": {
                    "conditions": [{"type": "QuotaReserved", "status": "True"}],
                    "admissionChecks": [{"name": "provision", "state": "Pending", "message": "adds 4 nodes"}],
                }
            },
            FailureKind.quota,
            "provision: adds 4 nodes",
        ),
    ],
)
def test_what_a_queue_never_admits_is_told_apart(workload: dict[str, Any], kind: FailureKind, text: str) -> None:
    failure = diagnose_admission({"metadata": {"name": "w"}, **workload}, "training")
    assert failure.kind is kind and text in failure.message


def test_a_time_limit_inside_a_jobset_is_reported_as_a_time_limit() -> None:
    """The JobSet names only its failure policy; the condition of its Job has the reason."""
    failed = {"type": "Failed", "status": "True", "reason": "FailJobSetFailurePolicyAction", "message": "jobset failed"}
    jobset = build_job(kind="JobSet", status={"conditions": [failed]})
    limit = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "Job was active longer than specified"}
    failure = observe(jobset, [], [build_job(status={"conditions": [limit]})]).failure
    assert failure is not None and failure.kind is FailureKind.deadline and "time_limit_hours" in failure.remedy


def test_the_progress_of_a_trainjob_is_shown() -> None:
    progress = {"progressPercentage": 40, "estimatedRemainingSeconds": 600, "metrics": [{"name": "loss", "value": "0.5"}]}
    trainjob = build_job(spec={"trainer": {"numNodes": 1}}, status={"trainerStatus": progress})
    assert observe(trainjob, [build_pod(0)]).progress == "40 %, loss 0.5, about 10 min left"
