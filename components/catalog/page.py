"""The parts of ``docs/catalog.md`` that follow from the cards: ``python -m components.catalog.page docs/catalog.md`` renews."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from components.catalog.cards import COUNTS, READ, DatasetCard, packaged_cards
from components.catalog.summary import Summary, summarise

GIANTS = ("uk-biobank", "mr-rate")
"""Two datasets that outweigh all others together: one out of reach, one published after the paper."""
_PART = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def renewed(page: str) -> str:
    """The page with its generated parts (between ``<!-- name -->`` and ``<!-- end -->``) as the cards are now."""
    cards = packaged_cards()
    parts = {"summary": _summary(cards), "shares": _shares(cards), "cards": _cards(cards)}
    return _PART.sub(lambda match: f"{match[1]}\n{parts[match[2]]}\n{match[3]}", page)


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _summary(cards: list[DatasetCard]) -> str:
    whole, usual = summarise(cards), summarise(cards, without=GIANTS)
    rows = [
        [name, f"{one.paper:,}", _range(usual, name), _range(whole, name), str(one.stated), str(one.null), str(one.checked)]
        for name, one in whole.totals.items()
    ]
    head = ["", "paper", f"cards, without {' and '.join(GIANTS)}", "all cards", "stated by", "null in", "read at the source"]
    said = (
        f"{whole.cards} datasets; the paper has {whole.paper_cards}. {whole.figures_checked} of {whole.figures} figures were read."
    )
    return f"{said}\n\n{_table(head, rows)}"


def _range(summary: Summary, name: str) -> str:
    one = summary.totals[name]
    return f"{one.at_most:,}" if one.at_least == one.at_most else f"{one.at_least:,} to {one.at_most:,}"


def _shares(cards: list[DatasetCard]) -> str:
    usual = summarise(cards, without=GIANTS)
    rows = []
    for group, shares in (("region", usual.regions), ("anatomy", usual.anatomies), ("supervision", usual.tasks)):
        for name, one in shares.items():
            paper = "" if one.paper is None else f"{one.paper:.1f}"
            rows.append([group, name, paper, f"{one.percent:.1f}", f"{one.card_percent:.1f}", f"{one.patients:,}", str(one.cards)])
    return _table(["", "", "paper, %", "% of patients", "% of cards", "patients, at most", "cards"], rows)


def _cards(cards: list[DatasetCard]) -> str:
    rows = [
        [
            f"[{card.id}]({card.landing_page})" if card.landing_page else card.id,
            card.anatomy or "",
            ", ".join(card.tasks),
            _formats(card),
            card.access or "",
            card.licence or "",
            *(_figure(card, name) for name in COUNTS),
            ", ".join(card.overlaps),
        ]
        for card in cards
        if card.counts
    ]
    return _table(["card", "anatomy", "supervises", "formats", "access", "licence", *COUNTS, "overlaps"], rows)


def _formats(card: DatasetCard) -> str:
    return ", ".join(one if one in READ else f"({one})" for one in card.formats)


def _figure(card: DatasetCard, name: str) -> str:
    value = getattr(card, name)
    return "" if value is None else f"{value:,}" + ("" if card.sources[name].checked else "\\*")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text()))
