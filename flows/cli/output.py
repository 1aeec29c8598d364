"""Output of commands: one JSON object on standard output with ``--json``, tables otherwise."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

HIGHER, LOWER = "↑", "↓"
FILE_WIDTH = 140
"""Width of tables that go to a file or a pipe, characters."""


def to_json(value: Any) -> Any:
    """Return records, paths and nested containers as JSON values; a number that is not finite becomes null."""
    if isinstance(value, BaseModel):
        return to_json(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    return str(value)


def emit(value: Any) -> None:
    """Print one JSON object."""
    print(json.dumps(to_json(value), sort_keys=True))


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table; square brackets in a cell are text."""
    grid = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*map(escape, row))
    Console(width=None if sys.stdout.isatty() else FILE_WIDTH).print(grid)


def pairs(values: dict[str, str]) -> None:
    """Print names and values, one pair a line."""
    width = max(map(len, values)) + 2
    for name, value in values.items():
        print(f"{name:<{width}}{value}")


def relative(path: Path | str) -> str:
    """Return a path relative to the current folder where it lies below it."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
