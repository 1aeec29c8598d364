"""Progress of a stage reaches Kubeflow Trainer in its protocol, and never disturbs the training."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from components.training import trainjob_status
from components.training.trainjob_status import TrainJobStatus
from tests.doubles.authority import Authority
from tests.helpers.fake_cluster import wait_until

PATH = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/omnimri/trainjobs/a-stage/status"
SCHEMA = Path(__file__).parents[2] / "k8s" / "schemas" / "trainjob.json"


class StatusServer:
    """Status server of Kubeflow Trainer: TLS, one path, a bearer token, ``metav1.Status`` on errors."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.create(folder)
        self.token, self.received, self.status = "first", list[dict[str, Any]](), 200
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                allowed = self.path == PATH and self.headers["Authorization"] == f"Bearer {outer.token}"
                status = outer.status if allowed else 403
                outer.received.append({"status": status, **body})
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps({"kind": "Status", "message": "Forbidden", "code": status}).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = self.authority.server.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"https://127.0.0.1:{self.server.server_address[1]}{PATH}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StatusServer]:
    server = StatusServer(tmp_path / "pki")
    yield server
    server.server.shutdown()
    server.server.server_close()


def open_reporter(server: StatusServer, folder: Path) -> TrainJobStatus:
    (folder / "token").write_text("first\n")
    reporter = TrainJobStatus(server.url, server.authority.certificate, folder / "token", interval_s=0.01)
    reporter.start()
    return reporter


def test_the_progress_is_posted_as_the_trainjob_stores_it(
    server: StatusServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("first\n")
    monkeypatch.setenv(trainjob_status.URL, server.url)
    monkeypatch.setenv(trainjob_status.CA_CERTIFICATE, str(server.authority.certificate))
    monkeypatch.setenv(trainjob_status.TOKEN, str(tmp_path / "token"))
    reporter = TrainJobStatus.from_environment()
    assert reporter is not None
    reporter.report(10, 40, {"loss": 0.5})
    reporter.report(20, 40, {"loss": 0.25, "gradient_norm": float("nan")})  # JSON has no NaN
    reporter.close()
    last = server.received[-1]["trainerStatus"]
    assert last["progressPercentage"] == 50 and last["metrics"] == [{"name": "loss", "value": "0.25"}]
    assert last["estimatedRemainingSeconds"] >= 0 and last["lastUpdatedTime"].endswith("Z")
    schema = json.loads(SCHEMA.read_text())["versions"]["v1alpha1"]["properties"]["status"]["properties"]["trainerStatus"]
    jsonschema.validate(last, {**schema, "additionalProperties": False})


@pytest.mark.parametrize("missing", ["KUBEFLOW_TRAINER_SERVER_URL", "KUBEFLOW_TRAINER_SERVER_TOKEN"])
def test_nothing_is_reported_where_no_trainer_asks_for_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer 2.1, the feature gate off, JobSets, Jobs and local processes."""
    for name in (trainjob_status.URL, trainjob_status.CA_CERTIFICATE, trainjob_status.TOKEN):
        monkeypatch.setenv(name, "https://x")
    monkeypatch.delenv(missing)
    assert TrainJobStatus.from_environment() is None


def test_a_renewed_token_is_read(server: StatusServer, tmp_path: Path) -> None:
    reporter = open_reporter(server, tmp_path)
    reporter.report(1, 4, {})
    wait_until(lambda: server.received)
    server.token = "second"
    (tmp_path / "token").write_text("second\n")
    reporter.report(2, 4, {})
    reporter.close()
    assert [post["status"] for post in server.received] == [200, 200]


@pytest.mark.parametrize("status", [403, 404, 422, 500])
def test_a_refusal_is_told_once_and_is_no_error(
    server: StatusServer, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.status = status
    reporter = open_reporter(server, tmp_path)
    for step in range(1, 9):
        count = len(server.received)
        reporter.report(step, 8, {})
        wait_until(lambda count=count: len(server.received) > count or not reporter._thread.is_alive())
    reporter.close()
    assert len(server.received) == (8 if status == 500 else trainjob_status.MAX_REFUSALS)
    assert capsys.readouterr().err.count("does not accept the progress") == 1


def test_an_unreachable_or_foreign_server_is_no_error(
    tmp_path: Path, server: StatusServer, capsys: pytest.CaptureFixture[str]
) -> None:
    own, foreign = server.authority.certificate, Authority.create(tmp_path / "foreign").certificate
    (tmp_path / "token").write_text("first")
    for url, certificate in (("https://127.0.0.1:1/", own), (server.url, foreign), (server.url, tmp_path / "no")):
        reporter = TrainJobStatus(url, certificate, tmp_path / "token")
        reporter.start()
        reporter.report(1, 2, {})
        reporter.close()
    assert server.received == [] and capsys.readouterr().err.count("training continues") == 3
