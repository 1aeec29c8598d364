"""The table of slices: one row for every slice of every curated volume, 19 million at the paper's scale.

Too many for Python objects: rows are made, kept, filtered and counted as numpy columns, 8 bytes a row.
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
"""Volumes whose rows are compressed together (a row group, with the names of its own volumes)."""
NO, YES, UNKNOWN = 0, 1, 2


@dataclass(frozen=True)
class SliceTable:
    """The slices of some volumes, volume after volume, each from its first slice to its last.

    Attributes:
        volume_ids: names.
        volume: (N,) int32, place in ``volume_ids``; never falls.
        index: (N,) int16, slice of the volume.
        shows: (N,) bool, there is tissue, or a label where the volume has labels.
        lesion: (N,) uint8, :data:`NO`, :data:`YES`, or :data:`UNKNOWN` (nobody looked, or too little of it to ask about).
    """

    volume_ids: list[str]
    volume: NDArray[np.int32]
    index: NDArray[np.int16]
    shows: NDArray[np.bool_]
    lesion: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def of(cls, volumes: Iterable[tuple[str, int, SliceFacts]]) -> SliceTable:
        """Rows of volumes, given as (volume_id, number of slices, facts)."""
        found = list(volumes)
        counts = np.array([slices for _, slices, _ in found], np.int64)
        starts = np.cumsum(counts) - counts
        shows, lesion = np.zeros(counts.sum(), np.bool_), np.full(counts.sum(), UNKNOWN, np.uint8)
        shows[_rows(starts, [facts.content_slices for _, _, facts in found])] = True
        lesion[_rows(starts, [facts.lesion_free_slices for _, _, facts in found])] = NO
        lesion[_rows(starts, [facts.lesion_slices for _, _, facts in found])] = YES
        volume = np.repeat(np.arange(len(found), dtype=np.int32), counts)
        index = np.arange(len(volume)) - np.repeat(starts, counts)
        return cls([name for name, _, _ in found], volume, index.astype(np.int16), shows, lesion)

    @classmethod
    def joined(cls, parts: Sequence[SliceTable]) -> SliceTable:
        """Tables of different volumes as one, in the order of the parts."""
        offsets = np.cumsum([0, *(len(part.volume_ids) for part in parts)])
        return cls(
            [name for part in parts for name in part.volume_ids],
            np.concatenate([part.volume + np.int32(offset) for part, offset in zip(parts, offsets, strict=False)]),
            np.concatenate([part.index for part in parts]),
            np.concatenate([part.shows for part in parts]),
            np.concatenate([part.lesion for part in parts]),
        )

    def take(self, volume_ids: Sequence[str]) -> SliceTable:
        """The rows of these volumes, in their order; each must be here."""
        places = {name: place for place, name in enumerate(self.volume_ids)}
        wanted = np.array([places[name] for name in volume_ids], np.int64)
        edges = np.searchsorted(self.volume, np.arange(len(self.volume_ids) + 1))
        counts = np.diff(edges)[wanted]
        rows = np.arange(counts.sum()) + np.repeat(edges[wanted] - (np.cumsum(counts) - counts), counts)
        volume = np.repeat(np.arange(len(wanted), dtype=np.int32), counts)
        return SliceTable(list(volume_ids), volume, self.index[rows], self.shows[rows], self.lesion[rows])

    def that_show(self) -> SliceTable:
        """The rows of slices that show something: what is trained on."""
        return SliceTable(
            self.volume_ids, self.volume[self.shows], self.index[self.shows], self.shows[self.shows], self.lesion[self.shows]
        )

    def write(self, root: Path) -> None:
        """Write under a corpus root, atomically; the same rows give the same bytes."""
        edges = np.searchsorted(self.volume, np.arange(0, len(self.volume_ids) + BLOCK, BLOCK))
        with atomic_file(root / FILE) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
            for block, (start, stop) in enumerate(pairwise(edges)):
                names = pa.array(self.volume_ids[block * BLOCK : (block + 1) * BLOCK], pa.string())
                places = pa.array(self.volume[start:stop] - np.int32(block * BLOCK))
                lesion = self.lesion[start:stop]
                columns = [
                    pa.DictionaryArray.from_arrays(places, names),
                    pa.array(self.index[start:stop]),
                    pa.array(self.shows[start:stop]),
                    pa.array(lesion == YES, mask=lesion == UNKNOWN),
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), row_group_size=max(int(stop - start), 1))

    @classmethod
    def read(cls, root: Path) -> SliceTable:
        """Read the table of a corpus, a row group at a time.

        Raises:
            BadInput: no such table.
        """
        if not (root / FILE).exists():
            raise BadInput("no such table", where=str(root / FILE), remedy="run omnimri curate")
        with pq.ParquetFile(root / FILE, read_dictionary=["volume_id"]) as file:
            return cls.joined([_part(file.read_row_group(group, use_threads=False)) for group in range(file.num_row_groups)])


def _rows(starts: NDArray[np.int64], slices: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Rows of some slices of each volume, whose first rows are ``starts``."""
    counts = [len(indices) for indices in slices]
    return np.fromiter(chain.from_iterable(slices), np.int64, sum(counts)) + np.repeat(starts, counts)


def _part(rows: pa.Table) -> SliceTable:
    names = rows.column("volume_id").combine_chunks()
    names = names.chunk(0) if isinstance(names, pa.ChunkedArray) else names
    lesion = rows.column("lesion").cast(pa.uint8()).fill_null(UNKNOWN)
    return SliceTable(
        names.dictionary.to_pylist(),
        names.indices.to_numpy().astype(np.int32),
        rows.column("slice_index").to_numpy(),
        rows.column("shows").to_numpy(),
        lesion.to_numpy(),
    )
