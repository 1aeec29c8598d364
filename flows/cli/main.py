"""The ``omnimri`` command.

Every command takes ``--json`` (one JSON object on standard output; logs stay on standard error) and ends with 0 on success, 1 on a
failed job or gate, 2 on bad usage or bad input. Libraries are imported inside commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.errors import BadInput, GateRefused, OmniMRIError
from components.home import Home
from components.settings import STAGES, Settings, load_settings
from flows.cli import catalog, data, jobs, model, models_serve, registry, schema, serve
from flows.cli.jobs import cluster_objects, placement, print_objects
from flows.environment import settle

if TYPE_CHECKING:
    from flows.pipeline import PipelineReport

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, help="One model for the MRI workflow."
)
models = typer.Typer(no_args_is_help=True, help="The registered models and their promotion.")
app.add_typer(models, name="models")
app.add_typer(model.app, name="model")
app.add_typer(catalog.app, name="catalog")
app.add_typer(data.app, name="data")
app.add_typer(jobs.app, name="jobs")
app.add_typer(schema.app, name="schema")
app.add_typer(serve.app)
app.add_typer(registry.app)
models.add_typer(models_serve.app)

ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="a profile of profiles/, or a YAML path")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override one setting; repeatable")]
LauncherOption = Annotated[str | None, typer.Option("--launcher", help="where training runs: local or kubernetes")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="print the objects that a cluster would get, and do nothing")]
PlanOption = Annotated[
    bool, typer.Option("--dry-run", help="say what each step would do and why (and print a cluster's objects), and do nothing")
]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]


@app.callback()
def options(
    cards: Annotated[Path | None, typer.Option(help="folder of your own dataset cards; default: cards/ in OMNIMRI_HOME")] = None,
) -> None:
    """One model for the MRI workflow."""
    if cards is None:
        return
    if not cards.is_dir():
        raise BadInput("no such folder", where=f"--cards {cards}", remedy="name the folder that holds your cards (*.yaml)")
    os.environ["OMNIMRI_CARDS"] = str(cards.resolve())


class PromotionTarget(StrEnum):
    """Where a version can be promoted to."""

    staging = "staging"
    production = "production"


class TaskRunnerName(StrEnum):
    """Where volumes are made: processes of this machine, or a Dask cluster."""

    processes = "processes"
    dask = "dask"


def _settings(profile: str, overrides: list[str] | None) -> Settings:
    return load_settings(profile, overrides)


@app.command(epilog="Example: omnimri run --profile demo --set training.instruction_tuning.steps=400")
def run(
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
    launcher: LauncherOption = None,
    dry_run: PlanOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the whole chain; re-running does only what changed."""
    settings = _settings(profile, [*(overrides or []), *([f"launcher={launcher}"] if launcher else [])])
    if dry_run:
        _print_plan(settings, as_json)
        return
    from flows.cli.output import emit
    from flows.pipeline import pipeline

    report = pipeline(settings)
    if as_json:
        emit(report)
    else:
        _print_pipeline(report)
    if report.refused:
        name, number = report.model.name, report.model.version
        remedy = f"look at the report; omnimri models promote {number} --to staging --force --reason TEXT takes it all the same"
        raise GateRefused(report.refused, where=f"{name} version {number} stays candidate", remedy=remedy)


def _print_plan(settings: Settings, as_json: bool) -> None:
    """What each step would do; for a cluster as comments above the objects that it would get, so that both are one YAML file."""
    from flows.cli.output import emit, table
    from flows.steps import plan

    steps = plan(settings, Home.open())
    if settings.launcher != "kubernetes":
        if as_json:
            emit({"steps": steps})
        else:
            table("What a run would do now", ["step", "", "why"], [[one.step, one.state, one.why] for one in steps])
        return
    remarks, objects = cluster_objects(settings, STAGES[-1])
    if as_json:
        emit({"steps": steps, "objects": objects})
        return
    print_objects([*(f"# {one.step}: {one.state} ({one.why})" for one in steps), *remarks], objects)


