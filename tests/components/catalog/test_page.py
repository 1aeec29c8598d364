"""docs/catalog.md is what the cards are, names every field, and its example is a card."""

import re
from pathlib import Path

from components.catalog.cards import DatasetCard, Layout, packaged_cards, parse_card
from components.catalog.page import renewed

PAGE = Path(__file__).resolve().parents[3] / "docs" / "catalog.md"


def test_the_generated_parts_are_up_to_date() -> None:
    assert PAGE.read_text() == renewed(PAGE.read_text()), "python -m components.catalog.page docs/catalog.md renews them"


def test_the_table_has_a_line_for_every_dataset() -> None:
    lines = PAGE.read_text().split("<!-- cards -->")[1].splitlines()
    assert sum(line.startswith("| [") for line in lines) == sum(card.counts for card in packaged_cards())


def test_every_field_is_explained() -> None:
    explained = set(re.findall(r"`(\w+)`", PAGE.read_text()))
    assert {*DatasetCard.model_fields, *Layout.model_fields} - explained == set()


def test_the_example_is_a_card(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "clinic-glioma.yaml").write_text(example)
    assert isinstance(parse_card(tmp_path / "clinic-glioma.yaml"), DatasetCard)
