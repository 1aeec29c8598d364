"""``omnimri models``: list, show, promote and serve the registered versions."""

from __future__ import annotations

from typing import Annotated

import typer

from components.home import Home
from components.settings import load_settings
from flows.cli.options import Alias, JsonOption, NameOption, ProfileOption, ReasonOption, VersionArgument
from flows.cli.run_log import run_log
from flows.server.temporary_server import launch_server_early

app = typer.Typer(no_args_is_help=True, help="List, show, promote and serve the registered models.")


@app.command("list", epilog="Example: omnimri models list")
def list_(as_json: JsonOption = False, name: NameOption = "omnimri") -> None:
    """List the registered versions and their aliases."""
    from components.registry import list_versions
    from flows.cli.output import emit, table

    versions = list_versions(Home.open().tracking_uri, name)
    if as_json:
        emit({"versions": versions})
        return
    rows = [[version.version, ", ".join(version.aliases), version.tags.get("data_digest", "")] for version in versions]
    table(name, ["version", "aliases", "data"], rows)


@app.command("show", epilog="Example: omnimri models show 1")
def show(version: VersionArgument, name: NameOption = "omnimri", as_json: JsonOption = False) -> None:
    """Show the origin and the scores of a version."""
    from components.registry import show_version
    from flows.cli.output import emit, table

    found = show_version(version, Home.open().tracking_uri, name)
    if as_json:
        emit(found)
        return
    table(f"{name} version {found.version}", ["tag", "value"], [[key, value] for key, value in sorted(found.tags.items())])


@app.command("promote", epilog="Example: omnimri models promote 1 --to production")
def promote(
    version: VersionArgument,
    to: Annotated[Alias, typer.Option(help="the alias that the version is to get")],
    reason: ReasonOption = "",
    force: Annotated[bool, typer.Option("--force", help="override a gate that refuses; needs --reason")] = False,
    profile: ProfileOption = "demo",
    as_json: JsonOption = False,
) -> None:
    """Promote a version, if the gates allow it."""
    settings = load_settings(profile)
    from flows.cli.output import emit

    with run_log("promote"):
        launch_server_early()
        from flows.promote import promote_model
        from flows.reporting import start_prefect

        start_prefect()
        promoted = promote_model(version, to.value, settings.registry, reason, force)
    if as_json:
        emit(promoted)
    else:
        print(f"{promoted.name} version {promoted.version} is now {to.value}")


@app.command("serve", epilog="Example: omnimri models serve production --port 5001")
def serve(
    version: VersionArgument,
    host: Annotated[str, typer.Option(help="address to listen on; beyond this machine, OMNIMRI_TOKEN is needed")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 5001,
    seconds: Annotated[float, typer.Option(min=1, help="time limit of an answer")] = 120.0,
    megabytes: Annotated[int, typer.Option(min=1, help="size limit of a request, MiB")] = 256,
    without_token: Annotated[
        bool, typer.Option("--without-token", help="let other machines in without OMNIMRI_TOKEN, e.g. behind a proxy with a login")
    ] = False,
    profile: ProfileOption = "demo",
) -> None:
    """Answer all five tasks over HTTP: a page for the browser at /, and POST /invocations as MLflow defines it.

    If OMNIMRI_TOKEN is set, requests must carry it as a bearer token.
    """
    from components.network import http_address, require_free_port
    from components.serving.guards import required_token

    token = required_token(host, without_token)
    require_free_port(host, port, "--host", "--port")
    from components.inference.untrusted_input import Limits
    from components.model_files import resolve_model
    from components.registry import show_version
    from components.serving.serve import serve as serve_model

    home, name = Home.open(), load_settings(profile).registry.name
    found = show_version(version, home.tracking_uri, name)
    model = f"models:/{name}/{found.version}"
    folder = resolve_model(model, home.tracking_uri)  # its files are there and unchanged
    title, limits = f"{name} version {found.version}", Limits(request_bytes=megabytes * 2**20, seconds=seconds)
    print(f"{title}: page at {http_address(host, port)}/, requests to {http_address(host, port)}/invocations", flush=True)
    serve_model(model, folder, title, home, host, port, limits, token)
