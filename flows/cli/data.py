"""``omnimri data``: versions of the data, patients who withdraw, and the state of the volume store."""

from __future__ import annotations

import os
import re
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.errors import BadInput, JobFailed
from components.home import Home
from components.locks import claim
from components.settings import load_settings

if TYPE_CHECKING:
    from components.registry.lineage import Use
    from components.versioning import DataRepository
    from components.versioning.repository import LaidOut

app = typer.Typer(no_args_is_help=True, help="Versions of the data, withdrawal, and checks of what is stored.")
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
PSEUDONYM = re.compile(r"p[0-9a-f]{12}")
FEW = 8
"""So many names are printed; of more, how many there are."""


def repository_of_home() -> DataRepository:
    """The data and its versions."""
    from components.versioning import DataRepository

    home = Home.open()
    return DataRepository(home.data.parent, home.data)


def _writing() -> AbstractContextManager[None]:
    """Be the one that changes ``data/``, as runs are."""
    return claim(Home.open().locks / "writer", waiting=lambda text: print(text, file=sys.stderr))


def _some(names: tuple[str, ...]) -> str:
    if not names:
        return "-"
    return ", ".join(names) if len(names) <= FEW else f"{', '.join(names[:FEW])} and {len(names) - FEW} more"


@app.command("status", epilog="Example: omnimri data status")
def status(as_json: JsonOption = False) -> None:
    """Say what in data/ differs from its pinned version, by dataset."""
    from flows.cli.output import emit, table

    found = repository_of_home().status()
    if as_json:
        emit(found)
        return
    sent = "and is in the remote" if found.pushed else "and is NOT in the remote: omnimri data push sends it"
    if found.clean:
        print(f"data/ is version {found.digest}, unchanged, {sent}")
        return
    cells = [[one.dataset_id, str(one.new), str(one.modified), str(one.removed)] for one in found.datasets]
    table(f"data/ has changed since version {found.digest}", ["dataset", "new files", "modified", "removed"], cells)
    print("omnimri data push keeps this as a new version; omnimri data checkout REV --force gives it up")


