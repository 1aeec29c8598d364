"""The key belongs to the data: another installation's key is refused, a lost or damaged one is not replaced in silence."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.errors import BadInput
from components.home import Home
from components.ingestion import ingest
from components.ingestion.deidentification.pseudonyms import DEMO_KEY, KEY_BYTES, KEY_FILE, KEYS, find_key, load_key
from components.settings import IngestionSettings
from tests.helpers.datasets import tiny_card, tree, write_cohort

OWN = IngestionSettings(public_demo_key=False)


@pytest.fixture
def first(tmp_path: Path) -> Home:
    """A home that has ingested a dataset with a key of its own."""
    home = Home(tmp_path / "first", tmp_path / "data")
    ingest(tiny_card(), write_cohort(tmp_path / "source", 4), home.data, load_key(OWN, home))
    return home


def test_a_second_home_does_not_make_a_key_of_its_own(first: Home, tmp_path: Path) -> None:
    second = Home(tmp_path / "second", first.data)
    for call in (load_key, find_key):
        with pytest.raises(BadInput, match=f"copy {KEY_FILE} of that installation's home"):
            call(OWN, second)
    assert not (second.root / KEY_FILE).exists()
    second.root.mkdir()
    shutil.copy(first.root / KEY_FILE, second.root)  # the remedy
    assert load_key(OWN, second) == load_key(OWN, first)


@pytest.mark.parametrize("key", [bytes(KEY_BYTES), DEMO_KEY], ids=["another", "published"])
def test_another_key_is_refused_before_anything_is_written(first: Home, tmp_path: Path, key: bytes) -> None:
    before = tree(first.data)
    with pytest.raises(BadInput, match="another key"):
        ingest(tiny_card(), tmp_path / "source", first.data, key)
    assert tree(first.data) == before


def test_the_fingerprint_is_versioned_with_the_data_and_does_not_contain_the_key(first: Home) -> None:
    recorded = (first.data / KEYS).read_text()
    assert tiny_card().id in recorded and load_key(OWN, first).hex()[:16] not in recorded


def test_the_published_key_leaves_no_fingerprint(tmp_path: Path) -> None:
    ingest(tiny_card(), write_cohort(tmp_path / "source", 4), tmp_path / "data", DEMO_KEY)
    assert not (tmp_path / "data" / KEYS).exists()


def test_data_of_the_published_key_are_not_given_other_names_in_silence(tmp_path: Path) -> None:
    source, data = write_cohort(tmp_path / "source", 4), tmp_path / "data"
    ingest(tiny_card(), source, data, DEMO_KEY)
    before = tree(data)
    for _ in range(2):  # the refusal is not forgotten
        with pytest.raises(BadInput, match="another key"):
            ingest(tiny_card(), source, data, bytes(KEY_BYTES))
    assert {name: content for name, content in tree(data).items() if "/." not in name} == before
    shutil.rmtree(data / tiny_card().id)
    ingest(tiny_card(), source, data, bytes(KEY_BYTES))  # the remedy


def test_a_cut_key_is_refused(first: Home) -> None:
    os.truncate(first.root / KEY_FILE, 0)
    with pytest.raises(BadInput, match="restore it from its backup"):
        load_key(OWN, first)


def test_processes_that_create_the_key_at_once_agree(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", tmp_path / "data")
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: load_key(OWN, home), range(16)))
    assert len(keys) == 1 and [path.name for path in home.root.iterdir()] == [KEY_FILE]
    assert (home.root / KEY_FILE).stat().st_mode & 0o777 == 0o600
