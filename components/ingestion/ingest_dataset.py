"""Ingest a dataset: plan, stage de-identified new files, read them back, switch to the new version, remove vanished files.

A file whose source did not change is not written again; of an unchanged source only the header is read. A rejected file is listed
in ``quarantine.json`` with the reason; its series is ingested without it, unless it was the last file or leaves a gap.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from components.catalog import DatasetCard
from components.errors import BadInput, MachineFault
from components.files import write_json
from components.ingestion.cleaning import CleanedFile, clean_files, read_previous, silence_libraries, source_md5
from components.ingestion.deidentification.pseudonyms import DEMO_KEY, Pseudonyms, check_key, claim_key, require_same_key
from components.ingestion.formats.base import PlannedFile, WriteContext
from components.ingestion.manifest import MANIFEST, QUARANTINE, Manifest, files_of
from components.ingestion.partial_update import Retained, SeriesKey
from components.ingestion.series_checks import SeriesChecks
from components.ingestion.series_planner import make_plan
from components.ingestion.source_folder import Plan
from components.ingestion.source_listing import refuse_own_folders
from components.ingestion.staging import Staging
from components.ingestion.volume import IngestReport, QuarantineEntry, SourceSeries
from components.ingestion.volume_reader import read_quarantine
from components.ingestion.withdrawal import withdrawn_patients
from components.machine_faults import own_file, raise_machine_fault
from components.provenance import digest
from components.worker_pool import WorkerPool

FORMAT_VERSION = 4
"""Version of the written bytes. Raise it with every change of what ingestion writes: all files are then written again."""

RAW_VERSION = 2
"""Version of the bytes that ingestion writes of ISMRMRD files, for datasets that have any."""
_CHUNK = 32
"""Files that a worker process gets at once."""


def output_recipe(card: DatasetCard, key: bytes) -> str:
    """Return a digest of the inputs that decide the bytes of cleaned files besides their sources; it does not reveal the key.

    It is part of the versioned data, so it contains the version of the output rather than the code: an edit that does not change
    the bytes creates no new data version. Of the card, only the id, the layout (explicit values, not defaults) and the label map
    count: a corrected figure, source or license does not ingest a dataset again.
    """
    layout = card.layout.model_dump(mode="json", exclude_defaults=True)
    label_map = {str(value): name for value, name in card.label_map.items()}
    versions = [FORMAT_VERSION, *([RAW_VERSION] if "ISMRMRD" in card.formats else [])]
    return digest(card.id, layout, label_map, digest(key.hex()), *versions)


def ingest(
    card: DatasetCard, source: Path, data: Path, key: bytes, workers: int = 1, replaced: Collection[SeriesKey] | None = None
) -> IngestReport:
    """Bring ``data/<card.id>`` up to date with a source folder, which is only read.

    The last version stays as it is until all new files are written and read back; after an error, it is still in place.

    Args:
        key: secret key of the pseudonyms.
        workers: processes.
        replaced: for a source that contains the new part of a dataset only: series of the last version that the source contains
            anew; all others stay, and an unreadable source is no error. None for a source that contains the whole dataset.

    Raises:
        BadInput: no such folder, one that OmniMRI writes to, nothing readable in it, the demo key for real patients, or another key
            than before.
        MachineFault: the machine or a program failed, or a part of the source is out of reach that was ingested before.
    """
    started = time.monotonic()
    check_key(key, card)
    if not source.is_dir():
        raise BadInput("no such source folder", where=str(source), remedy=f"put {card.name} there, or fix datasets.path")
    refuse_own_folders(source, (data, data / card.id))
    pseudonyms, recipe = Pseudonyms(key, card.id), output_recipe(card, key)
    staging = Staging(data / card.id)
    try:
        _require_folders(data, staging.root)
        proven = require_same_key((key,), card.id, data) or key == DEMO_KEY
        staging.root.mkdir(parents=True, exist_ok=True)
        staging.recover()
        update = _prepare_update(card, source, staging, WriteContext(card, pseudonyms), recipe, workers, proven, replaced)
        claim_key(key, card.id, data)
        staging.commit(update.staged, update.quarantine, update.manifest.to_json())
        _remove_other_files(staging.root, data, update.written)
    except Exception as error:
        raise_machine_fault(error, own_file(error, data) or card.id)
        raise
    return IngestReport(
        dataset_id=card.id,
        root=staging.root,
        series=len(update.manifest.series),
        patients=len({series.patient_id for series in update.manifest.series}),
        files_new=len(update.written) - update.reused,
        files_reused=update.reused,
        files_removed=len(update.previous - update.written),
        files_ignored=update.plan.ignored,
        files_of_layout=update.plan.layout_files,
        quarantined=tuple(update.quarantined),
        seconds=time.monotonic() - started,
        notices=update.plan.notices,
    )


def _require_folders(*paths: Path) -> None:
    """Require that no file lies where a folder of ours is needed.

    Raises:
        MachineFault: one does.
    """
    for path in paths:
        if path.exists() and not path.is_dir():
            remedy = "move the file away, or set OMNIMRI_DATA to another folder"
            raise MachineFault("a file where a folder is needed", where=str(path), remedy=remedy)


@dataclass(frozen=True)
class _Update:
    """A new version of a dataset, staged.

    Attributes:
        plan: of the source folder.
        manifest: of the new version.
        quarantined: rejected inputs, sorted by file and reason.
        previous: paths of the last version's files.
        staged: paths of its files that are staged, sorted.
        reused: number of its files that this ingestion did not write.
    """

    plan: Plan
    manifest: Manifest
    quarantined: list[QuarantineEntry]
    previous: set[str]
    staged: list[str]
    reused: int

    @property
    def written(self) -> set[str]:
        """Paths of all files of the new version."""
        return set(self.manifest.sources)

    @property
    def quarantine(self) -> list[dict[str, str]]:
        """Content of the quarantine's file."""
        return [asdict(entry) for entry in self.quarantined]


