"""The five tasks on held-out patients, baselines beside them."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, get_run_logger, task

from components.evaluation import EvaluationReport, evaluate
from components.home import Home
from components.settings import EvaluationSettings


@task(name="evaluate")
def evaluate_tasks(model: Path, settings: EvaluationSettings, seed: int) -> EvaluationReport:
    """Measure the model and write the report page."""
    home = Home.open()
    report = evaluate(model, home.curated, settings, home.evaluations, seed)
    get_run_logger().info("report: %s", report.report)
    return report


@flow(name="evaluate")
def evaluate_model(model: Path, settings: EvaluationSettings, seed: int) -> EvaluationReport:
    """Evaluate a saved model folder."""
    return evaluate_tasks(model, settings, seed)
