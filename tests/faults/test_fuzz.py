"""Damaged files are rejected with a reason, without crash, hang or excessive memory (full campaign: ``tests.faults.fuzz``)."""

from __future__ import annotations

from tests.faults.fuzz import campaign


def test_bombs_and_mutations_are_read_or_rejected_with_a_reason() -> None:
    outcomes = campaign(260, seed=1)
    assert [(kind, name, outcome) for kind, name, outcome in outcomes if outcome.result not in ("read", "refused")] == []
    assert sum(outcome.result == "refused" for _, _, outcome in outcomes) > 60  # the mutations do damage files
