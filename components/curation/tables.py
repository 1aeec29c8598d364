"""Read and write the curated tables as Parquet: typed by the records, sorted, zstd; the same rows give the same bytes."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from components.curation.table_rows import (
    DescriptionRecord,
    InstructionRecord,
    Row,
    SplitRecord,
    VolumeInstructionRecord,
    VolumeRecord,
)
from components.errors import BadInput
from components.files import atomic_file

BATCH, ROW_GROUP = 4096, 65536
"""Rows that are Python objects at a time, and rows that are compressed together (a row group)."""
AnyRow = TypeVar("AnyRow", bound=Row)
_SCALARS: dict[type, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


@dataclass(frozen=True)
class Table(Generic[AnyRow]):
    """One curated table.

    Attributes:
        name: file stem, and name in reports.
        row: record type of a row.
        key: column that identifies and orders the rows.
    """

    name: str
    row: type[AnyRow]
    key: str

    def path(self, root: Path) -> Path:
        """Return the Parquet file under a corpus root."""
        return root / f"{self.name}.parquet"


VOLUMES = Table("volumes", VolumeRecord, "volume_id")
DESCRIPTIONS = Table("descriptions", DescriptionRecord, "volume_id")
INSTRUCTIONS = Table("instructions", InstructionRecord, "sample_id")
VOLUME_INSTRUCTIONS = Table("volume_instructions", VolumeInstructionRecord, "sample_id")
SPLITS = Table("splits", SplitRecord, "patient_id")
TABLES: tuple[Table[Any], ...] = (VOLUMES, DESCRIPTIONS, INSTRUCTIONS, VOLUME_INSTRUCTIONS, SPLITS)


def _arrow_type(annotation: Any) -> pa.DataType:
    """Return the Arrow type of a field annotation of a record."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return _arrow_type(next(argument for argument in arguments if argument is not type(None)))
    if origin is Literal:
        return pa.string()
    if origin is list:
        return pa.list_(_arrow_type(arguments[0]))
    if origin is dict:
        return pa.map_(_arrow_type(arguments[0]), _arrow_type(arguments[1]))
    if isinstance(annotation, type) and issubclass(annotation, Row):
        return pa.struct(schema(annotation))
    return _SCALARS[annotation]


@cache
def schema(row: type[Row]) -> pa.Schema:
    """Return the Arrow schema of a record type."""
    return pa.schema([pa.field(name, _arrow_type(field.annotation)) for name, field in row.model_fields.items()])


def to_arrow(table: Table[AnyRow], rows: Iterable[AnyRow]) -> pa.Table:
    """Convert rows to columns in batches: a whole table as Python objects would take ten times the memory of its columns."""
    batches: list[pa.Table] = []
    rows = iter(rows)
    while batch := [row.model_dump() for row in islice(rows, BATCH)]:
        batches.append(pa.Table.from_pylist(batch, schema=schema(table.row)))
    return pa.concat_tables(batches) if batches else schema(table.row).empty_table()


def write_arrow(root: Path, table: Table[Any], content: pa.Table) -> None:
    """Write columns sorted by the key of the table, atomically; the same rows in any order give the same bytes."""
    keys = content.column(table.key)
    row: type[Row] = table.row
    sorted_rows = content.take(pc.sort_indices(keys)).cast(schema(row)).combine_chunks()
    with atomic_file(table.path(root)) as temporary:
        pq.write_table(sorted_rows, temporary, compression="zstd", row_group_size=ROW_GROUP)


def write_table(root: Path, table: Table[AnyRow], rows: Iterable[AnyRow]) -> None:
    """Write ``rows`` sorted by the key of the table, atomically."""
    write_arrow(root, table, to_arrow(table, rows))


def read_arrow(root: Path, table: Table[Any], columns: list[str] | None = None) -> pa.Table:
    """Read a table, or some of its columns, as columns.

    Raises:
        BadInput: the table does not exist.
    """
    path = table.path(root)
    if not path.exists():
        raise BadInput("no such table", where=str(path), remedy="run omnimri curate")
    return pq.read_table(path, columns=columns, use_threads=False)


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Pause the search for cyclic garbage: it would take half of the time among millions of new rows, which have no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _to_python(column: pa.Array) -> list[Any]:
    """Convert a column to Python values, maps to dictionaries; the option for maps slows pyarrow down fivefold on other types."""
    kind = column.type
    plain = not pa.types.is_nested(kind) or (pa.types.is_list(kind) and not pa.types.is_nested(kind.value_type))
    return column.to_pylist() if plain else column.to_pylist(maps_as_pydicts="strict")


def read_table(root: Path, table: Table[AnyRow]) -> list[AnyRow]:
    """Read and validate every row of a table.

    Raises:
        BadInput: the table does not exist, or a row does not conform to its record type.
    """
    content = read_arrow(root, table)
    with _garbage_collection_paused():
        return [row for batch in content.to_batches(max_chunksize=BATCH) for row in _validate(batch, table, root)]


def _validate(batch: pa.RecordBatch, table: Table[AnyRow], root: Path) -> list[AnyRow]:
    names, value_rows = batch.schema.names, zip(*map(_to_python, batch.columns), strict=True)
    rows = [dict(zip(names, values, strict=True)) for values in value_rows]
    try:
        return TypeAdapter(list[table.row]).validate_python(rows)  # type: ignore[name-defined]
    except ValidationError as error:
        fault = error.errors()[0]
        row, *field = fault["loc"]
        raise BadInput(
            f"{table.key} {rows[int(row)].get(table.key)}, {'.'.join(map(str, field))}: {fault['msg']}",
            where=str(table.path(root)),
            remedy="curate again",
        ) from None
