"""Digests of Python sources by what they do: syntax trees without docstrings, comments and layout.

Parsing all modules takes seconds, hence results are kept in the user's cache folder, by the content of the module.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import platformdirs

ALGORITHM = 1
"""Raise it with every change of :func:`source_digest`: cached results of the earlier one are then not read."""
KEPT = 4096
"""Results that the cache keeps, the latest ones: about ten versions of this project, 0.5 MB."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


def source_digests(sources: Sequence[bytes]) -> list[str]:
    """Return the :func:`source_digest` of each module, from the cache where it has been computed before."""
    contents = [hashlib.sha256(source).hexdigest() for source in sources]
    known = _read_cache()
    new = {content: source_digest(source) for content, source in zip(contents, sources, strict=True) if content not in known}
    if new:
        _write_cache({**known, **new})
    return [new.get(content) or known[content] for content in contents]


@cache
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


def cache_file() -> Path:
    """Return the cache: SHA-256 of a module's bytes -> its digest. Syntax trees differ between versions of Python."""
    name = f"source-digests-{ALGORITHM}-{sys.version_info.major}.{sys.version_info.minor}.json"
    return platformdirs.user_cache_path("omnimri", appauthor=False) / name


def _read_cache() -> dict[str, str]:
    """Return the cached digests; none where the cache is missing or damaged."""
    try:
        stored = json.loads(cache_file().read_bytes())
        return {key: value for key, value in stored.items() if _SHA256.fullmatch(value)}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write_cache(known: dict[str, str]) -> None:
    """Keep the digests; do nothing where the user's cache folder cannot be written, as in a pod."""
    from components.files import atomic_file

    try:
        with atomic_file(cache_file()) as temporary:
            temporary.write_text(json.dumps(dict(list(known.items())[-KEPT:])))
    except OSError:
        return
