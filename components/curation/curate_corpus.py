"""Bringing a curated corpus up to date with ``data/``: only what changed is curated, what vanished is removed.

A volume's name is the digest of everything that decides its content: the bytes of its source files (md5), the settings that shape
its voxels, the code of curation and ingestion, and its dataset card. Whose it is and what its files are called are not among these,
so an input that was renamed or moved to another patient costs new table rows and no voxel. What is named already is there already.
Each finished volume leaves its arrays and, last, a JSON sidecar in the store, so an interrupted run goes on where it stopped.

The volumes to be made can be made anywhere that sees ``data/`` and the corpus (:data:`Runner`): in processes of this machine, or on
a cluster. Tables are made by :mod:`components.curation.corpus_writer`. ``corpus.json`` is written last and names the inputs; where
they are the same, a run ends after reading the manifests.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.curation.corpus import STORE, SUMMARY
from components.curation.corpus_writer import Previous, write_corpus
from components.curation.curate_volume import CardFacts, CuratedVolume, curate_volume
from components.curation.store import VolumeStore
from components.curation.table_rows import CurationReport, VolumeRecord
from components.curation.vlm import Answers, VisualReport, prune
from components.errors import BadInput, JobFailed, OmniMRIError
from components.files import atomic_file, read_json
from components.ingestion.manifest import MANIFEST
from components.ingestion.volume import SourceSeries
from components.progress import track
from components.provenance import code_digest, digest
from components.settings import CurationSettings

if TYPE_CHECKING:
    from components.catalog import DatasetCard

CODE = ("components/curation", "components/ingestion", "model_core/boxes.py")
"""Sources that decide what a curated volume and its texts are."""
FEW = 32
"""So many volumes or fewer are curated in this process: starting others would take longer."""
INFORMATIVE = {
    "name",
    "landing_page",
    "licence",
    "access",
    "rights",
    "doi",
    "version",
    "regions",
    "tasks",
    "field_strengths_t",
    "vendors",
    "sequences",
    "patients",
    "scans",
    "volumes",
    "slices",
    "male",
    "female",
    "age_years",
    "mean_age_years",
    "overlaps",
    "sources",
    "notes",
}
"""What a card says to people. An edit of it changes no volume."""
_NAMES = ("patient_id", "series_id", "source_md5")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One volume to be curated."""

    volume_id: str
    series: SourceSeries
    card: DatasetCard


@dataclass(frozen=True)
class Place:
    """Where jobs find their sources and leave their volumes, and how they are curated; the same for all jobs of a run.

    Attributes:
        data: de-identified source files.
        store: root of the volume store.
    """

    data: Path
    store: Path
    settings: CurationSettings


Runner = Callable[[list[Job], Place], None]
"""Makes volumes: when it returns, :func:`curate_job` has been called for every job."""


def code_version() -> str:
    """Digest of the code that decides what a curated volume and its texts are."""
    return code_digest(*CODE)


def card_digest(card: DatasetCard) -> str:
    """Digest of what a card decides of its volumes."""
    return digest(card.model_dump(mode="json", exclude=INFORMATIVE))


def volume_id(series: SourceSeries, card: str, settings: CurationSettings) -> str:
    """Content address of a curated volume, 32 hex characters.

    Of the files, the bytes, the role and what stands after the first dot of the name (which tells a label map from a tissue map)
    count; of the settings, only those that shape voxels: another split or phrasing does not touch the store.

    Args:
        card: :func:`card_digest` of its card.
    """
    parts = (series.files, series.labels, series.annotations)
    content = [[[file.path.rpartition("/")[2].partition(".")[2], file.md5] for file in files] for files in parts]
    return digest(series.reader, content, card, settings.matrix, settings.pixel_mm, code_version())[:32]


def card_facts(card: DatasetCard) -> CardFacts:
    """What curation takes from a card."""
    return CardFacts(
        dataset_id=card.id,
        name=card.name,
        anatomy=card.anatomy,
        synthetic=card.synthetic,
        label_map=dict(card.label_map or {}),
        tasks=card.tasks,
        patients=card.patients,
        volumes=card.volumes,
    )


def sidecar(store: VolumeStore, volume_id: str) -> Path:
    """The JSON that says that a volume is in the store, and everything about it but its arrays and whose it is."""
    return store.path(volume_id, "voxels").with_name(f"{volume_id}.json")


def load(store: VolumeStore, volume_id: str) -> CuratedVolume:
    """What curation left of a volume; the names in its record are empty.

    Raises:
        BadInput: the sidecar is missing or damaged.
    """
    path = sidecar(store, volume_id)
    try:
        return CuratedVolume.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        raise BadInput("missing or damaged", where=path.name, remedy="remove it and run omnimri curate") from None


def named(record: VolumeRecord, series: SourceSeries) -> VolumeRecord:
    """The record of a volume with the names of the series it is made of now."""
    files = [file.path for file in (*series.files, *series.labels, *series.annotations)]
    names = {name: getattr(series, name.replace("source_", "")) for name in _NAMES} | {"source_files": files}
    return record if all(getattr(record, name) == value for name, value in names.items()) else record.model_copy(update=names)


