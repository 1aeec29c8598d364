"""The curated tables as Parquet: typed by the records, sorted, zstd, the same bytes for the same rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from components.curation.records import DescriptionRecord, InstructionRecord, Row, SplitRecord, VolumeRecord
from components.errors import BadInput
from components.files import atomic_file

AnyRow = TypeVar("AnyRow", bound=Row)
_SCALARS: dict[type, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


@dataclass(frozen=True)
class Table(Generic[AnyRow]):
    """One curated table.

    Attributes:
        name: file stem and name in reports.
        row: the record of one row.
        key: column that identifies and orders the rows.
    """

    name: str
    row: type[AnyRow]
    key: str

    def path(self, root: Path) -> Path:
        """The Parquet file under a corpus root."""
        return root / f"{self.name}.parquet"


VOLUMES = Table("volumes", VolumeRecord, "volume_id")
DESCRIPTIONS = Table("descriptions", DescriptionRecord, "volume_id")
INSTRUCTIONS = Table("instructions", InstructionRecord, "sample_id")
SPLITS = Table("splits", SplitRecord, "patient_id")
TABLES: tuple[Table[Any], ...] = (VOLUMES, DESCRIPTIONS, INSTRUCTIONS, SPLITS)


def _arrow_type(annotation: Any) -> pa.DataType:
    """Arrow type of a record's field annotation."""
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
    """Arrow schema of a record type."""
    return pa.schema([pa.field(name, _arrow_type(field.annotation)) for name, field in row.model_fields.items()])


def write_table(root: Path, table: Table[AnyRow], rows: Iterable[AnyRow]) -> None:
    """Write ``rows`` in the order of the table's key, atomically."""
    plain = [row.model_dump() for row in sorted(rows, key=lambda row: str(getattr(row, table.key)))]
    content = pa.Table.from_pylist(plain, schema=schema(table.row))
    with atomic_file(table.path(root)) as temporary:
        pq.write_table(content, temporary, compression="zstd")


def read_table(root: Path, table: Table[AnyRow]) -> list[AnyRow]:
    """Read and check every row of a table.

    Raises:
        BadInput: no such table, or rows that are not of the record's form.
    """
    path = table.path(root)
    if not path.exists():
        raise BadInput("no such table", where=str(path), remedy="run omnimri curate")
    rows = pq.read_table(path, use_threads=False).to_pylist(maps_as_pydicts="strict")
    try:
        return TypeAdapter(list[table.row]).validate_python(rows)  # type: ignore[name-defined]
    except ValidationError as error:
        fault = error.errors()[0]
        raise BadInput(
            f"row {fault['loc'][0]}, {'.'.join(str(part) for part in fault['loc'][1:])}: {fault['msg']}",
            where=str(path), remedy="curate again",
        ) from None  # fmt: skip


def read_column(root: Path, table: Table[Any], column: str) -> list[Any]:
    """One column of a table, without the rest."""
    return list(pq.read_table(table.path(root), columns=[column], use_threads=False).column(column).to_pylist())
