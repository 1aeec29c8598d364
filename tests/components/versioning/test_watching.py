"""What is watched changes with the data, and with nothing else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from components.errors import BadInput
from components.home import Home
from components.settings import DatasetSettings
from components.versioning import DataRepository
from components.versioning.source_state import folder_state, observe, require_git_pattern


def same_size(folder: Path) -> None:
    file = folder / "a" / "one.txt"
    before = file.stat().st_mtime_ns
    file.write_text("eno")
    os.utime(file, ns=(before + 1, before + 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "new": lambda folder: (folder / "b.txt").write_text("two"),
    "removed": lambda folder: (folder / "a" / "one.txt").unlink(),
    "renamed": lambda folder: (folder / "a" / "one.txt").rename(folder / "a" / "other.txt"),
    "longer": lambda folder: (folder / "a" / "one.txt").write_text("one more"),
    "as long as before": same_size,
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_folder_is_seen(tmp_path: Path, change: str) -> None:
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


def test_an_upstream_that_pins_another_version_and_a_tag_are_seen(tmp_path: Path) -> None:
    """Two people share a git remote and a DVC remote; one of them publishes a new version of the data."""
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
    found = {one.kind: one for one in observe(datasets, home)}
    assert found["remote"].revision == found["tag"].revision == versions[1] != repository.digest()
    assert set(found) == {"folder", "remote", "tag"} and found["folder"].revision is None


def test_without_git_only_folders_are_watched(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    datasets = (DatasetSettings(card="set", path=tmp_path / "source"), DatasetSettings(card="other", path=tmp_path / "none"))
    assert [one.name for one in observe(datasets, Home(tmp_path / "home", tmp_path / "data"))] == ["set"]


def test_a_pattern_cannot_be_an_option() -> None:
    require_git_pattern("data-*")
    for pattern in ("--upload-pack=x", "../heads/main", "/etc"):
        with pytest.raises(BadInput):
            require_git_pattern(pattern)
