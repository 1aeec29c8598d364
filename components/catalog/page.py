"""Generate the sections of ``docs/catalog.md`` that derive from the cards.

``python -m components.catalog.page docs/catalog.md`` updates the page in place.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from components.catalog.card_files import packaged_cards
from components.catalog.cards import COUNTS, OTHER_FORMATS, DatasetCard
from components.catalog.summary import Summary, summarize_cards

LARGEST_DATASETS = ("uk-biobank", "mr-rate")
"""Two datasets that are larger than all others together: one with restricted access, one published after the paper."""
_GENERATED_SECTION = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render_page(page: str) -> str:
    """Return the page with its generated sections (``<!-- name -->`` to ``<!-- end -->``) updated from the cards."""
    cards = packaged_cards()
    sections = {"summary": _summary_section(cards), "shares": _shares_table(cards), "cards": _cards_table(cards)}
    return _GENERATED_SECTION.sub(lambda match: f"{match[1]}\n{sections[match[2]]}\n{match[3]}", page)


def _markdown_table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _summary_section(cards: list[DatasetCard]) -> str:
    whole, usual = summarize_cards(cards), summarize_cards(cards, without=LARGEST_DATASETS)
    rows = [
        [
            name,
            f"{total.paper:,}",
            _format_bounds(usual, name),
            _format_bounds(whole, name),
            str(total.stated),
            str(total.null),
            str(total.checked),
        ]
        for name, total in whole.totals.items()
    ]
    head = [
        "",
        "paper",
        f"cards, without {' and '.join(LARGEST_DATASETS)}",
        "all cards",
        "stated by",
        "null in",
        "verified at source",
    ]
    sentence = (
        f"{whole.cards} datasets; the paper has {whole.paper_cards}. {whole.figures_checked} of {whole.figures} statistics were "
        "verified at their source."
    )
    return f"{sentence}\n\n{_markdown_table(head, rows)}"


def _format_bounds(summary: Summary, name: str) -> str:
    total = summary.totals[name]
    return f"{total.at_most:,}" if total.at_least == total.at_most else f"{total.at_least:,} to {total.at_most:,}"


def _shares_table(cards: list[DatasetCard]) -> str:
    usual = summarize_cards(cards, without=LARGEST_DATASETS)
    rows = []
    for group, shares in (("region", usual.regions), ("anatomy", usual.anatomies), ("supervision", usual.tasks)):
        for name, share in shares.items():
            paper = "" if share.paper is None else f"{share.paper:.1f}"
            rows.append(
                [group, name, paper, f"{share.percent:.1f}", f"{share.card_percent:.1f}", f"{share.patients:,}", str(share.cards)]
            )
    return _markdown_table(["", "", "paper, %", "% of patients", "% of cards", "patients, at most", "cards"], rows)


def _cards_table(cards: list[DatasetCard]) -> str:
    rows = [
        [
            f"[{card.id}]({card.landing_page})" if card.landing_page else card.id,
            card.anatomy or "",
            ", ".join(card.tasks),
            _format_formats(card),
            card.access or "",
            card.licence or "",
            *(_format_count(card, name) for name in COUNTS),
            ", ".join(card.overlaps),
        ]
        for card in cards
        if card.has_real_patients
    ]
    return _markdown_table(["card", "anatomy", "supervises", "formats", "access", "license", *COUNTS, "overlaps"], rows)


def _format_formats(card: DatasetCard) -> str:
    return ", ".join(f"({name})" if name in OTHER_FORMATS else name for name in card.formats)


def _format_count(card: DatasetCard, name: str) -> str:
    value = getattr(card, name)
    return "" if value is None else f"{value:,}" + ("" if card.sources[name].checked else "\\*")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(render_page(path.read_text()))
