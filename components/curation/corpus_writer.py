"""Write the tables of a corpus from curated volumes, and copy as many rows as possible from the existing tables.

The rows of a volume follow from its content (its id), its patient, and its split. If all of these are unchanged, its rows are
copied as columns, and nothing about the volume is read or computed. The result is identical, byte for byte, to that of a corpus
written from scratch. All tables are written beside the last ones and replace them together, with ``corpus.json`` last
(:mod:`components.file_switch`): a run that fails leaves the last corpus.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from components.curation.corpus import SUMMARY
from components.curation.curate_volume import CardFacts, LoadVolume
from components.curation.slice_table import FILE as SLICES_FILE
from components.curation.slice_table import SliceTable
from components.curation.splits import Patient, split_patients
from components.curation.table_rows import InstructionRecord, SplitRecord, VolumeInstructionRecord, VolumeRecord
from components.curation.tables import (
    BATCH,
    DESCRIPTIONS,
    INSTRUCTIONS,
    SPLITS,
    TABLES,
    VOLUME_INSTRUCTIONS,
    VOLUMES,
    Table,
    read_arrow,
    read_table,
    to_arrow,
    write_arrow,
    write_table,
)
from components.curation.text.instructions import list_candidates, list_volume_candidates, select_balanced
from components.curation.text.volume_instructions import list_study_instructions
from components.file_switch import FileSwitch
from components.files import read_json, write_json
from components.provenance import digest, file_md5
from components.settings import CurationSettings

SURPLUS = Table("surplus", InstructionRecord, "sample_id")
"""Instructions that balancing excluded; they are stored so that the next curation need not compute them again."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class PreviousCorpus:
    """The tables of an earlier curation.

    Attributes:
        root: folder of the corpus.
        records: rows of the volume table by volume_id.
    """

    root: Path
    records: dict[str, VolumeRecord]

    @classmethod
    def open(cls, root: Path, row_recipe: str) -> PreviousCorpus | None:
        """Open the corpus under ``root`` if its tables are intact and its rows were computed with ``row_recipe``, else None."""
        if not (root / SUMMARY).exists():
            return None
        summary = read_json(root / SUMMARY)
        if summary.get("made_by") != row_recipe or summary["tables"] != _table_digests(root):
            return None
        return cls(root, {record.volume_id: record for record in read_table(root, VOLUMES)})

    def rows(self, table: Table[Any], volume_ids: Iterable[str]) -> pa.Table:
        """Return the rows of some volumes."""
        content = read_arrow(self.root, table)
        return content.filter(pc.is_in(content.column("volume_id"), value_set=pa.array(volume_ids, pa.string())))


@dataclass(frozen=True)
class _VolumeRows:
    """The rows that follow from single volumes.

    Attributes:
        descriptions, slices: final rows.
        candidates: instructions before balancing.
        volume_candidates: instructions about whole volumes before balancing.
    """

    descriptions: pa.Table
    candidates: pa.Table
    volume_candidates: pa.Table
    slices: SliceTable


