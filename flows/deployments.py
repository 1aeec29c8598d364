"""The flows that ``prefect.yaml`` deploys: by a schedule, by an event, or by a form in Prefect's pages."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.flow_runs import suspend_flow_run
from prefect.runtime import flow_run

from components.errors import GateRefused
from components.home import Home
from components.registry import ModelVersion, refusal, show_version
from components.settings import STAGES, StageName
from components.versioning import DataRepository
from flows.artifacts import tell_promotion
from flows.curate import curate_corpus
from flows.evaluate import evaluate_model
from flows.ingest import ingest_datasets
from flows.notifications import notify
from flows.parameters import Approval, Change, Goal, Profile, Promotion
from flows.pipeline import Stopwatch, make_candidate
from flows.pipeline import pipeline as whole_chain
from flows.promote import promote_version
from flows.retries import STEP
from flows.steps import pinned, preparing
from flows.train import cancel_jobs, train_stages

WATCHED: dict[str, Any] = {
    "on_completion": [notify],
    "on_failure": [notify],
    "on_crashed": [notify],
    "on_cancellation": [cancel_jobs, notify],
}
QUIET: dict[str, Any] = {**WATCHED, "on_cancellation": [notify]}
WEEK_S = 7 * 24 * 3600


@flow(name="scheduled pipeline", flow_run_name="everything by {profile.name}", **WATCHED)
def pipeline(profile: Profile) -> None:
    """Bring everything up to date: data, corpus, model. What has not changed is found, not made again.

    Args:
        profile: Settings of the run.
    """
    whole_chain(profile.settings())


@task(name="lay out data version", **STEP)
def enter_version(digest: str) -> None:
    """Bring ``data/`` to a version of the remote."""
    home = Home.open()
    laid = DataRepository(home.data.parent, home.data).checkout(digest)
    get_run_logger().info("data/ is version %s", laid.digest)


@flow(name="dataset update", flow_run_name="update of {change.kind} {change.name}", **WATCHED)
def curate(profile: Profile, change: Change = Change(), goal: Goal = "corpus") -> None:  # noqa: B008 (frozen)
    """Follow a change of the data: read what changed, curate it, validate; then, if asked to, train and register a candidate.

    Args:
        profile: Settings of the run.
        change: What has changed.
        goal: Where it ends: at a validated corpus, or at a candidate model that was trained and measured on it.
    """
    settings, home, say = profile.settings(), Home.open(), get_run_logger().info
    changed = tuple(one for one in settings.datasets if change.kind == "all" or one.card == change.name)
    with ExitStack() as kept:
        with preparing(home, kept, settings if change.revision is None else None, say):
            if change.revision is not None:
                enter_version(change.revision)
            else:
                ingest_datasets(changed, settings.ingestion)
            curation, validation = curate_corpus(settings)
        if goal == "candidate":
            make_candidate(settings, pinned(home), curation, validation, Stopwatch())


@flow(name="training", flow_run_name="training until {until}", **WATCHED)
def train(profile: Profile, until: StageName = STAGES[-1]) -> None:
    """Train the stages on the corpus as it is; a finished stage is reused, an interrupted one goes on.

    Args:
        profile: Settings of the run.
        until: The last stage.
    """
    train_stages(profile.settings(), until=until)


@flow(name="evaluation", flow_run_name="evaluation of {model}", **QUIET)
def evaluate(profile: Profile, model: str = "models:/omnimri@candidate") -> None:
    """Measure a model on the held-out patients.

    Args:
        profile: Settings of the run.
        model: An MLflow model address.
    """
    from components.inference import resolve_model  # seconds, which the other flows need not wait

    settings, home = profile.settings(), Home.open()
    evaluate_model(resolve_model(model, home.tracking_uri), settings.evaluation, settings.seed)


@flow(name="promotion", flow_run_name="{promotion.version} to {promotion.to}", **QUIET)
def promote(profile: Profile, promotion: Promotion = Promotion()) -> ModelVersion:  # noqa: B008 (frozen)
    """Promote a version once a person has approved. Until then nothing runs: the flow is suspended, and resumed by the answer.

    Args:
        profile: Settings of the run; they name the model and the gate's tolerance.
        promotion: The version, and its new place.
    """
    registry, home = profile.settings().registry, Home.open()
    version = show_version(promotion.version, home.tracking_uri, registry.name)
    where = f"{version.name} version {version.version} to {promotion.to}"
    if flow_run.run_count == 1:  # later the answer is there, and says which version it is about
        refused = refusal(version, promotion.to, home.tracking_uri, registry)
        tell_promotion(version, promotion.to, refused)
        if refused and promotion.reason is None:
            raise GateRefused(
                refused, where=where, remedy="train or evaluate again; a reason promotes all the same and is recorded"
            )
    form = Approval.with_initial_data(description=f"Promote {where}?", version=version.version)
    answer = suspend_flow_run(wait_for_input=form, timeout=WEEK_S, key="approval")
    if not answer.approve:
        raise GateRefused(f"{answer.by} said no", where=f"{registry.name} version {answer.version}", remedy=answer.comment)
    words = "; ".join(word for word in (promotion.reason, f"approved by {answer.by}", answer.comment) if word)
    return promote_version(answer.version, promotion.to, registry, words, promotion.reason is not None)
