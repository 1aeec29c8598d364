"""The training stages, each starting from the weights of the previous one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect import flow, task

from components.curation.corpus import Corpus
from components.home import Home
from components.launching import open_launcher
from components.locks import claim
from components.settings import Settings, StageName
from components.training import StageResult, stage_inputs, stage_jobs, train_stage
from components.training.trained_stage import DONE
from flows.artifacts import publish_stage
from flows.parameters import Profile
from flows.reporting import report_waiting, reported_step
from flows.retries import STEP
from flows.steps import reading, record_step

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


@task(task_run_name="{stage}", **STEP)
def run_stage(stage: StageName, settings: Settings, parent: StageResult | None, parent_run_id: str | None) -> StageResult:
    """Train one stage, or reuse it. Of two runs that request the same stage, one waits for the other."""
    home = Home.open()
    corpus = Corpus.open(home.curated).digest
    job = stage_jobs(corpus, settings, home, stage)[-1]
    with reported_step(stage) as step:
        with claim(home.locks / job.folder.name, waiting=report_waiting):
            for lock in job.folder.glob("lock-*"):  # of processes whose flow was killed: they write a checkpoint and end
                with claim(lock, waiting=report_waiting):
                    pass
            result = train_stage(stage, home.curated, settings, home, parent, parent_run_id, open_launcher(settings))
        record_step(home, stage, stage_inputs(stage, settings, corpus, parent.digest if parent else ""), result.folder / DONE)
        step.result = f"loss {result.first_loss:.3f} -> {result.last_loss:.3f} in {result.steps} steps"
        if result.reused:
            step.result += ", reused"
    publish_stage(result)
    return result


def cancel_jobs(flow: Any, flow_run: FlowRun, state: Any) -> None:
    """Cancel the cluster jobs of a run that a user has canceled; its settings determine their names.

    A run that crashes or loses its machine is not canceled: its job continues, and the next run finds it.
    """
    parameters, home = flow_run.parameters, Home.open()
    if "settings" in parameters:
        settings = Settings.model_validate(parameters["settings"])
    else:
        settings = Profile.model_validate(parameters["profile"]).settings()
    if settings.launcher != "kubernetes":
        return
    launcher = open_launcher(settings)
    keys = {job.key for job in stage_jobs(Corpus.open(home.curated).digest, settings, home)}
    for status in launcher.jobs():
        if status.key in keys and not status.state.finished:
            launcher.find(status.key).cancel()


@flow(name="train", flow_run_name="train", validate_parameters=False, on_cancellation=[cancel_jobs])
def train_stages(settings: Settings, parent_run_id: str | None = None, until: StageName | None = None) -> tuple[StageResult, ...]:
    """Train the stages of the profile, in order, up to ``until`` (None = all)."""
    results: list[StageResult] = []
    with reading(Home.open()):
        for stage in settings.training.stages_until(until):
            results.append(run_stage(stage, settings, results[-1] if results else None, parent_run_id))
    return tuple(results)
