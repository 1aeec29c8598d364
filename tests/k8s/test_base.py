"""The kustomize base renders, every object fits the published schemas, and every pod is fenced in."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from components.provenance import REPOSITORY

KUBERNETES = "1.34"


@pytest.fixture(scope="module")
def objects() -> list[dict[str, Any]]:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed: the base cannot be rendered")
    rendered = subprocess.run(
        ["kubectl", "kustomize", str(REPOSITORY / "k8s" / "base")], capture_output=True, text=True, check=True
    )
    return list(yaml.safe_load_all(rendered.stdout))


def test_every_object_fits_the_strict_schema(objects: list[dict[str, Any]]) -> None:
    assert {item["kind"] for item in objects} >= {"Namespace", "Deployment", "Service", "NetworkPolicy", "PersistentVolumeClaim"}
    for item in objects:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)


def test_pods_are_unprivileged_and_write_only_to_their_volumes(objects: list[dict[str, Any]]) -> None:
    deployments = [item for item in objects if item["kind"] == "Deployment"]
    assert len(deployments) == 2
    for deployment in deployments:
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"requests", "limits"} <= container["resources"].keys()


def test_traffic_is_denied_unless_named(objects: list[dict[str, Any]]) -> None:
    policies = {item["metadata"]["name"]: item["spec"] for item in objects if item["kind"] == "NetworkPolicy"}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
