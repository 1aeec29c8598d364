"""Bringing a curated corpus up to date with ``data/``: only what changed is curated, what vanished is removed.

A volume's name is the digest of everything that decides its content: its source files (md5), the settings that shape its voxels,
the code of curation and ingestion, and its dataset card. What is named already is there already. Each finished volume leaves its
arrays and, last, a JSON sidecar in the store, so an interrupted run goes on where it stopped. The tables are made anew from the
sidecars whenever the set of volumes, the settings or the code changed: that reads no voxels.

``corpus.json`` is written last and names the inputs; where they are the same, a run ends after reading the manifests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.curation.corpus import STORE, SUMMARY
from components.curation.instructions import make_instructions
from components.curation.records import CurationReport, SplitRecord
from components.curation.single import CardFacts, CuratedVolume, curate_volume
from components.curation.splits import Patient, split_patients
from components.curation.store import VolumeStore
from components.curation.tables import DESCRIPTIONS, INSTRUCTIONS, SPLITS, TABLES, VOLUMES, read_column, write_table
from components.curation.visual import add_visual, prune
from components.errors import BadInput, JobFailed, OmniMRIError
from components.files import atomic_file, read_json, write_json
from components.ingestion.volume import SourceSeries
from components.progress import track
from components.provenance import REPOSITORY, code_digest, digest, file_md5
from components.settings import CurationSettings

if TYPE_CHECKING:
    from components.catalog import DatasetCard

FEW = 3
"""So many volumes or fewer are curated in this process: starting others would take longer."""


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One volume to be curated."""

    volume_id: str
    series: SourceSeries
    card: DatasetCard


def code_version() -> str:
    """Digest of the code that decides what a curated volume and its texts are."""
    return digest(code_digest("components/curation", "components/ingestion"), file_md5(REPOSITORY / "model_core" / "boxes.py"))


def volume_id(series: SourceSeries, card_digest: str, settings: CurationSettings) -> str:
    """Content address of a curated volume, 32 hex characters.

    Of the settings, only those that shape voxels count: another split or phrasing does not touch the store.
    """
    identity = (series.dataset_id, series.patient_id, series.series_id, series.md5, card_digest)
    return digest(*identity, settings.matrix, settings.pixel_mm, code_version())[:32]


def card_facts(card: DatasetCard) -> CardFacts:
    """What curation takes from a card."""
    return CardFacts(
        dataset_id=card.id, name=card.name, anatomy=card.anatomy, synthetic=card.synthetic, label_map=dict(card.label_map or {}),
        tasks=card.tasks, patients=card.patients, volumes=card.volumes,
    )  # fmt: skip


def _sidecar(store: VolumeStore, volume_id: str) -> Path:
    return store.path(volume_id, "voxels").with_name(f"{volume_id}.json")


def _write_sidecar(store: VolumeStore, curated: CuratedVolume) -> None:
    with atomic_file(_sidecar(store, curated.record.volume_id)) as temporary:
        temporary.write_text(curated.model_dump_json())


def _curate_one(job: Job, data: Path, store_root: Path, settings: CurationSettings) -> None:
    """Read, curate and store one volume; its sidecar is written last."""
    from components.ingestion import read_volume

    store = VolumeStore(store_root)
    try:
        volume = read_volume(data, job.series, job.card)
        curated = curate_volume(job.volume_id, volume, job.series, card_facts(job.card), settings, store)
    except OmniMRIError:
        raise
    except Exception as error:
        raise JobFailed(
            f"curation failed: {type(error).__name__}: {error}",
            where=f"{job.series.dataset_id}/{job.series.series_id}", remedy="ingest the dataset again; then curate",
        ) from error  # fmt: skip
    _write_sidecar(store, curated)


def _curate_all(jobs: list[Job], data: Path, store_root: Path, settings: CurationSettings) -> None:
    """Curate in ``settings.workers`` processes. Fresh ones (spawn): this process may hold threads and locks of other libraries."""
    if len(jobs) <= FEW or settings.workers == 1:
        for job in track(jobs, "curating"):
            _curate_one(job, data, store_root, settings)
        return
    workers = min(settings.workers, len(jobs))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_curate_one, job, data, store_root, settings) for job in jobs]
        try:
            for future in track(futures, "curating"):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _without_duplicates(volumes: Iterable[CuratedVolume]) -> tuple[list[CuratedVolume], dict[str, str]]:
    """The first series (by dataset and name) of every content, and the others: ``dataset/series`` -> the one that is kept.

    The same image in another file format or transfer syntax would otherwise count twice, perhaps on both sides of a split.
    """
    kept: dict[str, CuratedVolume] = {}
    left_out: dict[str, str] = {}
    for curated in sorted(volumes, key=lambda v: (v.record.dataset_id, v.record.series_id)):
        first = kept.setdefault(curated.record.content_md5, curated)
        if first is not curated:
            left_out[_series_name(curated)] = _series_name(first)
    return list(kept.values()), left_out


def _series_name(curated: CuratedVolume) -> str:
    return f"{curated.record.dataset_id}/{curated.record.series_id}"


