"""``omnimri history``, ``rollback``, ``lineage`` and ``reproduce``: the past of the registered models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.errors import BadInput, GateRefused
from components.home import Home
from components.settings import load_settings
from flows.cli.data import find_patients, open_repository
from flows.cli.options import Alias, JsonOption, ProfileOption, ReasonOption, VersionArgument

if TYPE_CHECKING:
    from components.registry.audit_entries import Entry

app = typer.Typer()


@app.command("history", epilog="Example: omnimri history --figures")
def history(
    figures: Annotated[bool, typer.Option("--figures", help="also print the figures behind each decision")] = False,
    profile: ProfileOption = "demo",
    as_json: JsonOption = False,
) -> None:
    """Show the promotion history. Exit with status 1 if the record has been tampered with."""
    from components.registry import history as read_history
    from flows.cli.output import emit, table

    name = load_settings(profile).registry.name
    entries, faults = read_history(Home.open().tracking_uri, name)
    if as_json:
        emit({"name": name, "entries": entries, "faults": faults})
    else:
        columns = ["", "time (UTC)", "user", "action", "aliases", "reason"]
        table(name, columns, [_line(entry, figures) for entry in entries])
        print(f"{len(entries)} entries{f', last hash {entries[-1].hash[:16]}' if entries else ''}")
    if faults:
        raise GateRefused("; ".join(faults), where=name, remedy="compare with a backup of MLflow's store")


def _line(entry: Entry, figures: bool) -> list[str]:
    action = entry.act
    moves = ", ".join(f"{move.place}: {move.before or 'none'} → {move.after or 'none'}" for move in action.moves)
    why = [*([action.reason] if action.reason else []), *action.gates]
    if figures:
        for name, value, replaced in action.figures:
            why.append(f"{name} {value:.3f}" + (f" (before {replaced:.3f})" if replaced is not None else ""))
    what = f"{action.action} {action.version}" + (f" to {action.place}" if action.action == "refuse" else "")
    return [str(entry.number), entry.at[:19].replace("T", " "), entry.who, what, moves, "; ".join(why)]


@app.command("rollback", epilog='Example: omnimri rollback --reason "masks shifted on 3 T scans"')
def rollback(
    reason: ReasonOption,
    place: Annotated[Alias, typer.Option(help="the alias to roll back")] = Alias.production,
    profile: ProfileOption = "demo",
    as_json: JsonOption = False,
) -> None:
    """Move an alias back to the version that had it before."""
    from components.registry import rollback as roll_back
    from flows.cli.output import emit

    restored = roll_back(place.value, Home.open().tracking_uri, load_settings(profile).registry, reason)
    if as_json:
        emit(restored)
    else:
        print(f"{restored.name} version {restored.version} is {place.value} again")


@app.command("lineage", epilog="Example: omnimri lineage staging")
def lineage(
    version: Annotated[str | None, typer.Argument(help="version number or alias, to show its inputs")] = None,
    patient: Annotated[
        str | None, typer.Option(help="pseudonym, or id in the source, to list the versions trained or evaluated on this patient")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="dataset card, to list the versions trained or evaluated on it")] = None,
    profile: ProfileOption = "demo",
    as_json: JsonOption = False,
) -> None:
    """Show the inputs of a version, or list the versions that used a patient or a dataset."""
    if [version, patient, dataset].count(None) != 2:
        raise BadInput("give exactly one of them", where="lineage", remedy="a version, or --patient, or --dataset")
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
            ["input", "value"],
            [[fact, value or "not recorded"] for fact, value in found.facts.items()],
        )
        table("Stages", ["stage", "digest", "MLflow run"], [list(stage) for stage in found.stages])
        return
    if dataset is not None:
        uses = versions_with_dataset(dataset, home.tracking_uri)
    else:
        patients = find_patients(str(patient), profile, home)
        holding = open_repository().find_versions_with(patients)
        uses = versions_with_patients(patients, holding, home.tracking_uri)
    if as_json:
        emit({"versions": uses})
        return
    cells = [[use.name, use.version, ", ".join(use.aliases), ", ".join(use.splits), use.data_digest] for use in uses]
    table("Versions", ["model", "version", "aliases", "split", "data"], cells)


@app.command("reproduce", epilog="Example: omnimri reproduce staging")
def reproduce(
    version: VersionArgument,
    keep: Annotated[Path | None, typer.Option(help="keep checkout, data and runs in this folder")] = None,
    profile: ProfileOption = "demo",
    as_json: JsonOption = False,
) -> None:
    """Build a version again from its commit, data and settings, and compare the weights. Exit with status 1 if they differ."""
    from components.registry import reproduce as build_again
    from flows.cli.output import emit, table

    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise BadInput("the folder is not empty", where=str(keep), remedy="name a new one")
    name = load_settings(profile).registry.name
    rebuilt = build_again(version, Home.open(), name, keep.resolve() if keep else None)
    if as_json:
        emit(rebuilt)
    else:
        verdict = (
            "equal to the bit"
            if rebuilt.equal
            else f"{rebuilt.differing} of {rebuilt.tensors} differ, by {rebuilt.largest:.3g} at most"
        )
        took = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in rebuilt.seconds.items())
        print(f"{name} version {rebuilt.version}, {rebuilt.tensors} tensors: {verdict} ({took})")
        if rebuilt.packages:
            table("Packages that differ from the pins", ["package", "pinned", "installed"], [list(row) for row in rebuilt.packages])
        if rebuilt.withdrawn:
            print(f"{rebuilt.withdrawn} series were excluded: their patients have withdrawn")
    if not rebuilt.equal:
        raise GateRefused(
            f"{rebuilt.differing} of {rebuilt.tensors} tensors differ",
            where=f"{name} version {rebuilt.version}",
            remedy="see the packages and withdrawals above; another kind of processor rounds differently",
        )
