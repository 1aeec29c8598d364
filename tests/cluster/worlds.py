"""Two clusters for the same scenarios: the test doubles, and a real one that KUBECONFIG names.

The real one is used in a namespace of its own, which is deleted afterwards. The launcher acts there as the service account
``pipeline`` with the role of k8s/base/rbac.yaml; everything else is done with the rights of the kubeconfig.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml
from kubernetes import client, config, utils
from kubernetes.client.exceptions import ApiException

from components.launching import JobSpec, Resources, SharedVolume
from components.launching.kubernetes.api_client import Cluster, RetryPolicy
from components.launching.kubernetes.launcher import KubernetesLauncher
from components.launching.kubernetes.manifests import JOB_LABEL, JOBSETS, MAIN_RESOURCES, TRAINJOBS, RenderingName
from components.launching.probe import CAUSE
from components.provenance import REPOSITORY
from tests.doubles.apiserver import RunningServer
from tests.doubles.controllers import INDEX, Controllers
from tests.doubles.kubelet import Kubelet, PodBehavior, ScriptedPod
from tests.helpers.fake_cluster import FakeCluster, wait_until

IMAGE = os.environ.get("OMNIMRI_TEST_IMAGE", "omnimri:0.2.0")
CLAIM, STORAGE = "state", {"requests": {"storage": "1Gi"}}
STORAGE_CLASS = os.environ.get("OMNIMRI_TEST_STORAGE_CLASS")
ACCESS_MODE = os.environ.get("OMNIMRI_TEST_ACCESS_MODE", "ReadWriteOnce")
"""ReadWriteOnce suffices on one node; with several, the pods of a job mount the claim on different ones: ReadWriteMany."""
KILLED = "rank 0: ended by signal SIGKILL"
SMALL = Resources(cpu="250m", memory="1Gi", shared_memory="64Mi", scratch="1Gi")


class World(Protocol):
    """A cluster, and what only its administrator may do."""

    folder: Path
    time_limit_s: int
    """Shortest time limit that lets a pod start."""

    def launcher(self, rendering: RenderingName = "job") -> KubernetesLauncher:
        """Return a launcher; skip the test if the cluster does not serve the rendering."""

    def pods(self, key: str) -> list[dict[str, Any]]:
        """Return the pods of a job."""

    def evict(self, key: str, index: int) -> None:
        """Evict the pod of a node through the Eviction API."""

    def restart_peers(self) -> None:
        """Let the pods that lost a peer run again, as torchrun does."""

    def limit_pods(self, count: int) -> None:
        """Allow only so many pods in the namespace."""

    def claims(self, *names: str) -> None:
        """Let only these claims exist."""

    def secrets(self, *names: str) -> None:
        """Let only these Secrets exist."""

    def orphan(self, key: str, rendering: RenderingName) -> None:
        """Delete a job without what it controls."""


def probe_job(world: World, action: str, nodes: int = 2, **changes: Any) -> JobSpec:
    """Return a job that runs the probe."""
    folder = world.folder / action
    fields = {"pending_limit_s": 2.0, "restarts": 1, "grace_s": 5, **changes}
    volumes = fields.pop("volumes", (SharedVolume(CLAIM, world.folder),))
    module = "components.launching.probe"
    return JobSpec(
        f"probe-{action}",
        module,
        (action, str(world.folder)),
        nodes,
        folder,
        nodes=nodes,
        image=IMAGE,
        volumes=volumes,
        resources=SMALL,
        **fields,
    )


class DoubleWorld:
    """The test doubles; their kubelet does what the probe would do."""

    time_limit_s = 1

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster, self.folder = cluster, cluster.folder
        self._ran: set[str] = set()
        cluster.kubelet.choose_behavior = self._choose_behavior

    def _choose_behavior(self, pod: dict[str, Any]) -> PodBehavior:
        words = pod["spec"]["containers"][0]["args"]
        action, node = words[words.index("--") + 2], pod["spec"]["hostname"]
        if action == "succeed" or (action == "resume" and node in self._ran):
            return ScriptedPod(("probe: succeed", "resumed"))
        self._ran.add(node)
        if action == "misconfigured":
            return ScriptedPod(("the probe finds no configuration",), exit_code=2)
        if action == "crash":
            lines = ("probe: crash", *(f"{KILLED}; restarting", "probe: crash") * 2)
            return ScriptedPod(lines, exit_code=1, pause_s=0.01, termination_log=KILLED)
        if action == "fail":
            cause = f"rank 0: ValueError: {CAUSE}"
            return ScriptedPod(("Traceback", cause), exit_code=1, pause_s=0.01, termination_log=cause)
        return ScriptedPod((f"probe: {action}",), exit_code=None)

    def launcher(self, rendering: RenderingName = "job") -> KubernetesLauncher:
        return self.cluster.launcher(rendering)

    def pods(self, key: str) -> list[dict[str, Any]]:
        return [pod for pod in self.cluster.server.objects("pods") if pod["metadata"]["labels"][JOB_LABEL] == key]

    def evict(self, key: str, index: int) -> None:
        name = self.cluster.kubelet.running_pod(index)["metadata"]["name"]
        evict_pod(client.CoreV1Api(self.cluster.server.client()), name, "omnimri")

    def restart_peers(self) -> None:
        wait_until(lambda: len(self.cluster.kubelet.started) == 3)
        self.cluster.kubelet.finish(0)

    def limit_pods(self, count: int) -> None:
        self.cluster.controllers.admission.quota = {"pods": str(count)}

    def claims(self, *names: str) -> None:
        self.cluster.kubelet.claims = set(names)

    def secrets(self, *names: str) -> None:
        self.cluster.kubelet.secrets = set(names)

    def orphan(self, key: str, rendering: RenderingName) -> None:
        self.cluster.controllers.orphan(MAIN_RESOURCES[rendering].plural, key)


class RealWorld:
    """A namespace of a real cluster."""

    time_limit_s = 20

    def __init__(self, folder: Path, api: client.ApiClient, namespace: str) -> None:
        self.folder, self.api, self.namespace = folder, api, namespace
        self.core, self.launchers = client.CoreV1Api(api), list[KubernetesLauncher]()

    def prepare(self) -> None:
        """Create the namespace with Pod Security "restricted", accounts, role and claim."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.core.create_namespace({"metadata": {"name": self.namespace, "labels": labels}})
        for thing in yaml.safe_load_all((REPOSITORY / "k8s" / "base" / "rbac.yaml").read_text()):
            for subject in thing.get("subjects", []):
                subject["namespace"] = self.namespace
            if thing["metadata"]["name"] in ("training", "pipeline", "launcher"):
                utils.create_from_dict(self.api, thing, namespace=self.namespace)
        self.claims(CLAIM)

    def launcher(self, rendering: RenderingName = "job") -> KubernetesLauncher:
        request = {"spec": {"expirationSeconds": 3600}}
        token = self.core.create_namespaced_service_account_token("pipeline", self.namespace, request).status.token
        own = client.Configuration()
        for name in ("host", "ssl_ca_cert", "verify_ssl", "tls_server_name"):
            setattr(own, name, getattr(self.api.configuration, name))
        own.api_key, own.retries = {"authorization": f"Bearer {token}"}, False
        cluster = Cluster(client.ApiClient(own), self.namespace, RetryPolicy())
        if rendering not in cluster.supported_renderings():
            pytest.skip(f"this cluster serves no {rendering}")
        self.launchers.append(KubernetesLauncher(cluster, rendering))
        return self.launchers[-1]

    def pods(self, key: str) -> list[dict[str, Any]]:
        listed = self.core.list_namespaced_pod(self.namespace, label_selector=f"{JOB_LABEL}={key}")
        return list(self.api.sanitize_for_serialization(listed)["items"])

    def evict(self, key: str, index: int) -> None:
        (name,) = [pod["metadata"]["name"] for pod in self.pods(key) if pod["metadata"]["labels"][INDEX] == str(index)]
        evict_pod(self.core, name, self.namespace)

    def restart_peers(self) -> None:
        """torchrun restarts them itself."""

    def limit_pods(self, count: int) -> None:
        spec = {"metadata": {"name": "few-pods"}, "spec": {"hard": {"pods": str(count)}}}
        self.core.create_namespaced_resource_quota(self.namespace, spec)
        quota = self.core.read_namespaced_resource_quota
        wait_until(lambda: (quota("few-pods", self.namespace).status.hard or {}).get("pods") == str(count))

    def claims(self, *names: str) -> None:
        for name in names:
            self.core.create_namespaced_persistent_volume_claim(self.namespace, build_claim(name))

    def secrets(self, *names: str) -> None:
        for name in names:
            self.core.create_namespaced_secret(self.namespace, {"metadata": {"name": name}})

    def orphan(self, key: str, rendering: RenderingName) -> None:
        main = MAIN_RESOURCES[rendering]
        objects = client.CustomObjectsApi(self.api)  # reads and deletes objects of every group
        address = (main.group, main.version, self.namespace, main.plural, key)
        objects.delete_namespaced_custom_object(*address, propagation_policy="Orphan")

        def is_gone() -> bool:
            try:
                objects.get_namespaced_custom_object(*address)
            except ApiException as error:
                return bool(error.status == HTTPStatus.NOT_FOUND)
            return False

        wait_until(is_gone)


