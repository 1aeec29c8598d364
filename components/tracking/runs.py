"""MLflow runs by content: the same inputs find the same run again, so that an interrupted pipeline resumes in it.

No logged item could identify a patient: settings, digests, metrics, and images of voxels without text.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import JobFailed
from components.home import Home
from components.locks import claim
from components.provenance import git_commit
from components.settings import Settings
from components.tracking.relocation import relocate_if_moved

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

EXPERIMENT = "omnimri"
MAX_PARAMETER_LENGTH = 500
MAX_METRICS = 1000
"""Maximum number of metrics per request of MLflow."""
_INVALID_CHARACTERS = re.compile(r"[^\w\-. :/]")


def open_client(uri: str, home: Home) -> MlflowClient:
    """Return a client of the tracking store; create the local store if it does not exist."""
    import mlflow

    if uri == home.local_store:
        home.mlflow.mkdir(parents=True, exist_ok=True)
    relocate_if_moved(uri)
    mlflow.set_tracking_uri(uri)
    if uri == home.local_store:
        _create_tables(uri, home)
    return mlflow.MlflowClient(uri)


@cache
def _create_tables(uri: str, home: Home) -> None:
    """Let MLflow create or migrate the tables of the local store, which two processes must not do at the same time.

    A home that cannot be written has no lock, and needs none.
    """
    import mlflow

    with suppress(OSError), claim(home.locks / "mlflow"):
        mlflow.MlflowClient(uri).search_experiments(max_results=1)


def find_experiment(client: MlflowClient, name: str, home: Home) -> str:
    """Return the id of an experiment; create it if it does not exist.

    Raises:
        JobFailed: it was deleted.
    """
    from mlflow.exceptions import MlflowException

    existing = client.get_experiment_by_name(name)
    if existing is None:
        try:
            return str(client.create_experiment(name, artifact_location=home.artifact_location(client.tracking_uri)))
        except MlflowException:  # created by another process in the meantime
            existing = client.get_experiment_by_name(name)
            if existing is None:
                raise
    require_active(existing)
    return str(existing.experiment_id)


def require_active(experiment: Experiment) -> None:
    """Check that an experiment accepts runs.

    Raises:
        JobFailed: it was deleted, with MLflow's tools.
    """
    if experiment.lifecycle_stage != "active":
        raise JobFailed(
            "the MLflow experiment was deleted",
            where=experiment.name,
            remedy=restore_command("experiments", "--experiment-id", experiment.experiment_id),
        )


def restore_command(group: str, option: str, identity: str) -> str:
    """Return MLflow's command that restores a deleted run or experiment of the current store."""
    import mlflow

    return f"MLFLOW_TRACKING_URI='{mlflow.get_tracking_uri()}' mlflow {group} restore {option} {identity}"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as parameters with dotted names."""
    parameters: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            parameters.update(flatten(value, f"{prefix}{name}."))
        else:
            parameters[f"{prefix}{name}"] = str(value)[:MAX_PARAMETER_LENGTH]
    return parameters


class Tracking:
    """The runs of one installation.

    Args:
        uri: Tracking store.
        home: Folders of this installation, with the local store and its artifacts.
    """

    def __init__(self, uri: str, home: Home) -> None:
        self.uri, self.home = uri, home

    def pipeline_run(self, digest: str, settings: Settings, data_digest: str, tags: Mapping[str, str]) -> str:
        """Return the run of a pipeline with these inputs: the existing one, finished or not, or a new one."""
        client = open_client(self.uri, self.home)
        experiment = find_experiment(client, EXPERIMENT, self.home)
        existing = client.search_runs([experiment], f"tags.`omnimri.digest` = '{digest}'", max_results=1)
        if existing:
            return str(existing[0].info.run_id)
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
        self._log_parameters(client, run.info.run_id, flatten(settings.model_dump(mode="json", exclude={"datasets"})))
        StageRun(client, run.info.run_id).log_dataset("data", data_digest, "source", {"datasets": len(settings.datasets)})
        client.set_tag(run.info.run_id, "omnimri.datasets", ", ".join(dataset.card for dataset in settings.datasets))
        return str(run.info.run_id)

    def create_stage_run(self, name: str, digest: str, parent_run_id: str | None, parameters: Mapping[str, Any]) -> str:
        """Create a run for a stage, as a child of a pipeline's run if there is one, and return its id."""
        client = open_client(self.uri, self.home)
        tags = {"omnimri.digest": digest, "omnimri.stage": name, "omnimri.git_commit": git_commit()}
        if parent_run_id is not None:
            tags["mlflow.parentRunId"] = parent_run_id
        run = client.create_run(find_experiment(client, EXPERIMENT, self.home), run_name=name, tags=tags)
        self._log_parameters(client, run.info.run_id, flatten(parameters))
        return str(run.info.run_id)

    def is_active(self, run_id: str) -> bool:
        """Return whether a run accepts records; a server that does not answer gets the benefit of the doubt."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(open_client(self.uri, self.home).get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            return error.error_code != "RESOURCE_DOES_NOT_EXIST"

    def run(self, run_id: str) -> StageRun:
        """Return an existing run."""
        return StageRun(open_client(self.uri, self.home), run_id)

    def link_stage(self, parent_run_id: str, stage: str, run_id: str) -> None:
        """Tag a pipeline's run with the stage run that it uses, which an earlier pipeline may have created."""
        open_client(self.uri, self.home).set_tag(parent_run_id, f"omnimri.stage_run.{stage}", run_id)

    def finish_pipeline(self, run_id: str, metrics: Mapping[str, float], artifacts: Iterable[Path]) -> None:
        """Log the final metrics and files of a pipeline's run and mark it finished, unless it is already."""
        client = open_client(self.uri, self.home)
        if client.get_run(run_id).info.status == "FINISHED":
            return
        stage_run = StageRun(client, run_id)
        stage_run.log_metrics(metrics, step=0)
        for path in artifacts:
            client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, "FINISHED")

    def _log_parameters(self, client: MlflowClient, run_id: str, parameters: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        client.log_batch(run_id, params=[Param(name, value) for name, value in parameters.items()])


@dataclass(frozen=True)
class StageRun:
    """An existing run."""

    client: MlflowClient
    run_id: str

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics of one step."""
        self.log_steps([(step, metrics)])

    def log_steps(self, points: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Log metrics of many steps in few requests, without splitting a step; drop characters that MLflow forbids in names."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        pending: list[Metric] = []
        for step, values in points:
            metrics = [Metric(_INVALID_CHARACTERS.sub("", name), float(value), now, step) for name, value in values.items()]
            if len(pending) + len(metrics) > MAX_METRICS:
                self.client.log_batch(self.run_id, metrics=pending)
                pending = []
            pending += metrics
        if pending:
            self.client.log_batch(self.run_id, metrics=pending)

    def last_step(self, metric: str) -> int:
        """Return the largest step of a metric, -1 if it has none."""
        return max((point.step for point in self.client.get_metric_history(self.run_id, metric)), default=-1)

    def log_file(self, path: Path, folder: Path) -> None:
        """Upload a file to a folder of the run's artifacts (``.`` = the top)."""
        self.client.log_artifact(self.run_id, str(path), None if folder == Path() else str(folder))

    def set_tag(self, name: str, value: str) -> None:
        """Set a tag; replace an earlier value."""
        self.client.set_tag(self.run_id, name, value)

    def set_status(self, status: str) -> None:
        """Set the status of the run: RUNNING, FINISHED, FAILED or KILLED."""
        if status == "RUNNING":
            self.client.update_run(self.run_id, status=status)
        else:
            self.client.set_terminated(self.run_id, status)

    def log_dataset(self, name: str, digest: str, context: str, profile: Mapping[str, Any]) -> None:
        """Log a data set as an input of the run, by its digest (``mlflow.data``)."""
        import json

        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"dvc": "data.dvc", "digest": digest})
        dataset = Dataset(name, digest[:32], "local", source, profile=json.dumps(dict(profile)))
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