def write_corpus(
    out: Path,
    records: Iterable[VolumeRecord],
    load: LoadVolume,
    cards: dict[str, CardFacts],
    settings: CurationSettings,
    inputs: str,
    row_recipe: str = "",
    previous: PreviousCorpus | None = None,
    unreadable: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write the tables and ``corpus.json`` of curated volumes whose arrays are in the store; return the summary.

    Args:
        out: root of the corpus.
        records: one for each volume; the split is assigned here.
        load: reads a curated volume; called only for volumes whose rows ``previous`` does not contain unchanged.
        cards: dataset id -> card facts.
        settings: of curation.
        inputs: digest of the inputs of the corpus.
        row_recipe: digest of what decides the rows of a volume besides the volume itself.
        previous: the existing tables, computed with the same ``row_recipe``.
        unreadable: ``dataset/series`` that is left out -> the reason.
    """
    switch = FileSwitch(out, SUMMARY)
    if switch.incoming.exists():
        shutil.rmtree(switch.incoming)
    for temporary in out.glob(".*.tmp"):
        temporary.unlink()  # files of a killed run
    unique, duplicates = _drop_duplicates(records)
    volumes, splits = _assign_splits(sorted(unique, key=lambda record: record.volume_id), settings)
    rows = _collect_rows(volumes, load, cards, settings, previous)
    datasets_of_volumes = {record.volume_id: record.dataset_id for record in volumes}
    selected = select_balanced(rows.candidates, datasets_of_volumes)
    about_volumes = _volume_instructions(rows.volume_candidates, volumes, datasets_of_volumes)
    write_table(switch.incoming, VOLUMES, volumes)
    write_arrow(switch.incoming, DESCRIPTIONS, rows.descriptions)
    write_arrow(switch.incoming, INSTRUCTIONS, rows.candidates.filter(selected))
    write_arrow(switch.incoming, SURPLUS, rows.candidates.filter(~selected))
    write_arrow(switch.incoming, VOLUME_INSTRUCTIONS, about_volumes)
    write_table(switch.incoming, SPLITS, splits)
    rows.slices.write(switch.incoming)
    counts = {
        "volumes": len(volumes),
        "slices": len(rows.slices),
        "descriptions": len(volumes),
        "instructions": int(selected.sum()),
        "volume_instructions": int(pc.sum(about_volumes.column("included")).as_py() or 0),
        "patients": len(splits),
        "splits": {name: sum(record.split == name for record in splits) for name in ("train", "validation", "test")},
    }
    datasets = {name: facts.model_dump(mode="json") for name, facts in sorted(cards.items())}
    tables = _table_digests(switch.incoming)
    summary = {
        "inputs": inputs,
        "made_by": row_recipe,
        "digest": digest(tables, datasets),
        "tables": tables,
        "datasets": datasets,
        "settings": settings.model_dump(mode="json", exclude={"workers"}),
        "duplicates": duplicates,
        "unreadable": dict(unreadable or {}),
        "counts": counts,
    }
    write_json(switch.incoming / SUMMARY, summary)
    switch.commit([path.name for path in sorted(switch.incoming.iterdir()) if path.name != SUMMARY])
    shutil.rmtree(switch.incoming)
    return summary


def _drop_duplicates(records: Iterable[VolumeRecord]) -> tuple[list[VolumeRecord], dict[str, str]]:
    """Return the first series (by dataset and name) of every content, and the others: ``dataset/series`` -> its first series.

    The same image in another file format or transfer syntax would otherwise count twice, perhaps in two splits.
    """
    first_by_content: dict[str, VolumeRecord] = {}
    duplicates: dict[str, str] = {}
    for record in sorted(records, key=lambda record: (record.dataset_id, record.series_id)):
        first = first_by_content.setdefault(record.content_md5, record)
        if first is not record:
            duplicates[_series_name(record)] = _series_name(first)
    return list(first_by_content.values()), duplicates


def _series_name(record: VolumeRecord) -> str:
    return f"{record.dataset_id}/{record.series_id}"


def _assign_splits(records: list[VolumeRecord], settings: CurationSettings) -> tuple[list[VolumeRecord], list[SplitRecord]]:
    patients = (Patient(record.patient_id, record.dataset_id, record.lesion) for record in records)
    splits = split_patients(patients, settings.validation_fraction, settings.test_fraction, settings.split_seed)
    volumes = [
        record if record.split == splits[record.patient_id] else record.model_copy(update={"split": splits[record.patient_id]})
        for record in records
    ]
    return volumes, [SplitRecord(patient_id=patient, split=split) for patient, split in splits.items()]


def _collect_rows(
    volumes: list[VolumeRecord],
    load: LoadVolume,
    cards: dict[str, CardFacts],
    settings: CurationSettings,
    previous: PreviousCorpus | None,
) -> _VolumeRows:
    """Collect the rows of volumes, which are in the order of their ids: copied where unchanged, else computed in batches."""
    existing = previous.records if previous else {}
    unchanged = [record.volume_id for record in volumes if existing.get(record.volume_id) == record]
    descriptions, instructions, about_volumes, slices = [], [], [], []
    if previous:
        descriptions.append(previous.rows(DESCRIPTIONS, unchanged))
        instructions += [previous.rows(INSTRUCTIONS, unchanged), previous.rows(SURPLUS, unchanged)]
        kept = previous.rows(VOLUME_INSTRUCTIONS, unchanged)
        about_volumes.append(kept.filter(pc.equal(kept.column("scope"), "volume")))
        slices.append(SliceTable.read(previous.root).take(unchanged))
    copied = set(unchanged)
    changed = [record for record in volumes if record.volume_id not in copied]
    for records in _batches(changed, BATCH):
        loaded = [load(record.volume_id).model_copy(update={"record": record}) for record in records]
        descriptions.append(to_arrow(DESCRIPTIONS, (volume.description for volume in loaded)))
        rows = (row for volume in loaded for row in list_candidates(volume, cards[volume.record.dataset_id], settings))
        instructions.append(to_arrow(INSTRUCTIONS, rows))
        whole = (row for volume in loaded for row in list_volume_candidates(volume, cards[volume.record.dataset_id], settings))
        about_volumes.append(to_arrow(VOLUME_INSTRUCTIONS, whole))
        slices.append(SliceTable.from_facts((volume.record.volume_id, volume.record.slices, volume.facts) for volume in loaded))
    in_order = SliceTable.concatenate(slices).take([record.volume_id for record in volumes])
    return _VolumeRows(pa.concat_tables(descriptions), pa.concat_tables(instructions), pa.concat_tables(about_volumes), in_order)


def _volume_instructions(candidates: pa.Table, volumes: list[VolumeRecord], datasets: dict[str, str]) -> pa.Table:
    """Return the instructions about volumes and studies, of which balancing includes some, each scope by itself."""
    about_volumes = [VolumeInstructionRecord.model_validate(row) for row in candidates.to_pylist()]
    about_studies = to_arrow(VOLUME_INSTRUCTIONS, list_study_instructions(about_volumes, volumes))
    tables = []
    for table in (candidates, about_studies):
        position = table.schema.get_field_index("included")
        tables.append(table.set_column(position, table.schema.field(position), pa.array(select_balanced(table, datasets))))
    return pa.concat_tables(tables)


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _table_digests(root: Path) -> dict[str, str]:
    """Return the digest of every existing table."""
    files = {table.name: table.path(root) for table in (*TABLES, SURPLUS)} | {"slices": root / SLICES_FILE}
    return {name: digest(file_md5(path)) for name, path in files.items() if path.exists()}
