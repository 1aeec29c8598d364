"""Read ingested series, and single files for prediction, as :class:`~components.ingestion.volume.Volume`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.catalog import DatasetCard
from components.errors import BadInput, OmniMRIError
from components.files import read_json
from components.ingestion.annotations import lesion_boxes
from components.ingestion.annotations.sidecars import merge_sidecars
from components.ingestion.file_names import stem_of
from components.ingestion.formats.base import READERS
from components.ingestion.formats.image_files import ImageFileFormat
from components.ingestion.formats.label_maps import read_labels
from components.ingestion.formats.other_formats import reject_other_format
from components.ingestion.formats.sniff import detect_format
from components.ingestion.manifest import QUARANTINE, Manifest
from components.ingestion.quarantine import Rejection, UnsupportedInput, rejection_of
from components.ingestion.sequence_classification import canonical_sequence
from components.ingestion.source_listing import reject_pointer
from components.ingestion.volume import Acquisition, QuarantineEntry, SourceSeries, Volume
from components.machine_faults import raise_machine_fault
from components.registries import FORMATS

_NO_IMAGE = Rejection("no image", "no image of a known format by its content", "convert it to DICOM or NIfTI")


def list_series(data: Path, dataset_id: str) -> list[SourceSeries]:
    """Return the series of an ingested dataset; empty where it has not been ingested."""
    manifest = Manifest.read(data / dataset_id)
    return list(manifest.series) if manifest is not None else []


def read_quarantine(data: Path, dataset_id: str) -> list[QuarantineEntry]:
    """Return the inputs of a dataset that ingestion rejected."""
    path = data / dataset_id / QUARANTINE
    return [QuarantineEntry(**entry) for entry in read_json(path)] if path.exists() else []


@contextmanager
def _as_bad_input(name: str) -> Iterator[None]:
    """Convert errors of libraries on a damaged file to :class:`BadInput`. Their messages are dropped: they may quote the header.

    Raises:
        MachineFault: the machine or a program is at fault.
    """
    try:
        yield
    except OmniMRIError:
        raise
    except Exception as error:
        raise_machine_fault(error, name)
        _, reason, remedy = rejection_of(error)
        raise BadInput(reason, where=name, remedy=remedy) from None


def read_volume(data: Path, series: SourceSeries, card: DatasetCard) -> Volume:
    """Read one ingested series with its labels and annotations.

    Raises:
        BadInput: files that do not fit each other or the card, or are broken.
    """
    with _as_bad_input(series.series_id):
        image_format = FORMATS[READERS.get(series.reader, series.reader)]
        files = [data / file.path for file in series.files]
        annotations = {_annotation_name(file.path): data / file.path for file in series.annotations}
        volume = image_format.read(files, annotations.pop("json", None), card.anatomy)
        if series.labels:
            volume = replace(volume, labels=read_labels([data / file.path for file in series.labels], volume, card))
        rows = _read_rows(annotations, "boxes")
        boxes = image_format.place_boxes(lesion_boxes.parse_boxes(rows), files, volume) if rows else ()
        diagnosis = {**lesion_boxes.derive_diagnosis(rows, boxes), **_read_fields(annotations, "findings")}
        reports = [read_json(path)["text"] for name, path in annotations.items() if name.startswith("report")]
        return replace(
            volume,
            boxes=boxes,
            diagnosis=diagnosis,
            report="\n".join(filter(None, reports)),
            acquisition=_fill_person(volume.acquisition, _read_fields(annotations, "person")),
        )


def _annotation_name(path: str) -> str:
    """Return the name of an annotation behind the series name, such as "json", "boxes.json" or "findings-0.json"."""
    return ".".join(Path(path).name.split(".")[1:])


def _read_rows(annotations: Mapping[str, Path], kind: str) -> list[dict[str, Any]]:
    """Return the rows of all annotations of a kind."""
    return [row for name, path in annotations.items() if name.startswith(kind) for row in read_json(path)]


def _read_fields(annotations: Mapping[str, Path], kind: str) -> dict[str, Any]:
    """Return the merged fields of all annotations of a kind."""
    return {key: value for name, path in annotations.items() if name.startswith(kind) for key, value in read_json(path).items()}


def _fill_person(acquisition: Acquisition, person: Mapping[str, Any]) -> Acquisition:
    """Return an acquisition with sex and age from a table where its header does not state them."""
    age = acquisition.age_years if acquisition.age_years is not None else person.get("PatientAge")
    return replace(acquisition, sex=acquisition.sex or person.get("PatientSex"), age_years=age)


def read_path(path: Path) -> Volume:
    """Read a file of any registered format, chosen by content, or the DICOM files of one series in a folder.

    Raises:
        BadInput: no such file, or nothing that can be read as one MR volume.
    """
    with _as_bad_input(path.name):
        if path.is_dir():
            return FORMATS["dicom"].read_path(path)
        if not path.is_file():
            remedy = "give a NIfTI file, a DICOM file or folder, or a .h5 file"
            raise BadInput("no such file or folder", where=str(path), remedy=remedy)
        name = detect_format(path)
        if name is None:
            rejection = reject_pointer(path) or reject_other_format(path) or _NO_IMAGE
            raise UnsupportedInput(rejection.kind, rejection.reason, where=str(path), remedy=rejection.remedy)
        return FORMATS[name].read_path(path)


def read_scan(path: Path) -> Volume:
    """Read as :func:`read_path` does, with the sidecar beside a file; the sequence may be the suffix of its name, as in BIDS.

    Raises:
        BadInput: see :func:`read_path`; a sidecar that cannot be read.
    """
    if not path.is_file():
        return read_path(path)
    sidecar, name = path.with_name(f"{stem_of(path.name)}.json"), detect_format(path)
    image_format = FORMATS[name] if name is not None else None
    if sidecar.is_file() and isinstance(image_format, ImageFileFormat):
        with _as_bad_input(path.name):
            volume = image_format.read_described(path, merge_sidecars([sidecar]))
    else:
        volume = read_path(path)
    sequence = volume.acquisition.sequence or canonical_sequence(stem_of(path.name).rpartition("_")[2])
    return replace(volume, acquisition=replace(volume.acquisition, sequence=sequence))