def _prepare_update(
    card: DatasetCard,
    source: Path,
    staging: Staging,
    context: WriteContext,
    recipe: str,
    workers: int,
    same_key: bool,
    replaced: Collection[SeriesKey] | None,
) -> _Update:
    """Plan a source folder, stage what is new, read all new series back, and describe the result.

    Args:
        same_key: the key is known to be that of the last version.

    Raises:
        BadInput, MachineFault: see :func:`ingest`.
    """
    root, data = staging.root, staging.root.parent
    withdrawn = withdrawn_patients(data, card.id)
    with ExitStack() as stack:
        mapper = WorkerPool(workers, stack, _CHUNK, silence_libraries)
        plan = make_plan(card, source, context.pseudonyms, mapper)
        refuse_own_folders(source, (data,), links=plan.listing.linked_folders)
        plan.exclude_patients(withdrawn)
        previous = read_previous(root, recipe)
        files = {file.target: file for series in plan.series for file in series.files}
        if not same_key:
            _require_same_names(root, files)
        results = clean_files(list(files.values()), previous, staging, context, recipe, mapper)
        last = Manifest.read(root)
        intact = last.series if last is not None and last.recipe == recipe else ()
        series = SeriesChecks(plan, files, results, frozenset(one.md5 for one in intact)).run(card, data, mapper)
    retained = Retained()
    if replaced is not None and last is not None:
        retained = Retained.of(last, replaced, withdrawn, recipe).without(series)
        series = retained.reject_copies(series, results, files, plan)
    earlier = read_quarantine(data, card.id) if replaced is not None else []
    quarantined = sorted({*earlier, *plan.quarantined}, key=lambda entry: (entry.path, entry.reason))
    if not series and replaced is None:
        write_json(root / QUARANTINE, [asdict(entry) for entry in quarantined])
        reasons = f"reasons: {root / QUARANTINE}"
        raise BadInput(f"no readable MR image; {len(quarantined)} files rejected", where=str(source), remedy=reasons)
    kept = [one for one in last.series if one.patient_id not in withdrawn] if last is not None else []
    if replaced is None:
        _require_reachable(plan, kept, series, source)
    manifest = _describe(recipe, series, results, retained)
    staged = [target for target in sorted(manifest.sources) if target in results and results[target].staged]
    reused = sum(target not in results or results[target] is previous.get(target) for target in manifest.sources)
    return _Update(plan, manifest, quarantined, {file.path for one in kept for file in files_of(one)}, staged, reused)


def _require_reachable(plan: Plan, last: list[SourceSeries], series: list[SourceSeries], source: Path) -> None:
    """Require that no series of the last version vanishes while a part of the source cannot be read: it may lie there.

    Raises:
        MachineFault: one does.
    """
    lost = {(one.patient_id, one.series_id) for one in last} - {(one.patient_id, one.series_id) for one in series}
    if lost and plan.inaccessible:
        first = plan.inaccessible[0]
        raise MachineFault(
            f"{len(plan.inaccessible)} entries of the source cannot be read ({first.path}: {first.reason}), "
            f"and {len(lost)} series of the last version may be in them: nothing was changed",
            where=str(source),
            remedy=first.remedy,
        )


def _require_same_names(root: Path, files: Mapping[str, PlannedFile]) -> None:
    """Check that the sources of the last version keep their names, where no fingerprint of its key was recorded.

    Raises:
        BadInput: the same sources would get other names: the last version has another key, such as the published one.
    """
    last = Manifest.read(root)
    if last is None or not files or not set(last.sources).isdisjoint(files):
        return
    known = set(last.sources.values())
    if any(source_md5(file) in known for file in files.values()):
        raise BadInput(
            "its pseudonyms were made with another key: patients who withdrew would come back under new names",
            where=str(root),
            remedy="use that key (public_demo_key, or ingestion.key_file); to begin anew with this one, withdraw the same patients "
            f"again afterwards, and delete {root} first",
        )


def _describe(recipe: str, series: list[SourceSeries], results: dict[str, CleanedFile], retained: Retained) -> Manifest:
    """Return the manifest of a new version: with retained series, in the order of a plan of all: by name."""
    targets = sorted({file.path for one in series for file in files_of(one)})
    sources = {target: results[target].source_md5 for target in targets}
    contents = {target: results[target].content for target in targets if results[target].content}
    if retained.series:
        series = sorted([*series, *retained.series], key=lambda one: (one.series_id, one.patient_id))
        kept = {file.path for one in retained.series for file in files_of(one)}
        sources |= {path: md5 for path, md5 in (retained.sources or {}).items() if path in kept}
        contents |= {path: md5 for path, md5 in (retained.contents or {}).items() if path in kept}
    return Manifest(recipe, tuple(series), sources, contents)


def _remove_other_files(root: Path, data: Path, written: set[str]) -> None:
    """Delete the files of this dataset that no series lists (the journal, too), and folders that become empty."""
    listed = {data / path for path in written} | {root / MANIFEST, root / QUARANTINE}
    for path in [path for path in root.rglob("*") if path.is_file() and path not in listed]:
        path.unlink()
    for folder in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
