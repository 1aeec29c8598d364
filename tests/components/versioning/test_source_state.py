"""Source states change with the data, and with nothing else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from components.errors import BadInput
from components.files import folder_state
from components.home import Home
from components.settings import DatasetSettings
from components.versioning import DataRepository
from components.versioning.source_state import observe_sources, validate_tag_pattern


def overwrite_with_same_size(folder: Path) -> None:
    file = folder / "a" / "one.txt"
    modified = file.stat().st_mtime_ns
    file.write_text("eno")
    os.utime(file, ns=(modified + 1, modified + 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "new": lambda folder: (folder / "b.txt").write_text("two"),
    "removed": lambda folder: (folder / "a" / "one.txt").unlink(),
    "renamed": lambda folder: (folder / "a" / "one.txt").rename(folder / "a" / "other.txt"),
    "longer": lambda folder: (folder / "a" / "one.txt").write_text("one more"),
    "same size": overwrite_with_same_size,
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_folder_changes_its_state(tmp_path: Path, change: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.txt").write_text("one")
    before = folder_state(tmp_path)
    assert folder_state(tmp_path) == before != folder_state(tmp_path / "none") == ""
    (tmp_path / "a" / "one.txt").read_text()
    assert folder_state(tmp_path) == before
    CHANGES[change](tmp_path)
    assert folder_state(tmp_path) != before


def git(root: Path, *words: str) -> None:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)


def test_an_upstream_pin_and_a_tag_of_another_version_are_observed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two users share a git remote and a DVC remote; one of them publishes a new version of the data."""
    (tmp_path / "data" / "set").mkdir(parents=True)
    home = Home(tmp_path / "home", tmp_path / "data")
    git(tmp_path, "init", "--bare", str(tmp_path / "shared.git"))
    git(tmp_path, "init")
    repository = DataRepository(tmp_path, tmp_path / "data")
    versions = []
    for content in ("one", "two"):
        (tmp_path / "data" / "set" / "file").write_text(content)
        versions.append(repository.snapshot().digest)
        git(tmp_path, "add", "data.dvc")
        git(tmp_path, "commit", "-m", content)
    git(tmp_path, "remote", "add", "origin", str(tmp_path / "shared.git"))
    git(tmp_path, "tag", "data-2")
    git(tmp_path, "tag", "v1.0", "HEAD~1")
    git(tmp_path, "push", "-u", "origin", "HEAD~1:refs/heads/main")
    git(tmp_path, "push", "origin", "HEAD:refs/heads/main")
    git(tmp_path, "reset", "--hard", "HEAD~1")
    git(tmp_path, "branch", "--set-upstream-to", "origin/main")
    datasets = (DatasetSettings(card="set", path=tmp_path / "data" / "set"),)
    states = {state.kind: state for state in observe_sources(datasets, home)}
    assert states["remote"].revision == states["tag"].revision == versions[1] != repository.digest()
    assert set(states) == {"folder", "remote", "tag"} and states["folder"].revision is None
    git(tmp_path, "init", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))  # as git sets it for a hook that starts the watcher
    assert {state.kind: state for state in observe_sources(datasets, home)} == states


def test_without_git_only_folders_are_observed(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    datasets = (DatasetSettings(card="set", path=tmp_path / "source"), DatasetSettings(card="other", path=tmp_path / "none"))
    states = observe_sources(datasets, Home(tmp_path / "home", tmp_path / "data"))
    assert [state.name for state in states] == ["set"]


def test_a_tag_pattern_cannot_be_an_option_or_a_path() -> None:
    validate_tag_pattern("data-*")
    for pattern in ("--upload-pack=x", "../heads/main", "/etc"):
        with pytest.raises(BadInput):
            validate_tag_pattern(pattern)
