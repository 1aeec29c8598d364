"""MLflow's logged models: the files of a version, stored before the version exists.

A logged model carries the digest of its registration's inputs. An interrupted registration therefore finds its files again; files
that no version uses are deleted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from components.model_files import PREPROCESSING, artifacts_of, has_digest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

REGISTRATION, MODEL_NAME = "omnimri.registration", "omnimri.model"
"""Tags of a logged model: digest of the registration's inputs, and name of the registered model."""
UNUSED_S = 3600.0
"""Age from which a model without a version counts as abandoned, rather than as that of a registration on another machine."""


@dataclass(frozen=True)
class LoggedModels:
    """The logged models of one registration and of abandoned ones.

    Attributes:
        client: of the tracking store.
        name: of the registered model.
        run_id: MLflow run of the pipeline.
        identity: digest of the registration's inputs.
    """

    client: MlflowClient
    name: str
    run_id: str
    identity: str

    @property
    def tags(self) -> dict[str, str]:
        """Tags to log the model with."""
        return {REGISTRATION: self.identity, MODEL_NAME: self.name}

    def find(self, weights: str) -> str | None:
        """Return the id of the complete model that an interrupted registration left; delete incomplete ones.

        Args:
            weights: digest of the model's weights.
        """
        for model in self._search():
            if model.tags.get(REGISTRATION) != self.identity:
                continue
            if str(model.status) in ("READY", "LoggedModelStatus.READY") and _is_intact(model, weights):
                return str(model.model_id)
            self._delete(model)
        return None

    def sweep(self) -> None:
        """Delete the models of abandoned registrations: no version uses them, and they are older than :data:`UNUSED_S`."""
        used = self._used()
        oldest = (time.time() - UNUSED_S) * 1000
        for model in self._search():
            if f"models:/{model.model_id}" not in used and model.creation_timestamp < oldest:
                self._delete(model)

    def _used(self) -> set[str]:
        """Return the sources of the versions of every registered model: other tools may have renamed or copied this one."""
        used: set[str] = set()
        token = None
        while True:
            page = self.client.search_model_versions(page_token=token)
            used |= {str(version.source) for version in page}
            token = page.token
            if not token:
                return used

    def _search(self) -> list[LoggedModel]:
        experiment = self.client.get_run(self.run_id).info.experiment_id
        found: list[LoggedModel] = []
        token = None
        while True:
            page = self.client.search_logged_models([experiment], f"tags.`{MODEL_NAME}` = '{self.name}'", page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _delete(self, model: LoggedModel) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        get_artifact_repository(model.artifact_location).delete_artifacts()
        self.client.delete_logged_model(model.model_id)


def _is_intact(model: LoggedModel, weights: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        with artifacts_of(f"models:/{model.model_id}") as folder:
            return any(has_digest(path.parent, weights) for path in folder.rglob(PREPROCESSING))
    except (MlflowException, OSError):
        return False
