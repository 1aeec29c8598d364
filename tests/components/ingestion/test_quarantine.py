"""Rejected inputs are listed with the reason, and the rest is ingested."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pydicom
import pytest

from components.catalog import DatasetCard, Layout
from components.ingestion import ingest, list_series, read_quarantine, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.quarantine import KINDS, Rejection
from components.ingestion.source_listing import SourceListing
from components.ingestion.volume import IngestReport, QuarantineEntry
from tests.helpers import dicom_files

CARD = DatasetCard(id="made-up", name="Made up", rights="none", formats=("DICOM",), synthetic=True)
DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "data.md"


def ingest_source(folder: Path, card: DatasetCard = CARD) -> IngestReport:
    return ingest(card, folder / "source", folder / "data", DEMO_KEY)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder with one intact series."""
    dicom_files.write_series(
        tmp_path / "source" / "intact",
        "intact",
        dicom_files.random_pixels(5, 8, 9),
        SeriesInstanceUID="1.2.3.1",
        PatientID="intact",
    )
    return tmp_path / "source"


def _write_bad(folder: Path, **values: object) -> None:
    dicom_files.write_series(folder, "bad", dicom_files.random_pixels(5, 8, 9, seed=3), **values)


def _write_color(folder: Path) -> None:
    path = dicom_files.write_slice(folder, "bad", 1, (0, 0, 0), dicom_files.random_pixels(8, 9))
    image = pydicom.dcmread(path)
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.PixelData = image.PixelData * 3
    image.save_as(path)


def _write_truncated(folder: Path) -> None:
    path = dicom_files.write_slice(folder, "bad", 1, (0, 0, 0), dicom_files.random_pixels(64, 64))
    path.write_bytes(path.read_bytes()[:-3000])


def _write_one_broken_slice(folder: Path) -> None:
    paths = dicom_files.write_series(folder, "bad", dicom_files.random_pixels(5, 8, 9, seed=3))
    paths[2].write_bytes(paths[2].read_bytes()[:-40])


def _write_copies_of_pixels(folder: Path) -> None:
    dicom_files.write_series(folder, "copy", dicom_files.random_pixels(5, 8, 9), SeriesInstanceUID="1.2.3.2", PatientID="another")


def _write_nifti_bomb(folder: Path) -> None:
    """Write a small file whose header claims eight gigabytes of voxels."""
    folder.mkdir()
    image = nib.Nifti1Image(np.ones((4, 4, 4), dtype=np.int16), np.eye(4))
    image.header.set_data_shape((4000, 1000, 1000))
    (folder / "bomb.nii").write_bytes(image.header.binaryblock + b"\0" * 200)


def _write_hdf5_bomb(folder: Path) -> None:
    """Write eight kilobytes that claim a terabyte of k-space."""
    folder.mkdir()
    with h5py.File(folder / "bomb.h5", "w") as file:
        file.create_dataset("kspace", (1000, 10, 4000, 4000), dtype=np.complex64, chunks=(1, 1, 64, 64), compression="gzip")


def _write_dicom_bomb(folder: Path) -> None:
    dicom_files.write_slice(folder, "bad", 1, (0, 0, 0), dicom_files.random_pixels(8, 9), Rows=65000, Columns=65000)


