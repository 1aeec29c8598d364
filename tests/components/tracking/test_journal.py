"""What a run measures reaches the tracking server once, whenever the server answers."""

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


class Away(Tracking):
    """A server that takes so many requests and then does not answer, though it may have done what was asked last."""

    def __init__(self, tracking: Tracking, requests: int) -> None:
        super().__init__(tracking.uri, tracking.home)
        self.left = requests

    def run(self, run_id: str) -> StageRun:
        run, away = super().run(run_id), self

        class Failing(StageRun):
            def __getattribute__(self, name: str) -> object:
                if name.startswith(("log_", "set_", "last_")):
                    away.left -= 1
                    if away.left < 0:
                        raise MlflowException("API request failed: connection refused")
                return super().__getattribute__(name)

        return Failing(run.client, run.run_id)


@pytest.mark.parametrize("requests", range(6))
def test_an_outage_at_any_moment_loses_nothing_and_doubles_nothing(
    home: Home, tracking: Tracking, tmp_path: Path, requests: int
) -> None:
    run_id = tracking.create_stage_run("alignment", f"digest-{requests}", None, {})
    journal = Journal.open(tmp_path, run_id)
    journal.set_tag("omnimri.rollbacks", "step 7 back to 5")
    journal.add_input("corpus", "d" * 64, "training", {"slices": 9})
    figure = Figure()
    figure.subplots().plot([1, 2])
    journal.add_figure("step-000005/losses.png", figure)
    assert not journal.deliver(Away(tracking, requests), _points(5))
    reopened = Journal.open(tmp_path, run_id)  # by the next process
    assert not reopened.complete
    reopened.status = "FINISHED"
    assert reopened.deliver_with_retries(tracking, _points(12), delays_s=()) and Journal.open(tmp_path, run_id).complete
    for name in ("loss", "task/report", "mfu"):
        assert Counter(_history(home, run_id, name)) == Counter(range(12))
    client = mlflow.MlflowClient(home.tracking_uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.tags["omnimri.rollbacks"] == "step 7 back to 5"
    assert [one.dataset.name for one in run.inputs.dataset_inputs] == ["corpus"]
    assert [one.path for one in client.list_artifacts(run_id, "step-000005")] == ["step-000005/losses.png"]


def test_what_has_been_told_is_not_told_again(tracking: Tracking, tmp_path: Path) -> None:
    run_id = tracking.create_stage_run("alignment", "digest-again", None, {})
    journal = Journal.open(tmp_path, run_id)
    journal.set_tag("a", "1")
    assert journal.deliver(tracking, _points(3))
    counting = Away(tracking, 1)  # asks for the last step, and has nothing to say
    assert Journal.open(tmp_path, run_id).deliver(counting, _points(3)) or counting.left < 0


def test_a_step_is_never_split_between_requests(tracking: Tracking) -> None:
    """A server that takes one request and not the next must not have half a step."""
    run = tracking.run(tracking.create_stage_run("alignment", "digest-many", None, {}))
    points = [(step, {f"figure {number}": 1.0 for number in range(300)}) for step in range(8)]
    run.log_steps(points)
    assert run.last_step("figure 299") == 7
