"""What happened to the registered models, where they come from, and how to go back: history, rollback, lineage, reproduce."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from components.errors import GateRefused
from components.home import Home
from components.settings import load_settings

if TYPE_CHECKING:
    from components.registry.trail import Entry

app = typer.Typer(no_args_is_help=True)
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="a profile of profiles/, or a YAML path")]


class RollbackPlace(StrEnum):
    """Which place goes back."""

    staging = "staging"
    production = "production"


@app.command("history", epilog="Example: omnimri history --figures")
def history(
    figures: Annotated[bool, typer.Option("--figures", help="with the figures that each decision rests on")] = False,
    profile: ProfileOption = "demo",
    as_json: JsonOption = False,
) -> None:
    """Say who moved which version where, when and why; ends with 1 if the record has been tampered with."""
    from components.registry import history as read_history
    from flows.output import emit, table

    name = load_settings(profile).registry.name
    entries, faults = read_history(Home.open().tracking_uri, name)
    if as_json:
        emit({"name": name, "entries": entries, "faults": faults})
    else:
        columns = ["", "when (UTC)", "who", "what", "moved", "why"]
        table(name, columns, [_line(entry, figures) for entry in entries])
        print(f"{len(entries)} entries{f', the last {entries[-1].hash[:16]}' if entries else ''}")
    if faults:
        raise GateRefused("; ".join(faults), where=name, remedy="compare with a backup of MLflow's store")


def _line(entry: Entry, figures: bool) -> list[str]:
    act = entry.act
    moves = ", ".join(f"{move.place}: {move.before or 'none'} → {move.after or 'none'}" for move in act.moves)
    why = [act.reason] if act.reason else []
    why += list(act.gates)
    if figures:
        why += [
            f"{name} {ours:.3f}" + (f" (before {theirs:.3f})" if theirs is not None else "") for name, ours, theirs in act.figures
        ]
    what = f"{act.action} {act.version}" + (f" to {act.place}" if act.action == "refuse" else "")
    return [str(entry.number), entry.at[:19].replace("T", " "), entry.who, what, moves, "; ".join(why)]


@app.command("rollback", epilog='Example: omnimri rollback --reason "masks shifted on 3 T scans"')
def rollback(
    reason: Annotated[str, typer.Option(help="why, for the history; no names of patients")],
    place: Annotated[RollbackPlace, typer.Option(help="which place goes back")] = RollbackPlace.production,
    profile: ProfileOption = "demo",
    as_json: JsonOption = False,
) -> None:
    """Give production, or staging, back to the version that had it before."""
    from components.registry import rollback as roll_back
    from flows.output import emit

    restored = roll_back(place.value, Home.open().tracking_uri, load_settings(profile).registry, reason)
    if as_json:
        emit(restored)
    else:
        print(f"{restored.name} version {restored.version} is {place.value} again")
