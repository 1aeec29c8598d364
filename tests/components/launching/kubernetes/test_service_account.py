"""Inside a cluster, the pod's service account provides the credentials and the trusted certificate authority."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from kubernetes.config import incluster_config

from components.errors import JobFailed
from components.launching import JobSpec, SharedVolume
from components.launching.kubernetes.api_client import Cluster, RetryPolicy
from components.launching.kubernetes.launcher import KubernetesLauncher
from components.launching.kubernetes.manifests import JOBS
from tests.doubles.apiserver import NAMESPACE, RunningServer
from tests.doubles.authority import Authority
from tests.doubles.controllers import Controllers
from tests.doubles.kubelet import Kubelet, ScriptedPod
from tests.helpers.fake_cluster import FAST_RETRY


@dataclass
class Pod:
    """Pod of the flow: its files, and the API server that its environment names."""

    files: Path
    server: RunningServer

    def job(self) -> JobSpec:
        volumes = (SharedVolume("state", self.files),)
        return JobSpec("a_stage", "module", (), processes=1, folder=self.files / "job", image="image", volumes=volumes)

    def tokens(self, since: int = 0) -> set[str]:
        return {request.headers["Authorization"] for request in self.server.requests()[since:]}


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pod]:
    """A kubeconfig for another server exists, too: inside a cluster it must not be read."""
    other_config = {
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(other_config))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    authority = Authority.create(tmp_path / "account")
    (tmp_path / "account" / "token").write_text("first")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "account" / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority.certificate))
    with RunningServer(tls=authority.server) as server, Controllers(server), Kubelet(server, lambda _: ScriptedPod(("done",))):
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        yield Pod(tmp_path, server)


def test_a_job_is_submitted_watched_and_read_over_tls_with_the_token_of_the_account(pod: Pod) -> None:
    launcher = KubernetesLauncher(Cluster.connect(NAMESPACE, retry=FAST_RETRY))
    handle = launcher.submit(pod.job())
    handle.wait()
    launcher.stop()
    assert launcher.rendering == "jobset" and handle.logs() == "done"
    assert pod.server.url.startswith("https://") and pod.tokens() == {"bearer first"}


def test_a_renewed_token_is_used(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of pods are valid for an hour; the client reads the file again after a minute."""
    cluster = Cluster.connect(NAMESPACE, retry=FAST_RETRY)
    cluster.list_objects(JOBS)
    (pod.files / "account" / "token").write_text("second")
    request_count = len(pod.server.requests())
    later = SimpleNamespace(now=lambda: datetime.datetime.now() + datetime.timedelta(minutes=2))
    monkeypatch.setattr(incluster_config, "datetime", SimpleNamespace(datetime=later, timedelta=datetime.timedelta))
    cluster.list_objects(JOBS)
    assert pod.tokens() == {"bearer first", "bearer second"} and pod.tokens(request_count) == {"bearer second"}


def test_the_token_is_not_sent_to_an_api_server_of_another_authority(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reported at once: with the default policy, retries would take a quarter of an hour."""
    other = Authority.create(pod.files / "other")
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(other.certificate))
    with pytest.raises(JobFailed, match="certificate is not signed by the cluster's certificate authority"):
        Cluster.connect(NAMESPACE, retry=RetryPolicy()).supported_renderings()
    assert pod.server.requests() == []


@pytest.mark.parametrize("missing", ["token", "ca.crt"])
def test_a_pod_without_service_account_uses_the_kubeconfig(pod: Pod, missing: str) -> None:
    """``automountServiceAccountToken: false``: the environment names a server, but no credentials exist."""
    (pod.files / "account" / missing).unlink()
    assert Cluster.connect(NAMESPACE, retry=FAST_RETRY).api.configuration.host == "http://127.0.0.1:9"
    (pod.files / "kubeconfig").unlink()
    with pytest.raises(JobFailed, match=r"no cluster is configured.*inside the cluster"):
        Cluster.connect(NAMESPACE, retry=FAST_RETRY)
