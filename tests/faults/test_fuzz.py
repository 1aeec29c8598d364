"""Broken files are refused with a reason: no crash, no hang, no memory. The full campaign is ``python -m tests.faults.fuzz``."""

from __future__ import annotations

import csv

from tests.faults.fuzz import RESULTS, campaign


def test_every_bomb_and_some_hundred_mutations_are_read_or_refused_with_a_reason() -> None:
    found = campaign(260, seed=1)
    assert [(kind, name, one) for kind, name, one in found if one.result not in ("read", "refused")] == []
    assert sum(one.result == "refused" for _, _, one in found) > 60  # the mutations do break files


def test_the_full_campaign_found_no_failure() -> None:
    with RESULTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["inputs"]) for row in rows) >= 20_000
    assert sum(int(row["failed"]) for row in rows) == 0
