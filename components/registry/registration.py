"""Versions in MLflow's model registry: list, look up, register."""

from __future__ import annotations

import base64
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import BadInput
from components.files import write_json
from components.home import Home
from components.model_files import DIGEST, WEIGHTS_TAG, weights_digest
from components.provenance import REPOSITORY, SHORT, digest
from components.registries import plugin_packages, plugins
from components.registry.audit_entries import Action, AuditState, Move
from components.registry.audit_log import AuditLog
from components.registry.inputs import RegistrationInputs
from components.registry.logged_models import LoggedModels
from components.registry.model_card import limitations, model_card
from components.registry.model_version import LOCK, Lineage, ModelVersion
from components.registry.promotion_gate import CASES, RESULTS, compare_results
from components.tasks.scope import Scope
from components.tracking.histories import require_not_renamed
from components.tracking.relocation import has_store
from components.tracking.runs import open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as StoredVersion
    from mlflow.models import ModelSignature

    from components.evaluation import EvaluationReport

PACKAGES = ("components", "model_core", "kernels")
SETTINGS, PLUGIN_LIST = "settings.json", "plugins.json"
DESCRIPTION = """Research software. Not a medical device; not for clinical use. The model card (README.md), the report page and the
settings are stored with the weights, under artifacts/about. Known limitations of this version, as measured:
"""

MAX_DESCRIPTION = 4900
"""Characters of a version's description; MLflow accepts 5000."""


def mlflow_client(tracking_uri: str) -> MlflowClient:
    """Return a client of the tracking store."""
    return open_client(tracking_uri, Home.open())


def get_version(client: MlflowClient, name: str, number: str) -> ModelVersion:
    """Return a version by its number.

    Raises:
        BadInput: no such version.
        JobFailed: the model was renamed outside of OmniMRI.
    """
    from mlflow.exceptions import MlflowException

    try:
        stored, aliases = client.get_model_version(name, number), client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        require_not_renamed(client, name)
        raise _no_such_version(name, number) from None
    return _model_version(name, stored, aliases)


def _model_version(name: str, stored: StoredVersion, aliases: Mapping[str, str]) -> ModelVersion:
    number = str(stored.version)
    return ModelVersion(
        name, number, tuple(sorted(alias for alias, version in aliases.items() if str(version) == number)), dict(stored.tags)
    )


def list_versions(tracking_uri: str, name: str) -> list[ModelVersion]:
    """Return every version, newest first; none if the model was never registered.

    Raises:
        JobFailed: the model was renamed outside of OmniMRI.
    """
    if not has_store(tracking_uri):
        return []
    client = mlflow_client(tracking_uri)
    stored = sorted(client.search_model_versions(f"name='{name}'"), key=lambda version: int(version.version), reverse=True)
    if not stored:
        require_not_renamed(client, name)
    aliases = client.get_registered_model(name).aliases if stored else {}
    return [_model_version(name, version, aliases) for version in stored]


def list_models(tracking_uri: str) -> list[str]:
    """Return the names of all registered models, sorted; other tools may have renamed ours."""
    if not has_store(tracking_uri):
        return []
    client, names, token = mlflow_client(tracking_uri), set[str](), None
    while token is None or token:
        page = client.search_registered_models(page_token=token)
        names, token = names | {model.name for model in page}, page.token or ""
    return sorted(names)


def show_version(version: str, tracking_uri: str, name: str) -> ModelVersion:
    """Return one version, by number or alias.

    Raises:
        BadInput: no such version.
        JobFailed: the model was renamed outside of OmniMRI.
    """
    from mlflow.exceptions import MlflowException

    if not has_store(tracking_uri):
        raise _no_such_version(name, version)
    client = mlflow_client(tracking_uri)
    if version.isdigit():
        return get_version(client, name, version)
    try:
        return get_version(client, name, str(client.get_model_version_by_alias(name, version).version))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        require_not_renamed(client, name)
        raise _no_such_version(name, version) from None


def _no_such_version(name: str, version: str) -> BadInput:
    return BadInput("no such version", where=f"{name} {version}", remedy="omnimri models list shows the versions")


def register(
    model_dir: Path, evaluation: EvaluationReport, lineage: Lineage, tracking_uri: str, run_id: str, name: str
) -> ModelVersion:
    """Register an evaluated model as the newest ``candidate``. The same weights, evaluation, data and settings keep their version.

    An interrupted registration is completed by the next one, or before the version is promoted: the model is logged once, the
    version appears with all its tags and its description, and then the audit log records it.

    Args:
        run_id: MLflow run of the pipeline; the model is stored there, with its code, requirements, signature and example.
    """
    weights = weights_digest(model_dir)
    tags = {
        WEIGHTS_TAG: weights,
        "evaluation_digest": evaluation.digest,
        CASES: evaluation.cases,
        **lineage.tags(),
        RESULTS: json.dumps([[row.task, row.metric, row.higher_is_better, row.model] for row in evaluation.rows]),
    }
    inputs = RegistrationInputs(weights, evaluation.digest, lineage.data_digest, lineage.settings_digest)
    client, audit_log = mlflow_client(tracking_uri), audit_log_of(tracking_uri, name)
    audit_log.create()
    version = next((existing for existing in list_versions(tracking_uri, name) if inputs.match(existing.tags)), None)
    if version is None:
        logged = LoggedModels(client, name, run_id, digest(inputs.tags())[:SHORT])
        model_id = logged.find(weights) or _log_model(model_dir, evaluation, lineage, tags, run_id, name, logged.tags)
        limits = "\n".join([DESCRIPTION, *(f"- {limit}" for limit in limitations(evaluation))])[:MAX_DESCRIPTION]
        stored = client.create_model_version(name, f"models:/{model_id}", run_id, tags, description=limits, model_id=model_id)
        version = get_version(client, name, str(stored.version))
        logged.sweep()
    return complete_registration(version, tracking_uri)


