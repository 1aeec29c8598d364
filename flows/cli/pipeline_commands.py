"""``omnimri run`` and its single steps: ``ingest``, ``curate``, ``validate``, ``train`` and ``evaluate``."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.errors import BadInput, GateRefused, JobFailed
from components.home import Home
from components.progress import step
from components.settings import DatasetSettings, PacsSettings, Settings, load_settings
from flows.cli import preflight
from flows.cli.jobs import cluster_objects, placement_overrides, print_objects
from flows.cli.options import JsonOption, LauncherOption, ProfileOption, SetOption
from flows.cli.run_log import run_log
from flows.server.temporary_server import API_URL, launch_server_early

if TYPE_CHECKING:
    from components.evaluation import ResultRow
    from components.ingestion.volume import IngestReport
    from flows.pipeline_report import PipelineReport

app = typer.Typer()

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="print the objects that a cluster would get, and change nothing")]
PlanOption = Annotated[
    bool, typer.Option("--dry-run", help="print what each step would do and why (and a cluster's objects), and change nothing")
]


class TaskRunnerName(StrEnum):
    """Task runners of curation: processes of this machine, or a Dask cluster."""

    processes = "processes"
    dask = "dask"


@app.command(epilog="Example: omnimri run --profile demo --set training.instruction_tuning.steps=400")
def run(
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
    launcher: LauncherOption = None,
    dry_run: PlanOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the whole pipeline: ingest, curate, validate, train, evaluate, register. Only what changed is computed again."""
    settings = load_settings(profile, [*(overrides or []), *([f"launcher={launcher}"] if launcher else [])])
    if dry_run and settings.launcher == "kubernetes":
        preflight.check_cards(settings.datasets)  # the sources lie on the cluster
    else:
        preflight.check_run(settings)
    if dry_run:
        _print_plan(settings, as_json)
        return
    from flows.cli.output import emit

    with run_log("run"):
        preflight.check_code()
        report = _find_unchanged_run(settings) or _run_pipeline(settings)
    if as_json:
        emit(report)
    else:
        _print_pipeline(report)
    if report.refused:
        name, number = report.model.name, report.model.version
        remedy = f"read the report; omnimri models promote {number} --to staging --force --reason TEXT overrides the gate"
        raise GateRefused(report.refused, where=f"{name} version {number} stays candidate", remedy=remedy)


def _find_unchanged_run(settings: Settings) -> PipelineReport | None:
    """Return the report of the last run if nothing has changed since: neither Prefect nor MLflow is loaded then.

    A server that the environment names is to show every run.
    """
    home = Home.open()
    if API_URL in os.environ or not home.finished_runs.is_dir():
        return None
    with step("check") as running:
        from flows.pipeline_report import find_unchanged_run

        report = find_unchanged_run(settings, home)
        running.result = "changed since the last run" if report is None else "unchanged since the last run, whose results are shown"
    return report


def _run_pipeline(settings: Settings) -> PipelineReport:
    with step("start"):
        launch_server_early()
        from flows.pipeline import pipeline
        from flows.reporting import start_prefect

        start_prefect()
    return pipeline(settings)


def _print_plan(settings: Settings, as_json: bool) -> None:
    """Print what each step would do. For a cluster, print it as comments above the objects, so that the output is one YAML file."""
    from flows.cli.output import emit, table
    from flows.steps import plan

    steps = plan(settings, Home.open())
    if settings.launcher != "kubernetes":
        if as_json:
            emit({"steps": steps})
        else:
            table("Plan", ["step", "state", "reason"], [[planned.step, planned.state, planned.why] for planned in steps])
        return
    remarks, objects = cluster_objects(settings)
    if as_json:
        emit({"steps": steps, "objects": objects})
        return
    print_objects([*(f"# {planned.step}: {planned.state} ({planned.why})" for planned in steps), *remarks], objects)


def _print_pipeline(report: PipelineReport) -> None:
    from flows.cli.output import pairs, relative

    _print_results(report.rows)
    print(f"{sum(report.seconds.values()):.0f} s in all; peak memory {report.peak_memory_mib:.0f} MiB")
    pairs(
        {
            "model": f"{report.model.name} version {report.model.version} ({', '.join(report.model.aliases)})",
            "data": f"{report.data_digest} ({report.volumes} volumes curated, {report.quarantined} inputs in quarantine)",
            "report": relative(report.report),
            "Data Docs": relative(report.data_docs),
            "MLflow": f"mlflow ui --backend-store-uri {shlex.quote(report.tracking_uri)}  (or: make ui)",
            "try it": 'omnimri predict IMAGE "Segment the white matter in this brain MRI."',
        }
    )


