"""``omnimri serve``, ``watch`` and ``deploy``: runs by a schedule, by an event, or by a form in Prefect's pages."""

from __future__ import annotations

import os
import signal
import sys
from enum import StrEnum
from typing import Annotated

import typer

from components.errors import BadInput
from components.home import Home
from components.settings import Settings, load_settings

app = typer.Typer()

ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="a profile of profiles/, or a YAML path")]
EveryOption = Annotated[float, typer.Option(min=0.1, help="seconds between two looks at the datasets")]
QuietOption = Annotated[float, typer.Option(min=0.0, help="seconds without a change after which a change is announced")]
FetchOption = Annotated[bool, typer.Option("--fetch/--no-fetch", help="ask the git remote for new data versions and tags")]
TagsOption = Annotated[str, typer.Option(help="pattern of the git tags that name data versions")]
TrainOption = Annotated[
    bool, typer.Option("--train-on-update", help="an update leads to a new candidate, not to a validated corpus only")
]
GpuOption = Annotated[int, typer.Option(min=1, help="runs of the train deployment at a time")]
TimezoneOption = Annotated[str, typer.Option(help="of the schedules")]


class PoolName(StrEnum):
    """Where deployed runs are: processes of a worker's machine, or pods."""

    process = "process"
    kubernetes = "kubernetes"


def _profile(profile: str) -> str:
    """A profile as every process finds it, whatever its folder."""
    load_settings(profile)
    from pathlib import Path

    return str(Path(profile).resolve()) if profile.endswith((".yaml", ".yml")) else profile


@app.command("serve", epilog="Example: omnimri serve --profile my-profile.yaml --train-on-update")
def serve(
    profile: ProfileOption = "demo",
    train_on_update: TrainOption = False,
    host: Annotated[str, typer.Option(help="address that the pages are served at")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="of Prefect's pages")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="of MLflow's pages")] = 5000,
    every: EveryOption = 30.0,
    quiet: QuietOption = 20.0,
    fetch: FetchOption = True,
    tags: TagsOption = "data-*",
    gpu_runs: GpuOption = 1,
    timezone: TimezoneOption = "UTC",
) -> None:
    """Start Prefect, MLflow, a worker and the watcher on this machine, deploy the flows, and look after all of it until stopped."""
    from flows.server.deploy import Deploying
    from flows.server.supervisor import Addresses, Services, describe

    deploying = Deploying(profile=_profile(profile), train_on_update=train_on_update, gpu_limit=gpu_runs, timezone=timezone)
    watch_words = ["--every", str(every), "--quiet", str(quiet), "--tags", tags, "--fetch" if fetch else "--no-fetch"]
    addresses = Addresses(host, port, mlflow_port)
    services = Services(Home.open(), addresses, deploying, watch_words, lambda text: print(text, file=sys.stderr, flush=True))
    signal.signal(signal.SIGTERM, services.ask_to_stop)
    signal.signal(signal.SIGINT, services.ask_to_stop)
    try:
        services.start()
        print(describe(addresses), flush=True)
        services.run()
    finally:
        services.stop()


@app.command("watch", epilog="Example: omnimri watch --profile my-profile.yaml --quiet 60")
def watch(
    profile: ProfileOption = "demo",
    every: EveryOption = 30.0,
    quiet: QuietOption = 20.0,
    fetch: FetchOption = True,
    tags: TagsOption = "data-*",
) -> None:
    """Announce updates of datasets to the Prefect server that PREFECT_API_URL names; part of omnimri serve."""
    from functools import partial

    from components.versioning.source_state import observe, require_git_pattern
    from flows.server.watcher import watch as look_on

    if not os.environ.get("PREFECT_API_URL"):
        raise BadInput("no server to tell", where="PREFECT_API_URL", remedy="omnimri serve starts one, with a watcher of its own")
    require_git_pattern(tags)

    def settings() -> Settings:
        return load_settings(profile)

    settings()
    look = partial(observe, fetch=fetch, tags=tags)
    look_on(settings, Home.open(), every, quiet, lambda text: print(text, file=sys.stderr, flush=True), look)


@app.command("deploy", epilog="Example: omnimri deploy --pool-type kubernetes --profile /state/my-profile.yaml")
def deploy(
    profile: ProfileOption = "demo",
    pool: Annotated[str, typer.Option(help="name of the work pool")] = "omnimri",
    pool_type: Annotated[PoolName, typer.Option(help="where deployed runs are")] = PoolName.process,
    train_on_update: TrainOption = False,
    gpu_runs: GpuOption = 1,
    timezone: TimezoneOption = "UTC",
) -> None:
    """Bring the Prefect server that PREFECT_API_URL names up to date with prefect.yaml; part of omnimri serve."""
    from flows.server.deploy import Deploying
    from flows.server.deploy import deploy as bring

    if not os.environ.get("PREFECT_API_URL"):
        raise BadInput("no server to deploy to", where="PREFECT_API_URL", remedy="omnimri serve starts one and deploys to it")
    load_settings(profile)
    seconds = bring(Deploying(pool, pool_type.value, profile, train_on_update, gpu_runs, timezone))
    print(f"deployed to work pool {pool} ({pool_type.value}) in {seconds:.0f} s", file=sys.stderr)
