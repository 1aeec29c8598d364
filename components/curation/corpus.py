"""Reading a curated corpus."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from components.curation.records import DescriptionRecord, InstructionRecord, Split, VolumeRecord
from components.curation.slices import SliceTable
from components.curation.store import VolumeStore
from components.curation.tables import DESCRIPTIONS, INSTRUCTIONS, SPLITS, VOLUMES, read_table
from components.errors import BadInput
from components.files import read_json

SUMMARY = "corpus.json"
STORE = "store"


@dataclass(frozen=True)
class Corpus:
    """A curated corpus on disk; each table is read when it is first asked for.

    Attributes:
        root: folder of ``corpus.json``, the Parquet tables and the store.
        summary: content of ``corpus.json``.
    """

    root: Path
    summary: dict[str, Any]

    @classmethod
    def open(cls, root: Path) -> Corpus:
        """Open the corpus under ``root``.

        Raises:
            BadInput: nothing has been curated there.
        """
        path = root / SUMMARY
        if not path.exists():
            raise BadInput("no curated corpus", where=str(root), remedy="run omnimri curate")
        return cls(root, read_json(path))

    @property
    def digest(self) -> str:
        """Digest of the tables (which name every volume by its content)."""
        return str(self.summary["digest"])

    @cached_property
    def volumes(self) -> dict[str, VolumeRecord]:
        """volume_id -> record."""
        return {record.volume_id: record for record in read_table(self.root, VOLUMES)}

    @cached_property
    def descriptions(self) -> dict[str, DescriptionRecord]:
        """volume_id -> description; a volume may have none."""
        return {record.volume_id: record for record in read_table(self.root, DESCRIPTIONS)}

    @cached_property
    def instructions(self) -> list[InstructionRecord]:
        """Every instruction, in the order of ``sample_id``."""
        return read_table(self.root, INSTRUCTIONS)

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
