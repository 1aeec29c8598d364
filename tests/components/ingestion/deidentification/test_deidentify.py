"""No identifying text passes: it is planted in every attribute and header, and searched in every output byte."""

from __future__ import annotations

import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
import yaml
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.datadict import DicomDictionary, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.tag import Tag
from scipy import ndimage

from components.catalog import DatasetCard, Layout
from components.catalog.layout import LabelTable
from components.curation import curate
from components.errors import BadInput
from components.ingestion import ingest, list_series, read_quarantine, read_volume
from components.ingestion.deidentification.allowlists import allowed_body_part, allowed_scanner, allowed_vendor
from components.ingestion.deidentification.deidentify import basic_profile, clean_sidecar
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.provenance import REPOSITORY
from components.settings import CurationSettings
from tests.helpers import dicom_files

NAME, DATE, UID, NUMBER = "ZWETSCHGE", "19440406", "1.2.826.0.1.77777777", 7654321
PLANTED = (NAME, NAME.lower(), "Zwetschge", DATE, "1944-04-06", UID, str(NUMBER))
TEXTS: dict[str, Any] = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "SH", "ST", "UC", "UT"), NAME),
    "PN": f"{NAME}^ANNA",
    "UR": f"http://x/{NAME}",
    "DA": DATE,
    "DT": f"{DATE}010203",
    "TM": "010203",
    "UI": UID,
    "AS": "099Y",
    "OB": NAME.encode() + b" ",
    "UN": NAME.encode() + b" ",
    "OW": NAME.encode() + b" ",
    "OB or OW": NAME.encode() + b" ",
    "OL": b"ZWETSCHGEZWE",
    "OF": b"ZWETSCHGEZWE",
    "OD": b"ZWETSCHG" * 2,
    "OV": b"ZWETSCHG" * 2,
    "US or OW": NAME.encode() + b" ",
}
NUMBERS = {"DS": str(NUMBER), "IS": str(NUMBER), "FD": float(NUMBER), "FL": float(NUMBER), "UL": NUMBER, "SL": NUMBER}
NEEDED = {
    "SOPClassUID",
    "Modality",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "NumberOfFrames",
    "BurnedInAnnotation",
    "ImageType",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "SpecificCharacterSet",
    "InstanceNumber",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "PaletteColorLookupTableUID",
}
"""Attributes that make the file an MR image: with text in one, it would not be ingested. Image Type is planted elsewhere."""


PASSING = ("PatientName", "PatientID", "PatientSex", "ROIName")
"""Attributes that the profile empties and that say something all the same: a pseudonym, the sex, a name in the card's label map."""


def _pixels(*shape: int, seed: int = 0) -> NDArray[np.uint16]:
    """Return blurred noise: pixels of an image resemble their neighbors, else validation refuses it."""
    return ndimage.gaussian_filter(dicom_files.random_pixels(*shape, seed=seed), 1.0, mode="wrap")


def _plant(dataset: Dataset, depth: int = 1) -> int:
    """Plant text, dates and UIDs in every attribute of the dictionary, and numbers if the profile lists it; return the count."""
    planted = 0
    for number, (kind, _, _, _, keyword) in DicomDictionary.items():
        tag = Tag(number)
        if keyword in NEEDED or tag.group in (0x0000, 0x0002, 0x0004, 0xFFFE, 0x7FE0) or tag.element == 0:
            continue
        if kind == "SQ":
            if depth:
                item = Dataset()
                planted += _plant(item, depth - 1) if tag == 0x00081140 else _few(item)
                dataset.add(DataElement(tag, kind, [item]))
        elif kind in TEXTS:
            dataset.add(DataElement(tag, kind.split()[-1], TEXTS[kind]))
            planted += 1
        elif kind in NUMBERS and tag in basic_profile():
            dataset.add(DataElement(tag, kind, NUMBERS[kind]))
            planted += 1
    for group in (0x0009, 0x0011, 0x0019, 0x0029):
        block = dataset.private_block(group, f"{NAME} PRIVATE", create=True)
        for element, kind in enumerate(("LO", "UN", "OB", "PN", "DA", "UT"), start=1):
            block.add_new(element, kind, TEXTS[kind])
            planted += 1
    for overlay in (0x6000, 0x5000):
        dataset.add(DataElement(Tag(overlay, 0x3000), "OW", NAME.encode() + b" "))
        dataset.add(DataElement(Tag(overlay, 0x0022), "LO", NAME))
    return planted


