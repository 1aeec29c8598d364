"""Taking a dataset in: plan, clean what is new, remove what vanished, quarantine what is broken, write the manifest.

The manifest (``data/<id>/manifest.json``) lists the series and, for each written file, the md5 of its source: an unchanged source
is not read again beyond its header. A file that cannot be taken in is listed in ``quarantine.json`` with the reason; its series
goes on without it, unless it was the last or leaves a gap.

Each cleaned file is noted in a journal beside the manifest as soon as it is whole, so that a run that was killed is taken up where
it stopped; the journal goes when the manifest is written. A run after a kill leaves the same bytes as one that nobody disturbed.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from components.catalog import DatasetCard
from components.catalog.cards import BoxTable
from components.errors import BadInput, OmniMRIError
from components.files import atomic_file, read_json, write_json
from components.ingestion.annotations import finding_tables, report_tables, rt_structures
from components.ingestion.annotations.sidecars import merged
from components.ingestion.deidentification.deidentify import clean_sidecar, deidentify_dicom
from components.ingestion.deidentification.pseudonyms import Pseudonyms, check_key
from components.ingestion.formats import fastmri, ismrmrd, metaimage, nifti, numpy_array
from components.ingestion.formats.dicom import reader as dicom_reader
from components.ingestion.formats.gzipped import open_decompressed, read_decompressed
from components.ingestion.manifest import JOURNAL, MANIFEST, QUARANTINE
from components.ingestion.quarantine import Rejection, UnsupportedInput
from components.ingestion.series_planner import PlannedFile, PlannedSeries, make_plan
from components.ingestion.volume import IngestReport, SourceFile, SourceSeries
from components.ingestion.volume_reader import read_volume
from components.ingestion.withdrawal import withdrawn_patients
from components.progress import track
from components.provenance import digest, file_md5

FORMAT_VERSION = 3
"""To be raised with every change of what ingestion writes: everything is then written anew."""
MIN_ITEMS_FOR_WORKERS = 150
"""So many items or fewer are worked on in this process: starting others would take longer."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cleaned:
    """One cleaned file, or why there is none.

    Attributes:
        file: as it lies under ``data/``.
        source_md5: of the file or files that it was made of.
        content: MD5 of what an image shows, whatever its header says; empty for other files.
    """

    file: SourceFile | None
    source_md5: str
    content: str = ""
    refusal: Rejection | None = None


class _Workers:
    """Processes that are started when there is enough to do, and serve the whole ingestion."""

    def __init__(self, workers: int, stack: ExitStack) -> None:
        self._workers, self._stack = workers, stack
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, function: Callable[[Any], Any], items: Sequence[Any], description: str) -> Iterator[Any]:
        if self._workers == 1 or len(items) <= MIN_ITEMS_FOR_WORKERS:
            _quiet()
            yield from track(map(function, items), description, total=len(items))
            return
        if self._pool is None:
            pool = ProcessPoolExecutor(self._workers, mp_context=get_context("spawn"), initializer=_quiet)
            self._pool = self._stack.enter_context(pool)
        yield from track(self._pool.map(function, items, chunksize=32), description, total=len(items))


