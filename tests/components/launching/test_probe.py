"""The probe does what the conformance tests expect of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.launching import probe


def test_each_action_ends_as_its_name_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "probe-1").touch()  # this rank has run before
    assert [probe.main("succeed"), probe.main("misconfigured"), probe.main("resume", str(tmp_path))] == [0, 2, 0]
    with pytest.raises(ValueError, match=probe.CAUSE):
        probe.main("fail")
