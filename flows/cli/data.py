"""``omnimri data``: data versions, withdrawal of patients, and checks of the volume store."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.errors import BadInput, JobFailed, MachineFault
from components.home import Home
from components.locks import claim_data
from components.settings import load_settings
from flows.cli.options import JsonOption, ProfileOption

if TYPE_CHECKING:
    from components.registry.lineage import Use
    from components.versioning import CheckoutResult, DataRepository, Withdrawal

app = typer.Typer(no_args_is_help=True, help="Manage data versions, withdraw patients, and check the stored data.")
PSEUDONYM = re.compile(r"p[0-9a-f]{12}")
MAX_NAMES = 8
"""Names printed of a longer list, before its length."""


def open_repository() -> DataRepository:
    """Return the data and its versions."""
    from components.versioning import DataRepository

    home = Home.open()
    return DataRepository(home.data.parent, home.data)


def _claim_data() -> AbstractContextManager[None]:
    """Claim the right to change ``data/``, as runs do."""
    return claim_data(Home.open(), lambda text: print(text, file=sys.stderr))


def _shorten(names: tuple[str, ...]) -> str:
    if not names:
        return "-"
    return ", ".join(names) if len(names) <= MAX_NAMES else f"{', '.join(names[:MAX_NAMES])} and {len(names) - MAX_NAMES} more"


@app.command("status", epilog="Example: omnimri data status")
def show_status(as_json: JsonOption = False) -> None:
    """Show how data/ differs from its pinned version, by dataset."""
    from flows.cli.output import emit, table

    status = open_repository().status()
    if as_json:
        emit(status)
        return
    remote = "and is in the remote" if status.pushed else "and is NOT in the remote: omnimri data push sends it"
    if status.clean:
        print(f"data/ is version {status.digest}, unchanged, {remote}")
        return
    cells = [[dataset.dataset_id, str(dataset.new), str(dataset.modified), str(dataset.removed)] for dataset in status.datasets]
    table(f"data/ has changed since version {status.digest}", ["dataset", "new files", "modified", "removed"], cells)
    print("omnimri data push saves this as a new version; omnimri data checkout REV --force discards it")


@app.command("diff", epilog="Example: omnimri data diff HEAD~1")
def diff(
    revision: Annotated[
        str | None, typer.Argument(metavar="[REV]", help="a data digest or git revision; without it, the pinned version")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the patients and series added, changed or removed since a version."""
    from flows.cli.output import emit, table

    differences = open_repository().diff(revision)
    if as_json:
        emit({"datasets": differences})
        return
    if not differences:
        print("no difference")
    for difference in differences:
        cells = [
            ["patients", _shorten(difference.patients_new), "", _shorten(difference.patients_removed)],
            ["series", _shorten(difference.series_new), _shorten(difference.series_changed), _shorten(difference.series_removed)],
            ["files", str(difference.files_new), str(difference.files_changed), str(difference.files_removed)],
        ]
        table(difference.dataset_id, ["", "new", "changed", "removed"], cells)


@app.command("push", epilog="Example: omnimri data push")
def push(as_json: JsonOption = False) -> None:
    """Pin data/ as it is, and send the missing files to the remote. An interrupted push resumes."""
    from flows.cli.output import emit

    with _claim_data():
        version = open_repository().push()
    if as_json:
        emit(version)
        return
    print(f"version {version.digest}: {version.files} files, {version.bytes / 1e6:.1f} MB, in the remote")
    if version.changed:
        print("data.dvc names a new version: commit it")


@app.command("pull", epilog="Example: omnimri data pull")
def pull(as_json: JsonOption = False) -> None:
    """Bring data/ to the version that data.dvc pins. An interrupted pull resumes."""
    from flows.cli.output import emit

    with _claim_data():
        result = open_repository().pull()
    if as_json:
        emit(result)
    else:
        print(_describe(result, "data/"))


def _describe(result: CheckoutResult, where: str) -> str:
    excluded = f"; {result.withdrawn.series} series of withdrawn patients excluded" if result.withdrawn.series else ""
    if result.cached_withdrawn:
        remedy = "omnimri data withdraw --purge deletes them"
        excluded += f"\nthe cache of this checkout still contains {result.cached_withdrawn} files of withdrawn patients: {remedy}"
    return f"{where} is version {result.digest}, {result.files} files{excluded}"


