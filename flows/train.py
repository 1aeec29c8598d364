"""The four training stages, each starting from the one before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task

from components.curation.corpus import Corpus
from components.home import Home
from components.launching import open_launcher
from components.locks import claim
from components.settings import STAGES, Settings, StageName
from components.training import StageResult, stage_jobs, train_stage
from components.training.stages import DONE
from flows.artifacts import tell_stage
from flows.parameters import Profile
from flows.retries import STEP
from flows.steps import reading, remember, stage_inputs

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


@task(task_run_name="{stage}", **STEP)
def run_stage(stage: StageName, settings: Settings, parent: StageResult | None, parent_run_id: str | None) -> StageResult:
    """Train one stage, or find it already trained from the same inputs. Of two runs that want the same stage, one waits."""
    home, say = Home.open(), get_run_logger().info
    corpus = Corpus.open(home.curated).digest
    job = stage_jobs(corpus, settings, home, stage)[-1]
    inputs = stage_inputs(stage, settings, corpus, parent.folder.name if parent else "")
    with claim(home.locks / job.folder.name, waiting=say):
        for lock in job.folder.glob("lock-*"):  # of processes whose flow was killed: they write a checkpoint and end
            with claim(lock, waiting=say):
                pass
        result = train_stage(stage, home.curated, settings, home, parent, parent_run_id, open_launcher(settings))
    remember(home, stage, inputs, result.folder / DONE)
    tell_stage(result)
    say(
        "%s: loss %.3f -> %.3f in %d steps, %s",
        stage,
        result.first_loss,
        result.last_loss,
        result.steps,
        "reused" if result.reused else f"{result.seconds:.0f} s",
    )
    return result


def cancel_jobs(flow: Any, flow_run: FlowRun, state: Any) -> None:
    """When somebody cancels a run, its jobs on the cluster end too; they are found by their names, which its settings decide.

    A run that crashes or loses its machine is not cancelled: its job goes on, and the next run finds it.
    """
    given, home = flow_run.parameters, Home.open()
    settings = (
        Settings.model_validate(given["settings"]) if "settings" in given else Profile.model_validate(given["profile"]).settings()
    )
    if settings.launcher != "kubernetes":
        return
    launcher = open_launcher(settings)
    keys = {job.key for job in stage_jobs(Corpus.open(home.curated).digest, settings, home, STAGES[-1])}
    for status in launcher.jobs():
        if status.key in keys and not status.state.finished:
            launcher.find(status.key).cancel()


@flow(name="train", flow_run_name="train", validate_parameters=False, on_cancellation=[cancel_jobs])
def train_stages(
    settings: Settings, parent_run_id: str | None = None, until: StageName = "instruction_tuning"
) -> tuple[StageResult, ...]:
    """Train the stages up to ``until`` in the paper's order."""
    results: list[StageResult] = []
    with reading(Home.open()):
        for stage in STAGES[: STAGES.index(until) + 1]:
            results.append(run_stage(stage, settings, results[-1] if results else None, parent_run_id))
    return tuple(results)
