"""Registration of an evaluated model, and promotion through the registry's gates."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from prefect import flow, task

from components.evaluation import EvaluationReport
from components.home import Home
from components.locks import claim
from components.registry import Lineage, ModelVersion, promote, refusal, register
from components.settings import RegistrySettings
from flows.reporting import report_waiting, reported_step
from flows.retries import STEP


@task(name="register", **STEP)
def register_model(
    model: Path, evaluation: EvaluationReport, lineage: Lineage, run_id: str, settings: RegistrySettings
) -> ModelVersion:
    """Register the model as candidate; the same weights, evaluation, data and settings keep their version."""
    home = Home.open()
    with reported_step("register") as step:
        with claim(home.locks / "registry", waiting=report_waiting):
            version = register(model, evaluation, lineage, home.tracking_uri, run_id, settings.name)
        step.result = f"{version.name} version {version.version}"
    return version


@task(task_run_name="promote to {to}", **STEP)
def promote_version(
    version: str, to: Literal["staging", "production"], settings: RegistrySettings, reason: str, force: bool
) -> ModelVersion:
    """Promote a version if the gates allow it, else raise their reasons."""
    home = Home.open()
    with reported_step(f"promote to {to}") as step:
        with claim(home.locks / "registry", waiting=report_waiting):
            promoted = promote(version, to, home.tracking_uri, settings, reason, force)
        step.result = f"{promoted.name} version {promoted.version} is now {to}"
    return promoted


@flow(name="promote", flow_run_name="promote to {to}")
def promote_model(
    version: str, to: Literal["staging", "production"], settings: RegistrySettings, reason: str = "", force: bool = False
) -> ModelVersion:
    """Promote one registered version."""
    return promote_version(version, to, settings, reason, force)


def _check_gate(version: ModelVersion, settings: RegistrySettings) -> str:
    """Return why the gate to staging refuses a version; "" if it does not."""
    with reported_step("check gate") as step:
        refused = refusal(version, "staging", Home.open().tracking_uri, settings)
        step.result = f"version {version.version} stays candidate: {refused}" if refused else "open"
    return refused


@flow(name="register", flow_run_name="register", validate_parameters=False)
def register_and_stage(
    model: Path, evaluation: EvaluationReport, lineage: Lineage, run_id: str, settings: RegistrySettings
) -> tuple[ModelVersion, str]:
    """Register a model as candidate, then try to promote it to staging.

    A model that is worse than the present one is a result, not a failure of the pipeline.

    Returns:
        The version, and why it was not promoted ("" if it was).
    """
    version = register_model(model, evaluation, lineage, run_id, settings)
    if refused := _check_gate(version, settings):
        return version, refused
    return promote_version(version.version, "staging", settings, "", False), ""
