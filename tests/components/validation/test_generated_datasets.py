"""Every dataset that OmniMRI generates passes the rules that a user's data has to pass."""

from __future__ import annotations

from pathlib import Path

from components.catalog.card_files import packaged_cards
from components.curation import curate
from components.curation.corpus import Corpus
from components.ingestion import ingest
from components.samples import build_sample
from components.settings import CurationSettings
from components.validation import validate
from tests.helpers.datasets import KEY

SETTINGS = CurationSettings(matrix=64, pixel_mm=3.5, slices_per_volume=2, workers=1)


def test_patients_of_every_generated_dataset_pass_validation_as_the_body_part_of_their_card(tmp_path: Path) -> None:
    generated = {card.id: card for card in packaged_cards() if card.generated is not None}
    for name, card in generated.items():
        assert ingest(card, build_sample(card, tmp_path / "sources" / name, 2), tmp_path / "data", KEY).patients == 2
    curate(tmp_path / "data", list(generated.values()), tmp_path / "curated", SETTINGS)
    assert validate(tmp_path / "curated", tmp_path / "gx").passed
    volumes = Corpus.open(tmp_path / "curated").volumes.values()
    assert {volume.dataset_id for volume in volumes} == set(generated)
    assert all(volume.anatomy == generated[volume.dataset_id].anatomy for volume in volumes)