@app.command("diff", epilog="Example: omnimri data diff HEAD~1")
def diff(
    revision: Annotated[
        str | None, typer.Argument(metavar="[REV]", help="a data digest or git revision; none = the pinned version")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say which patients and series were added, changed or removed since a version."""
    from flows.cli.output import emit, table

    found = repository_of_home().diff(revision)
    if as_json:
        emit({"datasets": found})
        return
    if not found:
        print("no difference")
    for one in found:
        cells = [
            ["patients", _some(one.patients_new), "", _some(one.patients_removed)],
            ["series", _some(one.series_new), _some(one.series_changed), _some(one.series_removed)],
            ["files", str(one.files_new), str(one.files_changed), str(one.files_removed)],
        ]
        table(one.dataset_id, ["", "new", "changed", "removed"], cells)


@app.command("push", epilog="Example: omnimri data push")
def push(as_json: JsonOption = False) -> None:
    """Pin data/ as it is and send what the remote lacks; an interrupted push goes on where it stopped."""
    from flows.cli.output import emit

    with _writing():
        version = repository_of_home().push()
    if as_json:
        emit(version)
        return
    print(f"version {version.digest}: {version.files} files, {version.bytes / 1e6:.1f} MB, in the remote")
    if version.changed:
        print("data.dvc names a new version: commit it to keep it")


@app.command("pull", epilog="Example: omnimri data pull")
def pull(as_json: JsonOption = False) -> None:
    """Bring data/ to the version that data.dvc pins; an interrupted pull goes on where it stopped."""
    from flows.cli.output import emit

    with _writing():
        laid = repository_of_home().pull()
    if as_json:
        emit(laid)
    else:
        print(_laid(laid, "data/"))


def _laid(laid: LaidOut, where: str) -> str:
    left_out = f"; {laid.withdrawn.series} series of withdrawn patients left out" if laid.withdrawn.series else ""
    return f"{where} is version {laid.digest}, {laid.files} files{left_out}"


@app.command("checkout", epilog="Example: omnimri data checkout HEAD~1 --to /data/previous")
def checkout(
    revision: Annotated[str, typer.Argument(metavar="REV", help="a data digest (6 characters or more) or a git revision")],
    to: Annotated[Path | None, typer.Option(help="lay the version into this folder; data/ is not touched")] = None,
    force: Annotated[bool, typer.Option("--force", help="give up changes that no version holds")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring data/ to an older version, or lay it out beside the present one."""
    from flows.cli.output import emit

    repository = repository_of_home()
    if to is None:
        with _writing():
            laid = repository.checkout(revision, force)
    else:
        laid = repository.lay_out(revision, to.resolve())
    if as_json:
        emit(laid)
        return
    print(_laid(laid, "data/" if to is None else str(to)))
    if to is None:
        print("the next omnimri curate follows; data.dvc names this version now")
    else:
        print(f"OMNIMRI_DATA={to} OMNIMRI_HOME=... omnimri curate works with it")


@app.command("withdraw", epilog="Example: omnimri data withdraw p0123456789ab")
def withdraw(
    patient: Annotated[str, typer.Argument(metavar="PATIENT", help="a pseudonym, or the id in the source (needs the key)")],
    purge: Annotated[bool, typer.Option("--purge", help="delete the files from cache and remote too, in every version")] = False,
    profile: Annotated[
        str, typer.Option("--profile", "-p", help="says which key: a profile of profiles/, or a YAML path")
    ] = "demo",
    as_json: JsonOption = False,
) -> None:
    """Take a patient out of data/ for good; no later ingestion brings them back."""
    from flows.cli.output import emit, table

    home, repository = Home.open(), repository_of_home()
    patients = patients_named(patient, profile, home)
    with _writing():
        removed, version = repository.withdraw(patients)
    holding = repository.holding(patients)
    models = _models_of(patients, set(holding), home)
    purged = repository.purge(patients) if purge else 0
    if as_json:
        emit(
            {
                "patients": patients,
                "removed": removed,
                "data_digest": version.digest,
                "versions": sorted(holding),
                "models": models,
                "purged_files": purged,
            }
        )
        return
    who = ", ".join(f"{name} ({dataset})" for dataset, names in patients.items() for name in sorted(names))
    print(f"{who}: {removed.series} series, {removed.files} files removed; data version {version.digest}")
    print("omnimri curate takes them out of the volume store and every table")
    if purge:
        print(f"{purged} files deleted from cache and remote")
    elif holding:
        print(f"{len(holding)} earlier versions in the cache still hold them; --purge deletes their files there and in the remote")
    if models:
        cells = [[one.version, ", ".join(one.aliases), ", ".join(one.splits), one.data_digest] for one in models]
        table("Models that this patient went into: train them again", ["version", "aliases", "split", "data"], cells)


def patients_named(patient: str, profile: str, home: Home) -> dict[str, frozenset[str]]:
    """Dataset -> pseudonym of a patient who is in data/, or has been withdrawn already."""
    from components.ingestion.deidentification.pseudonyms import DEMO_KEY, Pseudonyms, load_key
    from components.ingestion.withdrawal import patients_of, withdrawals

    known: dict[str, set[str]] = {name: set(there) for name, there in patients_of(home.data).items()}
    for name, gone in withdrawals(home.data).items():
        known.setdefault(name, set()).update(gone)
    if PSEUDONYM.fullmatch(patient):
        matching = {name: frozenset({patient}) for name, patients in known.items() if patient in patients}
    else:
        settings = load_settings(profile).ingestion
        own = home.root / "pseudonym.key"
        keys = [load_key(settings, home)] if settings.public_demo_key or settings.key_file or own.exists() else []
        keys += [own.read_bytes()] if own.exists() else [DEMO_KEY]
        matching = {
            name: names
            for name, patients in known.items()
            if (names := frozenset(Pseudonyms(key, name).patient(patient) for key in keys) & patients)
        }
    if not matching:
        raise BadInput(
            "no such patient in data/",
            where="PATIENT",
            remedy="give the pseudonym (omnimri data diff and the tables show them), or the id as in the source and the profile "
            "whose key was used",
        )
    return matching


def _models_of(patients: dict[str, frozenset[str]], versions: set[str], home: Home) -> list[Use]:
    """Registered models that were made of these patients, or of data versions that hold them."""
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (home.mlflow / "mlflow.db").exists():
        return []
    from components.registry import versions_with_patients

    return versions_with_patients(patients, versions, home.tracking_uri, load_settings("demo").registry.name)


@app.command("summary", epilog="Example: omnimri data summary")
def summary(as_json: JsonOption = False) -> None:
    """Count patients, volumes and slices of the curated corpus, by dataset and split."""
    from components.curation.overview import overview
    from flows.cli.output import emit, table

    shares = overview(Home.open().curated)
    if as_json:
        emit({"shares": shares})
        return
    columns = ["dataset", "split", "patients", "volumes", "slices", "showing something", "with a lesion"]
    cells = [
        [one.dataset_id, one.split, *(f"{n:,}" for n in (one.patients, one.volumes, one.slices, one.showing, one.lesions))]
        for one in shares
    ]
    table("Curated corpus", columns, cells)


@app.command("verify", epilog="Example: omnimri data verify --repair")
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="remove damaged volumes; omnimri curate makes them again")] = False,
    as_json: JsonOption = False,
) -> None:
    """Read every file of the volume store and name what is damaged, down to the slice."""
    from components.curation.verify import verify as verify_store
    from flows.cli.output import emit, table

    found = verify_store(Home.open().curated, repair)
    if as_json:
        emit(found)
    elif found.faults:
        table("Damaged", ["file", "what"], [[fault.file, fault.what] for fault in found.faults])
    else:
        print(f"{found.volumes} volumes, {found.files} files: whole")
    if found.repaired:
        print(
            f"{len({fault.volume_id for fault in found.faults})} volumes removed; omnimri curate makes them again", file=sys.stderr
        )
    elif found.faults:
        raise JobFailed(
            f"{len(found.faults)} faults", where="volume store", remedy="omnimri data verify --repair, then omnimri curate"
        )
