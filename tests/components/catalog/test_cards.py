"""Dataset cards say what they must, and wrong ones are refused."""

from pathlib import Path

import pytest

from components.catalog import cards, list_cards, load_card
from components.errors import BadInput
from components.samples import SAMPLES


def test_every_sample_has_a_card_with_its_rights() -> None:
    found = {card.id: card for card in list_cards()}
    assert set(SAMPLES) <= set(found)
    assert all(card.rights and (card.synthetic or card.public_sample) for card in found.values() if card.id in SAMPLES)


def test_what_is_generated_says_so() -> None:
    assert all(load_card(sample).synthetic == sample.startswith("synthetic") for sample in SAMPLES)


def test_an_unknown_card_is_refused_with_the_remedy() -> None:
    with pytest.raises(BadInput, match="catalog list"):
        load_card("no-such-dataset")


@pytest.mark.parametrize(
    ("line", "field"),
    [("lisence: MIT", "lisence"), ("layout: {patient: 'sub-[0-9]+'}", "exactly one group"), ("formats: [PNG]", "formats")],
)
def test_a_wrong_field_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, field: str) -> None:
    base = ["id: wrong", "name: W", "rights: none", "synthetic: false", "formats: [NIfTI]"]
    (tmp_path / "wrong.yaml").write_text("\n".join([one for one in base if one.split(":")[0] != line.split(":")[0]] + [line]))
    monkeypatch.setattr(cards, "FOLDER", tmp_path)
    with pytest.raises(BadInput, match=field):
        load_card("wrong")
