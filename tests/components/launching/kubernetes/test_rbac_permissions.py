"""Least privilege: the launcher uses exactly the verbs that its role grants and that the documentation lists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from components.errors import JobFailed
from components.launching import Placement
from components.launching.kubernetes.manifests import (
    COSCHEDULING_GROUPS,
    POD_GROUPS,
    RUNTIMES,
    SERVICES,
    VOLCANO_GROUPS,
    RenderingName,
)
from components.provenance import REPOSITORY
from tests.doubles.apiserver import CUSTOM_GROUPS, VERBS, RunningServer
from tests.doubles.controllers import Controllers
from tests.doubles.kubelet import Kubelet, ScriptedPod
from tests.helpers.fake_cluster import FakeCluster, Waiter, wait_until
from tests.helpers.manifest_checks import kustomize

Grant = tuple[str, str, str]  # group, resource, verb


def used_grants(cluster: FakeCluster) -> set[Grant]:
    grants = set()
    for request in cluster.server.requests():
        if request.resource is None or request.resource.plural is None:
            continue  # API discovery, which every account may read
        plural = "/".join(filter(None, (request.resource.plural, request.subresource)))
        grants.add((request.resource.group, plural, VERBS[request.action.value]))
        if request.action.value == "UPDATE":
            grants.add((request.resource.group, plural, "create"))  # creating an object by server-side apply needs both verbs
    return grants


def role_grants() -> set[Grant]:
    (role,) = [t for t in kustomize("k8s/overlays/kind") if t["kind"] == "Role" and t["metadata"]["name"] == "launcher"]
    return {(g, r, v) for rule in role["rules"] for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}


def run_all_operations(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every operation of the launcher in every rendering."""
    monkeypatch.setattr("components.launching.kubernetes.job_handle.MISSING_PODS_S", 0.05)
    renderings: tuple[RenderingName, ...] = ("job", "jobset", "trainjob")
    for rendering in renderings:
        launcher = cluster.launcher(rendering)
        launcher.submit(cluster.job(rendering)).wait()
        launcher.submit(cluster.job(rendering)).status()
        assert launcher.jobs() and launcher.find(cluster.job(rendering).key)
        cluster.default_behavior = ScriptedPod(exit_code=None)
        launcher.submit(cluster.job("cancelled-" + rendering)).cancel()
        cluster.default_behavior = ScriptedPod(("started", "done"))
    for scheduler in ("default-scheduler", "scheduler-plugins", "volcano"):
        launcher.submit(cluster.job(scheduler, placement=Placement(scheduler=scheduler))).cancel()
    for resource in (SERVICES, RUNTIMES, POD_GROUPS[0], COSCHEDULING_GROUPS, VOLCANO_GROUPS):
        labels = {"app.kubernetes.io/managed-by": "omnimri", "omnimri.dev/job": "lost"}
        metadata = {"name": f"lost-{resource.group}", "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"}
        orphan = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
        cluster.server.put(resource.plural, orphan)
    launcher.clean_up()
    cluster.controllers.admit_jobs = False
    queued = cluster.launcher("job").submit(cluster.job("queued", placement=Placement(queue="training")))
    waiter = Waiter(queued)
    wait_until(lambda: any("workloads" in request._raw_request.path for request in cluster.server.requests()))
    queued.cancel()
    waiter.join()
    cluster.controllers.admit_jobs = True
    monkeypatch.setattr(cluster.controllers, "create_pod", _create_nothing)
    cluster.server.put(
        "events",
        {
            "kind": "Event",
            "type": "Warning",
            "reason": "FailedCreate",
            "metadata": {"name": "e"},
            "involvedObject": {"name": cluster.job("no pods").key},
            "message": "no service account",
            "lastTimestamp": "2100-01-01T00:00:00Z",
        },
    )
    with pytest.raises(JobFailed, match="no service account"):
        cluster.launcher().submit(cluster.job("no pods")).wait()


async def _create_nothing(*_: Any) -> bool:
    return True


def test_the_role_grants_exactly_the_verbs_in_use_and_the_documentation_lists_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster with JobSet, Trainer, Kueue and all PodGroups, whose authorizer refuses every other verb."""
    groups = (*CUSTOM_GROUPS, "kueue.x-k8s.io", "scheduling.k8s.io", "scheduling.x-k8s.io", "scheduling.volcano.sh")
    with RunningServer(crds=groups) as server, Controllers(server) as controllers, Kubelet(server) as kubelet:
        cluster = FakeCluster(server, controllers, kubelet, tmp_path)
        run_all_operations(cluster, monkeypatch)
        for launcher in cluster.launchers:
            launcher.stop()
        assert used_grants(cluster) == role_grants()
    page = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    rows = re.findall(r"^\| `([\w./-]*)` \| `([\w/]+)` \| ([a-z, ]+) \|", page, re.MULTILINE)
    documented = {("" if g == "core" else g, r, v.strip()) for g, r, verbs in rows for v in verbs.split(",")}
    assert documented == role_grants()
