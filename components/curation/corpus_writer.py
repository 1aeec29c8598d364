"""The tables of a corpus, made of what curation left of each volume, with as much as possible of the tables that are there.

What a volume gives to the tables follows from its content (its id), from who it belongs to, and from its split. Where all of these
are as they were, its rows are taken over as columns, and nothing about it is read or made. The result is the same to the byte as
that of a corpus made from nothing; it is written so that while tables change there is no corpus, rather than half of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from components.curation.corpus import SUMMARY
from components.curation.curate_volume import CardFacts, CuratedVolume
from components.curation.slice_table import FILE as SLICES_FILE
from components.curation.slice_table import SliceTable
from components.curation.splits import Patient, split_patients
from components.curation.table_rows import InstructionRecord, SplitRecord, VolumeRecord
from components.curation.tables import (
    BATCH,
    DESCRIPTIONS,
    INSTRUCTIONS,
    SPLITS,
    TABLES,
    VOLUMES,
    Table,
    read_arrow,
    read_table,
    to_arrow,
    write_arrow,
    write_table,
)
from components.curation.text.instructions import balanced, candidates
from components.files import read_json, write_json
from components.provenance import digest, file_md5
from components.settings import CurationSettings

SURPLUS = Table("surplus", InstructionRecord, "sample_id")
"""Instructions that balancing left out: kept, so that the next curation need not make them to know them."""
Load = Callable[[str], CuratedVolume]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Previous:
    """The tables of an earlier curation.

    Attributes:
        records: by volume_id, as they stand in the table.
    """

    root: Path
    records: dict[str, VolumeRecord]

    @classmethod
    def open(cls, root: Path, made_by: str) -> Previous | None:
        """The corpus under ``root`` if it is whole and rows of it would be made the same way today, else None."""
        if not (root / SUMMARY).exists():
            return None
        summary = read_json(root / SUMMARY)
        if summary.get("made_by") != made_by or summary["tables"] != _sums(root):
            return None
        return cls(root, {record.volume_id: record for record in read_table(root, VOLUMES)})

    def rows(self, table: Table[Any], volume_ids: Iterable[str]) -> pa.Table:
        """The rows of some volumes."""
        content = read_arrow(self.root, table)
        return content.filter(pc.is_in(content.column("volume_id"), value_set=pa.array(volume_ids, pa.string())))


def _sums(root: Path) -> dict[str, str]:
    """Digest of every table that is there."""
    files = {table.name: table.path(root) for table in (*TABLES, SURPLUS)} | {"slices": root / SLICES_FILE}
    return {name: digest(file_md5(path)) for name, path in files.items() if path.exists()}


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _name(record: VolumeRecord) -> str:
    return f"{record.dataset_id}/{record.series_id}"


def _without_duplicates(records: Iterable[VolumeRecord]) -> tuple[list[VolumeRecord], dict[str, str]]:
    """The first series (by dataset and name) of every content, and the others: ``dataset/series`` -> the one that is kept.

    The same image in another file format or transfer syntax would otherwise count twice, perhaps on both sides of a split.
    """
    kept: dict[str, VolumeRecord] = {}
    left_out: dict[str, str] = {}
    for record in sorted(records, key=lambda record: (record.dataset_id, record.series_id)):
        first = kept.setdefault(record.content_md5, record)
        if first is not record:
            left_out[_name(record)] = _name(first)
    return list(kept.values()), left_out


def _with_splits(records: list[VolumeRecord], settings: CurationSettings) -> tuple[list[VolumeRecord], list[SplitRecord]]:
    patients = (Patient(record.patient_id, record.dataset_id, record.lesion) for record in records)
    splits = split_patients(patients, settings.validation_fraction, settings.test_fraction, settings.split_seed)
    placed = [
        record if record.split == splits[record.patient_id] else record.model_copy(update={"split": splits[record.patient_id]})
        for record in records
    ]
    return placed, [SplitRecord(patient_id=patient, split=split) for patient, split in splits.items()]


def _rows(
    placed: list[VolumeRecord], load: Load, cards: dict[str, CardFacts], settings: CurationSettings, previous: Previous | None
) -> tuple[pa.Table, pa.Table, SliceTable]:
    """Descriptions, candidates for instructions, and slices of the volumes, which come in the order of their ids."""
    before = previous.records if previous else {}
    same = [record.volume_id for record in placed if before.get(record.volume_id) == record]
    unchanged = set(same)
    descriptions, asked, sliced = [], [], []
    if previous:
        descriptions.append(previous.rows(DESCRIPTIONS, same))
        asked += [previous.rows(INSTRUCTIONS, same), previous.rows(SURPLUS, same)]
        sliced.append(SliceTable.read(previous.root).take(same))
    changed = [record for record in placed if record.volume_id not in unchanged]
    for records in _batches(changed, BATCH):
        volumes = [load(record.volume_id).model_copy(update={"record": record}) for record in records]
        descriptions.append(to_arrow(DESCRIPTIONS, (volume.description for volume in volumes)))
        made = (one for volume in volumes for one in candidates(volume, cards[volume.record.dataset_id], settings))
        asked.append(to_arrow(INSTRUCTIONS, made))
        sliced.append(SliceTable.of((volume.record.volume_id, volume.record.slices, volume.facts) for volume in volumes))
    slices = SliceTable.joined(sliced).take([record.volume_id for record in placed])
    return pa.concat_tables(descriptions), pa.concat_tables(asked), slices


def write_corpus(
    out: Path,
    records: Iterable[VolumeRecord],
    load: Load,
    cards: dict[str, CardFacts],
    settings: CurationSettings,
    inputs: str,
    made_by: str = "",
    previous: Previous | None = None,
) -> dict[str, Any]:
    """Write the tables and ``corpus.json`` of curated volumes whose arrays are in the store; returns the summary.

    Args:
        records: who each volume is; the split is decided here.
        load: what curation left of a volume, by its id; asked only for volumes that ``previous`` does not have as they are now.
        inputs: digest of what the corpus was made from.
        made_by: digest of what decides the rows of a volume besides itself.
        previous: the tables that are there, made by the same.
    """
    (out / SUMMARY).unlink(missing_ok=True)
    for left in out.glob(".*.tmp"):
        left.unlink()  # of a run that was killed
    kept, left_out = _without_duplicates(records)
    placed, splits = _with_splits(sorted(kept, key=lambda record: record.volume_id), settings)
    descriptions, asked, slices = _rows(placed, load, cards, settings, previous)
    taken = balanced(asked, {record.volume_id: record.dataset_id for record in placed})
    write_table(out, VOLUMES, placed)
    write_arrow(out, DESCRIPTIONS, descriptions)
    write_arrow(out, INSTRUCTIONS, asked.filter(taken))
    write_arrow(out, SURPLUS, asked.filter(~taken))
    write_table(out, SPLITS, splits)
    slices.write(out)
    datasets = {name: facts.model_dump(mode="json") for name, facts in sorted(cards.items())}
    tables = _sums(out)
    summary = {
        "inputs": inputs,
        "made_by": made_by,
        "digest": digest(tables, datasets),
        "tables": tables,
        "datasets": datasets,
        "settings": settings.model_dump(mode="json", exclude={"workers"}),
        "duplicates": left_out,
        "counts": {
            "volumes": len(placed),
            "slices": len(slices),
            "descriptions": len(placed),
            "instructions": int(taken.sum()),
            "patients": len(splits),
            "splits": {name: sum(record.split == name for record in splits) for name in ("train", "validation", "test")},
        },
    }
    write_json(out / SUMMARY, summary)
    return summary
