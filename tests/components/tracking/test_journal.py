"""Measurements reach the tracking server exactly once, whenever the server is reachable."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import mlflow
import pytest
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException

from components.home import Home
from components.tracking import Journal, StageRun, Tracking


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("home")
    return Home(folder, folder / "data")


@pytest.fixture
def tracking(home: Home) -> Tracking:
    return Tracking(home.tracking_uri, home)


def _points(steps: int) -> list[dict[str, float]]:
    return [{"step": step, "loss": 1 / (1 + step), "task/report": float(step), "mfu": 0.25} for step in range(steps)]


def _history(home: Home, run_id: str, name: str) -> list[int]:
    return [point.step for point in mlflow.MlflowClient(home.tracking_uri).get_metric_history(run_id, name)]


class UnreachableAfter(Tracking):
    """A server that answers a number of requests and then none."""

    def __init__(self, tracking: Tracking, requests: int) -> None:
        super().__init__(tracking.uri, tracking.home)
        self.left = requests

    def run(self, run_id: str) -> StageRun:
        run, server = super().run(run_id), self

        class Failing(StageRun):
            def __getattribute__(self, name: str) -> object:
                if name.startswith(("log_", "set_", "last_")):
                    server.left -= 1
                    if server.left < 0:
                        raise MlflowException("API request failed: connection refused")
                return super().__getattribute__(name)

        return Failing(run.client, run.run_id)


@pytest.mark.parametrize("requests", range(6))
def test_an_outage_at_any_request_loses_and_duplicates_nothing(
    home: Home, tracking: Tracking, tmp_path: Path, requests: int
) -> None:
    run_id = tracking.create_stage_run("alignment", f"digest-{requests}", None, {})
    journal = Journal.open(tmp_path, run_id)
    journal.set_tag("omnimri.rollbacks", "step 7 back to 5")
    journal.add_input("corpus", "d" * 64, "training", {"slices": 9})
    figure = Figure()
    figure.subplots().plot([1, 2])
    journal.add_figure("step-000005/losses.png", figure)
    assert not journal.deliver(UnreachableAfter(tracking, requests), _points(5))
    reopened = Journal.open(tmp_path, run_id)  # by the next process
    assert not reopened.complete
    reopened.status = "FINISHED"
    assert reopened.deliver_with_retries(tracking, _points(12), delays_s=()) and Journal.open(tmp_path, run_id).complete
    for name in ("loss", "task/report", "mfu"):
        assert Counter(_history(home, run_id, name)) == Counter(range(12))
    client = mlflow.MlflowClient(home.tracking_uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.tags["omnimri.rollbacks"] == "step 7 back to 5"
    assert [item.dataset.name for item in run.inputs.dataset_inputs] == ["corpus"]
    assert [file.path for file in client.list_artifacts(run_id, "step-000005")] == ["step-000005/losses.png"]


def test_delivered_items_are_not_sent_again(tracking: Tracking, tmp_path: Path) -> None:
    run_id = tracking.create_stage_run("alignment", "digest-again", None, {})
    journal = Journal.open(tmp_path, run_id)
    journal.set_tag("a", "1")
    assert journal.deliver(tracking, _points(3))
    server = UnreachableAfter(tracking, 1)  # one request: the last step
    assert Journal.open(tmp_path, run_id).deliver(server, _points(3)) and server.left == 0


def test_a_step_is_never_split_between_requests(tracking: Tracking) -> None:
    """A server that receives one request and not the next one must not have half a step."""
    run = tracking.run(tracking.create_stage_run("alignment", "digest-many", None, {}))
    points = [(step, {f"figure {number}": 1.0 for number in range(300)}) for step in range(8)]
    run.log_steps(points)
    assert run.last_step("figure 299") == 7
