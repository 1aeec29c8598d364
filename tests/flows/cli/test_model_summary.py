"""``omnimri model summary`` prints the counts of the accounting."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from components.errors import BadInput
from flows.cli.main import app

SMALL = ["model", "summary", "--preset", "debug", "--side", "32", "--slices", "4", "--text", "8"]


def test_the_summary_of_a_preset_as_json() -> None:
    done = CliRunner().invoke(app, [*SMALL, "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    experts = next(row for row in found["parameters"] if row["part"] == "experts")
    assert experts == {"part": "experts", "total": 2 * 4 * 3 * 32 * 32, "active": 2 * 2 * 3 * 32 * 32}
    heads = {name: {row["part"]: row["flops"] for row in rows}["text head"] for name, rows in found["costs"].items()}
    assert heads == {"slice": 2 * (16 + 8) * 32 * 1024, "volume": 2 * (16 + 8) * 32 * 1024}  # four slices are pooled into one


def test_the_summary_of_a_preset_as_tables() -> None:
    shown = CliRunner().invoke(app, SMALL, catch_exceptions=False).stdout
    assert "active for a token" in shown and "sum" in shown and "4 x 32 x 32" in shown


@pytest.mark.parametrize(
    ("change", "fault"), [({"debug": "9b"}, "no preset '9b'"), ({"32": "33"}, "33 x 33 pixels")], ids=["name", "size"]
)
def test_an_unknown_preset_or_size_is_refused(change: dict[str, str], fault: str) -> None:
    with pytest.raises(BadInput, match=fault):
        CliRunner().invoke(app, [change.get(word, word) for word in SMALL], catch_exceptions=False)
