"""Broken files are refused with a reason: no crash, no hang, no memory. The full campaign is ``python -m tests.faults.fuzz``."""

from __future__ import annotations

from tests.faults.fuzz import campaign


def test_every_bomb_and_some_hundred_mutations_are_read_or_refused_with_a_reason() -> None:
    found = campaign(260, seed=1)
    assert [(kind, name, one) for kind, name, one in found if one.result not in ("read", "refused")] == []
    assert sum(one.result == "refused" for _, _, one in found) > 60  # the mutations do break files
