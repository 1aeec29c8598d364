"""Digests of sources: blind to prose, and kept in the user's cache by content."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components import source_digests as module
from components.source_digests import cache_file, source_digest, source_digests

SOURCES = [b"x = 1\n", b"x = 2\n"]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@given(st.sampled_from(["def f(x):", "class C:", "async def f(x):"]), st.text(alphabet="abc 012", max_size=12))
def test_docstrings_are_blind_and_returned_strings_are_not(head: str, words: str) -> None:
    bare = f"{head}\n    y = 1\n"
    assert source_digest(f"{head}\n    '{words}'\n    y = 1\n".encode()) == source_digest(bare.encode())
    assert source_digest(f"{head}\n    y = '{words}'\n".encode()) != source_digest(bare.encode())


def test_a_module_that_was_seen_before_is_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = source_digests(SOURCES)
    assert first == [source_digest(source) for source in SOURCES]
    monkeypatch.setattr(module, "source_digest", lambda source: f"parsed {source.decode()}")
    assert source_digests([*reversed(SOURCES), b"y"]) == [*reversed(first), "parsed y"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"a": 1}'])
def test_a_damaged_cache_is_written_anew(content: bytes) -> None:
    expected = source_digests(SOURCES)
    cache_file().write_bytes(content)
    assert source_digests(SOURCES) == expected and len(json.loads(cache_file().read_text())) == len(SOURCES)


def test_a_cache_folder_that_cannot_be_written_changes_nothing(cache_folder: Path) -> None:
    cache_folder.write_text("a file in place of the folder")
    assert source_digests(SOURCES) == [source_digest(source) for source in SOURCES]


def test_the_cache_keeps_the_latest_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    for number in range(5):
        source_digests([b"x = %d" % number])
    assert len(json.loads(cache_file().read_text())) == 3
