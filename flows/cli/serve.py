"""``omnimri serve``, ``watch`` and ``deploy``: runs started by a schedule, by an event or in Prefect's UI."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from components.errors import BadInput
from components.home import Home
from components.processes import on_stop
from components.settings import Settings, load_settings
from flows.cli import preflight
from flows.cli.options import ProfileOption

app = typer.Typer()

EveryOption = Annotated[float, typer.Option(min=0.1, help="seconds between two checks of the datasets")]
QuietOption = Annotated[float, typer.Option(min=0.0, help="seconds without a further change, after which a change is announced")]
FetchOption = Annotated[bool, typer.Option("--fetch/--no-fetch", help="fetch new data versions and tags from the git remote")]
TagsOption = Annotated[str, typer.Option(help="pattern of the git tags that name data versions")]
TrainOption = Annotated[
    bool, typer.Option("--train-on-update", help="train a new candidate after an update, rather than stop at a validated corpus")
]
GpuOption = Annotated[int, typer.Option(min=1, help="concurrent runs of the train deployment")]
TimezoneOption = Annotated[str, typer.Option(help="time zone of the schedules")]


class PoolName(StrEnum):
    """Executors of deployed runs: processes of a worker's machine, or pods."""

    process = "process"
    kubernetes = "kubernetes"


def _absolute(profile: str) -> str:
    """Return a profile's name, or the absolute path of its file, which every process finds.

    Raises:
        BadInput: a setting or a dataset card is wrong, which otherwise only the watcher's log would report, later.
    """
    preflight.check_cards(load_settings(profile).datasets)
    return str(Path(profile).resolve()) if profile.endswith((".yaml", ".yml")) else profile


def _log(text: str) -> None:
    with suppress(OSError):  # the terminal was closed
        print(text, file=sys.stderr, flush=True)


@app.command("serve", epilog="Example: omnimri serve --profile my-profile.yaml --train-on-update")
def serve(
    profile: ProfileOption = "demo",
    train_on_update: TrainOption = False,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port of Prefect")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="port of MLflow")] = 5000,
    every: EveryOption = 30.0,
    quiet: QuietOption = 20.0,
    fetch: FetchOption = True,
    tags: TagsOption = "data-*",
    gpu_runs: GpuOption = 1,
    timezone: TimezoneOption = "UTC",
    without_login: Annotated[
        bool, typer.Option("--without-login", help="let other machines in without a login, e.g. behind a proxy with one")
    ] = False,
) -> None:
    """Start Prefect, MLflow, a worker and the watcher on this machine, deploy the flows, and supervise all of it until stopped."""
    from flows.server.deploy import Deployment
    from flows.server.logins import Logins
    from flows.server.supervisor import Addresses, Supervisor, to_json

    logins = Logins.read(os.environ)
    logins.require_for(host, without_login)
    deployment = Deployment(profile=_absolute(profile), train_on_update=train_on_update, gpu_limit=gpu_runs, timezone=timezone)
    watch_options = ["--every", str(every), "--quiet", str(quiet), "--tags", tags, "--fetch" if fetch else "--no-fetch"]
    addresses = Addresses(host, port, mlflow_port)
    supervisor = Supervisor(Home.open(), addresses, deployment, watch_options, _log, logins)
    try:
        supervisor.start()  # until it has started, a request to stop is an exception
        on_stop(supervisor.request_stop, signal.SIGINT)
        print(to_json(addresses), flush=True)
        supervisor.run()
    finally:
        on_stop(supervisor.request_stop, signal.SIGINT)  # a second request must not interrupt the end of the services
        supervisor.stop()


@app.command("watch", epilog="Example: omnimri watch --profile my-profile.yaml --quiet 60")
def watch(
    profile: ProfileOption = "demo",
    every: EveryOption = 30.0,
    quiet: QuietOption = 20.0,
    fetch: FetchOption = True,
    tags: TagsOption = "data-*",
) -> None:
    """Announce updates of datasets to the Prefect server that PREFECT_API_URL names; part of omnimri serve."""
    from components.pacs.observing import ServerObserver
    from components.versioning.source_state import SourceState, observe_sources, validate_tag_pattern
    from flows.pacs_credentials import find_credentials
    from flows.server.watcher import watch as watch_datasets

    if not os.environ.get("PREFECT_API_URL"):
        raise BadInput(
            "no Prefect server to announce to", where="PREFECT_API_URL", remedy="omnimri serve starts one, with its own watcher"
        )
    validate_tag_pattern(tags)

    def read_settings() -> Settings:
        return load_settings(profile)

    preflight.check_cards(read_settings().datasets)
    home, servers = Home.open(), ServerObserver(find_credentials, _log)

    def observe(settings: Settings) -> list[SourceState]:
        return [*observe_sources(settings.datasets, home, fetch, tags), *servers.observe(settings)]

    watch_datasets(read_settings, home, every, quiet, _log, observe)


@app.command("deploy", epilog="Example: omnimri deploy --pool-type kubernetes --profile /state/my-profile.yaml")
def deploy(
    profile: ProfileOption = "demo",
    pool: Annotated[str, typer.Option(help="name of the work pool")] = "omnimri",
    pool_type: Annotated[PoolName, typer.Option(help="where deployed runs execute")] = PoolName.process,
    train_on_update: TrainOption = False,
    gpu_runs: GpuOption = 1,
    timezone: TimezoneOption = "UTC",
) -> None:
    """Bring the Prefect server that PREFECT_API_URL names up to date with prefect.yaml; part of omnimri serve."""
    from flows.server.deploy import Deployment
    from flows.server.deploy import deploy as apply_deployment

    if not os.environ.get("PREFECT_API_URL"):
        raise BadInput(
            "no Prefect server to deploy to", where="PREFECT_API_URL", remedy="omnimri serve starts one and deploys to it"
        )
    load_settings(profile)
    seconds = apply_deployment(Deployment(pool, pool_type.value, profile, train_on_update, gpu_runs, timezone))
    print(f"deployed to work pool {pool} ({pool_type.value}) in {seconds:.0f} s", file=sys.stderr)