def _few(item: Dataset) -> int:
    item.PatientName, item.CodeMeaning, item.CodeValue, item.CodingSchemeDesignator = f"{NAME}^ANNA", NAME, NAME, "99ZZ"
    item.TextValue, item.ReferencedSOPInstanceUID, item.Date = NAME, UID, DATE
    item.private_block(0x0019, NAME, create=True).add_new(1, "LO", NAME)
    return 8


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write one image in every format with planted text in every possible field, including file and folder names."""
    folder = tmp_path_factory.mktemp("planted") / NAME
    _dicom(folder)
    _structures(folder)
    _nifti(folder)
    _metaimage(folder)
    _kspace(folder)
    np.save(folder / f"{NAME} array.npy", _pixels(3, 9, 8))
    (folder / f"{NAME} notes.txt").write_text(f"{NAME} was here")
    (folder / f"broken.{NAME}").write_bytes(b"\0" * 128 + b"DICM" + NAME.encode() * 9)
    with (folder / "findings.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["name", "tear", "remark"], [f"{NAME} array", "1", NAME]])
    with (folder / "boxes.csv").open("w", newline="") as stream:
        rows = [
            ["file", "slice", "study_level", "x", "y", "width", "height", "label"],
            [f"{NAME}_kspace", 0, NAME, 1, 1, 3, 3, NAME],
        ]
        csv.writer(stream).writerows(rows)
    return folder.parent


def _dicom(folder: Path) -> None:
    for number, voxels in enumerate(_pixels(1, 8, 9)):
        path = dicom_files.write_slice(folder / "dicom", f"{NAME}{number}", number + 1, (0, 0, 4.0 * number), voxels)
        image = pydicom.dcmread(path)
        own = {name: image[name] for name in ("SOPInstanceUID", "SeriesInstanceUID", "ImageType", "EchoTime")}
        assert _plant(image) > 2000
        for element in own.values():
            image.add(element)
        image.ImageType = ["ORIGINAL", "PRIMARY", "M", NAME]
        image.SOPInstanceUID, image.SeriesInstanceUID = f"{UID}.{number}", f"{UID}.9"
        image.file_meta.SourceApplicationEntityTitle = NAME
        image.file_meta.PrivateInformationCreatorUID, image.file_meta.PrivateInformation = UID, NAME.encode() + b" "
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.preamble = NAME.encode().ljust(128, b"\0")
        image.PixelData = image.PixelData + NAME.encode() + b" "  # behind the last pixel
        image.save_as(path, enforce_file_format=True)
    frames = [{"plane": plane, "offset": 4.0 * place} for place, plane in enumerate(_pixels(3, 8, 9, seed=5))]
    path = dicom_files.write_enhanced(folder / "dicom" / "enhanced.dcm", frames)
    image = pydicom.dcmread(path)
    for item in (image, *image.PerFrameFunctionalGroupsSequence, *image.SharedFunctionalGroupsSequence):
        item.PatientComments, item.ImageComments, item.FrameLabel = NAME, NAME, NAME
    image.Manufacturer, image.ManufacturerModelName, image.BodyPartExamined, image.PatientAge = NAME, NAME, NAME, "099Y"
    image.save_as(path)


def _structures(folder: Path) -> None:
    """Outlines on the classic image, whose frame of reference and patient are planted too."""
    corners = np.array([[2.0, 2, 0], [2, 6, 0], [6, 6, 0], [6, 2, 0]])
    path = dicom_files.write_structure_set(folder / "dicom" / "structures.dcm", {"Meniscus": [corners]}, f"{UID}.9", UID)
    image = pydicom.dcmread(path)
    kept = ("SOPInstanceUID", "StructureSetROISequence", "ROIContourSequence", "ReferencedFrameOfReferenceSequence")
    own = {name: image[name] for name in kept}
    assert _plant(image) > 2000
    for element in own.values():
        image.add(element)
    for item in (*image.StructureSetROISequence, *image.ROIContourSequence, *image.ROIContourSequence[0].ContourSequence):
        _few(item)
        item.ROIDescription, item.ROIGenerationDescription, item.ROIObservationLabel = NAME, NAME, NAME
    image.save_as(path, enforce_file_format=True)


def _nifti(folder: Path) -> None:
    image = nib.Nifti1Image(_pixels(8, 9, 3, seed=6), np.diag([1.0, 1, 4, 1]))
    image.header["descrip"], image.header["aux_file"], image.header["intent_name"] = NAME, NAME, NAME
    image.header["db_name"] = NAME
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", f"{NAME} {DATE}".encode()))
    nib.save(image, folder / f"sub-{NAME}_T1w.nii.gz")
    fields = {
        "PatientName": NAME,
        "Manufacturer": NAME,
        "ManufacturersModelName": NAME,
        "BodyPartExamined": NAME,
        "PatientSex": NAME,
        "Modality": NAME,
        "SeriesDescription": NAME,
        "AcquisitionDateTime": "1944-04-06",
        "Sequence": NAME,
        "EchoTime": NAME,
        "global": {"const": {"PatientID": NAME}},
    }
    (folder / f"sub-{NAME}_T1w.json").write_text(json.dumps(fields))
    (folder / "T1w.json").write_text(json.dumps({"InstitutionName": NAME, "RepetitionTime": 0.5, NAME: NAME}))


def _metaimage(folder: Path) -> None:
    image = SimpleITK.GetImageFromArray(_pixels(3, 9, 8, seed=7))
    for key in ("PatientName", "Comment", "Name", "0010|0010"):
        image.SetMetaData(key, f"{NAME} {DATE}")
    SimpleITK.WriteImage(image, str(folder / f"{NAME}.mha"))
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(_pixels(3, 9, 8, seed=8)), str(folder / f"{NAME}2.mhd"))


def _kspace(folder: Path) -> None:
    images = _pixels(3, 2, 8, 8, seed=9).astype(np.float32)
    texts = "".join(
        f"<{section}><patientName>{NAME}</patientName><systemVendor>{NAME}</systemVendor><systemModel>{NAME}</systemModel>"
        f"<TR>{NAME}</TR><institutionName>{NAME}</institutionName><trajectory>cartesian</trajectory></{section}>"
        for section in (
            "subjectInformation",
            "studyInformation",
            "acquisitionSystemInformation",
            "encoding",
            "sequenceParameters",
            "measurementInformation",
            "userParameters",
            "waveformInformation",
            NAME,
        )
    )
    header = f'<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><!-- {NAME} -->{texts}</ismrmrdHeader>'
    with h5py.File(folder / f"{NAME}_kspace.h5", "w") as file:
        file["kspace"] = np.fft.fftshift(np.fft.fft2(images), axes=(-2, -1)).astype(np.complex64)
        file["kspace"].attrs["remark"] = NAME
        file["ismrmrd_header"], file[NAME] = header, NAME
        file.attrs["acquisition"], file.attrs["patient_id"], file.attrs["birth"] = NAME, NAME, DATE


CARD = DatasetCard(
    id="planted",
    name="Planted",
    rights="none",
    formats=("DICOM", "NIfTI", "MetaImage", "NumPy", "k-space HDF5"),
    synthetic=True,
    label_map={1: "meniscus"},
    layout=Layout(
        patient="([^/]+)$",
        boxes=("*/boxes.csv",),
        tables=(LabelTable(path="*/findings.csv", key="name", image=r"([^/]+)\.npy$", findings={"tear": "tear"}),),
    ),
)


def _found(folder: Path) -> list[str]:
    """Return the files whose names or bytes contain planted text."""
    found = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder).as_posix()
        content = path.read_bytes() if path.is_file() else b""
        found += [f"{relative}: {text}" for text in PLANTED if text in relative or text.encode() in content]
    return found


@pytest.fixture(scope="module")
def planted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("clean")
    ingest(CARD, source, data, DEMO_KEY)
    return data


def test_the_sources_contain_the_planted_text(source: Path) -> None:
    kinds = {path.suffix for path in source.rglob("*") if any(text in "".join(_found(path.parent)) for text in PLANTED)}
    assert {".dcm", ".gz", ".json", ".mha", ".h5", ".csv"} <= kinds


def test_every_format_is_ingested_without_planted_text(planted: Path) -> None:
    volumes = [read_volume(planted, one, CARD) for one in list_series(planted, CARD.id)]
    assert len(volumes) == 7  # classic and enhanced DICOM, NIfTI, two MetaImages, NumPy, k-space
    assert {(name, present) for volume in volumes for name, present in volume.diagnosis.items()} == {
        ("tear", True),
        ("finding", True),
    }
    assert sum(volume.labels is not None for volume in volumes) == 1  # the outlines of the structure set
    assert not _found(planted)
    assert all(volume.acquisition.vendor in (None, "Siemens") for volume in volumes)


def test_nothing_planted_is_in_tables_or_messages(
    source: Path,
    planted: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Ingested again beside, and curated, with every logger open."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(BadInput) as refused:
        ingest(CARD.model_copy(update={"layout": Layout(ignored=("*",))}), source, tmp_path / "none", DEMO_KEY)
    report = ingest(CARD, source, tmp_path / "data", DEMO_KEY, workers=2)
    curate(tmp_path / "data", [CARD], tmp_path / "curated", CurationSettings(matrix=32, workers=1))
    messages = [
        str(report),
        caplog.text,
        *capfd.readouterr(),
        *(str(one.message) for one in recwarn),
        refused.value.what,
        *(str(one) for one in read_quarantine(planted, CARD.id)),
    ]
    assert len(report.quarantined) == 2 and not [text for text in PLANTED if any(text in message for message in messages)]
    assert not _found(tmp_path / "data") and not _found(tmp_path / "curated")


@pytest.mark.slow
def test_nothing_planted_is_in_any_store_of_the_command_line(source: Path, tmp_path: Path) -> None:
    """Prefect's database, MLflow's store, Great Expectations' pages, DVC's cache, training's folders, and what is printed."""
    home = tmp_path / "home"
    (home / "cards").mkdir(parents=True)
    (home / "cards" / "planted.yaml").write_text(yaml.safe_dump(CARD.model_dump(mode="json", exclude_defaults=True)))
    profile = yaml.safe_load((REPOSITORY / "profiles" / "debug.yaml").read_text())
    profile["datasets"] = [{"card": "planted", "path": str(source)}]
    profile["curation"]["pixel_mm"] = 0.15  # the images are eight millimeters wide
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_TRACKING"))}
    environment = {**clean, "OMNIMRI_HOME": str(home), "OMNIMRI_DATA": str(tmp_path / "data"), "PREFECT_LOGGING_LEVEL": "DEBUG"}
    printed = ""
    for words in (["ingest", "planted", str(source), "--strict"], ["curate"], ["train", "--stage", "1"]):
        command = [sys.executable, "-m", "flows.cli", *words, "--profile", str(tmp_path / "profile.yaml")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=REPOSITORY)
        assert done.returncode == (1 if "--strict" in words else 0), done.stderr[-3000:]
        printed += done.stdout + done.stderr
    assert "in quarantine" in printed and not [text for text in PLANTED if text in printed]
    assert (home / "mlflow" / "mlflow.db").is_file() and (home / "prefect").is_dir()
    assert not _found(home) and not _found(tmp_path / "data")


