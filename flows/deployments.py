"""The flows that ``prefect.yaml`` deploys: started by a schedule, by an event or in Prefect's UI."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.flow_runs import suspend_flow_run
from prefect.runtime import flow_run

from components.errors import GateRefused
from components.home import Home
from components.locks import claim
from components.registry import ModelVersion, refusal, show_version
from components.versioning import DataRepository
from flows.artifacts import publish_promotion
from flows.curate import curate_corpus
from flows.evaluate import evaluate_model
from flows.ingest import ingest_datasets
from flows.notifications import notify
from flows.parameters import Approval, Change, Goal, Profile, Promotion
from flows.pipeline import Stopwatch, train_candidate
from flows.pipeline import pipeline as whole_pipeline
from flows.promote import promote_version
from flows.reporting import report_waiting
from flows.retries import STEP
from flows.steps import pinned_data, preparing
from flows.train import cancel_jobs, train_stages

NOTIFY: dict[str, Any] = {
    "on_completion": [notify],
    "on_failure": [notify],
    "on_crashed": [notify],
    "on_cancellation": [cancel_jobs, notify],
}
NOTIFY_ONLY: dict[str, Any] = {**NOTIFY, "on_cancellation": [notify]}
WEEK_S = 7 * 24 * 3600


@flow(name="scheduled pipeline", flow_run_name="everything by {profile.name}", **NOTIFY)
def pipeline(profile: Profile) -> None:
    """Bring data, corpus and model up to date. Results whose inputs have not changed are reused.

    Args:
        profile: Settings of the run.
    """
    whole_pipeline(profile.settings())


@task(name="check out data version", **STEP)
def check_out_data(digest: str) -> None:
    """Bring ``data/`` to a version of the remote."""
    home = Home.open()
    with claim(home.locks / "corpus", waiting=report_waiting):
        result = DataRepository(home.data.parent, home.data).checkout(digest)
    get_run_logger().info("data/ is version %s", result.digest)


@flow(name="dataset update", flow_run_name="update of {change.kind} {change.name}", **NOTIFY)
def curate(profile: Profile, change: Change = Change(), goal: Goal = "corpus") -> None:  # noqa: B008 (frozen)
    """Follow a change of the data: ingest, curate and validate what changed; optionally train and register a candidate.

    Args:
        profile: Settings of the run.
        change: The change.
        goal: Last result: a validated corpus, or a candidate model trained and evaluated on it.
    """
    settings, home = profile.settings(), Home.open()
    changed = tuple(dataset for dataset in settings.datasets if change.kind == "all" or dataset.card == change.name)
    with ExitStack() as corpus_lock:
        with preparing(home, report_waiting, corpus_lock):
            if change.revision is not None:
                check_out_data(change.revision)
            else:
                ingest_datasets(changed, settings.ingestion, settings.pacs)
            curation, validation = curate_corpus(settings)
        if goal == "candidate":
            train_candidate(settings, pinned_data(home), curation, validation, Stopwatch())


@flow(name="training", flow_run_name="training, stages: {until}", **NOTIFY)
def train(profile: Profile, until: str = "all") -> None:
    """Train the stages on the present corpus. A finished stage is reused, an interrupted one resumes.

    Args:
        profile: Settings of the run.
        until: Number or name of the last stage, or all.
    """
    settings = profile.settings()
    train_stages(settings, until=settings.training.last_stage(until))


@flow(name="evaluation", flow_run_name="evaluation of {model}", **NOTIFY_ONLY)
def evaluate(profile: Profile, model: str = "models:/omnimri@candidate") -> None:
    """Evaluate a model on the held-out patients.

    Args:
        profile: Settings of the run.
        model: An MLflow model URI.
    """
    from components.model_files import resolve_model

    settings, home = profile.settings(), Home.open()
    evaluate_model(resolve_model(model, home.tracking_uri), settings.evaluation, settings.seed)


@flow(name="promotion", flow_run_name="{promotion.version} to {promotion.to}", **NOTIFY_ONLY)
def promote(profile: Profile, promotion: Promotion = Promotion()) -> ModelVersion:  # noqa: B008 (frozen)
    """Promote a version after a person's approval. Until then the flow is suspended, without a process; the answer resumes it.

    Args:
        profile: Settings of the run, which name the model and the tolerance of the gate.
        promotion: The version, and its new alias.
    """
    registry, home = profile.settings().registry, Home.open()
    version = show_version(promotion.version, home.tracking_uri, registry.name)
    where = f"{version.name} version {version.version} to {promotion.to}"
    if flow_run.run_count == 1:  # in later runs, the answer names its version
        refused = refusal(version, promotion.to, home.tracking_uri, registry)
        publish_promotion(version, promotion.to, refused)
        if refused and promotion.reason is None:
            raise GateRefused(refused, where=where, remedy="train or evaluate again; a reason overrides the gate and is recorded")
    form = Approval.with_initial_data(description=f"Promote {where}?", version=version.version)
    answer = suspend_flow_run(wait_for_input=form, timeout=WEEK_S, key="approval")
    if not answer.approve:
        raise GateRefused(f"{answer.by} refused", where=f"{registry.name} version {answer.version}", remedy=answer.comment)
    reason = "; ".join(text for text in (promotion.reason, f"approved by {answer.by}", answer.comment) if text)
    return promote_version(answer.version, promotion.to, registry, reason, promotion.reason is not None)