def _quiet() -> None:
    """Keep libraries from quoting header values in warnings and logs: a value may be a patient's name."""
    from pydicom import config

    config.settings.reading_validation_mode = config.IGNORE
    config.settings.writing_validation_mode = config.IGNORE
    warnings.filterwarnings("ignore", module=r"(pydicom|highdicom|nibabel|dicomanonymizer|openjpeg|libjpeg)\b")
    for name in ("pydicom", "highdicom", "nibabel", "nibabel.global"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def output_recipe(card: DatasetCard, key: bytes) -> str:
    """Digest of what decides the bytes of cleaned files besides their sources; it does not tell the key.

    It is part of the versioned data, so it names the form of the output rather than the code: an edit that leaves the bytes as they
    are makes no new data version. Of the card, only the id, the layout (what it says, not what it leaves at the default) and the
    label map count: a corrected figure, source or licence does not read a dataset again.
    """
    layout = card.layout.model_dump(mode="json", exclude_defaults=True)
    return digest(card.id, layout, {str(value): name for value, name in card.label_map.items()}, digest(key.hex()), FORMAT_VERSION)


def ingest(card: DatasetCard, source: Path, data: Path, key: bytes, workers: int = 1) -> IngestReport:
    """Bring ``data/<card.id>`` up to date with a source folder, which is only read.

    Raises:
        BadInput: no such folder, nothing readable in it, or the demo key for real patients.
    """
    started = time.monotonic()
    check_key(key, card)
    if not source.is_dir():
        raise BadInput("no such source folder", where=str(source), remedy=f"put {card.name} there, or mend datasets.path")
    root, pseudonyms, made_by = data / card.id, Pseudonyms(key, card.id), output_recipe(card, key)
    root.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        mapper = _Workers(workers, stack)
        plan = make_plan(card, source, pseudonyms, mapper)
        gone = withdrawn_patients(data, card.id)
        plan.series = [one for one in plan.series if one.patient not in gone]
        before = _previous(root, made_by)
        wanted = {file.target: file for one in plan.series for file in one.files}
        results = _clean_all(list(wanted.values()), before, data, card, pseudonyms, made_by, mapper)
        for target, result in results.items():
            if result.refusal is not None:
                plan.leave_out([wanted[target].source], result.refusal)
        made = [(one, out) for one in plan.series if (out := _series(card.id, one, results))]
        made = _whole(made, wanted, plan.leave_out)
        made = _with_fitting_labels(made, card, data, wanted, plan.leave_out, mapper)
        made = _without_duplicates(made, results, wanted, plan.leave_out)
    series = [one for _, one in made]
    quarantined = sorted(set(plan.quarantined), key=lambda one: (one.path, one.reason))
    write_json(root / QUARANTINE, [asdict(one) for one in quarantined])
    if not series:
        raise BadInput(
            f"no readable MR image; {len(quarantined)} files refused", where=str(source), remedy=f"reasons: {root / QUARANTINE}"
        )
    kept = {file.path for one in series for file in (*one.files, *one.labels, *one.annotations)}
    reused = {target for target in kept if results[target] is before.get(target)}
    write_json(
        root / MANIFEST,
        {
            "recipe": made_by,
            "series": [asdict(one) for one in series],
            "sources": {target: results[target].source_md5 for target in sorted(kept)},
            "contents": {target: results[target].content for target in sorted(kept) if results[target].content},
        },
    )
    _remove_others(root, data, kept)
    return IngestReport(
        dataset_id=card.id,
        root=root,
        series=len(series),
        patients=len({one.patient_id for one in series}),
        files_new=len(kept) - len(reused),
        files_reused=len(reused),
        files_removed=len(set(before) - kept),
        files_ignored=plan.ignored,
        quarantined=tuple(quarantined),
        seconds=time.monotonic() - started,
    )


def _previous(root: Path, wanted_recipe: str) -> dict[str, Cleaned]:
    """What the last ingestions left, finished or not: target -> cleaned file; nothing of what was made by another recipe."""
    found: dict[str, Cleaned] = {}
    if (root / MANIFEST).exists() and (manifest := read_json(root / MANIFEST))["recipe"] == wanted_recipe:
        files = (SourceFile(**file) for one in manifest["series"] for part in _PARTS for file in one[part])
        found = {
            file.path: Cleaned(file, manifest["sources"][file.path], manifest["contents"].get(file.path, "")) for file in files
        }
    if (root / JOURNAL).exists():
        for line in (root / JOURNAL).read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the line that was being written when the run was killed
            if entry.pop("recipe") == wanted_recipe:
                file = SourceFile(**entry.pop("file"))
                found[file.path] = Cleaned(file, **entry)
    return found


_PARTS = ("files", "labels", "annotations")


def _clean_all(
    files: list[PlannedFile],
    before: dict[str, Cleaned],
    data: Path,
    card: DatasetCard,
    pseudonyms: Pseudonyms,
    made_by: str,
    mapper: _Workers,
) -> dict[str, Cleaned]:
    """Clean what is not there yet; results by target, those of before where nothing changed."""
    results: dict[str, Cleaned] = {}
    todo: list[PlannedFile] = []
    for file in files:
        old = before.get(file.target)
        if (
            old is not None
            and old.file is not None
            and _is_there(data / file.target, old.file)
            and old.source_md5 == source_md5(file)
        ):
            results[file.target] = old
        else:
            todo.append(file)
    clean = partial(_clean, data=data, card=card, pseudonyms=pseudonyms)
    with (data / card.id / JOURNAL).open("a") as journal:
        for planned, result in zip(todo, mapper(clean, todo, "de-identifying"), strict=True):
            results[planned.target] = result
            if result.file is not None:
                entry = {"recipe": made_by, "file": asdict(result.file), "source_md5": result.source_md5, "content": result.content}
                journal.write(json.dumps(entry) + "\n")
                journal.flush()
    return results


def _is_there(path: Path, file: SourceFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def source_md5(file: PlannedFile) -> str:
    """MD5 of the source, or over those of several; a sidecar that only the card speaks for has none."""
    sums = [_md5(path, path.stat().st_mtime_ns) if path.is_file() else "" for path in (*file.extra, file.source, *_beside(file))]
    return sums[0] if len(sums) == 1 else digest(sums)[:32]


@lru_cache(maxsize=4096)
def _md5(path: Path, changed: int) -> str:  # a table or an enhanced file is the source of many
    return file_md5(path)


def _beside(file: PlannedFile) -> list[Path]:
    beside = metaimage.data_file(file.source) if file.action == "metaimage" else None
    if file.action == "nifti" and file.source.suffix == ".hdr":
        beside = file.source.with_suffix(".img")
    return [beside] if beside is not None else []


def _clean(file: PlannedFile, data: Path, card: DatasetCard, pseudonyms: Pseudonyms) -> Cleaned:
    """Write one cleaned file. Library messages are not passed on: they may quote the header."""
    target = data / file.target
    md5 = source_md5(file)
    try:
        content = _write(file, target, card, pseudonyms)
    except OmniMRIError as error:
        kind = error.kind if isinstance(error, UnsupportedInput) else "unreadable"
        return Cleaned(None, md5, refusal=Rejection(kind, error.what, error.remedy))
    except Exception as error:
        refusal = Rejection("unreadable", f"broken or unreadable ({type(error).__name__})", "export or download it again")
        return Cleaned(None, md5, refusal=refusal)
    return Cleaned(SourceFile(file.target, file_md5(target), target.stat().st_size), md5, content)


def _write(file: PlannedFile, target: Path, card: DatasetCard, pseudonyms: Pseudonyms) -> str:
    """Write a cleaned file; returns the MD5 of what an image shows, else nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.action in _IMAGES:
        image = _IMAGES[file.action](file, card)
        few = file.part if file.action in ("nifti", "metaimage") else ()
        return nifti.write_clean(nifti.channel(image, few[0]) if few else image, target)
    if file.action == "dicom":
        return _write_dicom(file.source, target, pseudonyms, _label_names(card))
    if file.action == "kspace":
        return fastmri.write_clean(file.source, target, file.patient)
    if file.action == "raw":
        return ismrmrd.write_clean(file.source, target, file.patient, file.part)
    if file.action == "structures":
        _write_structures(file.source, target, card, pseudonyms)
    elif file.action == "boxes":
        write_json(target, _boxes(file, card))
    elif file.action == "findings":
        write_json(target, finding_tables.findings_of(file.source, card.layout.tables[file.part[0]], file.about))
    elif file.action == "report":
        write_json(target, {"text": report_tables.report_of(file.source, card.layout.tables[file.part[0]], file.about)})
    elif file.action == "person":
        write_json(target, finding_tables.person_of(file.source, card.layout.tables[file.part[0]], file.about))
    elif file.action == "dicom-sidecar":
        header = dicom_reader.read_header(file.source)
        write_json(target, clean_sidecar(dicom_reader.sidecar_fields(header, *file.part)))
    else:
        found = [path for path in (*file.extra, file.source) if path.is_file()]
        write_json(target, clean_sidecar(merged(found), file.about))
    return ""


_IMAGES: dict[str, Callable[[PlannedFile, DatasetCard], Any]] = {
    "nifti": lambda file, _: nifti.load(file.source),
    "metaimage": lambda file, _: metaimage.load(file.source),
    "numpy": lambda file, card: numpy_array.load(file.source, file.about or "axial", card.layout.spacing_mm),
    "mosaic": lambda file, _: dicom_reader.unpack_mosaic(file.source),
    "frames": lambda file, _: dicom_reader.unpack_frames(file.source, file.part),
}
"""Action -> reader of what becomes NIfTI."""


def _boxes(file: PlannedFile, card: DatasetCard) -> list[dict[str, Any]]:
    """Box rows about a file; of one that was looked at without any, a row that says so."""
    table = card.layout.boxes[file.part[0]]
    if isinstance(table, BoxTable):
        return finding_tables.block_rows(file.source, table, file.about, file.part[1:])
    rows = finding_tables.box_rows(file.source, file.about, card)
    if rows is None and finding_tables.is_reviewed(list(file.extra), file.about):
        blank = dict.fromkeys(finding_tables.BOX_COLUMNS, "")
        return [{**blank, "study_level": "Yes", "label": "normal"}]
    return rows or []


def _label_names(card: DatasetCard) -> frozenset[str]:
    return frozenset(name.lower() for name in card.label_map.values())


def _write_dicom(source: Path, target: Path, pseudonyms: Pseudonyms, labels: frozenset[str]) -> str:
    import pydicom

    dataset = pydicom.dcmread(BytesIO(read_decompressed(source)), force=True)
    pixels = dicom_reader.stored_pixels(dataset)
    _save_dicom(deidentify_dicom(dataset, pixels, pseudonyms, labels), target)
    scale = (dataset.get("RescaleSlope"), dataset.get("RescaleIntercept"), dataset.get("PixelRepresentation"))
    return nifti.content_md5(pixels, dataset.Rows, dataset.Columns, dataset.BitsAllocated, *(str(value) for value in scale))


def _write_structures(source: Path, target: Path, card: DatasetCard, pseudonyms: Pseudonyms) -> None:
    import pydicom

    dataset = rt_structures.without(pydicom.dcmread(open_decompressed(source), force=True), card.layout.ignored_structures)
    _save_dicom(deidentify_dicom(dataset, None, pseudonyms, _label_names(card)), target)


def _save_dicom(clean: Any, target: Path) -> None:
    whole = BytesIO()
    clean.save_as(whole, enforce_file_format=True)
    with atomic_file(target) as temporary:
        temporary.write_bytes(whole.getbuffer())


def _series(dataset_id: str, planned: PlannedSeries, results: dict[str, Cleaned]) -> SourceSeries | None:
    """The series as it came out; None where no image of it did."""
    parts: dict[str, list[SourceFile]] = {"image": [], "label": [], "annotation": []}
    for file in planned.files:
        if (made := results[file.target].file) is not None:
            parts[file.role].append(made)
    if not parts["image"]:
        return None
    return _summed(
        SourceSeries(
            dataset_id,
            planned.patient,
            planned.series_id,
            planned.reader,
            tuple(parts["image"]),
            tuple(parts["label"]),
            tuple(parts["annotation"]),
        )
    )


def _summed(series: SourceSeries) -> SourceSeries:
    md5 = digest([[file.path, file.md5] for file in (*series.files, *series.labels, *series.annotations)])[:32]
    return replace(series, md5=md5)


Made = list[tuple[PlannedSeries, SourceSeries]]
LeaveOut = Callable[[list[Path], Rejection], None]


def _whole(made: Made, wanted: dict[str, PlannedFile], leave_out: LeaveOut) -> Made:
    """Without the series in which a slice that could not be cleaned leaves a gap."""
    kept: Made = []
    for planned, series in made:
        images = sum(file.role == "image" for file in planned.files)
        lost = images - len(series.files)
        if not lost or len(series.files) == 1:
            kept.append((planned, series))
            continue
        refusal = Rejection("geometry", f"slices missing: {lost} of {images} could not be read", "export the whole series again")
        leave_out([wanted[file.path].source for file in series.files], refusal)
    return kept


def _with_fitting_labels(
    made: Made, card: DatasetCard, data: Path, wanted: dict[str, PlannedFile], leave_out: LeaveOut, mapper: _Workers
) -> Made:
    """Each series with the label map on its grid, if there is one; label maps that fit no image are left out."""
    todo = [series for _, series in made if series.labels]
    if not todo:
        return made
    answers: dict[str, tuple[tuple[str, ...], dict[str, Rejection]]] = {}
    for series, answer in zip(todo, mapper(partial(_fitting, card=card, data=data), todo, "comparing labels"), strict=True):
        answers[f"{series.patient_id}/{series.series_id}"] = answer
    used = {path for fitting, _ in answers.values() for path in fitting}
    faults = {path: fault for _, unfit in answers.values() for path, fault in unfit.items() if path not in used}
    for path, fault in sorted(faults.items()):
        leave_out([wanted[path].source], fault)
    kept: Made = []
    for planned, series in made:
        fitting, _ = answers.get(f"{series.patient_id}/{series.series_id}", ((), {}))
        kept.append((planned, _summed(replace(series, labels=tuple(file for file in series.labels if file.path in fitting)))))
    return kept


def _fitting(series: SourceSeries, card: DatasetCard, data: Path) -> tuple[tuple[str, ...], dict[str, Rejection]]:
    """Paths of the label files that fit the image of a series, and what is wrong with the others."""
    groups: dict[str, list[SourceFile]] = defaultdict(list)
    for file in series.labels:
        groups["tissue" if ".tissue-" in file.path else file.path].append(file)
    fitting: tuple[str, ...] = ()
    unfit: dict[str, Rejection] = {}
    for files in groups.values():
        refusal = Rejection("label", "a second label map of the same image", "name one of them in the card")
        if not fitting:
            try:
                read_volume(data, replace(series, labels=tuple(files), annotations=()), card)
                fitting = tuple(file.path for file in files)
                continue
            except OmniMRIError as error:
                refusal = Rejection("label", error.what, error.remedy)
            except Exception as error:
                refusal = Rejection("label", f"a label map that cannot be read ({type(error).__name__})", "get the file again")
        unfit.update({file.path: refusal for file in files})
    return fitting, unfit


def _without_duplicates(made: Made, results: dict[str, Cleaned], wanted: dict[str, PlannedFile], leave_out: LeaveOut) -> Made:
    """Without the series that show the same voxels as another; of equals the one with labels stays, else the first."""
    first: dict[str, int] = {}
    order = sorted(range(len(made)), key=lambda number: (not made[number][1].labels, number))
    contents = [digest(sorted(results[file.path].content for file in series.files)) for _, series in made]
    for number in order:
        first.setdefault(contents[number], number)
    kept: Made = []
    for number, (planned, series) in enumerate(made):
        if first[contents[number]] == number:
            kept.append((planned, series))
        else:
            refusal = Rejection("duplicate", "the same voxels as another series", "remove one of the two")
            leave_out([wanted[file.path].source for file in series.files], refusal)
    return kept


def _remove_others(root: Path, data: Path, wanted: set[str]) -> None:
    """Delete files of this dataset that no series names, and folders that become empty."""
    kept = {data / path for path in wanted} | {root / MANIFEST, root / QUARANTINE}
    doomed = [path for path in root.rglob("*") if path.is_file() and path not in kept]
    for path in doomed:
        path.unlink()
    for folder in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
