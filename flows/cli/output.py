"""What commands print: one JSON object on standard output with ``--json``, tables for people otherwise."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

HIGHER, LOWER = "↑", "↓"


def plain(value: Any) -> Any:
    """Records, paths and nested containers as JSON values; a number that is not finite becomes null."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    return str(value)


def emit(value: Any) -> None:
    """Print one JSON object."""
    print(json.dumps(plain(value), sort_keys=True))


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table for people."""
    grid = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    Console().print(grid)


def relative(path: Path | str) -> str:
    """A path as a person in the current folder would type it."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