def _with_splits(volumes: list[CuratedVolume], settings: CurationSettings) -> tuple[list[CuratedVolume], list[SplitRecord]]:
    patients = (Patient(v.record.patient_id, v.record.dataset_id, v.record.lesion) for v in volumes)
    splits = split_patients(patients, settings.validation_fraction, settings.test_fraction, settings.split_seed)
    placed = [v.model_copy(update={"record": v.record.model_copy(update={"split": splits[v.record.patient_id]})}) for v in volumes]
    return placed, [SplitRecord(patient_id=patient, split=split) for patient, split in splits.items()]


def write_corpus(
    out: Path, volumes: Iterable[CuratedVolume], cards: dict[str, CardFacts], settings: CurationSettings, inputs: str
) -> dict[str, Any]:
    """Write the four tables and ``corpus.json`` of curated volumes whose arrays are in the store; returns the summary.

    Args:
        inputs: digest of what the corpus was made from.
    """
    (out / SUMMARY).unlink(missing_ok=True)  # while the tables change there is no corpus, rather than half of one
    kept, left_out = _without_duplicates(volumes)
    placed, splits = _with_splits(kept, settings)
    instructions = make_instructions(placed, cards, settings)
    write_table(out, VOLUMES, [v.record for v in placed])
    write_table(out, DESCRIPTIONS, [v.description for v in placed])
    write_table(out, INSTRUCTIONS, instructions)
    write_table(out, SPLITS, splits)
    datasets = {name: facts.model_dump(mode="json") for name, facts in sorted(cards.items())}
    tables = {table.name: digest(file_md5(table.path(out))) for table in TABLES}
    summary = {
        "inputs": inputs,
        "digest": digest(tables, datasets),
        "tables": tables,
        "datasets": datasets,
        "settings": settings.model_dump(mode="json", exclude={"workers"}),
        "duplicates": left_out,
        "counts": {
            "volumes": len(placed),
            "descriptions": len(placed),
            "instructions": len(instructions),
            "patients": len(splits),
            "splits": {name: sum(record.split == name for record in splits) for name in ("train", "validation", "test")},
        },
    }
    write_json(out / SUMMARY, summary)
    return summary


def _load(store: VolumeStore, volume_id: str) -> CuratedVolume:
    return CuratedVolume.model_validate_json(_sidecar(store, volume_id).read_bytes())


def _remove(store: VolumeStore, volume_ids: Iterable[str]) -> None:
    for gone in volume_ids:
        store.remove(gone)  # the sidecar lies beside the arrays


def _warn_of_empty_splits(summary: dict[str, Any], settings: CurationSettings) -> None:
    wanted = {"train": 1.0, "validation": settings.validation_fraction, "test": settings.test_fraction}
    for name, fraction in wanted.items():
        if fraction > 0 and not summary["counts"]["splits"][name]:
            logger.warning(
                "no patient is in the %s split: datasets of fewer than four patients all go to train; add patients", name
            )  # fmt: skip


def _report(summary: dict[str, Any], new: int, removed: int, started: float) -> CurationReport:
    counts = summary["counts"]
    return CurationReport(
        digest=summary["digest"],
        volumes_total=counts["volumes"],
        volumes_new=new,
        volumes_reused=counts["volumes"] - new,
        volumes_removed=removed,
        volumes_duplicate=len(summary["duplicates"]),
        instructions=counts["instructions"],
        descriptions=counts["descriptions"],
        seconds=time.monotonic() - started,
    )


def curate(data: Path, cards: list[DatasetCard], out: Path, settings: CurationSettings) -> CurationReport:
    """Bring the corpus under ``out`` up to date with the ingested datasets under ``data``.

    Args:
        data: de-identified source files, as ``omnimri ingest`` leaves them.
        cards: the datasets of the corpus; volumes of others are removed from it.

    Raises:
        BadInput: nothing is ingested of these datasets, or a file cannot be read.
        JobFailed: a volume could not be curated; the message names the series.
    """
    from components.ingestion import list_series

    started = time.monotonic()
    jobs: list[Job] = []
    for card in cards:
        card_digest = digest(card)
        jobs += [Job(volume_id(series, card_digest, settings), series, card) for series in list_series(data, card.id)]
    if not jobs:
        raise BadInput("no ingested series", where=", ".join(card.id for card in cards), remedy="run omnimri ingest first")
    inputs = digest(sorted(job.volume_id for job in jobs), settings.model_dump(mode="json", exclude={"workers"}), code_version())
    if (out / SUMMARY).exists() and (summary := read_json(out / SUMMARY))["inputs"] == inputs:
        return _report(summary, new=0, removed=0, started=started)
    store = VolumeStore(out / STORE)
    wanted = {job.volume_id for job in jobs}
    doomed = [present for present in store.volume_ids() if present not in wanted]
    missing = [job for job in jobs if not _sidecar(store, job.volume_id).exists()]
    _curate_all(missing, data, store.root, settings)
    (out / SUMMARY).unlink(missing_ok=True)
    _remove(store, doomed)
    facts = {card.id: card_facts(card) for card in cards}
    curated = [_load(store, job.volume_id) for job in jobs]
    prune(out, {one.record.content_md5 for one in curated})
    if settings.visual:
        curated, _ = add_visual(curated, store, out, settings.visual)
    summary = write_corpus(out, curated, facts, settings, inputs)
    _warn_of_empty_splits(summary, settings)
    new = {job.volume_id for job in missing}
    kept_new = sum(record in new for record in read_column(out, VOLUMES, "volume_id"))
    return _report(summary, new=kept_new, removed=len(doomed), started=started)
