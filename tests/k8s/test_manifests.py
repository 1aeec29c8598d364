"""Checks of the rendered overlays: schemas, network policies, least privilege, no secrets."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.provenance import REPOSITORY
from tests.helpers.manifest_checks import NEWEST, Object, kustomize, pod_specs, project_faults, schema_faults, security_faults

OVERLAYS = ("k8s/overlays/kind", "k8s/overlays/onprem-gpu", "k8s/overlays/cloud", "k8s/run")


def objects_by_name(objects: tuple[Object, ...], kind: str) -> dict[str, Object]:
    return {thing["metadata"]["name"]: thing for thing in objects if thing["kind"] == kind}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid_in_the_three_newest_versions(overlay: str) -> None:
    assert len(NEWEST) == 3 and {"1.36", "1.37"} <= set(NEWEST)
    for thing in kustomize(overlay):
        for version in NEWEST:
            assert schema_faults(thing, version) == [], f"{thing['kind']} {thing['metadata']['name']}, Kubernetes {version}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_meets_the_restricted_standard_and_the_rules_of_the_project(overlay: str) -> None:
    pods = [(thing["metadata"]["name"], pod) for thing in kustomize(overlay) for pod in pod_specs(thing)]
    assert pods
    for name, pod in pods:
        assert security_faults(pod) + project_faults(pod) == [], name


@pytest.mark.parametrize(
    "change",
    [
        {"hostNetwork": True},
        {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]},
        {"securityContext": {}},
        {"securityContext": {"runAsNonRoot": True, "runAsUser": 0, "seccompProfile": {"type": "RuntimeDefault"}}},
        {"securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "Unconfined"}}},
        *(
            {"containers": [{"name": "c", "securityContext": context, **more}]}
            for context, more in [
                ({"allowPrivilegeEscalation": True, "capabilities": {"drop": ["ALL"]}}, {}),
                ({"allowPrivilegeEscalation": False, "capabilities": {"drop": ["NET_RAW"]}}, {}),
                ({"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}, {}),
                ({"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "privileged": True}, {}),
                ({"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, {"ports": [{"hostPort": 80}]}),
            ]
        ),
    ],
)
def test_the_security_check_reports_each_violation(change: Object) -> None:
    context = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    good = {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "c", "securityContext": context}],
    }
    assert security_faults(good) == [] and security_faults({**good, **change}) != []


@given(st.text(alphabet="abcdefgh", min_size=9, max_size=12))
def test_the_schema_check_reports_unknown_fields_at_any_depth(field: str) -> None:
    jobset = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": "x"},
        "spec": {"network": {field: 1}},
    }
    assert schema_faults(jobset, NEWEST[-1])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_referenced_but_not_stored(overlay: str) -> None:
    objects = kustomize(overlay)
    assert not objects_by_name(objects, "Secret")
    for pod in (pod for thing in objects for pod in pod_specs(thing)):
        for entry in (entry for container in pod["containers"] for entry in container.get("env", [])):
            is_secret = re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY|CONNECTION_URL|STORE_URI|AUTH_STRING", entry["name"])
            if is_secret and not entry["name"].startswith("PREFECT_INTEGRATIONS_"):  # these only name the Secret
                assert "secretKeyRef" in entry.get("valueFrom", {}), entry["name"]


@pytest.mark.parametrize("overlay", OVERLAYS[:3])
def test_no_server_answers_without_a_login(overlay: str) -> None:
    deployments = objects_by_name(kustomize(overlay), "Deployment")
    (prefect,) = deployments["prefect-server"]["spec"]["template"]["spec"]["containers"]
    (mlflow,) = deployments["mlflow"]["spec"]["template"]["spec"]["containers"]
    assert _secrets(prefect)["PREFECT_SERVER_API_AUTH_STRING"] == ("logins", "prefect")
    assert mlflow["command"][2:4] == ["--app-name", "basic-auth"]
    assert {"MLFLOW_AUTH_ADMIN_USERNAME", "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"} <= set(_secrets(mlflow))
    assert next(entry["value"] for entry in mlflow["env"] if entry["name"] == "MLFLOW_AUTH_CONFIG_PATH") == "/config/login.ini"


def _secrets(container: Object) -> dict[str, tuple[str, str]]:
    """Return the variables of a container that come from Secrets: name -> Secret and its key."""
    sources = {entry["name"]: entry.get("valueFrom", {}).get("secretKeyRef") for entry in container.get("env", [])}
    return {name: (source["name"], source["key"]) for name, source in sources.items() if source}


def test_every_client_of_the_servers_logs_in() -> None:
    mlflow = {"MLFLOW_TRACKING_USERNAME": ("logins", "mlflow-user"), "MLFLOW_TRACKING_PASSWORD": ("logins", "mlflow-password")}
    prefect = {"PREFECT_API_AUTH_STRING": ("logins", "prefect")}
    (pipeline,) = objects_by_name(kustomize("k8s/run"), "Job")["pipeline"]["spec"]["template"]["spec"]["containers"]
    assert _secrets(pipeline) == mlflow | prefect
    objects = kustomize("k8s/overlays/onprem-gpu")
    (worker,) = objects_by_name(objects, "Deployment")["prefect-worker"]["spec"]["template"]["spec"]["containers"]
    assert _secrets(worker) == prefect
    (metrics,) = objects_by_name(objects, "ServiceMonitor")["prefect-server"]["spec"]["endpoints"]
    assert {field["name"] for field in metrics["basicAuth"].values()} == {"logins"}


def test_the_login_is_not_written_into_the_job_of_a_flow_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker hands its settings on as variables, and replaces the login by a reference if its environment names the Secret."""
    from prefect.client.schemas import FlowRun
    from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings
    from prefect_kubernetes.settings import KubernetesSettings
    from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration

    objects = kustomize("k8s/overlays/onprem-gpu")
    (worker,) = objects_by_name(objects, "Deployment")["prefect-worker"]["spec"]["template"]["spec"]["containers"]
    for entry in worker["env"]:
        if entry["name"].startswith("PREFECT_INTEGRATIONS_"):
            monkeypatch.setenv(entry["name"], entry["value"])
    settings = KubernetesSettings().worker
    configuration = KubernetesWorkerJobConfiguration(**_fill_template())
    with temporary_settings({PREFECT_API_AUTH_STRING: "omnimri:a-long-password"}):
        configuration.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="run"))
    secret = settings.api_auth_string_secret_name, settings.api_auth_string_secret_key
    assert secret == ("logins", "prefect")
    asyncio.run(KubernetesWorker._replace_env_variable_with_secret(None, "PREFECT_API_AUTH_STRING", configuration, *secret))
    (container,) = configuration.job_manifest["spec"]["template"]["spec"]["containers"]
    assert "a-long-password" not in json.dumps(configuration.job_manifest)
    assert set(_secrets(container)) == {"PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}


@pytest.mark.parametrize("overlay", OVERLAYS[:3])
def test_traffic_is_denied_unless_a_policy_allows_it(overlay: str) -> None:
    policies = {name: policy["spec"] for name, policy in objects_by_name(kustomize(overlay), "NetworkPolicy").items()}
    assert policies.pop("default-deny") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, policy in policies.items():
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for rule in policy.get(direction, []):
                assert rule[peers], name
                for peer in rule[peers]:
                    assert "0.0.0.0/0" not in json.dumps(peer) and peer not in ({}, {"podSelector": {}}, {"namespaceSelector": {}})
                assert rule.get("ports") or name == "training", f"{name} allows every port"


def test_egress_and_ingress_rules_agree() -> None:
    """With default-deny, a connection needs an egress rule of the sender and an ingress rule of the receiver."""
    policies = {
        name: policy["spec"] for name, policy in objects_by_name(kustomize("k8s/overlays/onprem-gpu"), "NetworkPolicy").items()
    }

    def allowed_connections(direction: str, peers: str) -> set[tuple[str, str, int]]:
        connections = set()
        for name, policy in policies.items():
            for rule in policy.get(direction, []):
                for peer in rule[peers]:
                    labels = peer.get("podSelector", {}).get("matchLabels", {})
                    is_external = "namespaceSelector" in peer or "ipBlock" in peer
                    for port in rule.get("ports", []):
                        own_labels = policy["podSelector"].get("matchLabels", {})
                        pair = (next(iter(own_labels.values()), name), next(iter(labels.values()), ""))
                        if not is_external:
                            connections.add((*(pair if direction == "egress" else pair[::-1]), port["port"]))
        return connections

    assert allowed_connections("egress", "to") == allowed_connections("ingress", "from")


@pytest.mark.parametrize("overlay", OVERLAYS[:3])
def test_only_clients_of_the_api_server_have_a_token(overlay: str) -> None:
    objects = kustomize(overlay)
    for name, account in objects_by_name(objects, "ServiceAccount").items():
        assert (account.get("automountServiceAccountToken") is False) == (name not in ("pipeline", "prefect-worker"))
    for thing in objects:
        for pod in pod_specs(thing):
            assert pod["serviceAccountName"] in objects_by_name(objects, "ServiceAccount")
            assert pod["automountServiceAccountToken"] is (pod["serviceAccountName"] == "prefect-worker")
    assert not objects_by_name(objects, "ClusterRole") and not objects_by_name(objects, "ClusterRoleBinding")
    for role in objects_by_name(objects, "Role").values():
        assert "*" not in json.dumps(role["rules"]) and "secrets" not in json.dumps(role["rules"])


def test_a_disruption_budget_protects_every_service() -> None:
    objects = kustomize("k8s/overlays/onprem-gpu")
    protected = {
        next(iter(budget["spec"]["selector"]["matchLabels"].values()))
        for budget in objects_by_name(objects, "PodDisruptionBudget").values()
    }
    assert protected == {"prefect-server", "mlflow", "postgresql", "minio", "vllm"}


def _fill_template() -> Object:
    """Return the job configuration of the base job template with the defaults of its variables."""
    template = json.loads((REPOSITORY / "k8s/base/base-job-template.json").read_text())
    defaults = {name: property.get("default") for name, property in template["variables"]["properties"].items()}

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            filled = {key: fill(item) for key, item in value.items()}
            return {key: item for key, item in filled.items() if item is not None}
        if isinstance(value, list):
            return [fill(item) for item in value]
        match = re.fullmatch(r"\{\{ (\w+) \}\}", value) if isinstance(value, str) else None
        return defaults[match[1]] if match else value

    return fill(template["job_configuration"])


def test_flow_runs_started_by_prefect_meet_the_same_rules() -> None:
    job = _fill_template()["job_manifest"]
    job["metadata"] = {"name": "flow-run", "namespace": job["metadata"]["namespace"]}
    (pod,) = pod_specs(job)
    for field in ("parallelism", "completions"):  # Prefect requires them here; an API server drops them as unknown
        assert pod.pop(field) == 1
    assert [schema_faults(job, version) for version in NEWEST] == [[], [], []]
    assert security_faults(pod) + project_faults(pod) == []
    assert pod["serviceAccountName"] == "pipeline"


def test_the_base_job_template_is_valid_for_the_prefect_worker() -> None:
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    template = json.loads((REPOSITORY / "k8s/base/base-job-template.json").read_text())
    assert set(template["job_configuration"]) <= set(KubernetesWorkerJobConfiguration.model_fields)
    configuration = KubernetesWorkerJobConfiguration(**_fill_template())
    assert configuration.namespace == "omnimri" and configuration.pod_watch_timeout_seconds == 600
