"""What happened to the registered models, where they come from, and how to go back: history, rollback, lineage, reproduce."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.errors import BadInput, GateRefused
from components.home import Home
from components.settings import load_settings
from flows.cli.data import patients_named, repository_of_home

if TYPE_CHECKING:
    from components.registry.audit_log import Entry

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
    from flows.cli.output import emit, table

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
    from flows.cli.output import emit

    restored = roll_back(place.value, Home.open().tracking_uri, load_settings(profile).registry, reason)
    if as_json:
        emit(restored)
    else:
        print(f"{restored.name} version {restored.version} is {place.value} again")


@app.command("lineage", epilog="Example: omnimri lineage staging")
def lineage(
    version: Annotated[str | None, typer.Argument(help="version number or alias: what was it made of?")] = None,
    patient: Annotated[str | None, typer.Option(help="pseudonym, or id in the source: which versions was this person in?")] = None,
    dataset: Annotated[str | None, typer.Option(help="dataset card: which versions was it in?")] = None,
    profile: ProfileOption = "demo",
    as_json: JsonOption = False,
) -> None:
    """Say what a version was made of, or which versions a patient or a dataset went into."""
    if sum(one is not None for one in (version, patient, dataset)) != 1:
        raise BadInput("one question at a time", where="lineage", remedy="a version, or --patient, or --dataset")
    from components.registry import origin, versions_with_dataset, versions_with_patients
    from flows.cli.output import emit, table

    home, name = Home.open(), load_settings(profile).registry.name
    if version is not None:
        found = origin(version, home.tracking_uri, name)
        if as_json:
            emit(found)
            return
        table(
            f"{name} version {found.version}",
            ["what", "which"],
            [[fact, value or "not recorded"] for fact, value in found.facts.items()],
        )
        table("Stages", ["stage", "digest", "MLflow run"], [list(stage) for stage in found.stages])
        return
    if dataset is not None:
        uses = versions_with_dataset(dataset, home.tracking_uri, name)
    else:
        patients = patients_named(str(patient), profile, home)
        holding = repository_of_home().holding(patients)
        uses = versions_with_patients(patients, holding, home.tracking_uri, name)
    if as_json:
        emit({"versions": uses})
        return
    cells = [[one.version, ", ".join(one.aliases), ", ".join(one.splits), one.data_digest] for one in uses]
    table("Made of it", ["version", "aliases", "split", "data"], cells)


@app.command("reproduce", epilog="Example: omnimri reproduce staging")
def reproduce(
    version: Annotated[str, typer.Argument(help="version number or alias")],
    keep: Annotated[Path | None, typer.Option(help="leave checkout, data and runs in this folder")] = None,
    profile: ProfileOption = "demo",
    as_json: JsonOption = False,
) -> None:
    """Make a version again from its commit, data and settings, and compare the weights; ends with 1 if they are not equal."""
    from components.registry import reproduce as make_again
    from flows.cli.output import emit, table

    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise BadInput("the folder is not empty", where=str(keep), remedy="name a new one")
    name = load_settings(profile).registry.name
    made = make_again(version, Home.open(), name, keep.resolve() if keep else None)
    if as_json:
        emit(made)
    else:
        what = "equal to the bit" if made.equal else f"{made.differing} of {made.tensors} differ, by {made.largest:.3g} at most"
        took = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in made.seconds.items())
        print(f"{name} version {made.version}, {made.tensors} tensors: {what} ({took})")
        if made.packages:
            table("Packages that are not as pinned", ["package", "pinned", "installed"], [list(one) for one in made.packages])
        if made.withdrawn:
            print(f"{made.withdrawn} series were left out: their patients have withdrawn")
    if not made.equal:
        raise GateRefused(
            f"{made.differing} of {made.tensors} tensors differ",
            where=f"{name} version {made.version}",
            remedy="see the packages and withdrawals above; another kind of processor rounds otherwise",
        )
