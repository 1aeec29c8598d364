"""Ingest a dataset: plan, de-identify new files, remove vanished ones, quarantine rejected inputs, write the manifest.

A file whose source did not change is not written again; of an unchanged source only the header is read. A rejected file is listed
in ``quarantine.json`` with the reason; its series is ingested without it, unless it was the last file or leaves a gap.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from components.catalog import DatasetCard
from components.errors import BadInput
from components.files import write_json
from components.ingestion.cleaning import CleanedFile, WorkerPool, clean_files, read_previous
from components.ingestion.deidentification.pseudonyms import Pseudonyms, check_key
from components.ingestion.formats.base import WriteContext
from components.ingestion.manifest import MANIFEST, QUARANTINE, Manifest, files_of
from components.ingestion.series_checks import SeriesChecks
from components.ingestion.series_planner import make_plan
from components.ingestion.source_folder import Plan
from components.ingestion.volume import IngestReport, QuarantineEntry, SourceSeries
from components.ingestion.withdrawal import withdrawn_patients
from components.provenance import digest

FORMAT_VERSION = 4
"""Version of the written bytes. Raise it with every change of what ingestion writes: all files are then written again."""


def output_recipe(card: DatasetCard, key: bytes) -> str:
    """Return a digest of the inputs that decide the bytes of cleaned files besides their sources; it does not reveal the key.

    It is part of the versioned data, so it contains the version of the output rather than the code: an edit that does not change
    the bytes creates no new data version. Of the card, only the id, the layout (explicit values, not defaults) and the label map
    count: a corrected figure, source or license does not ingest a dataset again.
    """
    layout = card.layout.model_dump(mode="json", exclude_defaults=True)
    label_map = {str(value): name for value, name in card.label_map.items()}
    return digest(card.id, layout, label_map, digest(key.hex()), FORMAT_VERSION)


def ingest(card: DatasetCard, source: Path, data: Path, key: bytes, workers: int = 1) -> IngestReport:
    """Bring ``data/<card.id>`` up to date with a source folder, which is only read.

    Args:
        key: secret key of the pseudonyms.
        workers: processes.

    Raises:
        BadInput: no such folder, nothing readable in it, or the demo key for real patients.
    """
    started = time.monotonic()
    check_key(key, card)
    if not source.is_dir():
        raise BadInput("no such source folder", where=str(source), remedy=f"put {card.name} there, or fix datasets.path")
    root, pseudonyms, recipe = data / card.id, Pseudonyms(key, card.id), output_recipe(card, key)
    root.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        mapper = WorkerPool(workers, stack)
        plan = make_plan(card, source, pseudonyms, mapper)
        plan.exclude_patients(withdrawn_patients(data, card.id))
        previous = read_previous(root, recipe)
        files = {file.target: file for series in plan.series for file in series.files}
        results = clean_files(list(files.values()), previous, data, WriteContext(card, pseudonyms), recipe, mapper)
        series = SeriesChecks(plan, files, results).run(card, data, mapper)
    quarantined = _write_quarantine(root, plan)
    if not series:
        reasons = f"reasons: {root / QUARANTINE}"
        raise BadInput(f"no readable MR image; {len(quarantined)} files rejected", where=str(source), remedy=reasons)
    _write_manifest(root, recipe, series, results)
    written = {file.path for one in series for file in files_of(one)}
    _remove_other_files(root, data, written)
    reused = sum(results[target] is previous.get(target) for target in written)
    return IngestReport(
        dataset_id=card.id,
        root=root,
        series=len(series),
        patients=len({one.patient_id for one in series}),
        files_new=len(written) - reused,
        files_reused=reused,
        files_removed=len(set(previous) - written),
        files_ignored=plan.ignored,
        files_of_layout=plan.layout_files,
        quarantined=tuple(quarantined),
        seconds=time.monotonic() - started,
        notices=plan.notices,
    )


def _write_quarantine(root: Path, plan: Plan) -> list[QuarantineEntry]:
    """Write the rejected inputs of a plan, sorted by file and reason; return them."""
    quarantined = sorted(set(plan.quarantined), key=lambda entry: (entry.path, entry.reason))
    write_json(root / QUARANTINE, [asdict(entry) for entry in quarantined])
    return quarantined


def _write_manifest(root: Path, recipe: str, series: list[SourceSeries], results: dict[str, CleanedFile]) -> None:
    targets = sorted({file.path for one in series for file in files_of(one)})
    sources = {target: results[target].source_md5 for target in targets}
    contents = {target: results[target].content for target in targets if results[target].content}
    Manifest(recipe, tuple(series), sources, contents).write(root)


def _remove_other_files(root: Path, data: Path, written: set[str]) -> None:
    """Delete the files of this dataset that no series lists (the journal, too), and folders that become empty."""
    listed = {data / path for path in written} | {root / MANIFEST, root / QUARANTINE}
    for path in [path for path in root.rglob("*") if path.is_file() and path not in listed]:
        path.unlink()
    for folder in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
