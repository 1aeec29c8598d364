"""The ``omnimri`` command.

Every command takes ``--json`` (one JSON object on standard output; logs stay on standard error) and ends with 0 on success, 1 on a
failed job or gate, 2 on bad usage or bad input. Libraries are imported inside commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.errors import BadInput, GateRefused, OmniMRIError
from components.home import Home
from components.settings import STAGES, Settings, load_settings
from flows.commands.schema import schema
from flows.environment import settle

if TYPE_CHECKING:
    from flows.pipeline import PipelineReport

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, help="One model for the MRI workflow."
)
models = typer.Typer(no_args_is_help=True, help="The registered models and their promotion.")
catalog = typer.Typer(no_args_is_help=True, help="The dataset cards.")
app.add_typer(models, name="models")
app.add_typer(catalog, name="catalog")
app.add_typer(schema, name="schema")

ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="a profile of profiles/, or a YAML path")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override one setting; repeatable")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]


class PromotionTarget(StrEnum):
    """Where a version can be promoted to."""

    staging = "staging"
    production = "production"


def _settings(profile: str, overrides: list[str] | None) -> Settings:
    return load_settings(profile, overrides)


@app.command(epilog="Example: omnimri run --profile demo --set training.instruction_tuning.steps=400")
def run(profile: ProfileOption = "demo", overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Run the whole chain; re-running does only what changed."""
    settings = _settings(profile, overrides)
    from flows.output import emit
    from flows.pipeline import pipeline

    report = pipeline(settings)
    if as_json:
        emit(report)
    else:
        _print_pipeline(report)
    if report.refused:
        name, number = report.model.name, report.model.version
        remedy = f"look at the report; omnimri models promote {number} --to staging --reason TEXT takes it all the same"
        raise GateRefused(report.refused, where=f"{name} version {number} stays candidate", remedy=remedy)


def _print_pipeline(report: PipelineReport) -> None:
    from flows.output import relative, table

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
    from flows.output import HIGHER, LOWER, table

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
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read, de-identify, quarantine and version one dataset."""
    if not path.is_dir():
        raise BadInput("no such folder", where=str(path), remedy="name the folder that holds the dataset's files")
    settings = _settings(profile, overrides).ingestion.model_copy(update={"workers": workers})
    from components.settings import DatasetSettings
    from flows.ingest import ingest_datasets
    from flows.output import emit, table

    (report,), version = ingest_datasets((DatasetSettings(card=dataset, path=path.resolve()),), settings)
    if as_json:
        emit({"dataset": report, "data_digest": version.digest})
        return
    print(
        f"{dataset}: {report.series} series of {report.patients} patients; {report.files_new} files new, "
        f"{report.files_reused} reused, {report.files_removed} removed; data version {version.digest}"
    )
    if report.quarantined:
        table("Quarantine", ["file", "reason", "remedy"], [[item.path, item.reason, item.remedy] for item in report.quarantined])


@app.command(epilog="Example: omnimri curate --profile demo --json")
def curate(
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
    preview: Annotated[int, typer.Option(min=0, help="also write an HTML page with so many samples of each kind")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Bring the curated corpus up to date with data/ and validate it."""
    settings = _settings(profile, overrides)
    from flows.curate import curate_corpus, preview_corpus
    from flows.output import emit, relative

    report, validation = curate_corpus(settings)
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
    from flows.output import emit, relative

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
    as_json: JsonOption = False,
) -> None:
    """Train the stages; an interrupted stage goes on from its last checkpoint, a finished one is reused."""
    if stage not in ("1", "2", "3", "4", "all"):
        raise BadInput("no such stage", where=f"--stage {stage}", remedy="1, 2, 3, 4 or all")
    settings = _settings(profile, overrides)
    from flows.output import emit, table
    from flows.train import train_stages

    results = train_stages(settings, until=STAGES[-1 if stage == "all" else int(stage) - 1])
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
    from flows.evaluate import evaluate_model
    from flows.output import emit, relative

    report = evaluate_model(resolve_model(model, Home.open().tracking_uri), settings.evaluation, settings.seed)
    if as_json:
        emit(report)
        return
    _print_results(list(report.rows))
    print(f"Report: {relative(report.report)}")