def curate_job(job: Job, place: Place) -> None:
    """Read, curate and store one volume; its sidecar is written last.

    Raises:
        BadInput: its files cannot be read.
        JobFailed: it could not be curated; the message names the series.
    """
    from components.ingestion import read_volume

    store = VolumeStore(place.store)
    store.remove(job.volume_id)  # what a killed run left of it
    try:
        volume = read_volume(place.data, job.series, job.card)
        curated = curate_volume(job.volume_id, volume, job.series, card_facts(job.card), place.settings, store)
    except OmniMRIError:
        raise
    except Exception as error:
        raise JobFailed(
            f"curation failed: {type(error).__name__}: {error}",
            where=f"{job.series.dataset_id}/{job.series.series_id}",
            remedy="ingest the dataset again; then curate",
        ) from error
    nobody = curated.record.model_copy(update=dict.fromkeys(_NAMES, "") | {"source_files": []})
    with atomic_file(sidecar(store, job.volume_id)) as temporary:
        temporary.write_text(curated.model_copy(update={"record": nobody}).model_dump_json())


def in_processes(jobs: list[Job], place: Place) -> None:
    """Curate in ``settings.workers`` processes. Fresh ones (spawn): this process may hold threads and locks of other libraries."""
    workers = min(place.settings.workers, len(jobs))
    if len(jobs) <= FEW or workers == 1:
        for job in track(jobs, "curating"):
            curate_job(job, place)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(curate_job, job, place) for job in jobs]
        try:
            for future in track(futures, "curating"):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _warn_of_empty_splits(summary: dict[str, Any], settings: CurationSettings) -> None:
    wanted = {"train": 1.0, "validation": settings.validation_fraction, "test": settings.test_fraction}
    for name, fraction in wanted.items():
        if fraction > 0 and not summary["counts"]["splits"][name]:
            logger.warning(
                "no patient is in the %s split: datasets of fewer than four patients all go to train; add patients", name
            )


def _report(summary: dict[str, Any], new: int, removed: int, started: float, visual: VisualReport | None = None) -> CurationReport:
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
        vlm_answered=visual.answered if visual else 0,
        vlm_reused=visual.reused if visual else 0,
        vlm_volumes_per_s=visual.rate if visual else 0.0,
        seconds=time.monotonic() - started,
    )


def _jobs(data: Path, cards: Iterable[DatasetCard], settings: CurationSettings) -> list[Job]:
    from components.ingestion import list_series

    jobs: list[Job] = []
    for card in cards:
        about = card_digest(card)
        jobs += [Job(volume_id(series, about, settings), series, card) for series in list_series(data, card.id)]
    return jobs


def curate(
    data: Path, cards: list[DatasetCard], out: Path, settings: CurationSettings, run: Runner = in_processes
) -> CurationReport:
    """Bring the corpus under ``out`` up to date with the ingested datasets under ``data``.

    Args:
        data: de-identified source files, as ``omnimri ingest`` leaves them.
        cards: the datasets of the corpus; volumes of others are removed from it.
        run: makes the volumes that are missing.

    Raises:
        BadInput: nothing is ingested of these datasets (where they have been, the corpus is emptied), or a file cannot be read.
        JobFailed: a volume could not be curated; the message names the series.
    """
    started = time.monotonic()
    jobs = _jobs(data, cards, settings)
    if not jobs:
        if any((data / card.id / MANIFEST).exists() for card in cards):
            shutil.rmtree(out, ignore_errors=True)  # the last patient has withdrawn, or left the source: nothing of them may stay
        raise BadInput("no ingested series", where=", ".join(card.id for card in cards), remedy="run omnimri ingest first")
    facts = {card.id: card_facts(card) for card in cards}
    made_by = digest(settings.model_dump(mode="json", exclude={"workers"}), code_version())
    inputs = digest(
        sorted([job.volume_id, job.series.patient_id, job.series.series_id, job.series.md5] for job in jobs),
        {name: facts[name].model_dump(mode="json") for name in sorted(facts)},
        made_by,
    )
    if (out / SUMMARY).exists() and (summary := read_json(out / SUMMARY))["inputs"] == inputs:
        return _report(summary, new=0, removed=0, started=started)
    store = VolumeStore(out / STORE)
    wanted = {job.volume_id: job for job in reversed(jobs)}
    doomed = [present for present in store.volume_ids() if present not in wanted]
    missing = [job for volume, job in wanted.items() if not sidecar(store, volume).exists()]
    previous = Previous.open(out, made_by)
    run(missing, Place(data, store.root, settings))
    (out / SUMMARY).unlink(missing_ok=True)
    for gone in doomed:
        store.remove(gone)  # the sidecar lies beside the arrays
    known = previous.records if previous else {}
    records = [named(known.get(job.volume_id) or load(store, job.volume_id).record, job.series) for job in jobs]
    prune(out, {record.content_md5 for record in records})
    loaded: Callable[[str], CuratedVolume] = partial(load, store)
    visual = None
    if settings.visual:
        answers = Answers(store, out, settings.visual)
        visual = answers.ask(records, loaded)
        loaded = answers.filling(loaded)
    summary = write_corpus(out, records, loaded, facts, settings, inputs, made_by, previous)
    _warn_of_empty_splits(summary, settings)
    duplicates = set(summary["duplicates"])
    new = {job.volume_id for job in missing if f"{job.series.dataset_id}/{job.series.series_id}" not in duplicates}
    return _report(summary, new=len(new), removed=len(doomed), started=started, visual=visual)
