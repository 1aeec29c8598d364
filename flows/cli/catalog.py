"""``omnimri catalog``: list, show, check and sum up the dataset cards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.errors import BadInput
from flows.cli.options import JsonOption

if TYPE_CHECKING:
    from components.catalog.summary import Share, Summary

app = typer.Typer(no_args_is_help=True, help="List, show, check and sum up the dataset cards.")


@app.command("list", epilog="Example: omnimri catalog list --anatomy knee --task reconstruction")
def list_(
    anatomy: Annotated[str | None, typer.Option(help="brain, knee, prostate, ...")] = None,
    task: Annotated[str | None, typer.Option(help="reconstruction, segmentation, detection, diagnosis or report")] = None,
    access: Annotated[str | None, typer.Option(help="open, registration, agreement or restricted")] = None,
    file_format: Annotated[str | None, typer.Option("--format", help="DICOM, NIfTI, MetaImage, ...")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the dataset cards."""
    from components.catalog import list_cards
    from components.catalog.card_files import filter_cards
    from flows.cli.output import emit, table

    cards = filter_cards(list_cards(), anatomy=anatomy, task=task, access=access, file_format=file_format)
    if as_json:
        emit({"cards": cards})
        return
    rows = [
        [card.id, card.anatomy or "", ", ".join(card.tasks), ", ".join(card.formats), card.access or "", _number(card.patients)]
        for card in cards
    ]
    table(f"{len(cards)} dataset cards", ["id", "anatomy", "supervises", "formats", "access", "patients"], rows)


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


@app.command(epilog="Example: omnimri catalog show pi-cai")
def show(dataset: Annotated[str, typer.Argument(help="id of the card")], as_json: JsonOption = False) -> None:
    """Show one dataset card, with the sources of its figures."""
    from components.catalog import load_card
    from flows.cli.output import emit, table, to_json

    card = load_card(dataset)
    if as_json:
        emit(card)
        return
    fields = to_json(card.model_dump(exclude_defaults=True, exclude={"sources", "layout"}))
    layout = to_json(card.layout.model_dump(exclude_defaults=True))
    rows = [*fields.items(), *((f"layout: {name}", value) for name, value in layout.items())]
    table(card.name, ["field", "value"], [[name, _to_text(value)] for name, value in rows])
    fields_by_source: dict[tuple[str, bool], list[str]] = {}
    for name, source in card.sources.items():
        fields_by_source.setdefault((source.where, source.checked), []).append(name)
    if fields_by_source:
        cells = [[", ".join(names), "yes" if checked else "no", where] for (where, checked), names in fields_by_source.items()]
        table("Sources", ["fields", "checked", "source"], cells)


def _to_text(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_to_text(item)}" for key, item in value.items())
    return ", ".join(map(_to_text, value)) if isinstance(value, list) else str(value)


@app.command(epilog="Example: omnimri catalog check my-dataset --folder /data/my-dataset")
def check(
    card: Annotated[str | None, typer.Argument(help="id of a card, or path of its file; without it, all cards")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="folder of the dataset: count the files that each glob of the layout matches")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check the fields, sources and overlaps of cards and, with a folder, the layout. Exit with status 2 if there is a fault."""
    if folder is not None and card is None:
        raise BadInput("a folder can be checked against one card only", where="--folder", remedy="name the card too")
    from components.catalog.check import check_cards
    from flows.cli.output import emit, table

    checked = check_cards(card, folder)
    if as_json:
        emit(checked)
    else:
        if checked.globs:
            table("Layout", ["field", "glob", "files"], [[glob.field, glob.pattern, str(glob.files)] for glob in checked.globs])
            print(f"{checked.unmatched} files that no glob matches")
        elif folder is not None and not checked.faults:
            print("The layout has no globs: every image is read; DICOM headers say what a file is.")
        if checked.patients is not None:
            print(f"{checked.patients} patients found in the paths")
        for note in checked.notes:
            print(note)
        if checked.faults:
            rows = [[fault.file, fault.field, fault.what, fault.remedy] for fault in checked.faults]
            table("Faults", ["file", "field", "fault", "remedy"], rows)
        print(f"{checked.cards} cards, {len(checked.faults)} faults")
    raise typer.Exit(2 if checked.faults else 0)


@app.command(epilog="Example: omnimri catalog summary --without uk-biobank --without mr-rate")
def summary(
    without: Annotated[list[str] | None, typer.Option(metavar="CARD", help="exclude a card; repeatable")] = None,
    as_json: JsonOption = False,
) -> None:
    """Sum up the figures of the cards, beside those of the OmniMRI paper."""
    from components.catalog import list_cards
    from components.catalog.summary import summarize_cards
    from flows.cli.output import emit

    totals = summarize_cards(list_cards(), without or ())
    if as_json:
        emit(totals)
    else:
        _print_summary(totals)


def _print_summary(summed: Summary) -> None:
    from flows.cli.output import table

    rows = [
        [
            name,
            f"{total.at_least:,}",
            f"{total.at_most:,}",
            f"{total.paper:,}",
            str(total.stated),
            str(total.null),
            str(total.checked),
        ]
        for name, total in summed.totals.items()
    ]
    table(
        f"{summed.cards} datasets (the paper: {summed.paper_cards})",
        ["", "at least", "at most", "paper", "stated by", "null", "checked"],
        rows,
    )
    for title, shares in (
        ("Regions", summed.regions),
        ("Anatomies", summed.anatomies),
        ("Supervision", summed.tasks),
        ("Access", summed.access),
    ):
        table(title, ["", "cards", "% of cards", "patients, at most", "% of patients", "paper, %"], _share_rows(shares))
    print(f"{summed.figures_checked} of {summed.figures} figures were checked at their source when the card was written.")
    print(summed.meaning)


def _share_rows(shares: dict[str, Share]) -> list[list[str]]:
    return [
        [
            name,
            str(share.cards),
            f"{share.card_percent:.1f}",
            f"{share.patients:,}",
            f"{share.percent:.1f}",
            "" if share.paper is None else f"{share.paper:.1f}",
        ]
        for name, share in shares.items()
    ]
