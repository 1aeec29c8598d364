"""``omnimri models serve``: a registered version over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from components.home import Home
from components.settings import load_settings

app = typer.Typer()


@app.command("serve", epilog="Example: omnimri models serve production --port 5001")
def serve(
    version: Annotated[str, typer.Argument(help="version number or alias")],
    host: Annotated[str, typer.Option(help="address to listen on; there is no log-in, so keep it behind one")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 5001,
    seconds: Annotated[float, typer.Option(min=1, help="for an answer")] = 120.0,
    megabytes: Annotated[int, typer.Option(min=1, help="of a request")] = 256,
    profile: Annotated[str, typer.Option("--profile", "-p", help="a profile of profiles/, or a YAML path")] = "demo",
) -> None:
    """Answer all five tasks over HTTP (POST /invocations, as of MLflow), with limits on size and time."""
    from components.inference.untrusted_input import Limits
    from components.registry import show_version
    from components.registry.http_server import serve as serve_model

    uri, name = Home.open().tracking_uri, load_settings(profile).registry.name
    found = show_version(version, uri, name)
    print(f"{name} version {found.version} at http://{host}:{port}/invocations", flush=True)
    serve_model(f"models:/{name}/{found.version}", uri, host, port, Limits(request_bytes=megabytes * 2**20, seconds=seconds))
