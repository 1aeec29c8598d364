"""Artifacts of a run in Prefect's UI: tables, summaries and links, built from the reports of the steps.

They contain counts, digests, pseudonyms and figures, and so name no patient.
"""

from __future__ import annotations

import json
import os
from itertools import pairwise
from typing import TYPE_CHECKING

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.context import FlowRunContext

from flows.server.temporary_server import kept_server

if TYPE_CHECKING:
    from components.evaluation import EvaluationReport
    from components.registry import ModelVersion
    from components.training import StageResult
    from components.validation import ValidationReport
    from components.versioning import DataVersion
    from components.versioning.version_diff import DatasetDiff

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60
MAX_TAG = 80
CURVE = "curve.jsonl"


def sparkline(values: list[float], width: int = WIDTH) -> str:
    """Draw values as a line of bars, scaled from the lowest to the highest. Of many values, draw means over equal shares."""
    if not values:
        return ""
    shares = min(width, len(values))
    cuts = [round(share * len(values) / shares) for share in range(shares + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(cuts)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def publish_data_version(version: DataVersion, differences: list[DatasetDiff]) -> None:
    """Publish the differences between a new data version and the previous one."""
    rows = [
        {
            "dataset": difference.dataset_id,
            "patients": f"+{len(difference.patients_new)} -{len(difference.patients_removed)}",
            "series": f"+{len(difference.series_new)} ~{len(difference.series_changed)} -{len(difference.series_removed)}",
            "files": f"+{difference.files_new} ~{difference.files_changed} -{difference.files_removed}",
        }
        for difference in differences
    ]
    create_table_artifact(rows, key="dataset-diff", description=f"Data version {version.digest}: + new, ~ changed, - removed")


def publish_validation(report: ValidationReport) -> None:
    """Publish the result of each table, and the address of the Data Docs."""
    lines = [f"# Validation {'passed' if report.passed else 'FAILED'}", "", f"[Data Docs]({report.data_docs.as_uri()})", ""]
    lines += ["| table | rows | expectations | failed | excluded rows |", "|---|---|---|---|---|"]
    for result in report.tables:
        excluded = sum(failure.rows for failure in result.left_out)
        lines.append(f"| {result.table} | {result.rows} | {result.expectations} | {len(result.failures)} | {excluded} |")
    failed = [f"- {failure}" for result in report.tables for failure in result.failures]
    create_markdown_artifact("\n".join([*lines, "", *failed]), key="validation", description=f"Corpus {report.corpus_digest}")


def publish_stage(result: StageResult) -> None:
    """Publish the loss curve of a stage."""
    path = result.folder / CURVE
    points = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    duration = "reused" if result.reused else f"{result.seconds:.0f} s, {result.step_seconds:.3f} s a step"
    if result.resumed_at:
        duration += f", resumed at step {result.resumed_at}"
    text = (
        f"# {result.stage}\n\nLoss {result.first_loss:.3f} → {result.last_loss:.3f} in {result.steps} steps ({duration})\n\n"
        f"`{sparkline([point['loss'] for point in points])}`\n\n{_run_link(result.run_id)}"
    )
    create_markdown_artifact(text, key=f"loss-{result.stage.replace('_', '-')}", description="Loss by step")


def publish_evaluation(report: EvaluationReport) -> None:
    """Publish every metric beside its baselines, and the address of the report page."""
    rows = [
        {
            "task": row.task,
            "metric": f"{row.metric} {'↑' if row.higher_is_better else '↓'}",
            "model": f"{row.model:.3f}",
            "baselines": ", ".join(f"{name} {value:.3f}" for name, value in row.baselines.items()),
            "verdict": row.verdict,
            "cases": row.cases,
            "patients": row.patients,
        }
        for row in report.rows
    ]
    create_table_artifact(rows, key="evaluation", description=f"Held-out patients; report page: {report.report.as_uri()}")


def publish_registration(version: ModelVersion, run_id: str, refused: str) -> None:
    """Publish a registered version, its MLflow run, and why it stays candidate if it does."""
    state = f"stays candidate: {refused}" if refused else f"is {', '.join(version.aliases)}"
    description = f"{version.name} version {version.version} {state}"
    if address := run_address(run_id):
        create_link_artifact(
            address, link_text=f"{version.name} {version.version} in MLflow", key="mlflow-run", description=description
        )
    else:
        create_markdown_artifact(f"MLflow run `{run_id}`", key="mlflow-run", description=description)


def publish_promotion(version: ModelVersion, to: str, refused: str) -> None:
    """Publish what a person needs to approve a promotion: origin and scores of the version, and the answer of the gate."""
    gate = f"The gate refuses: {refused}" if refused else "Every gate is open."
    rows = [f"| {name} | {value} |" for name, value in sorted(version.tags.items()) if len(value) <= MAX_TAG]
    scores = [f"| {task} | {metric} | {value:.3f} |" for task, metric, _, value in json.loads(version.tags.get("results", "[]"))]
    lines = [
        f"# {version.name} version {version.version} to {to}",
        "",
        gate,
        "",
        "| task | metric | value |",
        "|---|---|---|",
        *scores,
    ]
    text = "\n".join([*lines, "", "| tag | value |", "|---|---|", *rows])
    create_markdown_artifact(text, key="promotion", description=gate[:200])


def run_address(run_id: str) -> str | None:
    """Return the address of an MLflow run; None without an MLflow server."""
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not server.startswith(("http://", "https://")):
        return None
    import mlflow

    experiment = mlflow.MlflowClient(server).get_run(run_id).info.experiment_id
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


def _run_link(run_id: str) -> str:
    address = run_address(run_id)
    return f"[MLflow run]({address})" if address else f"MLflow run `{run_id}`"


def flow_run_link() -> str:
    """Return the address of the outermost flow run, or its id if the server ends with this command."""
    from prefect.runtime import flow_run
    from prefect.utilities.urls import url_for

    context = FlowRunContext.get()
    run_id = flow_run.root_flow_run_id or (str(context.flow_run.id) if context and context.flow_run else "")
    return (url_for("flow-run", run_id) if kept_server() else None) or str(run_id)
