"""Taking a dataset in: plan, clean what is new, remove what vanished, quarantine what is broken, write the manifest.

The manifest (``data/<id>/manifest.json``) lists the series and, for each written file, the md5 of its source: an unchanged source
is not read again beyond its header. A file that cannot be taken in is listed in ``quarantine.json`` with the reason; its series
goes on without it, unless it was the last.
"""

from __future__ import annotations

import json
import logging
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from components.catalog import DatasetCard
from components.errors import BadInput, OmniMRIError
from components.files import atomic_file, read_json, write_json
from components.ingestion import dicom, kspace, nifti
from components.ingestion.deidentify import clean_sidecar, deidentify_dicom
from components.ingestion.keys import Pseudonyms, check_key
from components.ingestion.plan import PlannedFile, PlannedSeries, left_out, make_plan
from components.ingestion.volume import IngestReport, Quarantined, SourceFile, SourceSeries
from components.ingestion.withdrawal import withdrawn
from components.progress import track
from components.provenance import digest, file_md5

MANIFEST, QUARANTINE = "manifest.json", "quarantine.json"
FORM = 1
"""To be raised with every change of what ingestion writes: everything is then written anew."""
FEW = 150
"""So many files or fewer are cleaned in this process: starting others would take longer."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cleaned:
    """One cleaned file, or why there is none."""

    file: SourceFile | None
    source_md5: str
    reason: str = ""
    remedy: str = ""


def recipe(card: DatasetCard, key: bytes) -> str:
    """Digest of what decides the bytes of cleaned files besides their sources; it does not tell the key.

    It is part of the versioned data, so it names the form of the output rather than the code: an edit that leaves the bytes as they
    are makes no new data version.
    """
    return digest(card, digest(key.hex()), FORM)


def ingest(card: DatasetCard, source: Path, data: Path, key: bytes, workers: int = 1) -> IngestReport:
    """Bring ``data/<card.id>`` up to date with a source folder, which is only read.

    Raises:
        BadInput: no such folder, nothing readable in it, or the demo key for real patients.
    """
    started = time.monotonic()
    check_key(key, card)
    if not source.is_dir():
        raise BadInput("no such source folder", where=str(source), remedy=f"put {card.name} there, or mend datasets.path")
    root, pseudonyms = data / card.id, Pseudonyms(key, card.id)
    plan = make_plan(card, source, pseudonyms)
    gone = withdrawn(data, card.id)
    plan.series = [one for one in plan.series if one.patient not in gone]
    before = _previous(root, recipe(card, key))
    wanted = {file.target: file for one in plan.series for file in one.files}
    results = _clean_all(list(wanted.values()), before, data, pseudonyms, workers)
    quarantined = list(plan.quarantined)
    for target, result in results.items():
        if result.file is None:
            quarantined.append(left_out(wanted[target].source, source, result.reason, result.remedy))
    series = [made for one in plan.series if (made := _series(card.id, one, results))]
    _write_quarantine(root, quarantined)
    if not series:
        raise BadInput(
            f"no readable MR image; {len(quarantined)} files refused", where=str(source), remedy=f"reasons: {root / QUARANTINE}"
        )  # fmt: skip
    kept = {file.path for one in series for file in (*one.files, *one.labels, *one.annotations)}
    reused = {target for target in kept if results[target] is before.get(target)}
    _remove_others(root, data, kept)
    sources = {target: result.source_md5 for target, result in sorted(results.items()) if target in kept}
    write_json(root / MANIFEST, {"recipe": recipe(card, key), "series": [asdict(one) for one in series], "sources": sources})
    return IngestReport(
        dataset_id=card.id,
        root=root,
        series=len(series),
        patients=len({one.patient_id for one in series}),
        files_new=len(kept) - len(reused),
        files_reused=len(reused),
        files_removed=len(set(before) - kept),
        quarantined=tuple(quarantined),
        seconds=time.monotonic() - started,
    )


def _previous(root: Path, wanted_recipe: str) -> dict[str, Cleaned]:
    """What the last ingestion left: target -> cleaned file; nothing where it was made by another recipe."""
    if not (root / MANIFEST).exists():
        return {}
    manifest = read_json(root / MANIFEST)
    if manifest["recipe"] != wanted_recipe:
        return {}
    files = {file["path"]: SourceFile(**file) for one in manifest["series"] for part in _PARTS for file in one[part]}
    return {path: Cleaned(file, manifest["sources"][path]) for path, file in files.items()}


_PARTS = ("files", "labels", "annotations")


def _clean_all(
    files: list[PlannedFile], before: dict[str, Cleaned], data: Path, pseudonyms: Pseudonyms, workers: int
) -> dict[str, Cleaned]:
    """Clean what is not there yet; results by target, those of before where nothing changed."""
    results: dict[str, Cleaned] = {}
    todo: list[PlannedFile] = []
    for file in files:
        old = before.get(file.target)
        if old is not None and (data / file.target).is_file() and old.source_md5 == source_md5(file):
            results[file.target] = old
        else:
            todo.append(file)
    clean = partial(_clean, data=data, pseudonyms=pseudonyms)
    if len(todo) <= FEW or workers == 1:
        done = [clean(file) for file in track(todo, "de-identifying")]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            done = list(track(pool.map(clean, todo, chunksize=32), "de-identifying", total=len(todo)))
    results.update({file.target: result for file, result in zip(todo, done, strict=True)})
    return results


def source_md5(file: PlannedFile) -> str:
    """MD5 of the source; a sidecar that only the card speaks for has none."""
    return file_md5(file.source) if file.source.is_file() else ""


def _clean(file: PlannedFile, data: Path, pseudonyms: Pseudonyms) -> Cleaned:
    """Write one cleaned file. Library messages are not passed on: they may quote the header."""
    target = data / file.target
    md5 = source_md5(file)
    try:
        _write(file, target, pseudonyms)
    except OmniMRIError as error:
        return Cleaned(None, md5, error.what, error.remedy)
    except Exception as error:
        return Cleaned(None, md5, f"broken or unreadable ({type(error).__name__})", "export or download it again")
    return Cleaned(SourceFile(file.target, file_md5(target), target.stat().st_size), md5)


def _write(file: PlannedFile, target: Path, pseudonyms: Pseudonyms) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.action == "dicom":
        _write_dicom(file.source, target, pseudonyms)
    elif file.action == "mosaic":
        nifti.write_clean(dicom.unpack_mosaic(file.source), target)
    elif file.action == "nifti":
        nifti.write_clean(nifti.load(file.source), target)
    elif file.action == "kspace":
        kspace.check(file.source)
        kspace.write_clean(file.source, target, file.patient)
    elif file.action == "boxes":
        write_json(target, kspace.rows_of(file.source, file.about) or [])
    elif file.action == "dicom-sidecar":
        write_json(target, clean_sidecar(_sidecar_of(dicom.read_header(file.source))))
    else:
        fields = json.loads(file.source.read_text()) if file.source.is_file() else {}
        write_json(target, clean_sidecar({**fields, **({"Sequence": file.about} if file.about else {})}))


def _write_dicom(source: Path, target: Path, pseudonyms: Pseudonyms) -> None:
    import pydicom

    dataset = pydicom.dcmread(source, force=True)
    if "PixelData" not in dataset:
        raise BadInput("no pixel data", where=target.name, remedy="export or download it again")
    _ = dataset.pixel_array  # decodes, or raises: a truncated file must not get further
    deidentify_dicom(dataset, pseudonyms)
    with atomic_file(target) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)


def _sidecar_of(header: object) -> dict[str, object]:
    """The fields of a DICOM header that a sidecar of its NIfTI may have (BIDS names and units)."""
    get = header.get  # type: ignore[attr-defined]
    times = {name: float(get(name)) / 1000 for name in ("RepetitionTime", "EchoTime", "InversionTime") if get(name)}
    numbers = {name: float(get(name)) for name in ("MagneticFieldStrength", "FlipAngle") if get(name)}
    words = {
        name: str(get(name)) for name in ("Modality", "Manufacturer", "BodyPartExamined", "PatientSex", "PatientAge") if get(name)
    }
    model = {"ManufacturersModelName": str(get("ManufacturerModelName"))} if get("ManufacturerModelName") else {}
    return {**times, **numbers, **words, **model}


def _series(dataset_id: str, planned: PlannedSeries, results: dict[str, Cleaned]) -> SourceSeries | None:
    """The series as it came out; None where no image of it did."""
    parts: dict[str, list[SourceFile]] = {"image": [], "label": [], "annotation": []}
    for file in planned.files:
        if (made := results[file.target].file) is not None:
            parts[file.role].append(made)
    if not parts["image"]:
        return None
    md5 = digest([[file.path, file.md5] for role in parts.values() for file in role])[:32]
    return SourceSeries(
        dataset_id, planned.patient, planned.series_id, planned.reader, tuple(parts["image"]), tuple(parts["label"]),
        tuple(parts["annotation"]), md5,
    )  # fmt: skip


def _write_quarantine(root: Path, quarantined: list[Quarantined]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / QUARANTINE, [asdict(one) for one in sorted(quarantined, key=lambda one: (one.path, one.reason))])


def _remove_others(root: Path, data: Path, wanted: set[str]) -> None:
    """Delete files of this dataset that no series names, and folders that become empty."""
    kept = {data / path for path in wanted} | {root / MANIFEST, root / QUARANTINE}
    doomed = [path for path in root.rglob("*") if path.is_file() and path not in kept]
    for path in doomed:
        path.unlink()
    for folder in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
