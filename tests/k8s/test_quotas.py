"""Every shipped profile fits into the quotas of every overlay, beside the services and the pod of the flow."""

from __future__ import annotations

from pathlib import Path

import pytest
from kubernetes.utils.quantity import parse_quantity

from components.errors import JobFailed
from components.home import Home
from components.launching import JobSpec
from components.launching.kubernetes.api_client import Cluster
from components.launching.kubernetes.launcher import KubernetesLauncher
from components.launching.kubernetes.manifests import render
from components.settings import Settings, load_settings, profiles
from components.training import stage_jobs
from tests.doubles.admission import Admission, usage
from tests.doubles.apiserver import RunningServer
from tests.helpers.fake_cluster import RENDERINGS
from tests.helpers.manifest_checks import Object, kustomize, pod_specs, schema_faults

OVERLAYS = ("k8s/overlays/kind", "k8s/overlays/onprem-gpu", "k8s/overlays/cloud")


def as_pods(thing: Object, count: int) -> list[Object]:
    pods = [
        {"metadata": {"name": thing["metadata"]["name"]}, "spec": spec, "status": {"phase": "Running"}} for spec in pod_specs(thing)
    ]
    return pods * count


def service_pods(overlay: str) -> list[Object]:
    """Return the pods that run beside a training job: the services, and the pod of the flow."""
    things = [*kustomize(overlay), *kustomize("k8s/run")]
    return [pod for thing in things for pod in as_pods(thing, thing.get("spec", {}).get("replicas", 1))]


def build_largest_stage(settings: Settings) -> JobSpec:
    """Return a stage of a profile; stages run one after another and request the same."""
    return stage_jobs("0" * 64, settings, Home(Path("/state/omnimri"), Path("/state/data")))[0]


def render_pods(job: JobSpec) -> list[Object]:
    """Return the pods of a job, spare ones included: quota and Kueue count them as well."""
    return as_pods(render(job, "job", "omnimri").main, job.pods)


def read_quota(overlay: str) -> dict[str, str]:
    """Return what the ResourceQuota of an overlay limits for pods."""
    (quota,) = [thing["spec"]["hard"] for thing in kustomize(overlay) if thing["kind"] == "ResourceQuota"]
    counted = {name: limit for name, limit in quota.items() if name == "pods" or name.startswith(("requests.", "limits."))}
    counted.pop("requests.storage")
    return counted


def read_queue(overlay: str, queue: str) -> dict[str, str]:
    """Return the quota of a LocalQueue's ClusterQueue by resource; empty if the overlay has no Kueue."""
    things = kustomize(overlay)
    queues = {thing["metadata"]["name"]: thing["spec"]["clusterQueue"] for thing in things if thing["kind"] == "LocalQueue"}
    if not queues:
        return {}
    (cluster_queue,) = [t for t in things if t["kind"] == "ClusterQueue" and t["metadata"]["name"] == queues[queue]]
    (group,) = cluster_queue["spec"]["resourceGroups"]
    quotas = {entry["name"]: entry["nominalQuota"] for entry in group["flavors"][0]["resources"]}
    assert list(quotas) == group["coveredResources"]
    return quotas


def find_excess(pods: list[Object], overlay: str, quota: dict[str, str], queue: dict[str, str]) -> list[str]:
    """Return the resources of which pods beside the services request more than a quota and a queue (if any) allow."""
    running, admission = service_pods(overlay), Admission(quota=quota, restricted=False)
    refusals = []
    for pod in pods:
        complete = {**pod, "spec": {"serviceAccountName": "training", **pod["spec"]}}
        refusals += filter(None, [admission.refuse(complete, running)])
        running.append(pod)
    requested = {name for pod in pods for name in pod["spec"]["containers"][0]["resources"]["requests"]} if queue else set()
    # Kueue admits no job that requests a resource which its queue does not cover.
    over = [name for name in requested if usage(pods, f"requests.{name}") > parse_quantity(queue.get(name, "0"))]
    return [*refusals, *sorted(over)]


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("profile", profiles())
def test_a_profile_fits_into_the_quotas_of_an_overlay(profile: str, overlay: str) -> None:
    job = build_largest_stage(load_settings(profile, ["launcher=kubernetes"]))
    queue = read_queue(overlay, job.placement.queue) if job.placement.queue else {}
    assert find_excess(render_pods(job), overlay, read_quota(overlay), queue) == []
    if job.placement.queue and not queue:  # an overlay without Kueue
        with RunningServer(crds=()) as server, pytest.raises(JobFailed, match=r"no Kueue.*kubernetes\.queue=null"):
            KubernetesLauncher(Cluster(server.client(), "omnimri")).submit(job)


@pytest.mark.parametrize("overlay", OVERLAYS[1:])
def test_a_spare_node_of_the_largest_profile_needs_what_the_page_says_to_add(overlay: str) -> None:
    """Kueue admits a job as a whole, with its spare nodes: without them being free, the job would not start."""
    job = build_largest_stage(load_settings("paper", ["launcher=kubernetes", "kubernetes.spare_nodes=1"]))
    pods, quota = render_pods(job), read_quota(overlay)
    queue = read_queue(overlay, str(job.placement.queue))
    assert len(pods) == 5 and find_excess(pods, overlay, quota, queue)
    for name, amount in pods[0]["spec"]["containers"][0]["resources"]["requests"].items():
        for limits, key in ((queue, name), (quota, f"requests.{name}"), (quota, f"limits.{name}")):
            if key in limits:
                limits[key] = str(parse_quantity(limits[key]) + parse_quantity(amount))
    assert find_excess(pods, overlay, quota, queue) == []


def test_the_shipped_queue_covers_the_devices_that_the_page_names() -> None:
    job = build_largest_stage(load_settings("paper", ["launcher=kubernetes", "kubernetes.devices={rdma/hca: 8}"]))
    pods = render_pods(job)
    assert usage(pods, "requests.rdma/hca") == 32
    for overlay in OVERLAYS[1:]:
        assert find_excess(pods, overlay, read_quota(overlay), read_queue(overlay, "training")) == []


@pytest.mark.parametrize("profile", profiles())
def test_the_jobs_of_a_profile_are_valid_in_the_newest_versions(profile: str) -> None:
    settings = load_settings(profile, ["launcher=kubernetes", "kubernetes.spare_nodes=1"])
    job = build_largest_stage(settings)
    for rendering in RENDERINGS:
        for thing in render(job, rendering, "omnimri").objects:
            assert [schema_faults(thing, version) for version in ("1.36", "1.37")] == [[], []]
