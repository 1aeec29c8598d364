"""The table of slices: one row for every slice of every curated volume, 19 million at the paper's scale.

These are too many for Python objects: rows are computed, stored, filtered and counted as numpy columns, 8 bytes a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from components.curation.measure.volume_facts import SliceFacts
from components.errors import BadInput
from components.files import atomic_file

FILE = "slices.parquet"
SCHEMA = pa.schema(
    [
        pa.field("volume_id", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("slice_index", pa.int16(), nullable=False),
        pa.field("shows", pa.bool_(), nullable=False),
        pa.field("lesion", pa.bool_()),
    ]
)
BLOCK = 4096
"""Volumes whose rows are compressed together (a row group, with a dictionary of its own volume ids)."""
NO, YES, UNKNOWN = 0, 1, 2


@dataclass(frozen=True)
class SliceTable:
    """The slices of some volumes, volume after volume, each from its first slice to its last.

    Attributes:
        volume_ids: one for each volume.
        volume: (N,) int32, index into ``volume_ids``, non-decreasing.
        index: (N,) int16, slice of the volume.
        shows: (N,) bool, the slice contains tissue, or a label if the volume has labels.
        lesion: (N,) uint8, :data:`NO`, :data:`YES`, or :data:`UNKNOWN` (not annotated, or too little lesion to ask about).
    """

    volume_ids: list[str]
    volume: NDArray[np.int32]
    index: NDArray[np.int16]
    shows: NDArray[np.bool_]
    lesion: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def from_facts(cls, volumes: Iterable[tuple[str, int, SliceFacts]]) -> SliceTable:
        """Build the rows of volumes, given as (volume_id, number of slices, facts)."""
        listed = list(volumes)
        counts = np.array([slices for _, slices, _ in listed], np.int64)
        starts = np.cumsum(counts) - counts
        shows, lesion = np.zeros(counts.sum(), np.bool_), np.full(counts.sum(), UNKNOWN, np.uint8)
        shows[_row_numbers(starts, [facts.content_slices for _, _, facts in listed])] = True
        lesion[_row_numbers(starts, [facts.lesion_free_slices for _, _, facts in listed])] = NO
        lesion[_row_numbers(starts, [facts.lesion_slices for _, _, facts in listed])] = YES
        volume = np.repeat(np.arange(len(listed), dtype=np.int32), counts)
        index = np.arange(len(volume)) - np.repeat(starts, counts)
        return cls([volume_id for volume_id, _, _ in listed], volume, index.astype(np.int16), shows, lesion)

    @classmethod
    def concatenate(cls, tables: Sequence[SliceTable]) -> SliceTable:
        """Concatenate tables of different volumes, in their order."""
        offsets = np.cumsum([0, *(len(table.volume_ids) for table in tables)])
        return cls(
            [volume_id for table in tables for volume_id in table.volume_ids],
            np.concatenate([table.volume + np.int32(offset) for table, offset in zip(tables, offsets, strict=False)]),
            np.concatenate([table.index for table in tables]),
            np.concatenate([table.shows for table in tables]),
            np.concatenate([table.lesion for table in tables]),
        )

    def take(self, volume_ids: Sequence[str]) -> SliceTable:
        """Return the rows of these volumes, in their order; each must be in the table."""
        positions = {volume_id: position for position, volume_id in enumerate(self.volume_ids)}
        selected = np.array([positions[volume_id] for volume_id in volume_ids], np.int64)
        edges = np.searchsorted(self.volume, np.arange(len(self.volume_ids) + 1))
        counts = np.diff(edges)[selected]
        rows = np.arange(counts.sum()) + np.repeat(edges[selected] - (np.cumsum(counts) - counts), counts)
        volume = np.repeat(np.arange(len(selected), dtype=np.int32), counts)
        return SliceTable(list(volume_ids), volume, self.index[rows], self.shows[rows], self.lesion[rows])

    def with_content(self) -> SliceTable:
        """Return the rows of slices that contain tissue or a label: those that are trained on."""
        return SliceTable(
            self.volume_ids, self.volume[self.shows], self.index[self.shows], self.shows[self.shows], self.lesion[self.shows]
        )

    def write(self, root: Path) -> None:
        """Write the table under a corpus root, atomically; the same rows give the same bytes."""
        edges = np.searchsorted(self.volume, np.arange(0, len(self.volume_ids) + BLOCK, BLOCK))
        with atomic_file(root / FILE) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
            for block, (start, stop) in enumerate(pairwise(edges)):
                volume_ids = pa.array(self.volume_ids[block * BLOCK : (block + 1) * BLOCK], pa.string())
                indices = pa.array(self.volume[start:stop] - np.int32(block * BLOCK))
                lesion = self.lesion[start:stop]
                columns = [
                    pa.DictionaryArray.from_arrays(indices, volume_ids),
                    pa.array(self.index[start:stop]),
                    pa.array(self.shows[start:stop]),
                    pa.array(lesion == YES, mask=lesion == UNKNOWN),
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), row_group_size=max(int(stop - start), 1))

    @classmethod
    def read(cls, root: Path) -> SliceTable:
        """Read the table of a corpus, one row group at a time.

        Raises:
            BadInput: the table does not exist.
        """
        if not (root / FILE).exists():
            raise BadInput("no such table", where=str(root / FILE), remedy="run omnimri curate")
        with pq.ParquetFile(root / FILE, read_dictionary=["volume_id"]) as file:
            groups = (file.read_row_group(group, use_threads=False) for group in range(file.num_row_groups))
            return cls.concatenate([_from_row_group(group) for group in groups])


def _row_numbers(starts: NDArray[np.int64], slices: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Return the row numbers of some slices of each volume; ``starts`` are the rows of the first slices."""
    counts = [len(indices) for indices in slices]
    return np.fromiter(chain.from_iterable(slices), np.int64, sum(counts)) + np.repeat(starts, counts)


def _from_row_group(rows: pa.Table) -> SliceTable:
    volume_ids = rows.column("volume_id").combine_chunks()
    volume_ids = volume_ids.chunk(0) if isinstance(volume_ids, pa.ChunkedArray) else volume_ids
    lesion = rows.column("lesion").cast(pa.uint8()).fill_null(UNKNOWN)
    return SliceTable(
        volume_ids.dictionary.to_pylist(),
        volume_ids.indices.to_numpy().astype(np.int32),
        rows.column("slice_index").to_numpy(),
        rows.column("shows").to_numpy(),
        lesion.to_numpy(),
    )
