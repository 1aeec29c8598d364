"""Digests, which name every artifact of OmniMRI by its inputs.

A digest is the hexadecimal SHA-256 of bytes or of the canonical JSON of the inputs. Folder names use its first 16 characters.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

REPOSITORY = Path(__file__).resolve().parent.parent
SHORT = 16


def digest(*values: Any) -> str:
    """Return the SHA-256 (64 hex characters) of the canonical JSON of values; pydantic models count by their fields."""
    plain = [value.model_dump(mode="json") if isinstance(value, BaseModel) else value for value in values]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_md5(path: Path) -> str:
    """Return the MD5 of a file's bytes, as DVC records it (not used for security)."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@cache
def code_digest(*packages: str) -> str:
    """Return the digest of what the Python sources of repository folders (or single files) do, such as ``"components/curation"``.

    Steps carry this digest rather than the git commit, so that a commit elsewhere does not invalidate their results. Docstrings,
    comments and layout are not part of it; every name, constant and statement is, those of plugins too.
    """
    from components.registries import plugin_sources

    sources = sorted(path for package in packages for path in _sources(REPOSITORY / package))
    plugins = [source_digest(path.read_bytes()) for path in plugin_sources()]
    return digest([(path.relative_to(REPOSITORY).as_posix(), source_digest(path.read_bytes())) for path in sources], *plugins)


def _sources(package: Path) -> Iterable[Path]:
    return package.rglob("*.py") if package.is_dir() else [package]


def source_digest(source: bytes) -> str:
    """Return the SHA-256 of a module's syntax tree without docstrings, comments and line numbers (64 hex characters)."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [statement for statement in body if not _is_docstring(statement)]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_docstring(statement: ast.AST) -> bool:
    """Return whether a statement is a bare string: the docstring of a module, class or function, or of the attribute above it."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)


def git_commit() -> str:
    """Return the commit of the checkout, with ``+dirty`` where tracked files other than the data pin differ from it.

    Outside of a git checkout, return the commit that the build of the image recorded (``OMNIMRI_COMMIT``), or ``"unknown"``. The
    data pin ``data.dvc`` does not count as code: every result names its data version itself.
    """
    if not (REPOSITORY / ".git").exists():  # an installed wheel; a repository around the environment is not ours
        return os.environ.get("OMNIMRI_COMMIT", "unknown")
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        status = ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)data.dvc"]
        state = subprocess.run(status, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("OMNIMRI_COMMIT", "unknown")
    return head.stdout.strip() + ("+dirty" if state.stdout.strip() else "")