def complete_registration(version: ModelVersion, tracking_uri: str) -> ModelVersion:
    """Record a registration in the audit log and make the version candidate, unless that was done or others registered it."""
    if WEIGHTS_TAG not in version.tags or RESULTS not in version.tags:
        return version

    def candidate(state: AuditState) -> Action | None:
        if state.has_registered(version.version):
            return None
        move = Move("candidate", state.aliases.get("candidate", ""), version.version)
        figures, weights = compare_results(version.tags[RESULTS]), version.tags[WEIGHTS_TAG]
        return Action("register", version.version, "candidate", (move,), figures=figures, weights=weights)

    audit_log_of(tracking_uri, version.name).write(candidate)
    return get_version(mlflow_client(tracking_uri), version.name, version.version)


def audit_log_of(tracking_uri: str, name: str) -> AuditLog:
    """Return the audit log of a registered model."""
    client = mlflow_client(tracking_uri)
    return AuditLog(client, name, lambda: mirror_stages(client, name))


def mirror_stages(client: MlflowClient, name: str) -> None:
    """Set the legacy stages to match the aliases, for clients that request ``models:/omnimri/Production``.

    Every version is updated, not only the promoted one: MLflow serves the newest version of a stage, which after a rollback
    would be the withdrawn one. MLflow has deprecated stages and may remove them.
    """
    if not hasattr(client, "transition_model_version_stage"):
        return
    aliases = client.get_registered_model(name).aliases
    stages = {str(aliases[place]): place.capitalize() for place in ("archived", "staging", "production") if place in aliases}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for stored in client.search_model_versions(f"name='{name}'"):
            was_promoted = stored.current_stage in ("Staging", "Production")
            stage = stages.get(str(stored.version), "Archived" if was_promoted else stored.current_stage)
            if stage != stored.current_stage:
                client.transition_model_version_stage(name, str(stored.version), stage)


def _log_model(
    model_dir: Path,
    evaluation: EvaluationReport,
    lineage: Lineage,
    tags: dict[str, str],
    run_id: str,
    name: str,
    model_tags: dict[str, str],
) -> str:
    """Log code, weights, settings, evaluation and model card as one MLflow model of a run, and return its id.

    Args:
        tags: tags of the version, for the model card; model_tags: tags of the logged model.
    """
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        about = Path(folder) / "about"
        about.mkdir()
        (about / "README.md").write_text(model_card(name, evaluation, lineage.settings, tags))
        (about / SETTINGS).write_text(lineage.settings)
        write_json(about / "evaluation.json", [asdict(row) for row in evaluation.rows])
        write_json(about / DIGEST, tags[WEIGHTS_TAG])
        write_json(about / PLUGIN_LIST, [module.__name__ for module in plugins()])
        for file in evaluation.registered_files:
            shutil.copy(file, about)
        with _ReopenedRun(run_id):
            info = mlflow.pyfunc.log_model(
                name=name,
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"weights": model_dir.resolve().as_uri(), "about": about.as_uri()},  # MLflow would not quote a path
                code_paths=[str(path) for path in (*(REPOSITORY / package for package in PACKAGES), *plugin_packages())],
                pip_requirements=[f"-r {shutil.copy(LOCK, folder)}"] if LOCK.exists() else [],
                signature=_signature(),
                input_example=_example(Scope.read(evaluation.folder)),
                tags=model_tags,
            )
    return str(info.model_id)


class _ReopenedRun:
    """Context that logs into a run without changing its status."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def __enter__(self) -> None:
        import mlflow

        self.status = mlflow.MlflowClient().get_run(self.run_id).info.status
        mlflow.start_run(run_id=self.run_id)

    def __exit__(self, *_: object) -> None:
        import mlflow

        mlflow.end_run(self.status)


def _signature() -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    def columns(*names: str) -> Schema:
        return Schema([ColSpec(DataType.string, name) for name in names])

    return ModelSignature(columns("image", "instruction"), columns("task", "text", "boxes", "file", "warning"))


def _example(scope: Scope | None) -> Any:
    """Return an example request within the scope: four slices of a synthetic sphere with noise, as NIfTI in base64.

    No header says what they show: a model of several anatomies takes them for one of these, and the question must fit any.
    """
    import nibabel as nib
    import numpy as np
    import pandas as pd

    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 32)] * 2, np.linspace(-0.5, 0.5, 4), indexing="ij"))
    depth = np.clip(0.8 - np.sqrt((grid**2).sum(0)), 0, None)
    sphere = np.rint(1000 * depth * np.random.default_rng(0).uniform(0.8, 1.2, depth.shape)).astype(np.int16)
    content = nib.Nifti1Image(sphere, np.diag([6.75, 6.75, 6.0, 1.0])).to_bytes()
    image = base64.b64encode(content).decode()
    question = scope.example if scope is not None else None
    instruction = question or "Segment the white matter in this axial T1-weighted brain MRI."
    return pd.DataFrame([{"image": image, "instruction": instruction}])
