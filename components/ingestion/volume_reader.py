"""Reading what was taken in, and single files for prediction, into :class:`~components.ingestion.volume.Volume`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.catalog import DatasetCard
from components.errors import BadInput, OmniMRIError
from components.files import read_json
from components.ingestion.annotations import finding_tables, rt_structures
from components.ingestion.formats import fastmri, ismrmrd, metaimage, nifti, numpy_array
from components.ingestion.formats.dicom import reader as dicom_reader
from components.ingestion.formats.dicom.series_splitting import split
from components.ingestion.formats.sniff import kind_of
from components.ingestion.manifest import MANIFEST, QUARANTINE
from components.ingestion.volume import Acquisition, Box, Quarantined, SourceFile, SourceSeries, Volume


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


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What a library raises about a broken file becomes a refusal. Its message is not passed on: it may quote the header."""
    try:
        yield
    except OmniMRIError:
        raise
    except Exception as error:
        raise BadInput(f"broken or unreadable ({type(error).__name__})", where=name, remedy="get the file again") from None


def read_volume(data: Path, series: SourceSeries, card: DatasetCard) -> Volume:
    """Read one ingested series with its labels and annotations.

    Raises:
        BadInput: files that do not fit each other or the card, or are broken.
    """
    with _told(series.series_id):
        return _series_volume(data, series, card)


def _series_volume(data: Path, series: SourceSeries, card: DatasetCard) -> Volume:
    paths = [data / file.path for file in series.files]
    labels = [data / file.path for file in series.labels]
    beside = {".".join(Path(file.path).name.split(".")[1:]): data / file.path for file in series.annotations}
    diagnosis = {
        name: present
        for ending, path in beside.items()
        if ending.startswith("findings")
        for name, present in read_json(path).items()
    }
    person = {
        name: said for ending, path in beside.items() if ending.startswith("person") for name, said in read_json(path).items()
    }
    reports = [read_json(path)["text"] for ending, path in beside.items() if ending.startswith("report")]
    if series.reader == "kspace":
        volume = _kspace_volume(paths[0], card.anatomy)
    elif series.reader == "dicom":
        voxels, affine, acquisition = dicom_reader.read_series(paths, card.anatomy)
        volume = Volume(voxels=_finite(voxels, series.series_id), affine=affine, acquisition=acquisition)
    else:
        voxels, affine, acquisition = nifti.read(paths[0], beside.get("json"), card.anatomy)
        volume = Volume(voxels=_finite(voxels, series.series_id), affine=affine, acquisition=acquisition)
    found = _read_labels(labels, volume, card) if labels else None
    rows = [row for ending, path in beside.items() if ending.startswith("boxes") for row in read_json(path)]
    boxes = _boxes(rows, series.reader, paths, volume) if rows else ()
    return replace(
        volume,
        labels=found,
        boxes=boxes,
        diagnosis={**finding_tables.diagnosis_of(rows, boxes), **diagnosis},
        report="\n".join(filter(None, reports)),
        acquisition=_of(volume.acquisition, person),
    )


def _boxes(rows: list[dict[str, Any]], reader: str, paths: list[Path], volume: Volume) -> tuple[Box, ...]:
    """Boxes that were drawn in the order of the files, on the grid of the volume."""
    blocks = finding_tables.blocks_of(rows)
    if reader == "nifti":
        turn = np.linalg.inv(volume.affine) @ nifti.stored_affine(paths[0])
        return finding_tables.boxes_of([block.turned(turn) for block in blocks])
    boxes = finding_tables.boxes_of(blocks)
    if reader == "dicom":
        places = dicom_reader.places(paths)
        return tuple(replace(box, slice_index=places[box.slice_index]) for box in boxes)
    return boxes


def _of(acquisition: Acquisition, person: Mapping[str, Any]) -> Acquisition:
    """An acquisition with the sex and age that a table says, where its header does not."""
    age = acquisition.age_years if acquisition.age_years is not None else person.get("PatientAge")
    return replace(acquisition, sex=acquisition.sex or person.get("PatientSex"), age_years=age)


def _read_labels(paths: list[Path], volume: Volume, card: DatasetCard) -> NDArray[np.uint8]:
    shape = volume.voxels.shape
    tissue = {int(path.name.split(".tissue-")[1].split(".")[0]): path for path in paths if ".tissue-" in path.name}
    if tissue:
        return nifti.read_tissue_maps(tissue, shape, volume.affine)
    if paths[0].name.endswith(".rtstruct.dcm"):
        return rt_structures.read_structures(paths[0], volume.affine, shape, card.label_map)
    if paths[0].name.endswith(".seg.dcm"):
        return dicom_reader.read_segmentation(paths[0], volume.affine, shape, card.label_map)
    return nifti.read_labels(paths[0], shape, volume.affine)


