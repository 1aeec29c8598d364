"""Digests depend on content alone."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.provenance import code_digest, digest, file_md5, git_commit

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(plain, plain)
def test_equal_content_and_only_equal_content_shares_a_digest(a: object, b: object) -> None:
    assert (digest(a) == digest(b)) == (repr_sorted(a) == repr_sorted(b))


def repr_sorted(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{repr_sorted(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(repr_sorted, value)) + "]"
    return repr(value)


def test_the_md5_of_a_file_is_the_one_that_dvc_records(tmp_path: Path) -> None:
    path = tmp_path / "slice.dcm"
    path.write_bytes(b"DICM" * 1000)
    assert file_md5(path) == hashlib.md5(b"DICM" * 1000).hexdigest()


def test_code_of_another_room_does_not_count() -> None:
    assert code_digest("components/curation") != code_digest("components/training")


def test_changed_code_is_in_no_commit_and_a_changed_pin_of_the_data_is_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *words], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr("components.provenance.REPOSITORY", tmp_path)
    for name in ("code.py", "data.dvc"):
        (tmp_path / name).write_text("before")
    git("init", "-q")
    git("add", "--all")
    git("commit", "-qm", "one")
    (tmp_path / "data.dvc").write_text("after")
    commit = git_commit()
    assert len(commit) == 40
    (tmp_path / "code.py").write_text("after")
    assert git_commit() == f"{commit}+dirty"