def _print_results(rows: tuple[ResultRow, ...]) -> None:
    """Print one line for each metric, with the best baseline beside it; those of whole volumes are on the report page."""
    from flows.cli.output import HIGHER, LOWER, table

    cells = []
    for row in rows:
        if row.is_of_whole_volumes:
            continue
        best = (max if row.higher_is_better else min)(row.baselines.items(), key=lambda item: item[1], default=None)
        cells.append(
            [
                row.task,
                f"{row.metric} {HIGHER if row.higher_is_better else LOWER}",
                f"{row.model:.3f}",
                f"{best[1]:.3f} ({best[0]})" if best else "",
                row.verdict,
                f"{row.cases} of {row.patients}",
            ]
        )
    table("Held-out patients", ["task", "metric", "model", "best baseline", "verdict", "cases of patients"], cells)


@app.command(epilog="Example: omnimri ingest icbm152-2009 ~/downloads/icbm")
def ingest(
    dataset: Annotated[str, typer.Argument(help="id of the dataset card")],
    source: Annotated[
        str | None,
        typer.Argument(
            help="source folder, which is only read; or an image archive: its name in pacs.servers, https://host/dicom-web, or "
            "dicom://AE_TITLE@host:port. Without it, the archive that the card names"
        ),
    ] = None,
    query: Annotated[
        str | None, typer.Option(help="series to fetch from an archive, e.g. Modality=MR&BodyPartExamined=BRAIN")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="number of processes")] = 2,
    strict: Annotated[bool, typer.Option("--strict", help="exit with status 1 if any input is quarantined")] = False,
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read, de-identify, quarantine and version one dataset. Skipped inputs are counted, and listed in its quarantine.json."""
    profiled = load_settings(profile, overrides)
    datasets = (_find_dataset(dataset, source, query, profiled.pacs),)
    (card,) = preflight.check_cards(datasets)
    settings = profiled.ingestion
    # The demo's profile names the published key, which must not protect patients: they get this installation's own key.
    public_key = settings.public_demo_key and not card.has_real_patients
    settings = settings.model_copy(update={"workers": workers, "public_demo_key": public_key})
    preflight.check_datasets(datasets, settings, profiled.pacs)
    from flows.cli.output import emit

    with run_log("ingest"):
        with step("start"):
            launch_server_early()
            from flows.ingest import ingest_datasets
            from flows.reporting import start_prefect

            start_prefect()
        (report,), version = ingest_datasets(datasets, settings, profiled.pacs)
    if as_json:
        emit({"dataset": report, "data_digest": version.digest})
    else:
        _print_ingestion(report, version.digest)
    if report.unfetched:
        remedy = "the notices say why; run the command again: only these are fetched"
        raise JobFailed(f"{report.unfetched} series were not fetched", where=dataset, remedy=remedy)
    if strict and report.quarantined:
        raise GateRefused(
            f"{len(report.quarantined)} inputs in quarantine", where=dataset, remedy=f"reasons: {report.root / 'quarantine.json'}"
        )


def _find_dataset(dataset: str, source: str | None, query: str | None, pacs: PacsSettings) -> DatasetSettings:
    """Return the dataset of a command line.

    Raises:
        BadInput: no such folder, a query for a folder, or neither a source nor an archive in the card.
    """
    from components.pacs.address import is_address

    if source is None:
        (card,) = preflight.check_cards((DatasetSettings(card=dataset),))
        if card.pacs is None:
            raise BadInput("no source", where=dataset, remedy="name a folder or an archive, or add pacs to the card")
        return DatasetSettings(card=dataset, query=query)
    if is_address(source) or (source in pacs.servers and not Path(source).is_dir()):
        return DatasetSettings(card=dataset, server=source, query=query)
    if query is not None:
        raise BadInput("a query for a folder", where="--query", remedy="name an archive, or leave the option out")
    path = Path(source)
    preflight.check_folder(path, "source folder", "name the folder that contains the dataset's files")
    return DatasetSettings(card=dataset, path=path.resolve())


def _print_ingestion(report: IngestReport, version: str) -> None:
    """Print the counts of an ingestion, and its quarantine by kind and reason."""
    from flows.cli.output import table

    print(
        f"{report.dataset_id}: {report.series} series of {report.patients} patients; {report.files_new} files new, "
        f"{report.files_reused} reused, {report.files_removed} removed, {report.files_ignored} ignored, "
        f"{report.files_of_layout} of the layout; "
        f"{len(report.quarantined)} inputs in quarantine; data version {version}"
    )
    if report.notices:
        table("Notices", ["files", "notice", "example"], [[str(item.count), item.text, item.example] for item in report.notices])
    if not report.quarantined:
        return
    counts = Counter((item.kind, item.reason, item.remedy) for item in report.quarantined)
    examples = {(item.kind, item.reason, item.remedy): item.path for item in reversed(report.quarantined)}
    rows = [[str(count), *reason, examples[reason]] for reason, count in counts.most_common()]
    table("Quarantine", ["inputs", "kind", "reason", "remedy", "example"], rows)


@app.command(epilog="Example: omnimri curate --profile demo --json")
def curate(
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
    preview: Annotated[int, typer.Option(min=0, help="also write an HTML page with this many samples of each kind")] = 0,
    task_runner: Annotated[TaskRunnerName, typer.Option(help="where volumes are curated")] = TaskRunnerName.processes,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="address of a Dask scheduler; without it, a temporary local cluster")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Bring the curated corpus up to date with data/, and validate it."""
    settings = load_settings(profile, overrides)
    preflight.check_cards(settings.datasets)
    from flows.cli.output import emit, relative

    with run_log("curate"):
        with step("start"):
            launch_server_early()
            from flows.curate import curate_corpus, preview_corpus
            from flows.reporting import start_prefect

            start_prefect()
        report, validation = curate_corpus(settings, task_runner.value, scheduler)
        page = preview_corpus(preview) if preview else None
    if as_json:
        emit(report)
        return
    print(
        f"{report.volumes_total} volumes: {report.volumes_new} new, {report.volumes_reused} reused, "
        f"{report.volumes_removed} removed; {report.instructions} instructions; {report.seconds:.1f} s"
    )
    if report.volumes_unreadable:
        print(f"{report.volumes_unreadable} volumes cannot be read and are left out; corpus.json lists them")
    print(f"Data Docs: {relative(validation.data_docs)}")
    if validation.quarantined:
        print("excluded rows: " + ", ".join(f"{count} {table}" for table, count in validation.quarantined.items()))
    if page:
        print(f"preview: {relative(page)}")