def _finite(voxels: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Voxels without NaN and infinity, which some exports have outside of the head; nothing but those is not an image."""
    finite = np.isfinite(voxels)
    if not finite.any():
        raise BadInput("no finite voxel", where=name, remedy="export the series again")
    return np.where(finite, voxels, 0).astype(np.float32)


def _kspace_volume(path: Path, anatomy: str | None) -> Volume:
    voxels, lines, affine, acquisition = fastmri.read(path, anatomy)
    return Volume(voxels=_finite(voxels, path.stem), affine=affine, acquisition=acquisition, kspace=lines)


def read_path(path: Path) -> Volume:
    """Read one NIfTI or MetaImage file, DICOM file or folder of a series, fastMRI or ISMRMRD file, or array, chosen by content.

    Raises:
        BadInput: no such file, or nothing that can be read as one MR volume.
    """
    with _told(path.name):
        return _path_volume(path)


def _path_volume(path: Path) -> Volume:
    if path.is_dir():
        return _one_series([file for file in sorted(path.rglob("*")) if file.is_file() and kind_of(file) == "dicom"], path)
    if not path.is_file():
        raise BadInput("no such file or folder", where=str(path), remedy="give a NIfTI file, a DICOM file or folder, or a .h5 file")
    kind = kind_of(path)
    if kind == "dicom":
        return _one_series([path], path)
    if kind == "hdf5":
        return _raw_volume(path) if ismrmrd.is_raw(path) else _kspace_volume(path, None)
    if kind == "nifti":
        return _image(nifti.load(path), {}, path)
    if kind == "metaimage":
        return _image(metaimage.load(path), {}, path)
    if kind == "numpy":
        return _image(numpy_array.load(path, "axial", (1.0, 1.0, 1.0)), {}, path)
    raise BadInput("no image of a known format by its content", where=str(path), remedy="convert it to DICOM or NIfTI")


def _image(image: Any, fields: dict[str, object], path: Path) -> Volume:
    _only_one(image.shape[3] if len(image.shape) == 4 else 1, "images", path)
    voxels, affine, acquisition = nifti.volume_of(image, fields, None)
    return Volume(voxels=_finite(voxels, path.name), affine=affine, acquisition=acquisition)


def _raw_volume(path: Path) -> Volume:
    images = ismrmrd.images(path)
    _only_one(len(images), "images", path)
    with TemporaryDirectory() as folder:
        target = Path(folder) / "image.h5"
        ismrmrd.write_clean(path, target, "", images[0])
        return _kspace_volume(target, None)


def _only_one(count: int, what: str, place: Path) -> None:
    if count != 1:
        raise BadInput(f"{count} {what} in one place", where=str(place), remedy="give one, or ingest the folder, which parts them")


def _one_series(slices: list[Path], place: Path) -> Volume:
    found = {path: dicom_reader.read_header(path) for path in slices}
    images = {path: header for path, header in found.items() if header.get("SOPClassUID") not in dicom_reader.LABELS}
    usable = {path: header for path, header in images.items() if dicom_reader.refusal(header) is None}
    if not usable:
        reason = next((refused for header in images.values() if (refused := dicom_reader.refusal(header))), None)
        raise BadInput(reason.reason if reason else "no DICOM MR image", where=str(place), remedy="give one MR series")
    _only_one(len({str(header.SeriesInstanceUID) for header in usable.values()}), "series", place)
    first, header = next(iter(usable.items()))
    if dicom_reader.is_mosaic(header):
        _only_one(len(usable), "volumes", place)
        return _image(dicom_reader.unpack_mosaic(first), dicom_reader.sidecar_fields(header), place)
    frames = []
    for path, header in usable.items():
        own, refused = dicom_reader.frames_or_refusal(header, path)
        if refused:
            raise BadInput(refused.reason, where=str(place), remedy=refused.remedy)
        frames += own
    volumes, unfit = split(frames)
    if unfit:
        raise BadInput(unfit[0].reason, where=str(place), remedy=unfit[0].remedy)
    _only_one(len(volumes), "volumes", place)
    if "PerFrameFunctionalGroupsSequence" in header and len(usable) == 1:
        indices = [frame.index for frame in volumes[0]]
        return _image(dicom_reader.unpack_frames(first, indices), dicom_reader.sidecar_fields(header, indices[0]), place)
    voxels, affine, acquisition = dicom_reader.read_series([frame.path for frame in volumes[0]], None)
    return Volume(voxels=_finite(voxels, place.name), affine=affine, acquisition=acquisition)
