"""Every shipped profile fits into the quotas of every overlay, beside the services and the pod of the flow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kubernetes.utils.quantity import parse_quantity

from components.home import Home
from components.launching.kubernetes.manifests import RenderedJob, render
from components.settings import Settings, load_settings, profiles
from components.training import stage_jobs
from tests.doubles.admission import Admission, usage
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


def render_largest_stage(settings: Settings) -> tuple[RenderedJob, list[Object]]:
    """Return a stage of a profile and its pods; stages run one after another and request the same."""
    job = stage_jobs("0" * 64, settings, Home(Path("/state/omnimri"), Path("/state/data")))[0]
    rendered = render(job, "job", "omnimri")
    return rendered, as_pods(rendered.main, job.nodes)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("profile", profiles())
def test_a_profile_fits_into_the_quotas_of_an_overlay(profile: str, overlay: str) -> None:
    settings = load_settings(profile, ["launcher=kubernetes"])
    rendered, pods = render_largest_stage(settings)
    running = service_pods(overlay)
    (quota,) = [thing["spec"]["hard"] for thing in kustomize(overlay) if thing["kind"] == "ResourceQuota"]
    counted = {name: limit for name, limit in quota.items() if name == "pods" or name.startswith(("requests.", "limits."))}
    counted.pop("requests.storage")
    admission = Admission(quota=counted, restricted=False)
    for pod in pods:
        assert admission.refuse({**pod, "spec": {"serviceAccountName": "training", **pod["spec"]}}, running) is None
        running.append(pod)
    _assert_queue_admits(rendered, pods, kustomize(overlay))


@pytest.mark.parametrize("profile", profiles())
def test_the_jobs_of_a_profile_are_valid_in_the_newest_versions(profile: str) -> None:
    settings = load_settings(profile, ["launcher=kubernetes", "kubernetes.spare_nodes=1"])
    job = stage_jobs("0" * 64, settings, Home(Path("/state/omnimri"), Path("/state/data")))[0]
    for rendering in RENDERINGS:
        for thing in render(job, rendering, "omnimri").objects:
            assert [schema_faults(thing, version) for version in ("1.36", "1.37")] == [[], []]


def _assert_queue_admits(rendered: RenderedJob, pods: list[Object], things: tuple[Object, ...]) -> None:
    """Compare with Kueue's quota where the overlay has Kueue and the profile names a queue."""
    queues = {thing["metadata"]["name"]: thing["spec"]["clusterQueue"] for thing in things if thing["kind"] == "LocalQueue"}
    queue = rendered.main["metadata"]["labels"].get("kueue.x-k8s.io/queue-name")
    if not queue or not queues:
        return
    (cluster_queue,) = [t for t in things if t["kind"] == "ClusterQueue" and t["metadata"]["name"] == queues[queue]]
    (group,) = cluster_queue["spec"]["resourceGroups"]
    quotas: dict[str, Any] = {entry["name"]: entry["nominalQuota"] for entry in group["flavors"][0]["resources"]}
    requested = {name for pod in pods for name in pod["spec"]["containers"][0]["resources"]["requests"]}
    assert requested <= set(group["coveredResources"]), (
        "Kueue admits no job that requests a resource which its queue does not cover"
    )
    for name in requested:
        assert usage(pods, f"requests.{name}") <= parse_quantity(quotas[name]), name
