"""Update a curated corpus to the state of ``data/``: curate new and changed volumes, remove volumes whose source is gone.

The id of a volume is the digest of everything that decides its content: the bytes of its source files (MD5), the settings that
shape its voxels, the code of curation and ingestion, and its dataset card. Patient and file names are not part of it, so that an
input that was renamed or moved to another patient changes table rows but no voxel. A volume whose id is in the store is not curated
again. Each curated volume writes its arrays and, last, a JSON sidecar to the store; an interrupted run therefore resumes where it
stopped.

Missing volumes can be curated on any machine that sees ``data/`` and the corpus (:data:`JobRunner`): in processes of this machine,
or on a cluster. :mod:`components.curation.corpus_writer` writes the tables. ``corpus.json`` is written last and carries the digest
of the inputs; if they are unchanged, a run ends after reading the manifests.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.curation.corpus import STORE, SUMMARY
from components.curation.corpus_writer import PreviousCorpus, write_corpus
from components.curation.curate_volume import CardFacts, CuratedVolume, LoadVolume, curate_volume
from components.curation.inputs import (
    CurationInputs,
    card_digest,
    card_facts,
    compute_volume_id,
    ingested_series,
    inputs_of_series,
)
from components.curation.store import VolumeStore
from components.curation.table_rows import CurationReport, VolumeRecord
from components.curation.vlm import AnnotationReport, VlmAnnotator, remove_stale_answers
from components.errors import BadInput, JobFailed, OmniMRIError
from components.file_switch import FileSwitch, is_switching
from components.files import atomic_file, read_json, write_json
from components.ingestion.manifest import MANIFEST
from components.ingestion.volume import SourceSeries
from components.machine_faults import own_file, raise_machine_fault
from components.settings import CurationSettings
from components.worker_pool import WorkerPool

if TYPE_CHECKING:
    from components.catalog import DatasetCard

_SHOWN = 8
"""Unreadable volumes that are shown to the user one by one."""
_SOURCE_NAMES = ("patient_id", "series_id", "visit", "source_md5")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VolumeJob:
    """One volume to curate."""

    volume_id: str
    series: SourceSeries
    card: DatasetCard


@dataclass(frozen=True)
class CurationTarget:
    """Folders and settings that all jobs of a run share.

    Attributes:
        data: folder of the de-identified source files.
        store: root of the volume store.
        settings: of curation.
    """

    data: Path
    store: Path
    settings: CurationSettings


CLEANUP = ".cleanup"
"""File in the corpus: a run that wrote its tables has not removed obsolete volumes yet. They may be those of withdrawn patients."""
REJECTED = "rejected"
"""Folder beside the store with the reasons of volumes that could not be read."""
JobRunner = Callable[[list[VolumeJob], CurationTarget], None]
"""Curates volumes: when it returns, :func:`run_volume_job` has been called for every job."""


def sidecar_path(store: VolumeStore, volume_id: str) -> Path:
    """Return the path of the JSON sidecar: it marks a volume as complete and contains everything but its arrays and names."""
    return store.path(volume_id, "voxels").with_name(f"{volume_id}.json")


def load_curated_volume(store: VolumeStore, volume_id: str) -> CuratedVolume:
    """Read the sidecar of a volume; patient, series and file names in its record are empty.

    Raises:
        BadInput: the sidecar is missing or damaged.
    """
    path = sidecar_path(store, volume_id)
    try:
        return CuratedVolume.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise_machine_fault(error, path.name)
        raise BadInput("missing or damaged", where=path.name, remedy="remove it and run omnimri curate") from None


def with_source_names(record: VolumeRecord, series: SourceSeries) -> VolumeRecord:
    """Return the record of a volume with the patient, series and file names of its current source."""
    files = [file.path for file in (*series.files, *series.labels, *series.annotations)]
    names = {name: getattr(series, name.replace("source_", "")) for name in _SOURCE_NAMES} | {"source_files": files}
    if all(getattr(record, name) == value for name, value in names.items()):
        return record
    return record.model_copy(update=names)


def rejection_path(target: CurationTarget, volume_id: str) -> Path:
    """Return the path of the file that states why a volume could not be read."""
    return target.store.with_name(REJECTED) / f"{volume_id}.json"


def run_volume_job(job: VolumeJob, target: CurationTarget) -> None:
    """Read, curate and store one volume; the sidecar is written last. Of one that cannot be read, record the reason.

    Raises:
        MachineFault: the machine failed, not the volume.
        JobFailed: curation failed; the message names the series.
    """
    from components.ingestion import read_volume

    store, name = VolumeStore(target.store), f"{job.series.dataset_id}/{job.series.series_id}"
    rejection = rejection_path(target, job.volume_id)
    try:
        store.remove(job.volume_id)  # files of a killed run
        rejection.unlink(missing_ok=True)
        try:
            volume = read_volume(target.data, job.series, job.card)
        except BadInput as error:
            write_json(rejection, {"series": name, "reason": f"{error.what} ({error.remedy})"})
            return
        curated = curate_volume(job.volume_id, volume, job.series, card_facts(job.card), target.settings, store)
        nameless = curated.record.model_copy(update=dict.fromkeys(_SOURCE_NAMES, "") | {"source_files": []})
        with atomic_file(sidecar_path(store, job.volume_id)) as temporary:
            temporary.write_text(curated.model_copy(update={"record": nameless}).model_dump_json())
    except OmniMRIError:
        raise
    except Exception as error:
        raise_machine_fault(error, name)
        remedy = "the other volumes are curated and stay so; report this error, or leave the series out of the dataset"
        raise JobFailed(f"curation failed: {type(error).__name__}: {error}", where=name, remedy=remedy) from error


def run_jobs(jobs: Iterable[VolumeJob], target: CurationTarget) -> None:
    """Curate volumes one after the other; one that fails does not keep the next from being curated.

    Raises:
        MachineFault: the machine failed, at once.
        JobFailed: the first failure, after all volumes.
    """
    _raise_first([_find_failure(job, target) for job in jobs])


def run_in_processes(jobs: list[VolumeJob], target: CurationTarget) -> None:
    """Curate in up to ``settings.workers`` processes; raise as :func:`run_jobs` does."""
    with ExitStack() as stack:
        mapper = WorkerPool(min(target.settings.workers, len(jobs)), stack, chunk=1)
        _raise_first(list(mapper(partial(_find_failure, target=target), jobs, "curating")))


def _find_failure(job: VolumeJob, target: CurationTarget) -> JobFailed | None:
    """Curate a volume; return why that failed, if it did."""
    try:
        run_volume_job(job, target)
    except JobFailed as error:
        return error
    return None


def _raise_first(failures: list[JobFailed | None]) -> None:
    for failure in failures:
        if failure is not None:
            raise failure


def curate(
    data: Path, cards: list[DatasetCard], out: Path, settings: CurationSettings, run: JobRunner = run_in_processes
) -> CurationReport:
    """Update the corpus under ``out`` to the ingested datasets under ``data``.

    Args:
        data: de-identified source files, as ``omnimri ingest`` leaves them.
        cards: the datasets of the corpus; volumes of other datasets are removed from it.
        out: root of the corpus.
        settings: of curation.
        run: curates the missing volumes.

    Raises:
        BadInput: no series of these datasets is ingested (if any was before, the corpus is emptied), or none can be read.
        MachineFault: the machine failed; the last corpus is in place.
        JobFailed: the curation of a volume failed; the message names the series, and the last corpus is in place.
    """
    started = time.monotonic()
    try:
        FileSwitch(out, SUMMARY).recover()
        return _curate(data, cards, out, settings, run, started)
    except OmniMRIError:
        raise
    except Exception as error:
        raise_machine_fault(error, own_file(error, data, out))
        raise


def _curate(
    data: Path, cards: list[DatasetCard], out: Path, settings: CurationSettings, run: JobRunner, started: float
) -> CurationReport:
    series = ingested_series(data, cards)
    jobs = _list_jobs(series, cards, settings)
    if not jobs:
        if any((data / card.id / MANIFEST).exists() for card in cards):
            shutil.rmtree(out, ignore_errors=True)  # the last patient withdrew or left the source: no data of theirs may stay
        raise BadInput("no ingested series", where=", ".join(card.id for card in cards), remedy="run omnimri ingest first")
    inputs = inputs_of_series(series, cards, settings)
    if is_current(out, inputs):
        return _build_report(read_json(out / SUMMARY), new=0, removed=0, started=started)
    facts = {card.id: card_facts(card) for card in cards}
    return _update(jobs, facts, inputs, CurationTarget(data, out / STORE, settings), out, run, started)


def is_current(out: Path, inputs: CurationInputs) -> bool:
    """Return whether the corpus under ``out`` was curated completely from these inputs, none of which was unreadable."""
    if is_switching(out) or (out / CLEANUP).exists() or not (out / SUMMARY).exists():
        return False
    summary = read_json(out / SUMMARY)
    return summary["inputs"] == inputs.digest and not summary.get("unreadable")


def _list_jobs(series: Mapping[str, list[SourceSeries]], cards: list[DatasetCard], settings: CurationSettings) -> list[VolumeJob]:
    jobs: list[VolumeJob] = []
    for card in cards:
        voxel_fields = card_digest(card)
        jobs += [VolumeJob(compute_volume_id(source, voxel_fields, settings), source, card) for source in series[card.id]]
    return jobs


def _update(
    jobs: list[VolumeJob],
    facts: dict[str, CardFacts],
    inputs: CurationInputs,
    target: CurationTarget,
    out: Path,
    run: JobRunner,
    started: float,
) -> CurationReport:
    """Curate missing volumes, remove obsolete ones, and write the tables."""
    store = VolumeStore(target.store)
    current = {job.volume_id: job for job in reversed(jobs)}
    obsolete = [volume_id for volume_id in store.volume_ids() if volume_id not in current]
    missing = [job for volume_id, job in current.items() if not sidecar_path(store, volume_id).exists()]
    previous = PreviousCorpus.open(out, inputs.row_recipe)
    run(missing, target)
    unreadable = _collect_rejections(missing, target)
    readable = [job for job in jobs if sidecar_path(store, job.volume_id).exists() or job.volume_id not in unreadable]
    records = _name_records(readable, store, previous)
    load: LoadVolume = partial(load_curated_volume, store)
    annotation = None
    if target.settings.visual:
        annotator = VlmAnnotator(store, out, target.settings.visual)
        annotation = annotator.annotate(records, load)
        load = annotator.wrap_loader(load)
    left_out = dict(sorted(unreadable.values()))
    (out / CLEANUP).touch()
    summary = write_corpus(out, records, load, facts, target.settings, inputs.digest, inputs.row_recipe, previous, left_out)
    for volume_id in obsolete:
        store.remove(volume_id)  # together with its sidecar
    _remove_other_rejections(target, set(unreadable))
    remove_stale_answers(out, {record.content_md5 for record in records})
    (out / CLEANUP).unlink()
    _warn_of_empty_splits(summary, target.settings)
    duplicates = set(summary["duplicates"])
    skipped = {*duplicates, *left_out}
    new = {job.volume_id for job in missing if f"{job.series.dataset_id}/{job.series.series_id}" not in skipped}
    return _build_report(summary, new=len(new), removed=len(obsolete), started=started, annotation=annotation)


def _collect_rejections(missing: list[VolumeJob], target: CurationTarget) -> dict[str, tuple[str, str]]:
    """Return volume_id -> (``dataset/series``, reason) of volumes that could not be read, and warn of them.

    Raises:
        BadInput: none of the volumes could be read.
    """
    paths = {job.volume_id: rejection_path(target, job.volume_id) for job in missing}
    entries = {volume_id: read_json(path) for volume_id, path in paths.items() if path.exists()}
    unreadable = {volume_id: (str(entry["series"]), str(entry["reason"])) for volume_id, entry in entries.items()}
    for name, reason in sorted(unreadable.values())[:_SHOWN]:
        logger.warning("left out, because it cannot be read: %s: %s", name, reason)
    if len(unreadable) > _SHOWN:
        logger.warning("%d volumes cannot be read; corpus.json lists them", len(unreadable))
    if unreadable and not any(VolumeStore(target.store).root.rglob("*.json")):
        name, reason = min(unreadable.values())
        raise BadInput(f"none of {len(unreadable)} volumes can be read: {reason}", where=name, remedy="run omnimri ingest again")
    return unreadable


def _remove_other_rejections(target: CurationTarget, current: set[str]) -> None:
    """Remove the reasons of volumes that are not part of the corpus any more, or can be read now."""
    for path in target.store.with_name(REJECTED).glob("*.json"):
        if path.stem not in current:
            path.unlink()
    with suppress(OSError):
        target.store.with_name(REJECTED).rmdir()  # if it is empty


def _name_records(jobs: list[VolumeJob], store: VolumeStore, previous: PreviousCorpus | None) -> list[VolumeRecord]:
    """Return the record of every job's volume, from the previous tables where they contain it, else from its sidecar."""
    existing = previous.records if previous else {}
    return [
        with_source_names(existing.get(job.volume_id) or load_curated_volume(store, job.volume_id).record, job.series)
        for job in jobs
    ]


def _warn_of_empty_splits(summary: dict[str, Any], settings: CurationSettings) -> None:
    fractions = {"train": 1.0, "validation": settings.validation_fraction, "test": settings.test_fraction}
    for split, fraction in fractions.items():
        if fraction > 0 and not summary["counts"]["splits"][split]:
            logger.warning(
                "no patient is in the %s split: datasets of fewer than four patients all go to train; add patients", split
            )


def _build_report(
    summary: dict[str, Any], new: int, removed: int, started: float, annotation: AnnotationReport | None = None
) -> CurationReport:
    counts = summary["counts"]
    return CurationReport(
        digest=summary["digest"],
        volumes_total=counts["volumes"],
        volumes_new=new,
        volumes_reused=counts["volumes"] - new,
        volumes_removed=removed,
        volumes_duplicate=len(summary["duplicates"]),
        volumes_unreadable=len(summary["unreadable"]),
        instructions=counts["instructions"],
        descriptions=counts["descriptions"],
        vlm_answered=annotation.answered if annotation else 0,
        vlm_reused=annotation.reused if annotation else 0,
        vlm_volumes_per_s=annotation.rate if annotation else 0.0,
        seconds=time.monotonic() - started,
    )
