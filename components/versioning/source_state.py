"""What tells that a dataset has an update: its source folder, the upstream's pin of ``data/``, and tags."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from components.errors import BadInput, OmniMRIError
from components.files import folder_state
from components.home import Home
from components.settings import DatasetSettings
from components.versioning.repository import DataRepository

TAGS = "data-*"
FETCH_S = 60


@dataclass(frozen=True)
class Watched:
    """Something that changes when a dataset does.

    Attributes:
        kind: source folder of a dataset, data version of the upstream branch, or newest tag that names a data version.
        name: the dataset's card, the remote branch, or the pattern of tags.
        state: changes with it.
        revision: of ``remote`` and ``tag``: digest of the data version that is there now.
    """

    kind: Literal["folder", "remote", "tag"]
    name: str
    state: str
    revision: str | None = None


def source_folder(dataset: DatasetSettings, home: Home) -> Path:
    """Where a dataset's source files lie."""
    return dataset.path if dataset.path is not None else home.sources / dataset.card


def _git(root: Path, *words: str) -> str | None:
    """What git answers; None where it fails or there is no repository."""
    if not (root / ".git").exists():
        return None
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=FETCH_S, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _pinned(repository: DataRepository, revision: str) -> str | None:
    """Data version at a git revision, if it is whole here or in the remote."""
    try:
        return repository.resolve(repository.resolve(revision))
    except OmniMRIError:
        return None


def observe(datasets: tuple[DatasetSettings, ...], home: Home, fetch: bool = True, tags: str = TAGS) -> list[Watched]:
    """Everything that is watched, as it is now.

    Args:
        fetch: ask the git remote for news; without it only what is known here counts.
        tags: pattern of the tags that name data versions.
    """
    found = [Watched("folder", one.card, state) for one in datasets if (state := folder_state(source_folder(one, home)))]
    repository = DataRepository(home.data.parent, home.data)
    root = repository.root
    if fetch and _git(root, "remote"):
        _git(root, "fetch", "--quiet", "--tags")
    upstream = _git(root, "rev-parse", "--abbrev-ref", "@{upstream}")
    if upstream and (version := _pinned(repository, upstream)):
        found.append(Watched("remote", upstream, version, version))
    newest = _git(root, "for-each-ref", "--sort=-creatordate", "--count=1", "--format=%(refname:short)", f"refs/tags/{tags}")
    if newest and (version := _pinned(repository, newest)):
        found.append(Watched("tag", tags, f"{newest} {version}", version))
    return found


def require_git_pattern(tags: str) -> None:
    """Refuse a pattern that git would take for an option or a path.

    Raises:
        BadInput: it begins with a dash or a slash, or climbs.
    """
    if tags.startswith(("-", "/")) or ".." in tags:
        raise BadInput("not a pattern of tags", where=f"--tags {tags}", remedy="e.g. data-*")
