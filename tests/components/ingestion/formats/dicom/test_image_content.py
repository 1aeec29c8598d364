"""Only magnitudes of MR images are ingested: phases, parts of complex values, maps, colors and inverted images are left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from components.errors import BadInput
from components.ingestion import ingest, list_series, read_path, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.formats.dicom.frames import content_of_header
from components.ingestion.volume import IngestReport
from tests.helpers import dicom_files
from tests.helpers.real_world.common import make_card
from tests.helpers.real_world.dicom_series import GE, PHILIPS, SIEMENS, add_private, edit, voxels, write_mixed_enhanced, write_stack

CARD = make_card(formats=("DICOM",))
MAGNITUDES = [
    "ORIGINAL\\PRIMARY",
    "ORIGINAL\\PRIMARY\\M\\ND\\NORM",
    "ORIGINAL\\PRIMARY\\M_FFE\\M\\FFE",
    "ORIGINAL\\PRIMARY\\M_B0\\M\\B0",
    "ORIGINAL\\PRIMARY\\OTHER",
    "ORIGINAL\\PRIMARY\\T1\\NONE",
    "ORIGINAL\\PRIMARY\\T2_STAR\\NONE",
    "ORIGINAL\\PRIMARY\\M\\DIS2D\\FMRI",
    "DERIVED\\PRIMARY\\M\\TRACEW\\NORM",
    "DERIVED\\PRIMARY\\M\\TENSOR_B0\\DIS2D",
    "DERIVED\\SECONDARY\\MPR\\CSA MPR",
    "DERIVED\\PRIMARY\\PROJECTION IMAGE\\M\\MIP",
    "DERIVED\\PRIMARY\\DIXON\\WATER",
    "DERIVED\\PRIMARY\\M\\FAT\\DIXON",
    "ORIGINAL\\PRIMARY\\M\\SWI\\NORM",
    "DERIVED\\PRIMARY\\DIFFUSION\\ADC\\NORM",
]
OTHERS = {
    "ORIGINAL\\PRIMARY\\P\\ND": "phase",
    "ORIGINAL\\PRIMARY\\PHASE MAP\\P\\FFE": "phase",
    "ORIGINAL\\PRIMARY\\P_FFE\\P\\FFE": "phase",
    "ORIGINAL\\PRIMARY\\PHASE\\NONE": "phase",
    "ORIGINAL\\PRIMARY\\R\\ND": "real part",
    "ORIGINAL\\PRIMARY\\R_IR\\R\\IR": "real part",
    "ORIGINAL\\PRIMARY\\REAL\\NONE": "real part",
    "ORIGINAL\\PRIMARY\\I\\ND": "imaginary part",
    "ORIGINAL\\PRIMARY\\IMAGINARY": "imaginary part",
    "ORIGINAL\\PRIMARY\\COMPLEX_IMAGE": "complex values",
    "ORIGINAL\\PRIMARY\\B0 MAP\\B0\\UNSPECIFIED": "field map",
    "DERIVED\\PRIMARY\\FIELDMAPHZ": "field map",
    "ORIGINAL\\PRIMARY\\VELOCITY MAP\\P\\PCA": "velocity map",
    "DERIVED\\PRIMARY\\M\\T1 MAP\\ND": "relaxation map",
    "DERIVED\\PRIMARY\\T2_MAP\\T2\\UNSPECIFIED": "relaxation map",
    "DERIVED\\PRIMARY\\DIFFUSION\\FA\\NORM": "diffusion map",
    "DERIVED\\SECONDARY\\PERFUSION\\RELCBF": "perfusion map",
    "DERIVED\\PRIMARY\\PERFUSION\\TTP": "perfusion map",
    "DERIVED\\PRIMARY\\M\\SUB\\NORM": "difference of images",
    "DERIVED\\PRIMARY\\T1\\SUBTRACTION": "difference of images",
    "DERIVED\\PRIMARY\\DIXON\\FAT_FRACTION": "fat fraction map",
    "DERIVED\\PRIMARY\\OTHER\\CONDUCTIVITY MAP": "derived map",
}


def _header(**values: object) -> Dataset:
    header = Dataset()
    for keyword, value in values.items():
        setattr(header, keyword, value)
    return header


@pytest.mark.parametrize("image_type", MAGNITUDES)
def test_types_of_magnitudes_are_images(image_type: str) -> None:
    assert content_of_header(_header(ImageType=image_type.split("\\"))) == "magnitude"


@pytest.mark.parametrize(("image_type", "content"), OTHERS.items())
def test_types_of_other_contents_are_named(image_type: str, content: str) -> None:
    assert content_of_header(_header(ImageType=image_type.split("\\"))) == content


@pytest.mark.parametrize("component", ["PHASE", "REAL", "IMAGINARY", "COMPLEX"])
def test_a_complex_image_component_outweighs_the_image_type(component: str) -> None:
    header = _header(ImageType=["ORIGINAL", "PRIMARY", "M", "ND"], ComplexImageComponent=component)
    assert content_of_header(header) in ("phase", "real part", "imaginary part", "complex values")


@pytest.mark.parametrize(
    ("maker", "element", "content"),
    [
        (GE, (0x0043, "GEMS_PARM_01", 0x2F, "SS", 0), "magnitude"),
        (GE, (0x0043, "GEMS_PARM_01", 0x2F, "SS", 1), "phase"),
        (GE, (0x0043, "GEMS_PARM_01", 0x2F, "SS", 2), "real part"),
        (GE, (0x0043, "GEMS_PARM_01", 0x2F, "SS", 3), "imaginary part"),
        (GE, (0x0043, "", 0x2F, "UN", b"\x01\x00"), "phase"),  # the creator was removed, the VR is unknown
        ("", (0x0043, "", 0x2F, "UN", b"\x01\x00"), "magnitude"),  # nobody's element
        (PHILIPS, (0x2005, "Philips MR Imaging DD 001", 0x11, "CS", "P"), "phase"),
        (PHILIPS, (0x2005, "Philips MR Imaging DD 001", 0x11, "CS", "M"), "magnitude"),
        (SIEMENS, (0x0051, "SIEMENS MR HEADER", 0x16, "LO", "P/ND"), "phase"),
        (SIEMENS, (0x0051, "SIEMENS MR HEADER", 0x16, "LO", "p2 M/NORM/DIS2D"), "magnitude"),
    ],
)
def test_private_elements_of_the_makers_decide_where_the_type_does_not(
    maker: str, element: tuple[int, str, int, str, object], content: str
) -> None:
    header = _header(ImageType=["ORIGINAL", "PRIMARY", "OTHER"], Manufacturer=maker)
    add_private(*element)(header)
    assert content_of_header(header) == content


def test_values_in_physical_units_are_a_map() -> None:
    unit = _header(CodeValue="ms", CodingSchemeDesignator="UCUM")
    mapping = _header(MeasurementUnitsCodeSequence=[unit])
    assert content_of_header(_header(RealWorldValueMappingSequence=[mapping])) == "a map in ms"


def _ingest(folder: Path) -> IngestReport:
    return ingest(CARD, folder / "source", folder / "data", DEMO_KEY)


def test_phases_of_three_makers_are_left_out_and_magnitudes_remain(tmp_path: Path) -> None:
    source, values = tmp_path / "source", voxels(6)
    phase = (values * 37 % 4096).astype(np.uint16)
    write_stack(source, "m", values)
    siemens = write_stack(source, "s", phase, first=7, ImageType=["ORIGINAL", "PRIMARY", "P", "ND"])
    magnitude = source / "m-0.dcm"
    edit(siemens, lambda item: setattr(item, "SeriesInstanceUID", _series_of(magnitude)))
    ge = write_stack(source, "g", phase.astype(np.int16) - 2048, Manufacturer=GE, ImageType=["ORIGINAL", "PRIMARY", "OTHER"])
    edit(ge, add_private(0x0043, "GEMS_PARM_01", 0x2F, "SS", 1))
    philips = ["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"]
    write_stack(source, "p", phase, Manufacturer=PHILIPS, ImageType=philips, RescaleSlope="1.534", RescaleIntercept="-3141")
    report = _ingest(tmp_path)
    assert [(item.kind, item.reason) for item in report.quarantined] == 3 * [("not magnitude", "phase, not magnitude")]
    (series,) = list_series(tmp_path / "data", CARD.id)
    np.testing.assert_array_equal(read_volume(tmp_path / "data", series, CARD).voxels, values)


def _series_of(path: Path) -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID)


def test_a_folder_with_magnitude_and_phase_of_one_series_is_read_as_its_magnitude(tmp_path: Path) -> None:
    values = voxels(5)
    study = {"StudyInstanceUID": "1.2.3.4"}
    write_stack(tmp_path, "m", values, **study)
    phases = write_stack(tmp_path, "p", values[::-1].copy(), first=6, ImageType=["ORIGINAL", "PRIMARY", "P", "ND"], **study)
    edit(phases, lambda item: setattr(item, "SeriesInstanceUID", _series_of(tmp_path / "m-0.dcm")))
    np.testing.assert_array_equal(read_path(tmp_path).voxels, values)


def test_frames_of_phases_in_an_enhanced_image_are_left_out_and_magnitudes_have_their_slopes(tmp_path: Path) -> None:
    magnitudes = write_mixed_enhanced(tmp_path / "source" / "e.dcm")
    report = _ingest(tmp_path)
    assert [(item.kind, item.reason) for item in report.quarantined] == [("not magnitude", "phase, not magnitude")]
    (series,) = list_series(tmp_path / "data", CARD.id)
    slopes = np.arange(1, 7)[:, None, None]
    np.testing.assert_array_equal(read_volume(tmp_path / "data", series, CARD).voxels, magnitudes * slopes)


def test_mixed_frames_that_do_not_state_their_component_are_refused(tmp_path: Path) -> None:
    write_mixed_enhanced(tmp_path / "e.dcm", states_component=False)
    with pytest.raises(BadInput, match="one of several components that its header does not name"):
        read_path(tmp_path / "e.dcm")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"PhotometricInterpretation": "PALETTE COLOR"}, r"a color image \(PALETTE COLOR\)"),
        ({"PhotometricInterpretation": "YBR_FULL", "SamplesPerPixel": 3}, r"a color image \(YBR FULL\)"),
        ({"PixelPresentation": "COLOR"}, r"a color image \(Pixel Presentation COLOR\)"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "an inverted image"),
        ({"PresentationLUTShape": "INVERSE"}, "an inverted image"),
        ({"RescaleSlope": "0", "RescaleIntercept": "0"}, "Rescale Slope is 0"),
        ({"RescaleSlope": "1\\2", "RescaleIntercept": "0"}, "RescaleSlope is not one number"),
        ({"ModalityLUTSequence": [Dataset()]}, "values that need a lookup table"),
    ],
)
@pytest.mark.parametrize("is_enhanced", [False, True])
def test_values_that_are_no_intensities_are_refused_by_name(
    tmp_path: Path, values: dict[str, object], reason: str, is_enhanced: bool
) -> None:
    write: Callable[[], object] = lambda: write_stack(tmp_path, "s", voxels(1))  # noqa: E731
    if is_enhanced:
        write = lambda: dicom_files.write_enhanced(tmp_path / "s-0.dcm", [{"plane": voxels(1)[0], "offset": 0.0}])  # noqa: E731
    write()
    edit(tmp_path / "s-0.dcm", lambda item: [setattr(item, keyword, value) for keyword, value in values.items()])
    with pytest.raises(BadInput, match=reason):
        read_path(tmp_path / "s-0.dcm")


def test_an_enhanced_apparent_diffusion_coefficient_is_named_as_such(tmp_path: Path) -> None:
    frames = [{"plane": plane, "offset": 4.0 * place} for place, plane in enumerate(voxels(3))]
    dicom_files.write_enhanced(tmp_path / "source" / "e.dcm", frames, ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "ADC"])
    _ingest(tmp_path)
    (series,) = list_series(tmp_path / "data", CARD.id)
    assert read_volume(tmp_path / "data", series, CARD).acquisition.sequence == "ADC"
    assert read_path(tmp_path / "source" / "e.dcm").acquisition.sequence == "ADC"