@app.command(epilog="Example: omnimri validate")
def validate(
    accept_drift: Annotated[
        str | None, typer.Option(metavar="REASON", help="accept a drift of the data, for this recorded reason")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every curated table against its expectations."""
    preflight.check_corpus()
    from flows.cli.output import emit, relative

    with run_log("validate"), step("validate") as running:
        from components.validation import validate as validate_tables

        home = Home.open()
        report = validate_tables(home.curated, home.validation, accept_drift)
        running.result = "passed" if report.passed else "FAILED"
    if as_json:
        emit(report)
    else:
        print(f"Data Docs: {relative(report.data_docs)}")
    report.require()


@app.command(epilog="Example: omnimri train --stage 2")
def train(
    stage: Annotated[str, typer.Option(help="last stage to train: its number (from 1) or name, or all")] = "all",
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
    launcher: LauncherOption = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="number of cluster nodes")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of each node, one process each")] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the stages. An interrupted stage resumes from its last checkpoint; a finished one is reused."""
    settings = load_settings(profile, [*(overrides or []), *placement_overrides(launcher, nodes, gpus)])
    if (nodes is not None or gpus is not None) and settings.launcher != "kubernetes":
        raise BadInput("only a cluster has nodes and GPUs to choose", where="--nodes, --gpus", remedy="add --launcher kubernetes")
    until = settings.training.last_stage(stage)
    from flows.cli.output import emit, table

    if dry_run:
        remarks, objects = cluster_objects(settings, until)
        if as_json:
            emit({"objects": objects})
        else:
            print_objects(remarks, objects)
        return
    preflight.check_corpus()
    preflight.check_model_folders(settings.model)
    with run_log("train"):
        preflight.check_code()
        with step("start"):
            launch_server_early()
            from flows.reporting import start_prefect
            from flows.train import train_stages

            start_prefect()
        results = train_stages(settings, until=until)
    if as_json:
        emit(results)
        return
    cells = [
        [
            result.stage,
            str(result.steps),
            f"{result.first_loss:.3f} -> {result.last_loss:.3f}",
            "reused" if result.reused else f"{result.seconds:.0f} s",
            str(result.model_dir),
        ]
        for result in results
    ]
    table("Stages", ["stage", "steps", "loss", "time", "model"], cells)


@app.command(epilog="Example: omnimri evaluate models:/omnimri@staging")
def evaluate(
    model: Annotated[str, typer.Argument(help="an MLflow model URI, or a folder saved with save_pretrained")],
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model on the held-out patients, beside its baselines, and write the report page."""
    settings = load_settings(profile, overrides)
    preflight.check_corpus()
    preflight.check_model(model)
    from flows.cli.output import emit, relative

    with run_log("evaluate"):
        with step("start"):
            launch_server_early()
            from components.model_files import resolve_model
            from flows.evaluate import evaluate_model
            from flows.reporting import start_prefect

            folder = resolve_model(model, Home.open().tracking_uri)
            start_prefect()
        report = evaluate_model(folder, settings.evaluation, settings.seed)
    if as_json:
        emit(report)
        return
    _print_results(report.rows)
    print(f"Report: {relative(report.report)}")