@app.command(epilog='Example: omnimri predict t1.nii.gz "Segment the white matter in this brain MRI." -o out')
def predict(
    images: Annotated[
        list[Path], typer.Argument(help="a NIfTI file, a DICOM folder or a fastMRI .h5; the last argument is the instruction")
    ],
    instruction: Annotated[str, typer.Argument(help="what to do, in words")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for images and masks")] = Path("prediction"),
    model: Annotated[
        str, typer.Option(help="an MLflow model URI, or a folder saved with save_pretrained")
    ] = "models:/omnimri@staging",
    seed: Annotated[int, typer.Option(help="seed of the image sampler")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Answer an instruction about an image: text on standard output, images and masks as NIfTI in the input's geometry."""
    for image in images:
        if not image.exists():
            raise BadInput("no such file or folder", where=str(image), remedy="name a .nii.gz, a DICOM folder or an .h5")
    from components.inference import Predictor, resolve_model, save
    from flows.output import emit, relative

    prediction = Predictor.load(resolve_model(model, Home.open().tracking_uri)).predict(images, instruction, seed=seed)
    written = save(prediction, out)
    if as_json:
        emit({"task": prediction.task, "text": prediction.text, "boxes": prediction.boxes, "files": written})
        return
    print(prediction.text)
    for path in written:
        print(f"wrote {relative(path)}", file=sys.stderr)


@app.command(epilog="Example: omnimri doctor")
def doctor(as_json: JsonOption = False) -> None:
    """Say what is installed, which stores answer, and what to do about what is missing."""
    from components.doctor import examine
    from flows.output import emit, table

    findings = examine(Home.open())
    if as_json:
        emit({"findings": findings})
    else:
        table("OmniMRI", ["what", "state", "found", "remedy"], [[f.name, f.state, f.detail, f.remedy] for f in findings])
    raise typer.Exit(int(any(finding.state == "fault" for finding in findings)))


@catalog.command("list", epilog="Example: omnimri catalog list")
def catalog_list(as_json: JsonOption = False) -> None:
    """List the dataset cards."""
    from components.catalog import list_cards
    from flows.output import emit, table

    cards = list_cards()
    if as_json:
        emit({"cards": cards})
        return
    table("Dataset cards", ["id", "name", "anatomy", "licence"], [[c.id, c.name, str(c.anatomy), str(c.licence)] for c in cards])


@catalog.command("show", epilog="Example: omnimri catalog show icbm152-2009")
def catalog_show(dataset: Annotated[str, typer.Argument(help="id of the card")], as_json: JsonOption = False) -> None:
    """Show one dataset card."""
    from components.catalog import load_card
    from flows.output import emit, plain, table

    card = load_card(dataset)
    if as_json:
        emit(card)
        return
    table(card.name, ["field", "value"], [[name, str(value)] for name, value in plain(card).items()])


@models.command("list", epilog="Example: omnimri models list")
def models_list(as_json: JsonOption = False, name: Annotated[str, typer.Option(help="registered model")] = "omnimri") -> None:
    """List the registered versions and their aliases."""
    from components.registry import list_versions
    from flows.output import emit, table

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
    from flows.output import emit, table

    shown = show_version(version, Home.open().tracking_uri, name)
    if as_json:
        emit(shown)
        return
    table(f"{name} version {shown.version}", ["tag", "value"], [[key, value] for key, value in sorted(shown.tags.items())])


@models.command("promote", epilog="Example: omnimri models promote 1 --to production")
def models_promote(
    version: Annotated[str, typer.Argument(help="version number or alias")],
    to: Annotated[PromotionTarget, typer.Option(help="where to")],
    reason: Annotated[str | None, typer.Option(help="why, to force a promotion that the gate refuses; recorded")] = None,
    profile: ProfileOption = "demo",
    as_json: JsonOption = False,
) -> None:
    """Promote a version if the gate lets it through."""
    settings = _settings(profile, None)
    from flows.output import emit
    from flows.promote import promote_model

    promoted = promote_model(version, to.value, settings.registry, reason)
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
