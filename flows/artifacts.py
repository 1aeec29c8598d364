"""What a run shows in Prefect's pages: tables, summaries and links, made of the records that steps return.

Nothing here could name a patient: counts, digests, pseudonyms, numbers.
"""

from __future__ import annotations

import json
import os
from itertools import pairwise
from typing import TYPE_CHECKING

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.context import FlowRunContext

if TYPE_CHECKING:
    from components.evaluation import EvaluationReport
    from components.registry import ModelVersion
    from components.training import StageResult
    from components.validation import ValidationReport
    from components.versioning import DataVersion
    from components.versioning.version_diff import DatasetDifference

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60
SHOWN = 80
CURVE = "curve.jsonl"


def sparkline(values: list[float], width: int = WIDTH) -> str:
    """Values as a line of bars, the lowest and the highest of them at its ends; of many values, means of equal shares."""
    if not values:
        return ""
    shares = min(width, len(values))
    cuts = [round(place * len(values) / shares) for place in range(shares + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(cuts)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def tell_data_version(version: DataVersion, found: list[DatasetDifference]) -> None:
    """What a new data version has that the one before had not."""
    rows = [
        {
            "dataset": one.dataset_id,
            "patients": f"+{len(one.patients_new)} -{len(one.patients_removed)}",
            "series": f"+{len(one.series_new)} ~{len(one.series_changed)} -{len(one.series_removed)}",
            "files": f"+{one.files_new} ~{one.files_changed} -{one.files_removed}",
        }
        for one in found
    ]
    create_table_artifact(rows, key="dataset-diff", description=f"Data version {version.digest}: + new, ~ changed, - removed")


def tell_validation(report: ValidationReport) -> None:
    """How every table stands against its rules, and where the Data Docs are."""
    lines = [f"# Validation {'passed' if report.passed else 'FAILED'}", "", f"[Data Docs]({report.data_docs.as_uri()})", ""]
    lines += ["| table | rows | expectations | failed | rows left out |", "|---|---|---|---|---|"]
    for one in report.tables:
        left_out = sum(failure.rows for failure in one.left_out)
        lines.append(f"| {one.table} | {one.rows} | {one.expectations} | {len(one.failures)} | {left_out} |")
    failed = [f"- {failure}" for one in report.tables for failure in one.failures]
    create_markdown_artifact("\n".join([*lines, "", *failed]), key="validation", description=f"Corpus {report.corpus_digest}")


def tell_stage(result: StageResult) -> None:
    """The course of a stage's loss."""
    path = result.folder / CURVE
    points = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    how = "reused" if result.reused else f"{result.seconds:.0f} s, {result.step_seconds:.3f} s a step"
    if result.resumed_at:
        how += f", gone on from step {result.resumed_at}"
    text = (
        f"# {result.stage}\n\nLoss {result.first_loss:.3f} → {result.last_loss:.3f} in {result.steps} steps ({how})\n\n"
        f"`{sparkline([point['loss'] for point in points])}`\n\n{_run_link(result.run_id)}"
    )
    create_markdown_artifact(text, key=f"loss-{result.stage.replace('_', '-')}", description="Loss by step")


def tell_evaluation(report: EvaluationReport) -> None:
    """Every metric beside its baselines, and where the page is."""
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
    create_table_artifact(rows, key="evaluation", description=f"Held-out patients; the page: {report.report.as_uri()}")


def tell_registration(version: ModelVersion, run_id: str, refused: str) -> None:
    """The version, where it is in MLflow, and why it stays candidate if it does."""
    where = f"stays candidate: {refused}" if refused else f"is {', '.join(version.aliases)}"
    description = f"{version.name} version {version.version} {where}"
    if address := run_address(run_id):
        create_link_artifact(
            address, link_text=f"{version.name} {version.version} in MLflow", key="mlflow-run", description=description
        )
    else:
        create_markdown_artifact(f"MLflow run `{run_id}`", key="mlflow-run", description=description)


def tell_promotion(version: ModelVersion, to: str, refused: str) -> None:
    """What a person is asked to approve: where the version comes from, how it scored, and what the gate says."""
    gate = f"The gate refuses: {refused}" if refused else "Every gate is open."
    rows = [f"| {name} | {value} |" for name, value in sorted(version.tags.items()) if len(value) <= SHOWN]
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
    """Page of an MLflow run; None where no server is used."""
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
    """Page of the flow run that everything belongs to (the outermost of nested ones), or its id where there are no pages."""
    from prefect.runtime import flow_run
    from prefect.utilities.urls import url_for

    context = FlowRunContext.get()
    number = flow_run.root_flow_run_id or (str(context.flow_run.id) if context and context.flow_run else "")
    served = os.environ.get("PREFECT_API_URL")
    return (url_for("flow-run", number) if served else None) or str(number)
