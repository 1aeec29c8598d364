"""Writes are atomic: a failed write changes nothing and leaves no temporary file."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.files import atomic_directory, atomic_file, read_json, write_json


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "table.json"
    write_json(target, {"version": 1})
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(target) == {"version": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_directory(target) as temporary:
        (temporary / "old").touch()
    with pytest.raises(RuntimeError), atomic_directory(target) as temporary:
        (temporary / "new").touch()
        raise RuntimeError
    assert [path.name for path in target.iterdir()] == ["old"]
    with atomic_directory(target) as temporary:
        (temporary / "new").touch()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]
