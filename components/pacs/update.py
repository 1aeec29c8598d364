"""Bring a dataset up to date with an archive: fetch what is new, ingest it batch by batch, remove the originals.

Series that the archive does not list any more stay under ``data/``: archives move old studies away. A patient is removed by
``omnimri data withdraw``.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from components.catalog import DatasetCard
from components.errors import BadInput, MachineFault, OmniMRIError
from components.home import Home
from components.ingestion.deidentification.pseudonyms import Pseudonyms
from components.ingestion.ingest_dataset import ingest, output_recipe
from components.ingestion.manifest import Manifest, files_of
from components.ingestion.partial_update import SeriesKey, key_of
from components.ingestion.volume import IngestReport, Notice
from components.ingestion.withdrawal import withdrawn_patients
from components.pacs.archive import Archive, RemoteSeries, no_answer
from components.pacs.fetching import FetchedSeries, Fetcher
from components.pacs.ledger import Entry, Ledger, is_current, tokens
from components.pacs.originals import empty_folder, originals_folder
from components.pacs.source import PacsSource
from components.progress import track
from components.provenance import digest, file_md5
from components.settings import PacsSettings

LABELS = ("SEG", "RTSTRUCT")
READ = ("MR", *LABELS, "")
"""Modalities that ingestion reads; "" for an archive that does not state it."""
logger = logging.getLogger(__name__)


def listing_state(listing: Sequence[RemoteSeries]) -> str:
    """Return a digest of what an archive lists, which changes when a series is added, grows or goes."""
    return digest(sorted([one.study, one.series, one.instances] for one in listing))


@dataclass
class Batch:
    """Series that are ingested together.

    Attributes:
        fetched: the series, with their files.
        bytes: size of the files.
    """

    fetched: list[FetchedSeries] = field(default_factory=list)
    bytes: int = 0

    def add(self, fetched: Sequence[FetchedSeries]) -> None:
        """Add the series of a study."""
        self.fetched += fetched
        self.bytes += sum(path.stat().st_size for one in fetched for path in one.files.values())


@dataclass
class DatasetUpdate:
    """An update of a dataset by series that were fetched or received.

    Attributes:
        card, home, key, workers: as for :func:`components.ingestion.ingest`.
        committing: context in which ``data/`` may be changed.
        report: of all batches so far; None before the first.
    """

    card: DatasetCard
    home: Home
    key: bytes
    workers: int
    committing: Callable[[], AbstractContextManager[None]]
    report: IngestReport | None = None

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.home)
        self.pseudonyms = Pseudonyms(self.key, self.card.id)
        self.recipe = output_recipe(self.card, self.key)

    def changed(self, listing: Sequence[RemoteSeries], archive: Archive, fetcher: Fetcher) -> dict[str, list[RemoteSeries]]:
        """Return Study Instance UID -> series to fetch: new ones, changed ones, and all of a changed study with labels."""
        entries, manifest = self.ledger.entries(self.card.id), Manifest.read(self.home.data / self.card.id)
        present = {key_of(one) for one in manifest.series} if manifest else set()
        withdrawn = withdrawn_patients(self.home.data, self.card.id)
        studies: dict[str, list[RemoteSeries]] = defaultdict(list)
        for one in listing:
            studies[one.study].append(one)
        wanted: dict[str, list[RemoteSeries]] = {}
        for study, members in studies.items():
            known = {one.series: entries.get(self.pseudonyms.uid(one.series)) for one in members}
            new = [one for one in members if not is_current(known[one.series], self.recipe, present, withdrawn)]
            kept = [one for one in members if one not in new]
            if uncounted := [one for one in kept if one.instances is None]:
                instances = fetcher.ask(lambda study=study: archive.list_instances(study))  # type: ignore[misc]
                counts = {one.series: len(instances.get(one.series, ())) for one in uncounted}
            else:
                counts = {one.series: one.instances or 0 for one in kept}
            new += [one for one in kept if counts.get(one.series, one.instances) != _count(known[one.series])]
            if new:
                wanted[study] = members if any(one.modality in LABELS for one in members) else new
        return wanted

    def commit(self, batch: Sequence[FetchedSeries], folder: Path) -> None:
        """Ingest a batch, record it, and remove the originals."""
        entries = self.ledger.entries(self.card.id)
        names = {one.series.series: self.pseudonyms.uid(one.series.series) for one in batch}
        replaced = {volume for name in names.values() if name in entries for volume in entries[name].volumes}
        sums = {file_md5(path): one.series.series for one in batch for path in one.files.values()}
        with self.committing():
            report = ingest(self.card, folder, self.home.data, self.key, self.workers, replaced)
            volumes = self._volumes(sums)
        recorded = {
            names[one.series.series]: Entry(
                self.recipe, tokens(self.pseudonyms, one.files), tuple(sorted(volumes.get(one.series.series, ())))
            )
            for one in batch
        }
        self.ledger.record(self.card.id, recorded)
        empty_folder(folder)
        self.report = report if self.report is None else _add_reports(self.report, report)

    def _volumes(self, sums: Mapping[str, str]) -> dict[str, set[SeriesKey]]:
        """Return source series -> series under ``data/`` that contain one of its files.

        Args:
            sums: MD5 of a source file -> its series.
        """
        manifest = Manifest.read(self.home.data / self.card.id)
        volumes: dict[str, set[SeriesKey]] = defaultdict(set)
        for one in manifest.series if manifest else ():
            for file in files_of(one):
                if (source := sums.get(manifest.sources[file.path] if manifest else "")) is not None:
                    volumes[source].add(key_of(one))
        return volumes

    def unchanged_report(self) -> IngestReport:
        """Return the report of an update without anything new."""
        manifest = Manifest.read(self.home.data / self.card.id)
        series = manifest.series if manifest else ()
        files = len(manifest.sources) if manifest else 0
        patients = len({one.patient_id for one in series})
        return IngestReport(self.card.id, self.home.data / self.card.id, len(series), patients, 0, files, 0, 0, (), 0.0)


def update_from_archive(update: DatasetUpdate, source: PacsSource, archive: Archive, pacs: PacsSettings) -> IngestReport:
    """Fetch what is new in an archive, and ingest it.

    Raises:
        BadInput: the server refuses access, or nothing on it can be read and ``data/`` has no series.
        JobFailed: the server does not answer. Series that had arrived before are ingested.
        MachineFault: see :func:`components.ingestion.ingest`.
    """
    fetcher = Fetcher(archive, pacs.patience_s)
    listing = fetcher.ask(lambda: archive.list_series(source.filters))
    readable = [one for one in listing if one.modality in READ]
    wanted = update.changed(readable, archive, fetcher)
    left_out: Counter[str] = Counter()
    with originals_folder(update.home) as folder:
        batch = Batch()
        try:
            studies = track(list(wanted.items()), f"fetch from {source.server.label}", total=len(wanted))
            for number, (study, series) in enumerate(studies):
                fetched = fetcher.fetch_study(study, series, folder / f"{number:06d}")
                left_out.update(fetched.left_out)
                batch.add(fetched.whole)
                if batch.bytes >= pacs.batch_gb * 1e9:
                    update.commit(batch.fetched, folder)
                    batch = Batch()
        except OmniMRIError as error:
            if batch.fetched and not isinstance(error, MachineFault):
                _remove_others(folder, batch)
                update.commit(batch.fetched, folder)
            raise
        if batch.fetched:
            update.commit(batch.fetched, folder)
    report = update.report or update.unchanged_report()
    report = replace(
        report, unfetched=left_out.total(), notices=(*report.notices, *_notices(left_out, len(listing) - len(readable)))
    )
    if not report.series and left_out:
        (reason, _), *_ = left_out.most_common(1)
        raise no_answer(source.server, f"{left_out.total()} of {len(readable)} series could not be fetched: {reason}")
    if not report.series:
        what = f"no readable MR image among {len(listing)} series"
        raise BadInput(what, where=source.server.label, remedy=f"see the query, and {report.root}/quarantine.json")
    if not left_out:
        update.ledger.observe(update.card.id, listing_state(listing))
    return report


def _count(entry: Entry | None) -> int:
    return entry.instances if entry is not None else 0


def _remove_others(folder: Path, batch: Batch) -> None:
    """Remove the files of the study that was being fetched when the server went away: its series are not whole."""
    kept = {path for one in batch.fetched for path in one.files.values()}
    for path in [path for path in folder.rglob("*") if path.is_file() and path not in kept]:
        path.unlink()


def _notices(left_out: Counter[str], other: int) -> tuple[Notice, ...]:
    notices = [
        Notice(f"series not fetched: {reason}; the next ingestion tries again", count, "") for reason, count in left_out.items()
    ]
    if other:
        notices.append(Notice("series of a modality that is not read: not fetched", other, ""))
    return tuple(notices)


def _add_reports(first: IngestReport, second: IngestReport) -> IngestReport:
    """Return the report of two batches of one update."""
    return replace(
        second,
        files_new=first.files_new + second.files_new,
        files_reused=max(0, second.files_reused - first.files_new),
        files_removed=first.files_removed + second.files_removed,
        files_ignored=first.files_ignored + second.files_ignored,
        files_of_layout=first.files_of_layout + second.files_of_layout,
        seconds=first.seconds + second.seconds,
        notices=tuple(dict.fromkeys((*first.notices, *second.notices))),
    )


def series_names(volumes: Collection[SeriesKey]) -> list[str]:
    """Return the names of series for messages."""
    return [f"{patient}/{series}" for patient, series in sorted(volumes)]
