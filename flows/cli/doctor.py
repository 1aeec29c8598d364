"""``omnimri doctor``: check the installation."""

from __future__ import annotations

import typer

from components.home import Home
from flows.cli.options import JsonOption

app = typer.Typer()


@app.command(epilog="Example: omnimri doctor")
def doctor(as_json: JsonOption = False) -> None:
    """Check what is installed and which stores answer, and print remedies. Exit with status 1 if something is at fault."""
    from components.doctor import examine
    from flows.cli.output import emit, table

    findings = examine(Home.open())
    if as_json:
        emit({"findings": findings})
    else:
        rows = [[finding.name, finding.state, finding.detail, finding.remedy] for finding in findings]
        table("OmniMRI", ["check", "state", "found", "remedy"], rows)
    raise typer.Exit(int(any(finding.state == "fault" for finding in findings)))
