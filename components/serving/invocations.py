"""Requests of MLflow's scoring protocol: rows of ``image`` and ``instruction`` in four layouts of JSON."""

from __future__ import annotations

import json
from typing import Any

from components.errors import BadInput
from components.inference.untrusted_input import Limits

COLUMNS = ("image", "instruction")
LAYOUTS = ("dataframe_split", "dataframe_records", "inputs", "instances")
_TEXT = {"type": "string"}
_ROW = {"type": "object", "properties": dict.fromkeys(COLUMNS, _TEXT), "required": list(COLUMNS), "additionalProperties": False}


def body_schema(limits: Limits) -> dict[str, Any]:
    """Return the JSON schema of a request's body: one of the four layouts."""
    count = {"minItems": 1, "maxItems": limits.images}
    records = {"type": "array", "items": _ROW, **count}
    columns = {"type": "array", "items": _TEXT, **count}
    by_column = {**_ROW, "properties": dict.fromkeys(COLUMNS, columns), "description": "columns of equal length"}
    pair = {"type": "array", "items": _TEXT, "minItems": 2, "maxItems": 2}
    split = {
        "type": "object",
        "properties": {
            "columns": {"enum": [list(COLUMNS), list(COLUMNS[::-1])]},
            "data": {"type": "array", "items": pair, **count},
        },
        "required": ["columns", "data"],
    }
    layouts = {
        "dataframe_split": split,
        "dataframe_records": records,
        **{name: {"anyOf": [records, _ROW, by_column]} for name in ("inputs", "instances")},
    }
    return {"anyOf": [{"type": "object", "properties": {name: one}, "required": [name]} for name, one in layouts.items()]}


def parse_rows(body: bytes, limits: Limits) -> list[dict[str, str]]:
    """Return the rows of a request.

    Raises:
        BadInput: not JSON, or none of the four layouts.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise BadInput("not JSON", where="body", remedy="send UTF-8 JSON with Content-Type: application/json") from None
    layouts = [layout for layout in LAYOUTS if isinstance(content, dict) and layout in content]
    if len(layouts) != 1:
        raise BadInput("not one of the known layouts", where="body", remedy=f"one of {', '.join(LAYOUTS)}")
    (layout,) = layouts
    rows = _records(content[layout], layout)
    if not 1 <= len(rows) <= limits.images:
        raise BadInput(f"{len(rows)} rows", where=layout, remedy=f"1 to {limits.images} in a request")
    for row in rows:
        if not isinstance(row, dict) or set(row) != set(COLUMNS) or not all(isinstance(value, str) for value in row.values()):
            raise BadInput("a row with other fields", where=layout, remedy=f"every row has {' and '.join(COLUMNS)}, both text")
    return rows


def _records(value: Any, layout: str) -> list[Any]:
    if layout == "dataframe_split":
        columns, data = (value.get("columns"), value.get("data")) if isinstance(value, dict) else (None, None)
        if (
            not isinstance(columns, list)
            or not isinstance(data, list)
            or not all(isinstance(row, list) and len(row) == len(columns) for row in data)
            or not all(isinstance(column, str) for column in columns)
        ):
            raise BadInput("not a table", where=layout, remedy='{"columns": ["image", "instruction"], "data": [[..., ...]]}')
        return [dict(zip(columns, row, strict=True)) for row in data]
    if isinstance(value, dict):  # one row, or columns of equal length
        if value and all(isinstance(column, list) for column in value.values()):
            lengths = {len(column) for column in value.values()}
            if len(lengths) != 1:
                raise BadInput("columns of different length", where=layout, remedy="as many images as instructions")
            return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
        return [value]
    return value if isinstance(value, list) else []