def test_remaining_elements_contain_only_numbers_and_published_terms(planted: Path) -> None:
    for path in planted.rglob("*.dcm"):
        image = pydicom.dcmread(path)
        for element in image.iterall():
            assert not element.tag.is_private
            action = basic_profile().get(element.tag, "")
            assert action != "X" or element.keyword == "PatientAge", element.tag
            if action in ("Z", "X/Z") and element.VR != "DA" and element.keyword not in PASSING:
                assert not element.value or element.VR == "SQ", element.keyword
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
        assert set(image.file_meta.dir()) <= {
            "FileMetaInformationGroupLength",
            "FileMetaInformationVersion",
            "TransferSyntaxUID",
            "MediaStorageSOPClassUID",
            "MediaStorageSOPInstanceUID",
            "ImplementationClassUID",
            "ImplementationVersionName",
        }
        assert "PixelData" not in image or len(image.PixelData) == image.Rows * image.Columns * 2


def test_uids_stay_consistent_and_dates_keep_their_intervals(tmp_path: Path) -> None:
    voxels = _pixels(2, 4, 8, 9)
    dicom_files.write_series(tmp_path / "source", "a", voxels[0], StudyDate="20200105")
    dicom_files.write_series(tmp_path / "source", "b", voxels[1], StudyDate="20200112", SeriesInstanceUID="1.2.3", EchoTime=80)
    ingest(CARD, tmp_path / "source", tmp_path / "data", DEMO_KEY)
    images = [pydicom.dcmread(path) for path in sorted(tmp_path.glob("data/**/*.dcm"))]
    assert len({image.FrameOfReferenceUID for image in images}) == 1 and len({image.SeriesInstanceUID for image in images}) == 2
    days = sorted({np.datetime64(f"{date[:4]}-{date[4:6]}-{date[6:]}") for date in (image.StudyDate for image in images)})
    assert days[1] - days[0] == np.timedelta64(7, "D") and all(image.StudyDate < "20200105" for image in images)
    assert len({image.PatientID for image in images}) == 1


