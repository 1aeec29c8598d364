"""Least privilege, shown: the verbs that the launcher used are exactly those that its role grants and the documentation lists."""

from __future__ import annotations

import re

import pytest

from components.errors import JobFailed
from components.launching.kubernetes.manifests import RenderingName
from components.provenance import REPOSITORY
from tests.components.launching.conftest import World
from tests.doubles.kubelet import Script
from tests.helpers.manifest_checks import kustomize

VERBS = {"LIST": "list", "WATCH": "watch", "FETCH": "get", "UPDATE": "patch", "DELETE": "delete"}
Grant = tuple[str, str, str]  # group, resource, verb


def used(world: World) -> set[Grant]:
    found = set()
    for request in world.server.requests():
        if request.resource is None or request.resource.plural is None:
            continue  # discovery, which everybody may read
        plural = "/".join(filter(None, (request.resource.plural, request.subresource)))
        found.add((request.resource.group, plural, VERBS[request.action.value]))
        if request.action.value == "UPDATE":
            found.add((request.resource.group, plural, "create"))  # server-side apply of what is not there yet needs both
    return found


def granted() -> set[Grant]:
    (role,) = [t for t in kustomize("k8s/overlays/kind") if t["kind"] == "Role" and t["metadata"]["name"] == "launcher"]
    return {(g, r, v) for rule in role["rules"] for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}


def exercise(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the launcher can do, in every rendering."""
    monkeypatch.setattr("components.launching.kubernetes.job_handle.NO_PODS_S", 0.05)
    renderings: tuple[RenderingName, ...] = ("job", "jobset", "trainjob")
    for rendering in renderings:
        launcher = world.launcher(rendering)
        launcher.submit(world.job(rendering)).wait()
        launcher.submit(world.job(rendering)).status()
        assert launcher.jobs() and launcher.find(world.job(rendering).key)
        world.otherwise = Script(exit_code=None)
        launcher.submit(world.job("cancelled-" + rendering)).cancel()
        world.otherwise = Script(("begun", "done"))
    orphans = {"services": "Service", "trainingruntimes": "TrainingRuntime"}
    for plural, kind in orphans.items():
        labels = {"app.kubernetes.io/managed-by": "omnimri", "omnimri.dev/job": "lost"}
        world.server.put(plural, {"kind": kind, "metadata": {"name": "lost", "labels": labels}})
    launcher.clean_up()
    monkeypatch.setattr(world.controllers, "_pod", lambda job, index: _nothing())
    world.server.put(
        "events",
        {
            "kind": "Event",
            "type": "Warning",
            "metadata": {"name": "e"},
            "involvedObject": {"name": world.job("no pods").key},
            "message": "no service account",
        },
    )
    with pytest.raises(JobFailed, match="no service account"):
        world.launcher().submit(world.job("no pods")).wait()


async def _nothing() -> None:
    return None


def test_the_role_grants_exactly_what_is_used_and_the_table_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    exercise(world, monkeypatch)
    assert used(world) == granted()
    page = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    rows = re.findall(r"^\| `([\w./-]*)` \| `([\w/]+)` \| ([a-z, ]+) \|", page, re.MULTILINE)
    documented = {("" if g == "core" else g, r, v.strip()) for g, r, verbs in rows for v in verbs.split(",")}
    assert documented == granted()
