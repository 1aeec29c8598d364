"""Digests, which name every artifact of OmniMRI by its inputs.

A digest is the hexadecimal SHA-256 of bytes or of the canonical JSON of the inputs. Folder names use its first 16 characters.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from components.source_digests import source_digests

REPOSITORY = Path(__file__).resolve().parent.parent
SHORT = 16
GIT_TIMEOUT_S = 60
CODE_FOLDERS = ("flows", "components", "model_core", "kernels", "profiles")
CODE_SUFFIXES = (".py", ".yaml", ".yml", ".j2")


def digest(*values: Any) -> str:
    """Return the SHA-256 (64 hex characters) of the canonical JSON of values; pydantic models count by their fields."""
    plain = [value.model_dump(mode="json") if isinstance(value, BaseModel) else value for value in values]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_md5(path: Path) -> str:
    """Return the MD5 of a file's bytes, as DVC records it (not used for security)."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def code_digest(*packages: str) -> str:
    """Return the digest of what the Python sources of repository folders (or single files) do, such as ``"components/curation"``.

    Steps carry this digest rather than the git commit, so that a commit elsewhere does not invalidate their results. Docstrings,
    comments and layout are not part of it; every name, constant and statement is, those of plugins too.
    """
    from components.registries import plugin_sources

    return sources_digest(packages, tuple(plugin_sources()))


@cache  # the sources do not change while a process runs
def sources_digest(packages: tuple[str, ...], plugins: tuple[Path, ...]) -> str:
    """Return the digest of repository folders and of plugins (:func:`code_digest`)."""
    sources = sorted(path for package in packages for path in _sources(REPOSITORY / package))
    digests = source_digests([path.read_bytes() for path in (*sources, *plugins)])
    files = [(path.relative_to(REPOSITORY).as_posix(), one) for path, one in zip(sources, digests, strict=False)]
    return digest(files, *digests[len(sources) :])


def _sources(package: Path) -> Iterable[Path]:
    return package.rglob("*.py") if package.is_dir() else [package]


def git_commit() -> str:
    """Return the commit of the checkout, with ``+dirty`` where the code in use differs from it.

    Tracked files count, also those that git was told to take for unchanged, and untracked modules, cards, templates and profiles,
    which the digests include. The user's own cards are in the lineage of each model instead. The data pin ``data.dvc``
    does not count as code: every result names its data version itself. Outside of a git checkout of its own, return the commit that
    the build of the image recorded (``OMNIMRI_COMMIT``), or ``"unknown"``.
    """
    recorded = os.environ.get("OMNIMRI_COMMIT") or "unknown"
    if not (REPOSITORY / ".git").exists():  # an installed wheel, or an archive; a repository around it is not ours
        return recorded
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != REPOSITORY.resolve():
        return recorded
    head = _git("rev-parse", "HEAD")
    state = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)data.dvc")
    if head is None or state is None:
        return recorded
    return head + ("+dirty" if state or _untracked_code() or _hidden_changes() else "")


def git_environment() -> dict[str, str]:
    """Return the environment without the variables ``GIT_*``, which git sets for its hooks and which name another repository."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}


def _git(*words: str) -> str | None:
    """Return the output of git in this checkout; None if it fails.

    A checkout that belongs to another user is read all the same: its code is what runs.
    """
    command = ["git", "-c", f"safe.directory={REPOSITORY}", "-c", "core.fsmonitor=false", *words]
    try:
        output = subprocess.run(
            command, cwd=REPOSITORY, env=git_environment(), capture_output=True, check=True, timeout=GIT_TIMEOUT_S
        ).stdout
        return os.fsdecode(output).strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _untracked_code() -> bool:
    """Return whether files that git does not know, ignored ones included, take part in the digests."""
    from components.registries import plugin_sources

    if any(name.endswith(CODE_SUFFIXES) for name in _listed("ls-files", "--others", "-z", "--", *CODE_FOLDERS)):
        return True
    inside = [str(path) for path in plugin_sources() if path.resolve().is_relative_to(REPOSITORY)]
    return bool(inside) and bool(_git("ls-files", "--others", "--", *inside))


def _listed(*words: str) -> list[str]:
    """Return the entries of an output that ``-z`` separates; without it, git would quote names that are not ASCII."""
    return [entry for entry in (_git(*words) or "").split("\0") if entry]


def _hidden_changes() -> bool:
    """Return whether a file differs whose changes ``git status`` does not show (assume-unchanged, skip-worktree).

    Those that are missing were left out by a sparse checkout.
    """
    tagged = [entry.partition(" ") for entry in _listed("ls-files", "-v", "-z")]
    hidden = {name for tag, _, name in tagged if (tag.islower() or tag == "S") and (REPOSITORY / name).is_file()}
    staged = [entry.partition("\t") for entry in _listed("ls-files", "--stage", "-z", "--", *hidden)] if hidden else []
    return any(_git("hash-object", "--", name) != facts.split()[1] for facts, _, name in staged)
