"""docs/catalog.md: generated sections agree with the cards, every field is documented, the example is a valid card."""

import re
from pathlib import Path

from components.catalog.card_files import packaged_cards, parse_card
from components.catalog.cards import DatasetCard
from components.catalog.layout import Layout
from components.catalog.page import render_page

PAGE = Path(__file__).resolve().parents[3] / "docs" / "catalog.md"


def test_generated_sections_are_up_to_date() -> None:
    assert PAGE.read_text() == render_page(PAGE.read_text()), "python -m components.catalog.page docs/catalog.md updates them"


def test_the_table_has_one_row_per_dataset() -> None:
    lines = PAGE.read_text().split("<!-- cards -->")[1].splitlines()
    assert sum(line.startswith("| [") for line in lines) == sum(card.has_real_patients for card in packaged_cards())


def test_every_field_is_documented() -> None:
    documented = set(re.findall(r"`(\w+)`", PAGE.read_text()))
    assert {*DatasetCard.model_fields, *Layout.model_fields} - documented == set()


def test_the_example_is_a_valid_card(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "clinic-glioma.yaml").write_text(example)
    assert isinstance(parse_card(tmp_path / "clinic-glioma.yaml"), DatasetCard)
