"""The ``omnimri`` command.

Every command takes ``--json`` (one JSON object on standard output; progress and messages stay on standard error), and exits with
status 0 on success, 1 after a failed job or a refused gate, 2 on wrong usage or input. Libraries are imported inside commands, so
that ``--help`` and usage errors answer at once.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import re
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from components.errors import BadInput, JobFailed, OmniMRIError
from components.home import Home
from components.machine_faults import causes, find_system_fault, own_file
from components.processes import Terminated, raise_on_stop
from flows.cli import (
    catalog,
    data,
    doctor,
    history,
    jobs,
    model_summary,
    models,
    pipeline_commands,
    predict,
    receive,
    run_log,
    schema,
    serve,
)
from flows.cli.environment import set_defaults
from flows.server.logins import LOGINS, server_without_login

NEW_OBJECTS_BEFORE_COLLECTION = 100_000
"""Python looks for cyclic garbage after 700 new objects by default: a seventh of the time of imports, which leave none."""
SUMMARY = "Train, evaluate and use one vision-language model for the whole MRI workflow."

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, help=SUMMARY)
for group in (pipeline_commands, predict, receive, history, serve, doctor):
    app.add_typer(group.app)
for name, named_group in {
    "models": models,
    "model": model_summary,
    "catalog": catalog,
    "data": data,
    "jobs": jobs,
    "schema": schema,
}.items():
    app.add_typer(named_group.app, name=name)


def _print_version(requested: bool) -> None:
    if requested:
        print(importlib.metadata.version("omnimri"))
        raise typer.Exit


@app.callback(help=SUMMARY)
def set_card_folder(
    cards: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="your own dataset cards; default: cards/ in OMNIMRI_HOME")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Apply the options that come before the command."""
    if cards is None:
        return
    if not cards.is_dir():
        raise BadInput("no such folder", where=f"--cards {cards}", remedy="name the folder that contains your cards (*.yaml)")
    os.environ["OMNIMRI_CARDS"] = str(cards.resolve())


def describe_error(error: Exception, home: Home) -> OmniMRIError | None:
    """Return the fault of the machine, of MLflow's store or of its server that an unexpected error means; None for a bug."""
    if fault := find_system_fault(error, own_file(error, home.root, home.data)):
        return fault
    for cause in causes(error):
        if server := server_without_login(cause):
            remedy = f"set {LOGINS[server]} to the USER:PASSWORD of omnimri serve"
            return BadInput("the server asks for a login", where=server, remedy=remedy)
        if type(cause).__module__.startswith("mlflow.") and isinstance(cause, Exception):
            where = re.sub(r"//[^/@]*@", "//", home.tracking_uri)  # without a password
            text = " ".join(str(cause).split())[:300]
            remedy = "omnimri doctor checks the store; what was deleted in MLflow, `mlflow runs restore` brings back"
            return JobFailed(f"MLflow: {text}", where=where, remedy=remedy)
    return None


def main() -> None:
    """Run a command as a process: set the environment, and turn an error into its message and exit status."""
    gc.set_threshold(NEW_OBJECTS_BEFORE_COLLECTION)
    raise_on_stop()
    try:
        set_defaults(Home.open())
        run_log.enable()
        app()
    except Terminated as request:
        with suppress(OSError):  # the terminal was closed
            remedy = "run the command again: it resumes where it stopped"
            print(f"error: stopped on request ({request.signal.name}); {remedy}", file=sys.stderr)
        raise SystemExit(request.status) from None
    except OmniMRIError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except Exception as error:
        fault = describe_error(error, Home.open())
        if fault is None:
            traceback.print_exc()
            raise SystemExit(1) from None
        print(f"error: {fault}", file=sys.stderr)
        raise SystemExit(fault.exit_code) from None
    finally:
        run_log.finish()


if __name__ == "__main__":
    main()
