"""The five tasks on held-out patients, baselines beside them."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, get_run_logger, task

from components.curation.corpus import Corpus
from components.evaluation import EvaluationReport, evaluate
from components.home import Home
from components.locks import claim
from components.settings import EvaluationSettings
from flows.artifacts import tell_evaluation
from flows.retries import STEP
from flows.steps import evaluate_inputs, reading, remember


@task(name="evaluate", **STEP)
def evaluate_tasks(model: Path, settings: EvaluationSettings, seed: int) -> EvaluationReport:
    """Measure the model and write the report page. Of two runs that want the same measurement, one waits."""
    home, say = Home.open(), get_run_logger().info
    stage = model.parent.name
    inputs = evaluate_inputs(stage, Corpus.open(home.curated).digest, settings, seed)
    with reading(home), claim(home.locks / f"evaluate-{stage}", waiting=say):
        report = evaluate(model, home.curated, settings, home.evaluations, seed)
    remember(home, "evaluate", inputs, report.report)
    tell_evaluation(report)
    say("report: %s", report.report)
    return report


@flow(name="evaluate", flow_run_name="evaluate")
def evaluate_model(model: Path, settings: EvaluationSettings, seed: int) -> EvaluationReport:
    """Evaluate a saved model folder."""
    return evaluate_tasks(model, settings, seed)
