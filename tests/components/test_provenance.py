"""Digests depend on content only."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.curation.inputs import code_version
from components.evaluation.evaluate import CODE as EVALUATION_CODE
from components.provenance import REPOSITORY, code_digest, digest, file_md5, git_commit, sources_digest
from components.training.trained_stage import CODE as TRAINING_CODE
from components.validation.validation_gate import CODE as VALIDATION_CODE

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(plain, plain)
def test_only_equal_values_share_a_digest(a: object, b: object) -> None:
    assert (digest(a) == digest(b)) == (repr_sorted(a) == repr_sorted(b))


def repr_sorted(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{repr_sorted(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(repr_sorted, value)) + "]"
    return repr(value)


def test_the_md5_of_a_file_is_that_of_dvc(tmp_path: Path) -> None:
    path = tmp_path / "slice.dcm"
    path.write_bytes(b"DICM" * 1000)
    assert file_md5(path) == hashlib.md5(b"DICM" * 1000).hexdigest()


def test_the_code_of_other_packages_does_not_count() -> None:
    assert code_digest("components/curation") != code_digest("components/training")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the sources, which digests are computed from and tests edit."""
    for package in ("components", "model_core", "kernels"):
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "datasets"))
    monkeypatch.setattr("components.provenance.REPOSITORY", tmp_path)
    sources_digest.cache_clear()
    yield tmp_path
    sources_digest.cache_clear()


def step_digests() -> dict[str, str]:
    """Return the code digest of each step that stores its results under one."""
    sources_digest.cache_clear()
    return {
        "curate": code_version(),
        "validate": code_digest(*VALIDATION_CODE),
        "train": code_digest(*TRAINING_CODE),
        "evaluate": code_digest(*EVALUATION_CODE),
    }


def test_an_edited_docstring_or_comment_changes_no_digest(checkout: Path) -> None:
    before = step_digests()
    edited = checkout / "components/curation/store.py"
    text = edited.read_text()
    edited.write_text("# a remark\n" + text.replace('"""', '"""Reworded: ', 1).replace("\nclass ", "\n\n# and another\n\nclass "))
    assert step_digests() == before


def test_an_edited_constant_changes_the_digest_of_every_step_downstream(checkout: Path) -> None:
    before = step_digests()
    edited = checkout / "model_core/boxes.py"
    edited.write_text(edited.read_text().replace("GRID = 256", "GRID = 255"))
    after = step_digests()
    assert {step for step in before if after[step] != before[step]} == {"curate", "train", "evaluate"}


def test_an_edited_pattern_of_identifying_text_curates_and_validates_again(checkout: Path) -> None:
    before = step_digests()
    edited = checkout / "components/phi_patterns.py"
    edited.write_text(edited.read_text() + "\nADDED = 1\n")
    after = step_digests()
    assert {"curate", "validate"} <= {step for step in before if after[step] != before[step]}


def git(root: Path, *words: str) -> None:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    subprocess.run(command, cwd=root, env=clean, check=True, capture_output=True)


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed checkout with one file of code and a data pin."""
    root = tmp_path / "outer" / "checkout"
    (root / "components").mkdir(parents=True)
    monkeypatch.setattr("components.provenance.REPOSITORY", root)
    for name in ("components/code.py", "data.dvc"):
        (root / name).write_text("before")
    git(root, "init", "-q")
    git(root, "add", "--all")
    git(root, "commit", "-qm", "one")
    return root


def test_changed_code_marks_the_commit_as_dirty_and_a_changed_data_pin_does_not(committed: Path) -> None:
    (committed / "data.dvc").write_text("after")
    (committed / "notes.txt").write_text("no code")
    commit = git_commit()
    assert len(commit) == 40
    (committed / "components" / "code.py").write_text("after")
    assert git_commit() == f"{commit}+dirty"


CODE_NAMES = ["components/new.py", "components/münster.py", os.fsdecode(b"components/\xff.py"), "components/a\nb.py"]


@pytest.mark.parametrize("name", [*CODE_NAMES, "components/catalog/datasets/mine.yaml", "profiles/mine.yaml"])
def test_untracked_code_that_the_digests_include_marks_the_commit_as_dirty(committed: Path, name: str) -> None:
    (committed / ".gitignore").write_text("mine.yaml\n")
    git(committed, "add", ".gitignore")
    git(committed, "commit", "-qm", "two")
    assert not git_commit().endswith("+dirty")
    (committed / name).parent.mkdir(parents=True, exist_ok=True)
    (committed / name).write_text("added")
    assert git_commit().endswith("+dirty")


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_changes_that_git_was_told_not_to_look_for_mark_the_commit_as_dirty(committed: Path, flag: str) -> None:
    git(committed, "update-index", flag, "components/code.py")
    assert not git_commit().endswith("+dirty")
    (committed / "components" / "code.py").write_text("after")
    assert git_commit().endswith("+dirty")


@pytest.mark.parametrize("damage", ["archive", "emptied"])
def test_the_commit_of_an_enclosing_repository_is_not_taken(committed: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """An archive that was unpacked inside of another repository, or whose own repository is damaged."""
    shutil.rmtree(committed / ".git")
    if damage == "emptied":
        (committed / ".git").mkdir()
    git(committed.parent, "init", "-q")
    git(committed.parent, "commit", "-qm", "outer", "--allow-empty")
    assert git_commit() == "unknown"
    monkeypatch.setenv("OMNIMRI_COMMIT", "of the image")
    assert git_commit() == "of the image"


def test_variables_that_git_sets_for_hooks_do_not_count(committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = git_commit()
    git(tmp_path, "init", "-q", "other")
    git(tmp_path / "other", "commit", "-qm", "other", "--allow-empty")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    assert git_commit() == own


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_a_checkout_of_another_user_is_read(committed: Path) -> None:
    own = git_commit()
    for path in [committed, *committed.rglob("*")]:
        os.chown(path, 12345, 12345)
    assert git_commit() == own


def test_without_git_the_commit_is_unknown(committed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() == "unknown"
