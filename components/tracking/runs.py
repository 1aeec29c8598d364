"""MLflow runs by content: the same inputs find the same run again, so that an interrupted pipeline goes on in it.

Nothing is logged that could name a patient: settings, digests, numbers and pictures of voxels without text.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.home import Home
from components.provenance import git_commit
from components.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "omnimri"
PARAMETER_LENGTH = 500
REQUEST = 1000
"""Figures that MLflow takes at a time."""
NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")


def client_of(uri: str, home: Home) -> MlflowClient:
    """A client of the store, which is made where it is the local one and not there yet."""
    import mlflow

    if uri.startswith("sqlite:///"):
        home.mlflow.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted parameters."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = str(value)[:PARAMETER_LENGTH]
    return found


class Tracking:
    """The runs of one installation.

    Args:
        uri: tracking store.
        home: where the local store and its artifacts are.
    """

    def __init__(self, uri: str, home: Home) -> None:
        self.uri, self.home = uri, home

    def pipeline_run(self, digest: str, settings: Settings, data_digest: str, tags: Mapping[str, str]) -> str:
        """The run of a pipeline with these inputs: the one there is, finished or not, or a new one."""
        client = client_of(self.uri, self.home)
        experiment = self._experiment(client)
        found = client.search_runs([experiment], f"tags.`omnimri.digest` = '{digest}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        run = client.create_run(
            experiment,
            run_name=f"pipeline-{settings.profile}-{digest[:8]}",
            tags={
                "omnimri.digest": digest,
                "omnimri.data_digest": data_digest,
                "omnimri.git_commit": git_commit(),
                **{f"omnimri.{name}": value for name, value in tags.items()},
            },
        )
        self._log_parameters(client, run.info.run_id, flat(settings.model_dump(mode="json", exclude={"datasets"})))
        StageRun(client, run.info.run_id).log_dataset("data", data_digest, "source", {"datasets": len(settings.datasets)})
        client.set_tag(run.info.run_id, "omnimri.datasets", ", ".join(dataset.card for dataset in settings.datasets))
        return str(run.info.run_id)

    def create_stage_run(self, name: str, digest: str, parent_run_id: str | None, parameters: Mapping[str, Any]) -> str:
        """A run for a stage, below a pipeline's run where there is one."""
        client = client_of(self.uri, self.home)
        tags = {"omnimri.digest": digest, "omnimri.stage": name, "omnimri.git_commit": git_commit()}
        if parent_run_id is not None:
            tags["mlflow.parentRunId"] = parent_run_id
        run = client.create_run(self._experiment(client), run_name=name, tags=tags)
        self._log_parameters(client, run.info.run_id, flat(parameters))
        return str(run.info.run_id)

    def run(self, run_id: str) -> StageRun:
        """A run that exists."""
        return StageRun(client_of(self.uri, self.home), run_id)

    def link_stage(self, parent_run_id: str, stage: str, run_id: str) -> None:
        """Note on a pipeline's run which stage run it uses, which may be an earlier pipeline's."""
        client_of(self.uri, self.home).set_tag(parent_run_id, f"omnimri.stage_run.{stage}", run_id)

    def finish_pipeline(self, run_id: str, metrics: Mapping[str, float], artifacts: Iterable[Path]) -> None:
        """Final numbers and files of a pipeline's run; nothing where it had been finished."""
        client = client_of(self.uri, self.home)
        if client.get_run(run_id).info.status == "FINISHED":
            return
        stage_run = StageRun(client, run_id)
        stage_run.log_metrics(metrics, step=0)
        for path in artifacts:
            client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, "FINISHED")

    def _experiment(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        local = self.uri.startswith("sqlite:///")
        location = (self.home.mlflow / "artifacts").as_uri() if local else None
        return str(client.create_experiment(EXPERIMENT, artifact_location=location))

    def _log_parameters(self, client: MlflowClient, run_id: str, parameters: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        client.log_batch(run_id, params=[Param(name, value) for name, value in parameters.items()])


@dataclass(frozen=True)
class StageRun:
    """An open run."""

    client: MlflowClient
    run_id: str

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers at a step."""
        self.log_curve([(step, metrics)])

    def log_curve(self, points: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Many steps in few requests, each step in one of them. What MLflow does not allow in names is left out of them."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        waiting: list[Metric] = []
        for step, values in points:
            metrics = [Metric(NOT_IN_NAMES.sub("", name), float(value), now, step) for name, value in values.items()]
            if len(waiting) + len(metrics) > REQUEST:
                self.client.log_batch(self.run_id, metrics=waiting)
                waiting = []
            waiting += metrics
        if waiting:
            self.client.log_batch(self.run_id, metrics=waiting)

    def last_step(self, metric: str) -> int:
        """The largest step of a metric; -1 where it has none."""
        return max((point.step for point in self.client.get_metric_history(self.run_id, metric)), default=-1)

    def log_file(self, path: Path, folder: Path) -> None:
        """A file, into a folder of the run's artifacts (``.`` for the top)."""
        self.client.log_artifact(self.run_id, str(path), None if folder == Path() else str(folder))

    def set_tag(self, name: str, value: str) -> None:
        """A tag; an older value is replaced."""
        self.client.set_tag(self.run_id, name, value)

    def set_status(self, status: str) -> None:
        """Where the run is: RUNNING, FINISHED, FAILED or KILLED."""
        if status == "RUNNING":
            self.client.update_run(self.run_id, status=status)
        else:
            self.client.set_terminated(self.run_id, status)

    def log_dataset(self, name: str, digest: str, context: str, profile: Mapping[str, Any]) -> None:
        """The data that went in, by digest (``mlflow.data``)."""
        import json

        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"dvc": "data.dvc", "digest": digest})
        dataset = Dataset(name, digest[:32], "local", source, profile=json.dumps(dict(profile)))
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