def _print_pipeline(report: PipelineReport) -> None:
    from flows.cli.output import relative, table

    _print_results(list(report.rows))
    steps = [[name, f"{seconds:.1f}"] for name, seconds in report.seconds.items()]
    table(f"Steps (peak memory {report.peak_memory_mib:.0f} MiB)", ["step", "seconds"], steps)
    store = report.tracking_uri
    where = [
        ["model", f"{report.model.name} version {report.model.version} ({', '.join(report.model.aliases)})"],
        ["data", f"{report.data_digest} ({report.volumes} volumes curated, {report.quarantined} inputs in quarantine)"],
        ["report", relative(report.report)],
        ["Data Docs", relative(report.data_docs)],
        ["MLflow", f"mlflow ui --backend-store-uri {store}  (or: make ui)"],
        ["try it", 'omnimri predict IMAGE "Segment the white matter in this brain MRI."'],
    ]
    table("Where to look", ["what", "where"], where)


def _print_results(rows: list) -> None:
    from flows.cli.output import HIGHER, LOWER, table

    cells = [
        [
            row.task,
            f"{row.metric} {HIGHER if row.higher_is_better else LOWER}",
            f"{row.model:.3f}",
            "  ".join(f"{name} {value:.3f}" for name, value in row.baselines.items()),
            row.verdict,
            f"{row.cases} of {row.patients}",
        ]
        for row in rows
    ]
    table("Held-out patients", ["task", "metric", "model", "baselines", "verdict", "cases of patients"], cells)


