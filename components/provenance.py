"""Digests: the names under which every artefact of OmniMRI is found again.

A digest is the hex SHA-256 of the canonical JSON of what went in, or of bytes. Folders use its first 16 characters.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

REPOSITORY = Path(__file__).resolve().parent.parent
SHORT = 16


def digest(*parts: Any) -> str:
    """SHA-256 (64 hex characters) of the canonical JSON of ``parts``; pydantic models count by their fields."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_md5(path: Path) -> str:
    """MD5 of a file's bytes, the sum that DVC records (not used for security)."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@cache
def code_digest(*packages: str) -> str:
    """Digest of the Python sources of repository folders, such as ``"components/curation"``.

    Steps carry this rather than the git commit, so that a commit elsewhere does not void their work.
    """
    sources = sorted(path for package in packages for path in (REPOSITORY / package).rglob("*.py"))
    return digest([(str(path.relative_to(REPOSITORY)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in sources])


def git_commit() -> str:
    """Commit of the checkout, with ``+dirty`` where tracked files differ, or outside of git what an image's
    build says (``OMNIMRI_COMMIT``), or ``"unknown"``. The pin of the data is no code: a version names its data itself."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        status = ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)data.dvc"]
        state = subprocess.run(status, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("OMNIMRI_COMMIT", "unknown")
    return head.stdout.strip() + ("+dirty" if state.stdout.strip() else "")
