"""Read a curated corpus."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from components.curation.slice_table import SliceTable
from components.curation.store import VolumeStore
from components.curation.table_rows import DescriptionRecord, InstructionRecord, Split, VolumeInstructionRecord, VolumeRecord
from components.curation.tables import DESCRIPTIONS, INSTRUCTIONS, SPLITS, VOLUME_INSTRUCTIONS, VOLUMES, read_table
from components.errors import BadInput
from components.file_switch import require_switched
from components.files import read_json
from components.provenance import digest

SUMMARY = "corpus.json"
QUARANTINE = "quarantine.json"
"""Rows that validation excludes: ``{"digest": of the tables, table: {id: [rules]}, ...}`` for each of :data:`QUARANTINED`."""
QUARANTINED = ("volumes", "instructions", "volume_instructions")
"""Tables whose rows may be in quarantine."""
STORE = "store"


@dataclass(frozen=True)
class Corpus:
    """A curated corpus on disk; each table is read at its first use.

    Attributes:
        root: folder of ``corpus.json``, the Parquet tables and the store.
        summary: content of ``corpus.json``.
        quarantined: table -> ids of the rows in quarantine, which are skipped.
    """

    root: Path
    summary: dict[str, Any]
    quarantined: dict[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def open(cls, root: Path, include_quarantined: bool = False) -> Corpus:
        """Open the corpus under ``root``.

        Args:
            root: folder of ``corpus.json``.
            include_quarantined: read the rows in quarantine, too.

        Raises:
            BadInput: nothing has been curated there.
            JobFailed: a curation was interrupted while it replaced the tables.
        """
        require_switched(root, "omnimri curate")
        path = root / SUMMARY
        if not path.exists():
            raise BadInput("no curated corpus", where=str(root), remedy="run omnimri curate")
        summary = read_json(path)
        if include_quarantined or not (root / QUARANTINE).exists():
            return cls(root, summary)
        quarantine = read_json(root / QUARANTINE)
        if quarantine["digest"] != summary["digest"]:  # of other tables
            return cls(root, summary)
        return cls(root, summary, {table: frozenset(quarantine[table]) for table in QUARANTINED if quarantine.get(table)})

    @property
    def tables_digest(self) -> str:
        """Digest of the tables as they are on disk (they name every volume by its content)."""
        return str(self.summary["digest"])

    @property
    def digest(self) -> str:
        """Digest of the rows that are read: of the tables without the rows in quarantine."""
        if not self.quarantined:
            return self.tables_digest
        return digest(self.tables_digest, {table: sorted(ids) for table, ids in self.quarantined.items()})

    def _is_included(self, table: str, key: str) -> bool:
        return key not in self.quarantined.get(table, ())

    @cached_property
    def volumes(self) -> dict[str, VolumeRecord]:
        """volume_id -> record."""
        rows = read_table(self.root, VOLUMES)
        return {row.volume_id: row for row in rows if self._is_included("volumes", row.volume_id)}

    @cached_property
    def descriptions(self) -> dict[str, DescriptionRecord]:
        """volume_id -> description; a volume may have none."""
        rows = read_table(self.root, DESCRIPTIONS)
        return {row.volume_id: row for row in rows if self._is_included("volumes", row.volume_id)}

    @cached_property
    def instructions(self) -> list[InstructionRecord]:
        """Every instruction, in the order of ``sample_id``."""
        return [
            row
            for row in read_table(self.root, INSTRUCTIONS)
            if self._is_included("volumes", row.volume_id) and self._is_included("instructions", row.sample_id)
        ]

    @cached_property
    def volume_instructions(self) -> list[VolumeInstructionRecord]:
        """Every instruction about a volume or a study that balancing includes, in the order of ``sample_id``."""
        return [
            row
            for row in read_table(self.root, VOLUME_INSTRUCTIONS)
            if row.included
            and self._is_included("volume_instructions", row.sample_id)
            and all(self._is_included("volumes", volume_id) for volume_id in row.series)
        ]

    @cached_property
    def splits(self) -> dict[str, Split]:
        """patient_id -> split."""
        return {record.patient_id: record.split for record in read_table(self.root, SPLITS)}

    @cached_property
    def slices(self) -> SliceTable:
        """Every slice of every volume, and whether it shows tissue or a lesion."""
        return SliceTable.read(self.root)

    @property
    def store(self) -> VolumeStore:
        """The arrays."""
        return VolumeStore(self.root / STORE)

    def label_map(self, dataset_id: str) -> dict[int, str]:
        """Return label value -> structure name of a dataset, from its card at the time of curation.

        Raises:
            BadInput: the dataset is not in this corpus.
        """
        datasets = self.summary["datasets"]
        if dataset_id not in datasets:
            raise BadInput("not a dataset of this corpus", where=dataset_id, remedy=f"one of {', '.join(sorted(datasets))}")
        return {int(value): name for value, name in datasets[dataset_id]["label_map"].items()}