@app.command(epilog="Example: omnimri ingest icbm152-2009 ~/downloads/icbm")
def ingest(
    dataset: Annotated[str, typer.Argument(help="id of the dataset card")],
    path: Annotated[Path, typer.Argument(help="source folder, read only")],
    workers: Annotated[int, typer.Option(min=1, help="processes")] = 2,
    strict: Annotated[bool, typer.Option("--strict", help="end with 1 if any input is in quarantine")] = False,
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read, de-identify, quarantine and version one dataset; what is left out is counted, and listed in its quarantine.json."""
    if not path.is_dir():
        raise BadInput("no such folder", where=str(path), remedy="name the folder that holds the dataset's files")
    settings = _settings(profile, overrides).ingestion.model_copy(update={"workers": workers})
    from components.settings import DatasetSettings
    from flows.cli.output import emit, table
    from flows.ingest import ingest_datasets

    (report,), version = ingest_datasets((DatasetSettings(card=dataset, path=path.resolve()),), settings)
    if as_json:
        emit({"dataset": report, "data_digest": version.digest})
    else:
        print(
            f"{dataset}: {report.series} series of {report.patients} patients; {report.files_new} files new, "
            f"{report.files_reused} reused, {report.files_removed} removed, {report.files_ignored} ignored; "
            f"{len(report.quarantined)} inputs in quarantine; data version {version.digest}"
        )
        if report.quarantined:
            alike = Counter((item.kind, item.reason, item.remedy) for item in report.quarantined)
            first = {(item.kind, item.reason, item.remedy): item.path for item in reversed(report.quarantined)}
            rows = [
                [str(count), kind, reason, remedy, first[kind, reason, remedy]] for (kind, reason, remedy), count in alike.items()
            ]
            table("Quarantine", ["inputs", "kind", "reason", "remedy", "first of them"], sorted(rows, key=lambda row: -int(row[0])))
    if strict and report.quarantined:
        raise GateRefused(
            f"{len(report.quarantined)} inputs in quarantine", where=dataset, remedy=f"reasons: {report.root / 'quarantine.json'}"
        )


@app.command(epilog="Example: omnimri curate --profile demo --json")
def curate(
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
    preview: Annotated[int, typer.Option(min=0, help="also write an HTML page with so many samples of each kind")] = 0,
    task_runner: Annotated[TaskRunnerName, typer.Option(help="where volumes are made")] = TaskRunnerName.processes,
    scheduler: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Dask scheduler; none = a cluster made here")] = None,
    as_json: JsonOption = False,
) -> None:
    """Bring the curated corpus up to date with data/ and validate it."""
    settings = _settings(profile, overrides)
    from flows.cli.output import emit, relative
    from flows.curate import curate_corpus, preview_corpus

    report, validation = curate_corpus(settings, task_runner.value, scheduler)
    page = preview_corpus(preview) if preview else None
    if as_json:
        emit(report)
        return
    print(
        f"{report.volumes_total} volumes: {report.volumes_new} new, {report.volumes_reused} reused, "
        f"{report.volumes_removed} removed; {report.instructions} instructions; {report.seconds:.1f} s"
    )
    print(f"Data Docs: {relative(validation.data_docs)}")
    if validation.quarantined:
        print("left out: " + ", ".join(f"{count} {table}" for table, count in validation.quarantined.items()))
    if page:
        print(f"preview: {relative(page)}")


@app.command(epilog="Example: omnimri validate")
def validate(
    accept_drift: Annotated[
        str | None, typer.Option(help="why the data may differ from the last accepted version; recorded")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Hold every curated table against its rules."""
    from components.validation import validate as validate_tables
    from flows.cli.output import emit, relative

    home = Home.open()
    report = validate_tables(home.curated, home.validation, accept_drift)
    if as_json:
        emit(report)
    else:
        print(f"Data Docs: {relative(report.data_docs)}")
    report.require()


@app.command(epilog="Example: omnimri train --stage 2")
def train(
    stage: Annotated[str, typer.Option(help="1, 2, 3, 4 or all: train up to this stage")] = "all",
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
    launcher: LauncherOption = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="machines of the cluster")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of each machine, one process each")] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the stages; an interrupted stage goes on from its last checkpoint, a finished one is reused."""
    if stage not in ("1", "2", "3", "4", "all"):
        raise BadInput("no such stage", where=f"--stage {stage}", remedy="1, 2, 3, 4 or all")
    until = STAGES[-1 if stage == "all" else int(stage) - 1]
    settings = _settings(profile, [*(overrides or []), *placement(launcher, nodes, gpus)])
    if dry_run:
        remarks, objects = cluster_objects(settings, until)
        if as_json:
            from flows.cli.output import emit

            emit({"objects": objects})
        else:
            print_objects(remarks, objects)
        return
    from flows.cli.output import emit, table
    from flows.train import train_stages

    results = train_stages(settings, until=until)
    if as_json:
        emit(results)
        return
    cells = [
        [
            r.stage,
            str(r.steps),
            f"{r.first_loss:.3f} -> {r.last_loss:.3f}",
            "reused" if r.reused else f"{r.seconds:.0f} s",
            str(r.model_dir),
        ]
        for r in results
    ]
    table("Stages", ["stage", "steps", "loss", "time", "model"], cells)


@app.command(epilog="Example: omnimri evaluate models:/omnimri@staging")
def evaluate(
    model: Annotated[str, typer.Argument(help="an MLflow model URI, or a folder saved with save_pretrained")],
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on the five tasks, baselines beside it, and write the report page."""
    settings = _settings(profile, overrides)
    from components.inference import resolve_model
    from flows.cli.output import emit, relative
    from flows.evaluate import evaluate_model

    report = evaluate_model(resolve_model(model, Home.open().tracking_uri), settings.evaluation, settings.seed)
    if as_json:
        emit(report)
        return
    _print_results(list(report.rows))
    print(f"Report: {relative(report.report)}")


class SamplerName(StrEnum):
    """How the image decoder's flow is followed."""

    euler = "euler"
    heun = "heun"


@app.command(epilog='Example: omnimri predict t1.nii.gz "Segment the white matter in this brain MRI." -o out')
def predict(
    images: Annotated[
        list[Path], typer.Argument(help="NIfTI files, DICOM folders or fastMRI .h5 files; the last argument is the instruction")
    ],
    instruction: Annotated[str, typer.Argument(help="what to do, in words")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for images and masks")] = Path("prediction"),
    model: Annotated[
        str, typer.Option(help="an MLflow model URI, or a folder saved with save_pretrained")
    ] = "models:/omnimri@staging",
    samples: Annotated[int, typer.Option(min=1, help="draws that are averaged; from 2 on, uncertainty.nii is their deviation")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="steps of a draw; 1 is the conditional mean")] = 1,
    sampler: Annotated[SamplerName, typer.Option(help="how a draw is made")] = SamplerName.euler,
    seed: Annotated[int, typer.Option(help="seed of the image sampler")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Answer an instruction about images: text on standard output, images and masks as NIfTI in the input's geometry.

    Of a DICOM series, masks are also written as DICOM Segmentation, words and boxes as DICOM Structured Report.
    """
    for image in images:
        if not image.exists():
            raise BadInput("no such file or folder", where=str(image), remedy="name a .nii.gz, a DICOM folder or an .h5")
    from components.inference import Predictor, Sampling, resolve_model, save, save_dicom
    from flows.cli.output import emit, relative

    predictor = Predictor.load(resolve_model(model, Home.open().tracking_uri))
    sampling = Sampling(steps, sampler.value, samples, seed)
    streamed: list[str] = []

    def say(piece: str) -> None:
        streamed.append(piece)
        print(piece, end="", flush=True)

    if len(images) == 1:
        watched = sys.stdout.isatty() and not as_json
        predictions, folders = [predictor.predict(images[0], instruction, sampling, say if watched else None)], [out]
    else:
        predictions = predictor.predict_many([(image, instruction) for image in images], sampling)
        folders = [out / f"{number:03d}" for number in range(1, len(images) + 1)]
    written = [
        [*save(prediction, folder), *save_dicom(prediction, instruction, image, folder)]
        for prediction, image, folder in zip(predictions, images, folders, strict=True)
    ]
    if as_json:
        answers = [
            {"task": prediction.task, "text": prediction.text, "boxes": prediction.boxes, "files": files}
            for prediction, files in zip(predictions, written, strict=True)
        ]
        emit(answers[0] if len(answers) == 1 else {"answers": answers})
        return
    for prediction, files in zip(predictions, written, strict=True):
        print("" if streamed else prediction.text)
        for path in files:
            print(f"wrote {relative(path)}", file=sys.stderr)


@app.command(epilog="Example: omnimri doctor")
def doctor(as_json: JsonOption = False) -> None:
    """Say what is installed, which stores answer, and what to do about what is missing."""
    from components.doctor import examine
    from flows.cli.output import emit, table

    findings = examine(Home.open())
    if as_json:
        emit({"findings": findings})
    else:
        table("OmniMRI", ["what", "state", "found", "remedy"], [[f.name, f.state, f.detail, f.remedy] for f in findings])
    raise typer.Exit(int(any(finding.state == "fault" for finding in findings)))


@models.command("list", epilog="Example: omnimri models list")
def models_list(as_json: JsonOption = False, name: Annotated[str, typer.Option(help="registered model")] = "omnimri") -> None:
    """List the registered versions and their aliases."""
    from components.registry import list_versions
    from flows.cli.output import emit, table

    versions = list_versions(Home.open().tracking_uri, name)
    if as_json:
        emit({"versions": versions})
        return
    table(
        name, ["version", "aliases", "data"], [[v.version, ", ".join(v.aliases), v.tags.get("data_digest", "")] for v in versions]
    )


@models.command("show", epilog="Example: omnimri models show 1")
def models_show(
    version: Annotated[str, typer.Argument(help="version number or alias")],
    name: Annotated[str, typer.Option(help="registered model")] = "omnimri",
    as_json: JsonOption = False,
) -> None:
    """Show where a version comes from and how it scored."""
    from components.registry import show_version
    from flows.cli.output import emit, table

    shown = show_version(version, Home.open().tracking_uri, name)
    if as_json:
        emit(shown)
        return
    table(f"{name} version {shown.version}", ["tag", "value"], [[key, value] for key, value in sorted(shown.tags.items())])


@models.command("promote", epilog="Example: omnimri models promote 1 --to production")
def models_promote(
    version: Annotated[str, typer.Argument(help="version number or alias")],
    to: Annotated[PromotionTarget, typer.Option(help="where to")],
    reason: Annotated[str, typer.Option(help="why, for the history; no names of patients")] = "",
    force: Annotated[bool, typer.Option("--force", help="promote past a shut gate; needs --reason")] = False,
    profile: ProfileOption = "demo",
    as_json: JsonOption = False,
) -> None:
    """Promote a version if the gate lets it through."""
    settings = _settings(profile, None)
    from flows.cli.output import emit
    from flows.promote import promote_model

    promoted = promote_model(version, to.value, settings.registry, reason, force)
    if as_json:
        emit(promoted)
    else:
        print(f"{promoted.name} version {promoted.version} is now {to.value}")


def main() -> None:
    """Entry point: settle the environment, run, and turn a refusal into its message and exit code."""
    settle(Home.open())
    try:
        app()
    except OmniMRIError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
