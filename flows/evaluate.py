"""Evaluation of all tasks on held-out patients, beside baselines."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, task

from components.curation.corpus import Corpus
from components.evaluation import EvaluationReport, evaluate
from components.evaluation.evaluate import evaluation_inputs
from components.home import Home
from components.locks import claim
from components.settings import EvaluationSettings
from flows.artifacts import publish_evaluation
from flows.reporting import report_waiting, reported_step
from flows.retries import STEP
from flows.steps import reading, record_step


@task(name="evaluate", **STEP)
def evaluate_tasks(model: Path, settings: EvaluationSettings, seed: int) -> EvaluationReport:
    """Evaluate the model and write the report page. Of two runs that request the same evaluation, one waits for the other."""
    home = Home.open()
    with reported_step("evaluate") as step:
        with reading(home), claim(home.locks / f"evaluate-{model.parent.name}", waiting=report_waiting):
            inputs = evaluation_inputs(model, Corpus.open(home.curated).digest, settings, seed)
            report = evaluate(model, home.curated, settings, home.evaluations, seed)
            record_step(home, "evaluate", inputs.by_name(), report.report)
        step.result = f"{'reused, ' if report.reused else ''}report: {report.report}"
    publish_evaluation(report)
    return report


@flow(name="evaluate", flow_run_name="evaluate")
def evaluate_model(model: Path, settings: EvaluationSettings, seed: int) -> EvaluationReport:
    """Evaluate a saved model folder."""
    return evaluate_tasks(model, settings, seed)
