"""The MLflow runs that store the histories of registered models, found by the name of the model, also after it was renamed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.errors import JobFailed
from components.tracking.runs import require_active

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "omnimri-registry"
RUN, NAME = "history_run", "omnimri.history"
"""Tag of a registered model that names the run of its history, and tag of the run that names the model."""


def find_history_run(client: MlflowClient, name: str) -> str | None:
    """Return the run with the history of a model that does not name it, or of an interrupted creation; None without one.

    One with entries counts more than an empty one, even if it was deleted; then its restoration is asked for.

    Raises:
        JobFailed: the experiment of histories was deleted.
    """
    from mlflow.entities import ViewType

    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    require_active(experiment)
    found = [
        run
        for run in client.search_runs([experiment.experiment_id], f"tags.`{NAME}` = '{name}'", ViewType.ALL)
        if run.data.params or run.info.lifecycle_stage == "active"
    ]
    found.sort(key=lambda run: (bool(run.data.params), run.info.lifecycle_stage == "active", run.info.start_time))
    return str(found[-1].info.run_id) if found else None


def require_not_renamed(client: MlflowClient, name: str) -> None:
    """Check that a model that does not exist was not renamed outside of OmniMRI.

    Raises:
        JobFailed: it was; the new name is in the message.
    """
    run_id = find_history_run(client, name)
    for renamed in client.search_registered_models(f"tags.{RUN} = '{run_id}'") if run_id else ():
        if renamed.name != name:
            raise JobFailed(
                f"the registered model was renamed to {renamed.name} outside of OmniMRI",
                where=name,
                remedy=f"rename it back in MLflow's UI, or use it: --set registry.name={renamed.name}",
            )