@app.command("checkout", epilog="Example: omnimri data checkout HEAD~1 --to /data/previous")
def checkout(
    revision: Annotated[str, typer.Argument(metavar="REV", help="a data digest (6 characters or more) or a git revision")],
    to: Annotated[Path | None, typer.Option(help="write the version into this folder instead of data/")] = None,
    force: Annotated[bool, typer.Option("--force", help="discard changes that are in no version")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring data/ to another version, or write that version into another folder."""
    from flows.cli.output import emit

    repository = open_repository()
    if to is None:
        with _claim_data():
            result = repository.checkout(revision, force)
    else:
        result = repository.export_version(revision, to.resolve())
    if as_json:
        emit(result)
        return
    print(_describe(result, "data/" if to is None else str(to)))
    if to is None:
        print("data.dvc names this version now; omnimri curate brings the corpus up to date")
    else:
        print(f"OMNIMRI_DATA={to} OMNIMRI_HOME=... omnimri curate uses it")


@app.command("withdraw", epilog="Example: omnimri data withdraw p0123456789ab --purge")
def withdraw(
    patient: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATIENT]", help="a pseudonym, or the id in the source (needs the key); without it, all who have withdrawn"
        ),
    ] = None,
    purge: Annotated[
        bool, typer.Option("--purge", help="also delete the files of every version from the cache and all remotes")
    ] = False,
    profile: ProfileOption = "demo",
    as_json: JsonOption = False,
) -> None:
    """Remove a patient from data/ permanently; later ingestions exclude this patient. Exit with status 1 if traces may remain."""
    from components.ingestion.withdrawal import withdrawals

    home, repository = Home.open(), open_repository()
    patients = find_patients(patient, profile, home) if patient is not None else withdrawals(home.data)
    if not patients:
        raise BadInput("nobody has withdrawn", where=str(home.data), remedy="name a patient: omnimri data withdraw PATIENT")
    with _claim_data():
        result = repository.withdraw(patients, purge)
    models, unanswered = _find_models(patients, result.versions, home)
    unproven = [*result.unproven, *unanswered]
    pages, unread = _find_pages(patients, home)
    unproven += unread
    if as_json:
        from flows.cli.output import emit

        emit(
            {
                "patients": patients,
                "removed": result.removed,
                "data_digest": result.digest,
                "versions": sorted(result.versions),
                "models": models,
                "pages": pages,
                "purged_files": result.purged,
                "unproven": unproven,
            }
        )
    else:
        _print_withdrawal(patients, result, models, pages, purge)
    if unproven:
        remedy = "remedy each line, then run it again"
        raise JobFailed("\n".join(["traces may remain:", *unproven]), where="withdrawal", remedy=remedy)


def _print_withdrawal(
    patients: Mapping[str, frozenset[str]], result: Withdrawal, models: list[Use], pages: list[Path], purge: bool
) -> None:
    """Print what a withdrawal removed, and where else the patients' data was used."""
    from flows.cli.output import table

    names = _shorten(tuple(f"{name} ({dataset})" for dataset, listed in patients.items() for name in sorted(listed)))
    removed, version = result.removed, result.digest or "not pinned"
    print(f"{names}: {removed.series} series, {removed.files} files removed; data version {version}")
    print("omnimri curate removes them from the volume store and every table")
    if purge:
        print(f"{result.purged} files deleted from cache and remotes")
        print("Other checkouts have caches of their own: there, omnimri data pull, then omnimri data withdraw --purge")
    elif result.versions:
        count = len(result.versions)
        print(f"{count} earlier versions in the cache still contain them; --purge deletes their files there and in all remotes")
    if pages:
        table("Evaluations that may show this patient: delete these folders", ["folder"], [[str(page)] for page in pages])
    if models:
        cells = [[use.name, use.version, ", ".join(use.aliases), ", ".join(use.splits), use.data_digest] for use in models]
        table("Models that used this patient: train them again", ["model", "version", "aliases", "split", "data"], cells)


def find_patients(patient: str, profile: str, home: Home) -> dict[str, frozenset[str]]:
    """Return the pseudonyms, by dataset, of a patient who is in data/ or one of its versions, or has been withdrawn.

    Raises:
        BadInput: no such patient, or the datasets were pseudonymized with another key than this installation's.
        JobFailed: not found, while the cache or a remote could not be read.
    """
    from components.ingestion.withdrawal import patients_of, withdrawals

    known: dict[str, set[str]] = {name: set(present) for name, present in patients_of(home.data).items()}
    with suppress(MachineFault):  # the withdrawal itself reports a damaged list
        for name, withdrawn in withdrawals(home.data).items():
            known.setdefault(name, set()).update(withdrawn)
    matching = _match_patient(patient, known, profile, home)
    faults: list[str] = []
    if not matching:  # perhaps only earlier versions contain this patient, or data/ has not been pulled
        earlier, faults = open_repository().patients_of_versions()
        matching = _match_patient(patient, earlier, profile, home)
    if not matching and faults:
        what = "\n".join(["no such patient in the versions that can be read:", *faults])
        raise JobFailed(what, where="PATIENT", remedy="remedy each line, then run it again")
    if not matching:
        raise BadInput(
            "no such patient in data/ or its versions",
            where="PATIENT",
            remedy="give the pseudonym (omnimri data diff and the tables show them), or the id as in the source and the profile "
            "whose key was used",
        )
    return matching


def _match_patient(patient: str, known: Mapping[str, set[str]], profile: str, home: Home) -> dict[str, frozenset[str]]:
    """Return dataset -> pseudonyms of a patient among the known ones.

    Raises:
        BadInput: the patient is given by the id in the source, is not found, and a dataset has another key.
    """
    if PSEUDONYM.fullmatch(patient):
        return {name: frozenset({patient}) for name, patients in known.items() if patient in patients}
    from components.ingestion.deidentification.pseudonyms import DEMO_KEY, KEY_FILE, Pseudonyms, load_key, require_same_key

    settings = load_settings(profile).ingestion
    own = home.root / KEY_FILE
    keys = [load_key(settings, home)] if settings.public_demo_key or settings.key_file or own.exists() else []
    keys += [own.read_bytes()] if own.exists() else [DEMO_KEY]
    names = {dataset: frozenset(Pseudonyms(key, dataset).patient(patient) for key in keys) for dataset in known}
    matching = {dataset: found for dataset, patients in known.items() if (found := names[dataset] & patients)}
    if not matching:
        for dataset in known:
            require_same_key(keys, dataset, home.data)
    return matching


def _find_models(
    patients: Mapping[str, frozenset[str]], versions: Collection[str], home: Home
) -> tuple[list[Use], tuple[str, ...]]:
    """Return the versions of any registered model that used these patients, and why the registry could not answer."""
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (home.mlflow / "mlflow.db").exists():
        return [], ()
    from components.registry import versions_with_patients

    try:
        return versions_with_patients(patients, versions, home.tracking_uri), ()
    except Exception as error:  # the report must not hide that the files have been deleted
        remedy = "omnimri lineage --patient lists the models once it does"
        return [], (f"models: MLflow does not answer ({type(error).__name__}): {remedy}",)


def _find_pages(patients: Mapping[str, frozenset[str]], home: Home) -> tuple[list[Path], list[str]]:
    """Return the folders of evaluations and downloaded versions whose cohort contains one of the patients: pages may show images.

    The second value names the evaluations whose cohort cannot be read.
    """
    from components.evaluation.cohort import patient_digest
    from components.evaluation.results import COHORT
    from components.files import read_json

    digests = {patient_digest(dataset, patient) for dataset, names in patients.items() for patient in names}
    pages: list[Path] = []
    unread: list[str] = []
    for path in sorted([*home.evaluations.glob(f"*/{COHORT}"), *home.downloads.rglob(COHORT)]):
        try:
            if any(digests & set(listed) for splits in read_json(path).values() for listed in splits.values()):
                pages.append(path.parent)
        except (OSError, ValueError, AttributeError, TypeError):
            unread.append(f"{path}: the list of its patients is damaged: delete this folder")
    return pages, unread


@app.command("summary", epilog="Example: omnimri data summary")
def summary(as_json: JsonOption = False) -> None:
    """Count patients, volumes and slices of the curated corpus, by dataset and split."""
    from components.curation.overview import overview
    from flows.cli.output import emit, table

    shares = overview(Home.open().curated)
    if as_json:
        emit({"shares": shares})
        return
    columns = ["dataset", "split", "patients", "volumes", "slices", "with content", "with a lesion"]
    cells = [
        [
            share.dataset_id,
            share.split,
            *(f"{count:,}" for count in (share.patients, share.volumes, share.slices, share.showing, share.lesions)),
        ]
        for share in shares
    ]
    table("Curated corpus", columns, cells)


@app.command("verify", epilog="Example: omnimri data verify --repair")
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="remove damaged volumes; omnimri curate builds them again")] = False,
    as_json: JsonOption = False,
) -> None:
    """Read every file of the volume store, and list the damaged ones down to the slice."""
    from components.curation.verify import verify as verify_store
    from flows.cli.output import emit, table

    result = verify_store(Home.open().curated, repair)
    if as_json:
        emit(result)
    elif result.faults:
        table("Damaged", ["file", "fault"], [[fault.file, fault.what] for fault in result.faults])
    else:
        print(f"{result.volumes} volumes, {result.files} files: intact")
    if result.repaired:
        print(
            f"{len({fault.volume_id for fault in result.faults})} volumes removed; omnimri curate builds them again",
            file=sys.stderr,
        )
    elif result.faults:
        raise JobFailed(
            f"{len(result.faults)} faults", where="volume store", remedy="omnimri data verify --repair, then omnimri curate"
        )
