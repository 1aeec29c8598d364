"""The four training stages, each starting from the one before."""

from __future__ import annotations

from prefect import flow, get_run_logger, task

from components.home import Home
from components.launching import open_launcher
from components.settings import STAGES, Settings, StageName
from components.training import StageResult, train_stage


@task(task_run_name="{stage}")
def run_stage(stage: StageName, settings: Settings, parent: StageResult | None, parent_run_id: str | None) -> StageResult:
    """Train one stage, or find it already trained from the same inputs."""
    home = Home.open()
    result = train_stage(stage, home.curated, settings, home, parent, parent_run_id, open_launcher(settings))
    get_run_logger().info(
        "%s: loss %.3f -> %.3f in %d steps, %s",
        stage, result.first_loss, result.last_loss, result.steps, "reused" if result.reused else f"{result.seconds:.0f} s",
    )  # fmt: skip
    return result


@flow(name="train", validate_parameters=False)
def train_stages(
    settings: Settings, parent_run_id: str | None = None, until: StageName = "instruction_tuning"
) -> tuple[StageResult, ...]:
    """Train the stages up to ``until`` in the paper's order."""
    results: list[StageResult] = []
    for stage in STAGES[: STAGES.index(until) + 1]:
        results.append(run_stage(stage, settings, results[-1] if results else None, parent_run_id))
    return tuple(results)
