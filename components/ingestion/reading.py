"""Reading what was taken in, and single files for prediction, into :class:`~components.ingestion.volume.Volume`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from components.catalog import DatasetCard
from components.errors import BadInput
from components.files import read_json
from components.ingestion import dicom, headers, kspace, nifti
from components.ingestion.content import kind_of
from components.ingestion.intake import MANIFEST, QUARANTINE
from components.ingestion.volume import Quarantined, SourceFile, SourceSeries, Volume


def list_series(data: Path, dataset_id: str) -> list[SourceSeries]:
    """The series of an ingested dataset; empty where it has not been ingested."""
    path = data / dataset_id / MANIFEST
    if not path.exists():
        return []

    def files(entry: dict[str, Any], part: str) -> tuple[SourceFile, ...]:
        return tuple(SourceFile(**file) for file in entry[part])

    return [
        SourceSeries(**{**entry, **{part: files(entry, part) for part in ("files", "labels", "annotations")}})
        for entry in read_json(path)["series"]
    ]


def quarantined(data: Path, dataset_id: str) -> list[Quarantined]:
    """What ingestion left out."""
    path = data / dataset_id / QUARANTINE
    return [Quarantined(**entry) for entry in read_json(path)] if path.exists() else []


def read_volume(data: Path, series: SourceSeries, card: DatasetCard) -> Volume:
    """Read one ingested series with its labels and annotations.

    Raises:
        BadInput: files that do not fit each other or the card.
    """
    paths = [data / file.path for file in series.files]
    if series.reader == "dicom":
        return _dicom_volume(paths, [data / file.path for file in series.labels], card)
    if series.reader == "kspace":
        return _kspace_volume(paths[0], [data / file.path for file in series.annotations], card.anatomy)
    sidecars = [data / file.path for file in series.annotations]
    voxels, affine, acquisition = nifti.read(paths[0], sidecars[0] if sidecars else None, card.anatomy)
    labels = None
    tissue = {int(path.name.split(".tissue-")[1].split(".")[0]): path for path in _labels(data, series) if ".tissue-" in path.name}
    if tissue:
        labels = nifti.read_tissue_maps(tissue, voxels.shape)
    elif series.labels:
        labels = nifti.read_labels(_labels(data, series)[0], voxels.shape)
    return Volume(voxels=_finite(voxels, series.series_id), affine=affine, acquisition=acquisition, labels=labels)


def _labels(data: Path, series: SourceSeries) -> list[Path]:
    return [data / file.path for file in series.labels]


def _finite(voxels: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    """Voxels without NaN and infinity, which some exports have outside of the head; nothing but those is not an image."""
    finite = np.isfinite(voxels)
    if not finite.any():
        raise BadInput("no finite voxel", where=name, remedy="export the series again")
    return np.where(finite, voxels, 0).astype(np.float32)


def _dicom_volume(paths: list[Path], labels: list[Path], card: DatasetCard | None) -> Volume:
    volume, affine, acquisition = dicom.read_series(paths, card.anatomy if card else None)
    found = dicom.read_segmentation(labels[0], volume, card.label_map) if card and labels else None
    voxels = _finite(np.asarray(volume.array, dtype=np.float32), paths[0].parent.name)
    return Volume(voxels=voxels, affine=affine, acquisition=acquisition, labels=found)


def _kspace_volume(path: Path, annotations: list[Path], anatomy: str | None) -> Volume:
    voxels, lines, affine, acquisition = kspace.read(path, anatomy)
    boxes, diagnosis = kspace.boxes_and_diagnosis(read_json(annotations[0])) if annotations else ((), {})
    return Volume(voxels=voxels, affine=affine, acquisition=acquisition, kspace=lines, boxes=boxes, diagnosis=diagnosis)


def read_path(path: Path) -> Volume:
    """Read one NIfTI file, DICOM file or folder of a series, or fastMRI file, chosen by content.

    Raises:
        BadInput: no such file, or nothing that can be read as one MR volume.
    """
    if path.is_dir():
        slices = [file for file in sorted(path.rglob("*")) if file.is_file() and kind_of(file) == "dicom"]
        return _one_series(slices, path)
    if not path.is_file():
        raise BadInput("no such file or folder", where=str(path), remedy="give a NIfTI file, a DICOM file or folder, or a .h5 file")
    kind = kind_of(path)
    if kind == "dicom":
        return _one_series([path], path)
    if kind == "hdf5":
        return _kspace_volume(path, [], None)
    if kind == "nifti":
        voxels, affine, acquisition = nifti.read(path, None, None)
        return Volume(voxels=_finite(voxels, path.name), affine=affine, acquisition=acquisition)
    raise BadInput("neither DICOM nor NIfTI nor HDF5 by its content", where=str(path), remedy="convert it to one of these")


def _one_series(slices: list[Path], place: Path) -> Volume:
    found = {path: dicom.read_header(path) for path in slices}
    usable = [path for path, header in found.items() if dicom.refusal(header) is None and header.SOPClassUID != dicom.SEGMENTATION]
    if not usable:
        reason = next((dicom.refusal(header) for header in found.values() if dicom.refusal(header)), None)
        raise BadInput(reason[0] if reason else "no DICOM MR image", where=str(place), remedy="give one MR series")
    series = {str(found[path].SeriesInstanceUID) for path in usable}
    if len(series) > 1:
        raise BadInput(f"{len(series)} series in one folder", where=str(place), remedy="give the folder of one series, or one file")
    if dicom.is_mosaic(found[usable[0]]):
        voxels, affine = nifti.canonical(dicom.unpack_mosaic(usable[0]))
        acquisition = replace(headers.from_dicom(found[usable[0]], affine, None), plane=headers.plane_of(affine))
        return Volume(voxels=_finite(voxels, place.name), affine=affine, acquisition=acquisition)
    return _dicom_volume(usable, [], None)