@pytest.mark.parametrize("word", [NAME, "Anna Zwetschge", "Skyra Zwetschge", "4711", "", None, "Siemens; patient Zwetschge"])
def test_only_published_terms_pass(word: str | None) -> None:
    assert allowed_scanner(word) is None and allowed_body_part(word) is None
    assert allowed_vendor(word) in (None, "Siemens")
    fields = dict.fromkeys(
        ("Manufacturer", "ManufacturersModelName", "BodyPartExamined", "PatientSex", "Modality", "EchoTime"), word
    )
    assert set(clean_sidecar(fields).values()) <= {"Siemens"}


@pytest.mark.parametrize(
    "name",
    [
        "Skyra",
        "SIGNA Artist",
        "MAGNETOM Prisma Fit",
        "Discovery MR750w",
        "Achieva dStream",
        "Ingenia 3.0T",
        "TrioTim",
        "uMR 790",
        "Vantage Titan",
        "Optima MR450w",
        "Signa HDxt 1.5T",
        "SymphonyTim",
    ],
)
def test_names_of_scanners_pass(name: str) -> None:
    assert allowed_scanner(name) == name


def test_the_profile_equals_the_table_of_the_standard() -> None:
    assert len(basic_profile()) > 600 and {basic_profile()[tag] for tag in (0x00100010, 0x00100040)} == {"Z"}
    assert dictionary_VR(0x00100010) == "PN" and basic_profile()[0x00104000] == "X" and basic_profile()[0x0020000D] == "U"


def test_integers_as_long_as_a_record_or_telephone_number_are_emptied(tmp_path: Path) -> None:
    dicom_files.write_series(tmp_path / "source", "s", _pixels(2, 8, 9), SeriesNumber=87654321, AcquisitionNumber=5551234567)
    card = DatasetCard(id="x", name="x", rights="none", formats=("DICOM",), synthetic=True)
    ingest(card, tmp_path / "source", tmp_path / "data", DEMO_KEY)
    for path in (tmp_path / "data").rglob("*.dcm"):
        written = pydicom.dcmread(path)
        assert written.SeriesNumber is None and written.AcquisitionNumber is None and written.InstanceNumber in (1, 2)
        assert b"87654321" not in path.read_bytes() and b"5551234567" not in path.read_bytes()
