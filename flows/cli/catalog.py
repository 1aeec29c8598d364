"""``omnimri catalog``: the dataset cards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.errors import BadInput

if TYPE_CHECKING:
    from components.catalog.summary import Share, Summary

app = typer.Typer(no_args_is_help=True, help="The dataset cards.")

JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]


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
    from components.catalog.cards import filter_cards
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
    """Show one dataset card, with where its figures are stated."""
    from components.catalog import load_card
    from flows.cli.output import emit, plain, table

    card = load_card(dataset)
    if as_json:
        emit(card)
        return
    said = plain(card.model_dump(exclude_defaults=True, exclude={"sources", "layout"}))
    layout = plain(card.layout.model_dump(exclude_defaults=True))
    rows = [*said.items(), *((f"layout: {name}", value) for name, value in layout.items())]
    table(card.name, ["field", "value"], [[name, _text(value)] for name, value in rows])
    alike: dict[tuple[str, bool], list[str]] = {}
    for name, source in card.sources.items():
        alike.setdefault((source.where, source.checked), []).append(name)
    if alike:
        sources = [[", ".join(names), "yes" if read else "no", where] for (where, read), names in alike.items()]
        table("Sources", ["of", "read again", "where it is stated"], sources)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_text(one)}" for key, one in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


@app.command(epilog="Example: omnimri catalog check my-dataset --folder /data/my-dataset")
def check(
    card: Annotated[str | None, typer.Argument(help="id of a card, or path of its file; none = all cards")] = None,
    folder: Annotated[Path | None, typer.Option(help="the dataset's folder: what does each glob of the layout find?")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check cards: fields, sources, overlaps and, with a folder, the layout. Ends with 2 where there is a fault."""
    if folder is not None and card is None:
        raise BadInput("a folder belongs to one card", where="--folder", remedy="name the card too")
    from components.catalog.check import check_cards
    from flows.cli.output import emit, table

    checked = check_cards(card, folder)
    if as_json:
        emit(checked)
    else:
        if checked.globs:
            table("Layout", ["field", "glob", "files"], [[one.field, one.pattern, str(one.files)] for one in checked.globs])
            print(f"{checked.unmatched} files that no glob finds")
        elif folder is not None and not checked.faults:
            print("The layout has no globs: every image counts, and of DICOM the headers tell.")
        if checked.patients is not None:
            print(f"{checked.patients} patients named by the paths")
        if checked.faults:
            table("Faults", ["file", "field", "what", "remedy"], [[f.file, f.field, f.what, f.remedy] for f in checked.faults])
        print(f"{checked.cards} cards, {len(checked.faults)} faults")
    raise typer.Exit(2 if checked.faults else 0)


@app.command(epilog="Example: omnimri catalog summary --without uk-biobank --without mr-rate")
def summary(
    without: Annotated[list[str] | None, typer.Option(metavar="CARD", help="leave a card out; repeatable")] = None,
    as_json: JsonOption = False,
) -> None:
    """Add up what the cards state, beside the figures of the OmniMRI paper."""
    from components.catalog import list_cards
    from components.catalog.summary import summarize_cards
    from flows.cli.output import emit

    summed = summarize_cards(list_cards(), without or ())
    if as_json:
        emit(summed)
    else:
        _print(summed)


def _print(summed: Summary) -> None:
    from flows.cli.output import table

    rows = [
        [name, f"{one.at_least:,}", f"{one.at_most:,}", f"{one.paper:,}", str(one.stated), str(one.null), str(one.checked)]
        for name, one in summed.totals.items()
    ]
    table(
        f"{summed.cards} datasets (the paper: {summed.paper_cards})",
        ["", "at least", "at most", "paper", "stated by", "null", "read"],
        rows,
    )
    for title, shares in (
        ("Regions", summed.regions),
        ("Anatomies", summed.anatomies),
        ("Supervision", summed.tasks),
        ("Access", summed.access),
    ):
        table(title, ["", "cards", "% of cards", "patients, at most", "% of patients", "paper, %"], _share_rows(shares))
    print(f"{summed.figures_checked} of {summed.figures} figures were read at their source when the card was written.")
    print(summed.meaning)


def _share_rows(shares: dict[str, Share]) -> list[list[str]]:
    return [
        [
            name,
            str(one.cards),
            f"{one.card_percent:.1f}",
            f"{one.patients:,}",
            f"{one.percent:.1f}",
            "" if one.paper is None else f"{one.paper:.1f}",
        ]
        for name, one in shares.items()
    ]