def build_claim(name: str) -> dict[str, Any]:
    """Return a claim of the storage class and access mode that the environment names; None = the cluster's default class."""
    spec = {"accessModes": [ACCESS_MODE], "resources": STORAGE} | ({"storageClassName": STORAGE_CLASS} if STORAGE_CLASS else {})
    return {"metadata": {"name": name}, "spec": spec}


def evict_pod(core: client.CoreV1Api, name: str, namespace: str) -> None:
    core.create_namespaced_pod_eviction(name, namespace, client.V1Eviction(metadata=client.V1ObjectMeta(name=name)))


@contextmanager
def double_world(folder: Path) -> Iterator[World]:
    """Yield the doubles of a cluster with JobSet and Kubeflow Trainer, without Kueue."""
    with (
        RunningServer(crds=tuple(resource.group for resource in (JOBSETS, TRAINJOBS))) as server,
        Controllers(server) as controllers,
        Kubelet(server) as kubelet,
    ):
        cluster = FakeCluster(server, controllers, kubelet, folder)
        yield DoubleWorld(cluster)
        for launcher in cluster.launchers:
            launcher.stop()


@contextmanager
def real_world(folder: Path) -> Iterator[World]:
    world = RealWorld(folder, config.new_client_from_config(), f"omnimri-conformance-{secrets.token_hex(3)}")
    try:
        world.prepare()
        yield world
    finally:
        for launcher in world.launchers:
            launcher.stop()
        world.core.delete_namespace(world.namespace)
