"""Register an evaluated model and move it through the registry's gates."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from prefect import flow, get_run_logger, task

from components.evaluation import EvaluationReport
from components.home import Home
from components.locks import claim
from components.registry import Lineage, ModelVersion, promote, refusal, register
from components.settings import RegistrySettings
from flows.retries import STEP


@task(name="register", **STEP)
def register_model(
    model: Path, evaluation: EvaluationReport, lineage: Lineage, run_id: str, settings: RegistrySettings
) -> ModelVersion:
    """Register the model as candidate; the same weights and evaluation keep the version they have."""
    home, say = Home.open(), get_run_logger().info
    with claim(home.locks / "registry", waiting=say):
        version = register(model, evaluation, lineage, home.tracking_uri, run_id, settings.name)
    say("%s version %s", version.name, version.version)
    return version


@task(task_run_name="promote to {to}", **STEP)
def promote_version(
    version: str, to: Literal["staging", "production"], settings: RegistrySettings, reason: str, force: bool
) -> ModelVersion:
    """Open the gate or say why it stays shut."""
    home, say = Home.open(), get_run_logger().info
    with claim(home.locks / "registry", waiting=say):
        promoted = promote(version, to, home.tracking_uri, settings, reason, force)
    say("%s version %s is now %s", promoted.name, promoted.version, to)
    return promoted


@flow(name="promote", flow_run_name="promote to {to}")
def promote_model(
    version: str, to: Literal["staging", "production"], settings: RegistrySettings, reason: str = "", force: bool = False
) -> ModelVersion:
    """Promote one registered version."""
    return promote_version(version, to, settings, reason, force)


@flow(name="register", flow_run_name="register", validate_parameters=False)
def register_and_stage(
    model: Path, evaluation: EvaluationReport, lineage: Lineage, run_id: str, settings: RegistrySettings
) -> tuple[ModelVersion, str]:
    """Register a model as candidate, then try the gate to staging; the version, and why the gate stayed shut ("" if it opened).

    A model that is worse than the one in place is a result, not a failure of the pipeline.
    """
    version = register_model(model, evaluation, lineage, run_id, settings)
    refused = refusal(version, "staging", Home.open().tracking_uri, settings)
    if refused:
        get_run_logger().warning("%s version %s stays candidate: %s", version.name, version.version, refused)
        return version, refused
    return promote_version(version.version, "staging", settings, "", False), ""
