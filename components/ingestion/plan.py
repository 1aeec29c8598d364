"""From a folder of anything to series: which files belong together, whose they are, and what they will be called.

Every name under ``data/`` is a pseudonym: file and folder names of the source may carry the patient's.
"""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from components.catalog import DatasetCard
from components.ingestion import dicom
from components.ingestion.content import Kind, kind_of
from components.ingestion.keys import Pseudonyms
from components.ingestion.volume import Quarantined

Role = Literal["image", "label", "annotation"]
Action = Literal["dicom", "mosaic", "nifti", "sidecar", "dicom-sidecar", "kspace", "boxes"]


@dataclass(frozen=True)
class PlannedFile:
    """One file to be written.

    Attributes:
        source: where it comes from.
        target: relative to ``data/`` (POSIX form).
        role: what it is in its series.
        action: how it is cleaned.
        patient: pseudonym.
        about: name in the source that an annotation is looked up by.
    """

    source: Path
    target: str
    role: Role
    action: Action
    patient: str
    about: str = ""


@dataclass
class PlannedSeries:
    """One volume to be."""

    patient: str
    series_id: str
    reader: str
    files: list[PlannedFile] = field(default_factory=list)


@dataclass
class Plan:
    """All series of a dataset, and what is left out already."""

    series: list[PlannedSeries] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)


def make_plan(card: DatasetCard, source: Path, pseudonyms: Pseudonyms) -> Plan:
    """Sort the files of a source folder into series."""
    plan = Plan()
    found: dict[Kind, list[Path]] = defaultdict(list)
    for path in sorted(path for path in source.rglob("*") if path.is_file() and not path.name.startswith(".")):
        if not card.layout.leaves_out(path.relative_to(source).as_posix()):
            found[kind_of(path)].append(path)
    _plan_dicom(plan, card, source, found["dicom"], pseudonyms)
    _plan_nifti(plan, card, source, found["nifti"], pseudonyms)
    _plan_kspace(plan, card, source, found["hdf5"], found["other"], pseudonyms)
    known = {path for path in found["other"] if path.suffix in {".json", ".csv"}}
    for path in found["other"]:
        if path not in known:
            plan.quarantined.append(left_out(path, source, "not DICOM, NIfTI or HDF5 by its content", "remove it, or convert it"))
    return plan


def left_out(path: Path, source: Path, reason: str, remedy: str) -> Quarantined:
    """A quarantine entry. Only file name extension and place in the listing are kept: the name may be the patient's."""
    order = sorted(p for p in source.rglob("*") if p.is_file())
    return Quarantined(path=f"file {order.index(path) + 1} of {len(order)}, *{path.suffix}", reason=reason, remedy=remedy)


def _plan_dicom(plan: Plan, card: DatasetCard, source: Path, paths: Iterable[Path], pseudonyms: Pseudonyms) -> None:
    series: dict[str, PlannedSeries] = {}
    frames: dict[str, set[str]] = defaultdict(set)
    segmentations: list[tuple[str, PlannedFile]] = []
    seen: set[str] = set()
    for path in paths:
        header = dicom.read_header(path)
        refused = dicom.refusal(header)
        instance = str(header.get("SOPInstanceUID", ""))
        if refused is None and instance in seen:
            refused = dicom.broken(path) or ("the same SOP Instance UID as another file", "remove one of the two")
        if refused is not None:
            plan.quarantined.append(left_out(path, source, *refused))
            continue
        seen.add(instance)
        patient = pseudonyms.patient(str(header.get("PatientID", "")))
        name = pseudonyms.series(str(header.SeriesInstanceUID))
        image = pseudonyms.series(instance)
        frame = str(header.get("FrameOfReferenceUID", ""))
        place = f"{card.id}/{patient}"
        if header.get("SOPClassUID") == dicom.SEGMENTATION:
            segmentations.append((frame, PlannedFile(path, f"{place}/{image}.seg.dcm", "label", "dicom", patient)))
        elif dicom.is_mosaic(header):
            plan.series.append(
                PlannedSeries(patient, image, "nifti", [
                    PlannedFile(path, f"{place}/{image}.nii", "image", "mosaic", patient),
                    PlannedFile(path, f"{place}/{image}.json", "annotation", "dicom-sidecar", patient),
                ])
            )  # fmt: skip
        else:
            one = series.setdefault(name, PlannedSeries(patient, name, "dicom"))
            number = int(header.get("InstanceNumber") or 0)
            target = f"{place}/{name}/{number:05d}-{image[1:7]}.dcm"
            one.files.append(PlannedFile(path, target, "image", "dicom", patient))
            frames[name].add(frame)
    for name, one in series.items():
        one.files.sort(key=lambda file: file.target)
        one.files += [file for frame, file in segmentations if frame in frames[name] and file.patient == one.patient]
    plan.series += [series[name] for name in sorted(series)]


def _matches(relative: str, globs: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(relative, pattern) for pattern in globs)


def _patient_of(card: DatasetCard, relative: str, pseudonyms: Pseudonyms) -> str:
    """By the card's expression; without one the whole dataset counts as one patient, so that nothing leaks between splits."""
    match = re.search(card.layout.patient, relative) if card.layout.patient else None
    return pseudonyms.patient(match[1] if match else "")


def _plan_nifti(plan: Plan, card: DatasetCard, source: Path, paths: Iterable[Path], pseudonyms: Pseudonyms) -> None:
    labels: dict[str, list[PlannedFile]] = defaultdict(list)
    images: list[PlannedSeries] = []
    for path in paths:
        relative = path.relative_to(source).as_posix()
        patient, name = _patient_of(card, relative, pseudonyms), pseudonyms.series(relative)
        stem = f"{card.id}/{patient}/{name}"
        tissue = [value for value, pattern in sorted(card.layout.tissue_maps.items()) if _matches(relative, [pattern])]
        if tissue:
            labels[patient].append(PlannedFile(path, f"{stem}.tissue-{tissue[0]}.nii", "label", "nifti", patient))
        elif _matches(relative, card.layout.labels):
            labels[patient].append(PlannedFile(path, f"{stem}.seg.nii", "label", "nifti", patient))
        else:
            files = [PlannedFile(path, f"{stem}.nii", "image", "nifti", patient)]
            sidecar = path.with_name(f"{path.name.removesuffix('.gz').removesuffix('.nii')}.json")
            sequence = next((kind for text, kind in sorted(card.layout.sequences.items()) if text in path.name), "")
            if sidecar.is_file() or sequence:
                files.append(PlannedFile(sidecar, f"{stem}.json", "annotation", "sidecar", patient, about=sequence))
            images.append(PlannedSeries(patient, name, "nifti", files))
    for one in images:
        one.files += labels[one.patient]
    plan.series += images


def _plan_kspace(
    plan: Plan, card: DatasetCard, source: Path, paths: Iterable[Path], others: Iterable[Path], pseudonyms: Pseudonyms
) -> None:
    tables = [path for path in others if _matches(path.relative_to(source).as_posix(), card.layout.boxes)]
    for path in paths:
        relative = path.relative_to(source).as_posix()
        patient, name = _patient_of(card, relative, pseudonyms), pseudonyms.series(relative)
        stem = f"{card.id}/{patient}/{name}"
        one = PlannedSeries(patient, name, "kspace", [PlannedFile(path, f"{stem}.h5", "image", "kspace", patient)])
        one.files += [PlannedFile(table, f"{stem}.boxes.json", "annotation", "boxes", patient, about=path.stem) for table in tables]
        plan.series.append(one)
