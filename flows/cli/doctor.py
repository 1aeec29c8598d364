"""``omnimri doctor``: check the installation."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from components.home import Home
from flows.cli.options import JsonOption

app = typer.Typer()


@app.command(epilog="Example: omnimri doctor")
def doctor(
    relocate: Annotated[
        bool, typer.Option("--relocate", help="make MLflow's store name this place, after a move or copy of the home")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check what is installed and which stores answer, and print remedies. Exit with status 1 if something is at fault."""
    from components.doctor import examine
    from flows.cli.output import emit, table

    home = Home.open()
    if relocate:
        from components.tracking.relocation import relocate as relocate_store

        print(f"{relocate_store(home)} locations rewritten", file=sys.stderr)
    findings = examine(home)
    if as_json:
        emit({"findings": findings})
    else:
        rows = [[finding.name, finding.state, finding.detail, finding.remedy] for finding in findings]
        table("OmniMRI", ["check", "state", "found", "remedy"], rows)
    raise typer.Exit(int(any(finding.state == "fault" for finding in findings)))
