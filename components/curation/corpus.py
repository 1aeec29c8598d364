"""Reading a curated corpus."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from components.curation.slice_table import SliceTable
from components.curation.store import VolumeStore
from components.curation.table_rows import DescriptionRecord, InstructionRecord, Split, VolumeRecord
from components.curation.tables import DESCRIPTIONS, INSTRUCTIONS, SPLITS, VOLUMES, read_table
from components.errors import BadInput
from components.files import read_json
from components.provenance import digest

SUMMARY = "corpus.json"
QUARANTINE = "quarantine.json"
"""Rows that validation leaves out: ``{"digest": of the tables, "volumes": {id: [rules]}, "instructions": {id: [rules]}}``."""
STORE = "store"


@dataclass(frozen=True)
class Corpus:
    """A curated corpus on disk; each table is read when it is first asked for.

    Attributes:
        root: folder of ``corpus.json``, the Parquet tables and the store.
        summary: content of ``corpus.json``.
        left_out: table -> ids of the rows that are in quarantine; they are not read.
    """

    root: Path
    summary: dict[str, Any]
    left_out: dict[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def open(cls, root: Path, whole: bool = False) -> Corpus:
        """Open the corpus under ``root``.

        Args:
            whole: with the rows that are in quarantine.

        Raises:
            BadInput: nothing has been curated there.
        """
        path = root / SUMMARY
        if not path.exists():
            raise BadInput("no curated corpus", where=str(root), remedy="run omnimri curate")
        summary = read_json(path)
        if whole or not (root / QUARANTINE).exists() or (found := read_json(root / QUARANTINE))["digest"] != summary["digest"]:
            return cls(root, summary)
        return cls(root, summary, {table: frozenset(found[table]) for table in ("volumes", "instructions") if found[table]})

    @property
    def tables_digest(self) -> str:
        """Digest of the tables as they lie there (which name every volume by its content)."""
        return str(self.summary["digest"])

    @property
    def digest(self) -> str:
        """Digest of what is read: of the tables, less the quarantine."""
        if not self.left_out:
            return self.tables_digest
        return digest(self.tables_digest, {table: sorted(ids) for table, ids in self.left_out.items()})

    def _kept(self, table: str, key: str) -> bool:
        return key not in self.left_out.get(table, ())

    @cached_property
    def volumes(self) -> dict[str, VolumeRecord]:
        """volume_id -> record."""
        return {one.volume_id: one for one in read_table(self.root, VOLUMES) if self._kept("volumes", one.volume_id)}

    @cached_property
    def descriptions(self) -> dict[str, DescriptionRecord]:
        """volume_id -> description; a volume may have none."""
        return {one.volume_id: one for one in read_table(self.root, DESCRIPTIONS) if self._kept("volumes", one.volume_id)}

    @cached_property
    def instructions(self) -> list[InstructionRecord]:
        """Every instruction, in the order of ``sample_id``."""
        rows = read_table(self.root, INSTRUCTIONS)
        return [one for one in rows if self._kept("volumes", one.volume_id) and self._kept("instructions", one.sample_id)]

    @cached_property
    def splits(self) -> dict[str, Split]:
        """patient_id -> split."""
        return {record.patient_id: record.split for record in read_table(self.root, SPLITS)}

    @cached_property
    def slices(self) -> SliceTable:
        """Every slice of every volume, and what it shows."""
        return SliceTable.read(self.root)

    @property
    def store(self) -> VolumeStore:
        """The arrays."""
        return VolumeStore(self.root / STORE)

    def label_map(self, dataset_id: str) -> dict[int, str]:
        """Label value -> structure name of a dataset, from its card as it was at curation.

        Raises:
            BadInput: the dataset is not in this corpus.
        """
        datasets = self.summary["datasets"]
        if dataset_id not in datasets:
            raise BadInput("not a dataset of this corpus", where=dataset_id, remedy=f"one of {', '.join(sorted(datasets))}")
        return {int(value): name for value, name in datasets[dataset_id]["label_map"].items()}
