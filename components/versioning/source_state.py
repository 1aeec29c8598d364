"""States that reveal an update of a dataset: its source folder, the data version pinned upstream, and git tags."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from components.errors import BadInput, OmniMRIError
from components.files import folder_state
from components.home import Home
from components.provenance import git_environment
from components.settings import DatasetSettings
from components.versioning.repository import DataRepository

TAG_PATTERN = "data-*"
"""Default pattern of the tags that name data versions."""
GIT_TIMEOUT_S = 60


@dataclass(frozen=True)
class SourceState:
    """State of a data source, which changes when the source does.

    Attributes:
        kind: ``folder`` of the source files of a dataset, ``server`` that it is fetched from, data version of the upstream branch
            (``remote``), or newest ``tag`` that names a data version.
        name: card of the dataset, remote branch, or pattern of the tags.
        state: text that changes with the source.
        revision: for ``remote`` and ``tag``, the digest of the data version.
    """

    kind: Literal["folder", "server", "remote", "tag"]
    name: str
    state: str
    revision: str | None = None


def source_folder(dataset: DatasetSettings, home: Home) -> Path:
    """Return the folder of the source files of a dataset."""
    return dataset.path if dataset.path is not None else home.sources / dataset.card


def _run_git(root: Path, *arguments: str) -> str | None:
    """Return the output of a git command; None if it fails, or without a repository."""
    if not (root / ".git").exists():
        return None
    environment = {**git_environment(), "GIT_TERMINAL_PROMPT": "0"}
    command = ["git", *arguments]
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _find_version(repository: DataRepository, revision: str) -> str | None:
    """Return the data version that a git revision pins, if cache or remote contains it."""
    try:
        return repository.resolve(repository.resolve(revision))
    except OmniMRIError:
        return None


def observe_sources(
    datasets: tuple[DatasetSettings, ...], home: Home, fetch: bool = True, tags: str = TAG_PATTERN
) -> list[SourceState]:
    """Return the current state of all sources that exist.

    Args:
        fetch: fetch from the git remote first; otherwise only local refs are used.
        tags: pattern of the tags that name data versions.
    """
    states = []
    for dataset in datasets:
        if state := folder_state(source_folder(dataset, home)):
            states.append(SourceState("folder", dataset.card, state))
    repository = DataRepository(home.data.parent, home.data)
    root = repository.root
    if fetch and _run_git(root, "remote"):
        _run_git(root, "fetch", "--quiet", "--tags")
    upstream = _run_git(root, "rev-parse", "--abbrev-ref", "@{upstream}")
    if upstream and (version := _find_version(repository, upstream)):
        states.append(SourceState("remote", upstream, version, version))
    newest = _run_git(root, "for-each-ref", "--sort=-creatordate", "--count=1", "--format=%(refname:short)", f"refs/tags/{tags}")
    if newest and (version := _find_version(repository, newest)):
        states.append(SourceState("tag", tags, f"{newest} {version}", version))
    return states


def validate_tag_pattern(tags: str) -> None:
    """Reject a pattern that git would interpret as an option or a path.

    Raises:
        BadInput: the pattern starts with a dash or a slash, or contains ``..``.
    """
    if tags.startswith(("-", "/")) or ".." in tags:
        raise BadInput("not a pattern of tags", where=f"--tags {tags}", remedy="e.g. data-*")
