"""Files that ship with OmniMRI and are no Python: profiles, ``prefect.yaml``, manifests, the tested package versions.

In a checkout they lie at its root. In an installation from a wheel they are data files under ``<prefix>/share/omnimri``.
"""

from __future__ import annotations

import importlib.metadata
from functools import cache
from pathlib import Path

from components.errors import BadInput
from components.provenance import REPOSITORY

_MARKER = "prefect.yaml"


def in_checkout() -> bool:
    """Return whether this code runs from a checkout rather than from an installed wheel."""
    return (REPOSITORY / _MARKER).is_file()


@cache
def _root() -> Path:
    if in_checkout():
        return REPOSITORY
    for file in importlib.metadata.files("omnimri") or []:
        if file.parts[-3:] == ("share", "omnimri", _MARKER):
            return Path(str(file.locate())).resolve().parent
    raise BadInput(
        "the installation has no data files", where="share/omnimri", remedy="install OmniMRI again: pip install --force-reinstall"
    )


def asset(name: str) -> Path:
    """Return the path of a shipped file or folder, such as ``"profiles"``; it may not exist.

    Raises:
        BadInput: the installation is incomplete.
    """
    return _root() / name