CASES: dict[str, tuple[Callable[[Path], object], str, str, int]] = {
    "an empty file": (lambda f: (f.mkdir(), (f / "empty.dcm").touch()), "unreadable", "an empty file", 1),
    "a truncated file": (_write_truncated, "unreadable", "fewer pixels than the header says", 1),
    "claims more than it holds": (_write_nifti_bomb, "unreadable", "fewer voxels than the NIfTI header claims", 1),
    "claims k-space that was never written": (_write_hdf5_bomb, "unreadable", "claims more than the file contains", 1),
    "claims a huge frame": (_write_dicom_bomb, "unreadable", "fewer pixels than the header says", 1),
    "a slice that cannot be read": (_write_one_broken_slice, "geometry", "slices missing: 1 of 5 could not be read", 2),
    "another modality": (
        lambda f: _write_bad(f, Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2"),
        "not MR",
        "modality CT",
        5,
    ),
    "an unknown modality is not quoted": (lambda f: _write_bad(f, Modality="ZWETSCHGE"), "not MR", "another modality, not MR", 5),
    "spectroscopy": (lambda f: _write_bad(f, SOPClassUID="1.2.840.10008.5.1.4.1.1.4.2"), "not MR", "MR Spectroscopy Storage", 5),
    "a color image": (_write_color, "not magnitude", "a color image", 1),
    "burnt in": (lambda f: _write_bad(f, BurnedInAnnotation="YES"), "burnt-in", "may show the patient's name", 5),
    "secondary capture": (lambda f: _write_bad(f, SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "burnt-in", "secondary capture", 5),
    "screen save": (lambda f: _write_bad(f, ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]), "burnt-in", "may show", 5),
    "no position": (lambda f: _write_bad(f, ImagePositionPatient=None), "geometry", "without ImagePositionPatient", 5),
    "no direction": (
        lambda f: _write_bad(f, ImageOrientationPatient=[0, 0, 0, 0, 0, 0]),
        "geometry",
        "no perpendicular unit vectors",
        5,
    ),
    "a slice missing": (lambda f: _write_bad(f, order=[0, 1, 3, 4]), "geometry", "slices missing: 1 of 3 gaps", 1),
    "a slice doubled": (
        lambda f: (_write_bad(f), dicom_files.write_slice(f, "twice", 9, (-30, -20, 18), dicom_files.random_pixels(8, 9, seed=8))),
        "geometry",
        "doubled slices: 6 images at 5 positions",
        1,
    ),
    "a slice turned": (
        lambda f: (
            _write_bad(f, order=[0, 1, 3, 4]),
            dicom_files.write_slice(
                f,
                "turned",
                9,
                (-30, -20, 18),
                dicom_files.random_pixels(8, 9),
                ImageOrientationPatient=[0.9848078, 0.1736482, 0, -0.1736482, 0.9848078, 0],
            ),
        ),
        "geometry",
        "slices turned against the others: 1 of 5",
        1,
    ),
    "the same instance twice": (lambda f: shutil.copytree(f.parent / "intact", f), "duplicate", "the same SOP Instance UID", 5),
    "the same voxels under other names": (_write_copies_of_pixels, "duplicate", "the same voxels as another series", 1),
    "a document": (lambda f: (f.mkdir(), (f / "notes.txt").write_text("hello")), "no image", "nothing that belongs to one", 1),
}


@pytest.mark.parametrize("case", CASES)
def test_each_case_is_listed_with_kind_reason_and_remedy_and_the_intact_series_is_ingested(case: str, source: Path) -> None:
    write, kind, reason, count = CASES[case]
    write(source / "bad")
    report = ingest_source(source.parent)
    assert report.series == 1 and report.patients == 1
    listed = read_quarantine(source.parent / "data", CARD.id)
    assert list(report.quarantined) == listed and len(listed) == count, listed
    assert any(entry.kind == kind and reason in entry.reason and entry.remedy for entry in listed), listed
    assert all(entry.kind in KINDS for entry in listed)
    (series,) = list_series(source.parent / "data", CARD.id)
    assert read_volume(source.parent / "data", series, CARD).voxels.shape == (5, 8, 9)


def test_an_intact_copy_replaces_a_broken_one(source: Path) -> None:
    paths = sorted((source / "intact").glob("*.dcm"))
    (source / "a-first").mkdir()
    (source / "a-first" / paths[0].name).write_bytes(paths[0].read_bytes()[:-40])
    report = ingest_source(source.parent)
    assert report.series == 1 and [entry.kind for entry in report.quarantined] == ["unreadable"]


def test_labels_that_match_no_image_are_listed_and_the_image_is_ingested(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name, values, shift in (
        ("p1", dicom_files.random_pixels(8, 9, 4), 0.0),
        ("p1-seg", dicom_files.random_pixels(8, 9, 4) % 3, 0.0),
        ("p2", dicom_files.random_pixels(8, 9, 4, seed=2), 0.0),
        ("p2-seg", dicom_files.random_pixels(8, 9, 5) % 3, 0.0),
        ("p3", dicom_files.random_pixels(8, 9, 4, seed=3), 0.0),
        ("p3-seg", dicom_files.random_pixels(8, 9, 4) % 2, 9.0),
        ("p4", dicom_files.random_pixels(8, 9, 4, seed=4), 0.0),
        ("p4-seg", dicom_files.random_pixels(8, 9, 4) % 3, 0.0),
        ("p4-b-seg", dicom_files.random_pixels(8, 9, 4) % 2, 0.0),
        ("p5-seg", dicom_files.random_pixels(8, 9, 4) % 3, 0.0),
    ):
        affine = np.diag([1.0, 1, 4, 1])
        affine[0, 3] = shift
        nib.save(nib.Nifti1Image(values.astype(np.int16), affine), tmp_path / "source" / f"{name}.nii")
    layout = Layout(labels=("*-seg.nii",), patient=r"(p\d)[^/]*$")
    card = CARD.model_copy(update={"layout": layout, "label_map": {1: "a", 2: "b"}})
    report = ingest_source(tmp_path, card)
    assert report.series == 4
    assert [sum(bool(series.labels) for series in list_series(tmp_path / "data", card.id))] == [1]
    reasons = sorted(entry.reason for entry in report.quarantined)
    assert {entry.kind for entry in report.quarantined} == {"label"}
    for text in ("a label map of no image here", "one of several label maps that fit", "for an image of (4, 9, 8)", "9.0 mm off"):
        assert any(text in reason for reason in reasons), (text, reasons)


def test_ignored_files_are_counted_and_not_listed(source: Path) -> None:
    (source / "mask.nii").write_bytes(b"anything")
    report = ingest_source(source.parent, CARD.model_copy(update={"layout": Layout(ignored=("*.nii",))}))
    assert report.files_ignored == 1 and not report.quarantined


def test_an_entry_refers_to_a_file_by_its_number_in_sorted_order(tmp_path: Path) -> None:
    """``find -L . -type f | LC_ALL=C sort`` in the folder shows its owner the file; nobody else learns its name."""
    names = ["b.dcm", "a/c.dcm", "a-b.dcm", "Zwetschge.Anna", "ä.nii.gz", ".hidden"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    ordered = sorted(names, key=str.encode)
    listing = SourceListing(tmp_path)
    rejection = Rejection("unreadable", "why", "what to do")
    for name in names:
        entry = listing.quarantine_entry([tmp_path / name], rejection)
        assert entry.path.startswith(f"file {ordered.index(name) + 1} of 6")
        assert not re.search("anna|zwetschge|hidden", entry.path.lower())
    both = listing.quarantine_entry([tmp_path / "b.dcm", tmp_path / "a/c.dcm"], rejection)
    assert both == QuarantineEntry(f"file {ordered.index('a/c.dcm') + 1} and 1 more of 6, *.dcm", "why", "what to do", "unreadable")


def test_the_documentation_contains_the_table_of_kinds() -> None:
    rows = [f"| {kind} | {meaning} | {remedy} |" for kind, (meaning, remedy) in KINDS.items()]
    assert "\n".join(rows) in DOCUMENT.read_text()
