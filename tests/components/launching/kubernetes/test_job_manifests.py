"""Three renderings of a job: their content, and the checks that a cluster would apply."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.errors import BadInput
from components.launching import JobSpec, Placement, Resources, SharedVolume
from components.launching.kubernetes.manifests import (
    COSCHEDULING_GROUPS,
    GANG_RESOURCES,
    JOB_LABEL,
    VOLCANO_GROUPS,
    RenderingName,
    Resource,
    render,
)
from components.launching.kubernetes.pod_entrypoint import build_arguments
from components.launching.kubernetes.pod_fields import node_count
from tests.helpers.manifest_checks import NEWEST, pod_specs, project_faults, schema_faults, security_faults

STATE = SharedVolume("omnimri-state", Path("/state"))
SMALL = JobSpec(
    "vision_pretraining",
    "components.training.trainer",
    ("/state/training/0123/job.json",),
    processes=2,
    nodes=2,
    folder=Path("/state/training/0123"),
    identity="0123456789abcdef",
    image="omnimri@sha256:" + "0" * 64,
    volumes=(STATE,),
)
LARGE = replace(
    SMALL,
    processes=32,
    nodes=4,
    resources=Resources(cpu="96", memory="1Ti", gpus=8, shared_memory="64Gi", scratch="500Gi"),
    placement=Placement(
        queue="training",
        queue_priority="research",
        priority="omnimri-training",
        node_selector={"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        tolerations=({"key": "team", "operator": "Equal", "value": "mri", "effect": "NoSchedule"},),
        labels={"cost-center": "mri"},
        annotations={"k8s.v1.cni.cncf.io/networks": "rdma"},
        scheduler="default-scheduler",
        runtime_class="nvidia",
        topology="cloud.provider.com/topology-rack",
        topology_required=True,
        spread="kubernetes.io/hostname",
        devices={"rdma/hca": 8},
        resource_claims={"nic": "rdma-nic"},
        excluded_machines=("gpu-17",),
    ),
    secrets=("mlflow",),
    pull_secrets=("registry",),
    environment={"NCCL_IB_HCA": "mlx5"},
)
RENDERINGS: tuple[RenderingName, ...] = ("jobset", "job", "trainjob")


def render_pod(job: JobSpec, rendering: RenderingName) -> dict[str, Any]:
    rendered = render(job, rendering, "omnimri")
    (pod,) = [pod for thing in rendered.objects for pod in pod_specs(thing)]
    return pod


@pytest.mark.parametrize("version", NEWEST)
@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("job", [SMALL, LARGE], ids=["small", "large"])
def test_every_object_passes_schemas_and_the_restricted_standard(job: JobSpec, rendering: RenderingName, version: str) -> None:
    for thing in render(job, rendering, "omnimri").objects:
        assert schema_faults(thing, version) == []
    assert security_faults(render_pod(job, rendering)) + project_faults(render_pod(job, rendering)) == []
    if rendering != "job":  # the Job inside is also validated with the schema of Kubernetes
        (inner,) = _find_inner_jobs(render(job, rendering, "omnimri").objects)
        assert schema_faults({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "inner"}, "spec": inner}, version) == []


def _find_inner_jobs(things: Any) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = []
    if isinstance(things, dict):
        if "replicatedJobs" in things:
            return [replicated["template"]["spec"] for replicated in things["replicatedJobs"]]
        things = tuple(things.values())
    if isinstance(things, (list, tuple)):
        for thing in things:
            jobs += _find_inner_jobs(thing)
    return jobs


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_gpu_pod_requests_its_limits_and_mounts_its_volumes(rendering: RenderingName) -> None:
    pod = render_pod(LARGE, rendering)
    (container,) = pod["containers"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Gi"}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {"/dev/shm": "shm", "/tmp": "scratch", "/state": "shared-0"}
    assert volumes["shared-0"]["persistentVolumeClaim"] == {"claimName": "omnimri-state"}
    assert pod["automountServiceAccountToken"] is False and pod["terminationGracePeriodSeconds"] == LARGE.grace_s
    assert container["envFrom"] == [{"secretRef": {"name": "mlflow"}}] and pod["priorityClassName"] == "omnimri-training"


@pytest.mark.parametrize(("rendering", "host"), [("jobset", "node-0-0"), ("job", "0"), ("trainjob", "node-0-0")])
def test_the_rendezvous_endpoint_is_the_stable_name_of_the_first_node(rendering: RenderingName, host: str) -> None:
    command = render_pod(SMALL, rendering)["containers"][0]["args"]
    key = SMALL.key
    assert key == "vision-pretraining-0123456789"
    assert command == build_arguments(
        ["components.training.trainer", "/state/training/0123/job.json"],
        2,
        1,
        f"{key}-{host}.{key}.omnimri.svc:29400",
        key,
        3,
        120,
        SMALL.folder,
    )


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_disruptions_are_ignored_and_permanent_failures_end_the_job(rendering: RenderingName) -> None:
    objects = render(LARGE, rendering, "omnimri").objects
    job = _find_inner_jobs(objects)[0] if rendering != "job" else objects[0]["spec"]
    ignore, fail, replaced = job["podFailurePolicy"]["rules"]
    assert ignore == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert fail["action"] == "FailJob" and fail["onExitCodes"]["values"] == [1, 2]  # 137 has many causes
    assert replaced["action"] == "Ignore" and replaced["onExitCodes"]["values"] == [69, 75, 143]
    assert job["backoffLimit"] == (3 * 4 if rendering == "job" else 0)  # rounds in which all nodes fail; a JobSet restarts all
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"] == 4
    assert job["activeDeadlineSeconds"] == LARGE.time_limit_s


def test_any_claim_can_be_mounted() -> None:
    """The name of a claim may have dots and 253 characters, that of a volume 63 without dots."""
    claims = (STATE, SharedVolume("data.of.2026." + "x" * 200, Path("/data")), SharedVolume("shm", Path("/more")))
    volumes = render_pod(replace(SMALL, volumes=claims), "job")["volumes"]
    names = [volume["name"] for volume in volumes]
    assert len(set(names)) == 5 and all(re.fullmatch(r"[a-z0-9-]{1,63}", name) for name in names)
    assert [v["persistentVolumeClaim"]["claimName"] for v in volumes[2:]] == [volume.claim for volume in claims]


@pytest.mark.parametrize("version", ["1.36", "1.37"])
@pytest.mark.parametrize("rendering", RENDERINGS)
def test_spare_nodes_are_pods_without_which_the_job_is_complete(rendering: RenderingName, version: str) -> None:
    job = replace(SMALL, spare_nodes=1)
    rendered = render(job, rendering, "omnimri", GANG_RESOURCES[0])
    (spec,) = _find_inner_jobs(rendered.objects) or [rendered.main["spec"]]
    assert (spec["completions"], spec["parallelism"]) == (3, 3) and spec["successPolicy"]["rules"] == [{"succeededCount": 2}]
    assert "--nodes=2" in spec["template"]["spec"]["containers"][0]["args"]  # torchrun lets further nodes wait
    assert node_count(rendered.main) == 2
    (group,) = [thing for thing in rendered.prerequisites if thing["kind"] == "PodGroup"]
    assert group["spec"]["schedulingPolicy"]["gang"]["minCount"] == 2
    checked = [thing for thing in rendered.objects if thing["kind"] != "PodGroup"]
    assert [fault for thing in checked for fault in schema_faults(thing, version)] == []
    if rendering == "trainjob":
        assert rendered.main["spec"]["trainer"]["numNodes"] == 3


@pytest.mark.parametrize("rendering", ["jobset", "trainjob"])
def test_a_jobset_restarts_after_killed_pods_and_fails_at_once_after_what_no_restart_helps(rendering: RenderingName) -> None:
    (policy,) = find_values(render(SMALL, rendering, "omnimri").objects, "failurePolicy")
    actions = {reason: rule["action"] for rule in policy["rules"] for reason in rule["onJobFailureReasons"]}
    assert policy["maxRestarts"] == SMALL.restarts and actions == {
        "PodFailurePolicy": "FailJobSet",  # status 1 or 2 of a pod
        "DeadlineExceeded": "FailJobSet",
        "BackoffLimitExceeded": "RestartJobSet",  # a pod was killed: counted; a disruption never ends a Job
    }


def find_values(thing: Any, key: str) -> list[Any]:
    if isinstance(thing, dict):
        return [thing[key]] if key in thing else [found for value in thing.values() for found in find_values(value, key)]
    return [found for item in thing for found in find_values(item, key)] if isinstance(thing, (list, tuple)) else []


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_the_settings_of_placement_reach_the_pods(rendering: RenderingName) -> None:
    pod = render_pod(LARGE, rendering)
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["rdma/hca"] == "8" and container["resources"]["claims"] == [{"name": "nic"}]
    assert pod["resourceClaims"] == [{"name": "nic", "resourceClaimTemplateName": "rdma-nic"}]
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["nvidia.com/gpu", "team"]
    assert (pod["schedulerName"], pod["runtimeClassName"]) == ("default-scheduler", "nvidia")
    (spread,) = pod["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname" and spread["whenUnsatisfiable"] == "ScheduleAnyway"
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["gpu-17"]}]
    assert term["matchFields"] == [{"key": "metadata.name", "operator": "NotIn", "values": ["gpu-17"]}]


def find_template(job: JobSpec) -> dict[str, Any]:
    template: dict[str, Any] = render(job, "job", "omnimri").main["spec"]["template"]
    return template


def test_one_topology_domain_is_asked_of_kueue_with_a_queue_and_of_the_scheduler_without() -> None:
    template = find_template(LARGE)
    assert template["metadata"]["annotations"] == {
        "k8s.v1.cni.cncf.io/networks": "rdma",
        "kueue.x-k8s.io/podset-required-topology": "cloud.provider.com/topology-rack",
    }
    assert template["metadata"]["labels"]["cost-center"] == "mri" and template["metadata"]["labels"][JOB_LABEL] == LARGE.key
    preferred = find_template(replace(LARGE, placement=replace(LARGE.placement, topology_required=False)))
    assert "kueue.x-k8s.io/podset-preferred-topology" in preferred["metadata"]["annotations"]
    unqueued = find_template(replace(LARGE, placement=replace(LARGE.placement, queue=None)))
    (near,) = unqueued["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert near["topologyKey"] == "cloud.provider.com/topology-rack"


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("gang", GANG_RESOURCES, ids=lambda gang: gang.api_version)
def test_without_a_queue_a_pod_group_places_all_nodes_or_none(rendering: RenderingName, gang: Resource) -> None:
    """PodGroups of Kubernetes 1.36 (v1alpha2) and 1.37, of the scheduler plugins, and of Volcano."""
    unqueued = replace(LARGE, placement=replace(LARGE.placement, queue=None))
    rendered = render(unqueued, rendering, "omnimri", gang)
    (group,) = [thing for thing in rendered.prerequisites if thing["kind"] == "PodGroup"]
    spec = group["spec"]
    assert spec["minMember" if gang in (COSCHEDULING_GROUPS, VOLCANO_GROUPS) else "schedulingPolicy"] in (
        4,
        {"gang": {"minCount": 4}},
    )
    assert group["metadata"]["name"] in json.dumps(find_pod_template(rendered.objects, gang))
    version = "1.36" if gang.version == "v1alpha2" else "1.37"
    checked = [thing for thing in rendered.objects if thing["kind"] in ("PodGroup", "Job")]
    assert [fault for thing in checked for fault in schema_faults(thing, version)] == []
    for job in (LARGE, replace(unqueued, nodes=1, processes=8)):  # Kueue admits whole jobs itself; one node is no group
        kinds = {thing["kind"] for thing in render(job, rendering, "omnimri", gang).objects}
        assert "PodGroup" not in kinds


def find_pod_template(objects: tuple[dict[str, Any], ...], gang: Resource) -> Any:
    """Return the field of the pod template that names the group."""
    (job,) = _find_inner_jobs(objects) or [thing["spec"] for thing in objects if thing["kind"] == "Job"]
    metadata, spec = job["template"]["metadata"], job["template"]["spec"]
    if gang is COSCHEDULING_GROUPS:
        return metadata["labels"]["scheduling.x-k8s.io/pod-group"]
    return metadata["annotations"]["scheduling.k8s.io/group-name"] if gang is VOLCANO_GROUPS else spec["schedulingGroup"]


def test_only_jobs_with_a_queue_go_to_kueue() -> None:
    for rendering in RENDERINGS:
        for job, queue in ((SMALL, None), (LARGE, "training")):
            labels = render(job, rendering, "omnimri").main["metadata"]["labels"]
            assert labels.get("kueue.x-k8s.io/queue-name") == queue and labels[JOB_LABEL] == job.key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"processes": 3}, "cannot be divided"),
        ({"resources": Resources(gpus=8)}, "need 1 GPUs"),
        ({"image": ""}, "no image"),
        ({"folder": Path("/elsewhere")}, "cannot access"),
        ({"volumes": (STATE, SharedVolume("data", Path("/state")))}, "two volumes have this path"),
        ({"volumes": (STATE, SharedVolume("data", Path("/tmp")))}, "two volumes have this path"),
    ],
)
def test_a_job_that_cannot_run_is_rejected_with_the_setting_at_fault(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        render(replace(SMALL, **change), "jobset", "omnimri")


@given(st.text(min_size=1, max_size=80), st.text(alphabet="0123456789abcdef", min_size=10, max_size=64))
def test_every_job_key_is_a_valid_kubernetes_name(name: str, identity: str) -> None:
    key = replace(SMALL, name=name, identity=identity).key
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", key) and len(f"{key}-node-0-0") <= 63
