"""DICOM output for DICOM series: a mask as Segmentation (PS3.3 A.51), text and boxes as Structured Report (PS3.3 A.35.3).

Boxes of volumes are a measurement report of their own (:mod:`components.inference.dicom_measurements`). About a study, a mask and
boxes belong to one series, and every report has the images of all series as its evidence.

Patient and study are those of the input images, and every object references them as its source. UIDs are derived from images,
instruction and answer: a repeated prediction gives the same object, which an archive recognizes. Reports are marked as unverified
and partial, because they are generated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.curation.text.structure_names import LESION_WORDS
from components.errors import BadInput
from components.files import atomic_file
from components.inference.prediction import FoundBox, Prediction
from components.ingestion.formats.orientation import LPS_TO_RAS
from components.ingestion.formats.sniff import detect_format
from components.provenance import digest

if TYPE_CHECKING:
    from pydicom import Dataset

MANUFACTURER, MODEL, SERIAL = "OmniMRI", "omnimri", "0"
SEGMENTATION_FILE, REPORT_FILE, MEASUREMENTS_FILE = "segmentation.dcm", "report.dcm", "measurements.dcm"
SERIES = {SEGMENTATION_FILE: 9001, REPORT_FILE: 9002, MEASUREMENTS_FILE: 9003}
DISCLAIMER = "Made by research software. Not a medical device; not for clinical use."


@dataclass(frozen=True)
class _Images:
    """Headers of the images of an answer: of the series that mask and boxes belong to, and of all series."""

    series: list[Dataset]
    evidence: list[Dataset]


def save_dicom(prediction: Prediction, instruction: str, source: Path | None, out: Path) -> list[Path]:
    """Write ``segmentation.dcm`` for a mask, or ``report.dcm`` for text and boxes; nothing for a reconstruction.

    Boxes of a volume are also written as ``measurements.dcm``.

    Args:
        source: the input; nothing is written unless it is a DICOM file or folder. None = the series of the study that the answer
            is about.

    Returns:
        The paths of the written files.

    Raises:
        BadInput: the series lacks elements that a DICOM object must repeat (patient, study, position).
    """
    images = _find_images(prediction, source)
    if not images.series or prediction.image is not None:
        return []
    builders = {SEGMENTATION_FILE: _build_segmentation} if prediction.mask is not None else {REPORT_FILE: _build_report}
    if prediction.volume_boxes:
        builders[MEASUREMENTS_FILE] = _build_measurements
    try:
        datasets = {name: build(prediction, instruction, images) for name, build in builders.items()}
    except (AttributeError, KeyError, ValueError) as error:
        raise BadInput(
            f"the answer cannot be written as DICOM ({type(error).__name__})",
            where="the study" if source is None else source.name,
            remedy="add patient, study and position to the headers of the series; the NIfTI and JSON files are complete",
        ) from None
    out.mkdir(parents=True, exist_ok=True)
    for name, dataset in datasets.items():
        with atomic_file(out / name) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)
    return [out / name for name in datasets]


def _find_images(prediction: Prediction, source: Path | None) -> _Images:
    if source is not None:
        files = [source] if source.is_file() else [file for file in sorted(source.rglob("*")) if file.is_file()]
        series = _read_image_headers(files)
        return _Images(series, series)
    all_series = [_read_image_headers(files) for files in prediction.dicom_series]
    return _Images(all_series[0] if all_series else [], [image for images in all_series for image in images])


def _read_image_headers(files: Sequence[Path]) -> list[Dataset]:
    """Read the headers of the MR images among files, in the order of their instance numbers."""
    from components.ingestion.formats.dicom.headers import MR_CLASSES
    from components.ingestion.formats.dicom.reading import read_header

    headers = [read_header(file) for file in files if detect_format(file) == "dicom"]
    images = [image for image in headers if image.get("SOPClassUID") in MR_CLASSES]
    return sorted(images, key=lambda image: int(image.get("InstanceNumber") or 0))


def _to_lps(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert an affine to RAS+ into one from indices (slice, row, column) to DICOM's patient coordinates (LPS+), mm."""
    return np.asarray(np.linalg.inv(LPS_TO_RAS) @ affine, dtype=np.float64)


def _derive_uid(level: str, prediction: Prediction, instruction: str, images: _Images) -> str:
    """Return a UID (PS3.5 B.2) that the same answer to the same instruction about the same images always gets."""
    mask = prediction.mask.tobytes().hex() if prediction.mask is not None else ""
    sources = sorted(str(image.SOPInstanceUID) for image in images.evidence)
    name = digest(level, sources, instruction, prediction.text, [asdict(box) for box in prediction.boxes], digest(mask), _version())
    return f"2.25.{int(name[:32], 16)}"


def _find_codes(instruction: str) -> tuple[str, Any, Any]:
    """Return label, category and type (SNOMED CT) of the structure that an instruction names.

    A finding comes before the tissue that it lies in: a white matter lesion is no white matter.
    """
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    anatomy, abnormal = codes.SCT.AnatomicalStructure, codes.SCT.MorphologicallyAbnormalStructure
    findings = {"tumor": codes.SCT.Neoplasm, "tumour": codes.SCT.Neoplasm, "lesion": codes.SCT.Lesion}
    tissues = {
        "grey matter": (anatomy, codes.SCT.GrayMatter),
        "gray matter": (anatomy, codes.SCT.GrayMatter),
        "white matter": (anatomy, codes.SCT.WhiteMatter),
        "cerebrospinal fluid": (codes.SCT.BodySubstance, Code("65216001", "SCT", "Cerebrospinal fluid")),
    }
    text = instruction.lower()
    for name, kind in findings.items():
        if name in text:
            return name, abnormal, kind
    if other := re.search(rf"\b({'|'.join(LESION_WORDS)})\w*", text):
        return other.group(), abnormal, abnormal
    for name, (category, kind) in tissues.items():
        if name in text:
            return name, category, kind
    return "structure", anatomy, codes.SCT.AnatomicalStructure


def _find_finding(label: str) -> Any:
    """Return the code of a finding (SNOMED CT); an abnormal structure, if its name has none here."""
    from pydicom.sr.codedict import codes

    abnormal = codes.SCT.MorphologicallyAbnormalStructure
    _, category, kind = _find_codes(label)
    return kind if category == abnormal else abnormal


def _build_segmentation(prediction: Prediction, instruction: str, images: _Images) -> Dataset:
    import highdicom as hd

    assert prediction.mask is not None
    label, category, kind = _find_codes(instruction)
    algorithm_family = hd.sr.CodedConcept("123109", "DCM", "Artificial Intelligence")
    algorithm = hd.AlgorithmIdentificationSequence(MODEL, family=algorithm_family, version=_version())
    segment = hd.seg.SegmentDescription(
        1, label, category, kind, hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC, algorithm_identification=algorithm
    )
    volume = hd.Volume(
        prediction.mask,
        _to_lps(prediction.affine),
        coordinate_system="PATIENT",
        frame_of_reference_uid=images.series[0].FrameOfReferenceUID,
    )
    return hd.seg.Segmentation(
        source_images=images.series,
        pixel_array=volume,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        series_instance_uid=_derive_uid("segmentation series", prediction, instruction, images),
        series_number=SERIES[SEGMENTATION_FILE],
        sop_instance_uid=_derive_uid("segmentation", prediction, instruction, images),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL,
        software_versions=_version(),
        device_serial_number=SERIAL,
        content_label="OMNIMRI",
        omit_empty_frames=bool(prediction.mask.any()),
        series_description=f"OmniMRI: {label}"[:64],
    )


def _build_report(prediction: Prediction, instruction: str, images: _Images) -> Dataset:
    import highdicom as hd
    from highdicom.sr import CodedConcept, ContainerContentItem, ContentSequence, RelationshipTypeValues, TextContentItem

    contains = RelationshipTypeValues.CONTAINS
    root = ContainerContentItem(CodedConcept("18748-4", "LN", "Diagnostic imaging report"))
    findings = ContainerContentItem(CodedConcept("121070", "DCM", "Findings"), relationship_type=contains)
    request = ContainerContentItem(CodedConcept("121062", "DCM", "Request"), relationship_type=contains)
    note = ContainerContentItem(CodedConcept("121111", "DCM", "Summary"), relationship_type=contains)
    request.ContentSequence = ContentSequence([TextContentItem(CodedConcept("121106", "DCM", "Comment"), instruction, contains)])
    note.ContentSequence = ContentSequence([TextContentItem(CodedConcept("121106", "DCM", "Comment"), DISCLAIMER, contains)])
    items: list[Any] = [TextContentItem(CodedConcept("121071", "DCM", "Finding"), prediction.text or "no answer", contains)]
    if not prediction.volume_boxes:
        items += [_build_box(box, prediction, images.series) for box in prediction.boxes]
    findings.ContentSequence = ContentSequence(items)
    root.ContentSequence = ContentSequence([_build_language(), request, findings, note])
    return hd.sr.ComprehensiveSR(
        evidence=images.evidence,
        content=root,
        series_instance_uid=_derive_uid("report series", prediction, instruction, images),
        series_number=SERIES[REPORT_FILE],
        sop_instance_uid=_derive_uid("report", prediction, instruction, images),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=False,
        is_final=False,
        is_verified=False,
        series_description="OmniMRI: answer",
    )


def _build_measurements(prediction: Prediction, instruction: str, images: _Images) -> Dataset:
    import highdicom as hd

    from components.inference.dicom_measurements import build_measurements

    def tracking_uid(number: int) -> str:
        return _derive_uid(f"finding {number}", prediction, instruction, images)

    content = build_measurements(
        prediction.volume_boxes, _to_lps(prediction.affine), images.series, _find_finding, tracking_uid, (_device_uid(), MODEL)
    )
    return hd.sr.Comprehensive3DSR(
        evidence=images.evidence,
        content=content[0],
        series_instance_uid=_derive_uid("measurements series", prediction, instruction, images),
        series_number=SERIES[MEASUREMENTS_FILE],
        sop_instance_uid=_derive_uid("measurements", prediction, instruction, images),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=False,
        is_final=False,
        is_verified=False,
        series_description=f"OmniMRI: boxes. {DISCLAIMER}"[:64],
    )


def _device_uid() -> str:
    """Return the UID of this version of the software as an observer."""
    return f"2.25.{int(digest('device', MODEL, _version())[:32], 16)}"


def _build_language() -> Any:
    from highdicom.sr import CodeContentItem, CodedConcept, RelationshipTypeValues

    return CodeContentItem(
        CodedConcept("121049", "DCM", "Language of Content Item and Descendants"),
        CodedConcept("en", "RFC5646", "English"),
        RelationshipTypeValues.HAS_CONCEPT_MOD,
    )


def _build_box(box: FoundBox, prediction: Prediction, images: Sequence[Dataset]) -> Any:
    """Build a finding with its outline on the nearest image."""
    from highdicom.sr import (
        CodedConcept,
        ContentSequence,
        ImageContentItem,
        RelationshipTypeValues,
        ScoordContentItem,
        TextContentItem,
    )

    corners = [(box.row0, box.col0), (box.row0, box.col1), (box.row1, box.col1), (box.row1, box.col0), (box.row0, box.col0)]
    index = np.array([[box.slice_index, row - 0.5, column - 0.5, 1.0] for row, column in corners])
    points = (index @ _to_lps(prediction.affine).T)[:, :3]
    image, frame, pixels = _find_nearest_frame(points, images)
    item = TextContentItem(CodedConcept("121071", "DCM", "Finding"), box.label, RelationshipTypeValues.CONTAINS)
    outline = ScoordContentItem(
        CodedConcept("111030", "DCM", "Image Region"),
        "POLYLINE",
        pixels + 0.5,
        relationship_type=RelationshipTypeValues.INFERRED_FROM,
    )
    source_image = ImageContentItem(
        CodedConcept("111040", "DCM", "Original Source"),
        image.SOPClassUID,
        image.SOPInstanceUID,
        referenced_frame_numbers=frame,
        relationship_type=RelationshipTypeValues.SELECTED_FROM,
    )
    outline.ContentSequence = ContentSequence([source_image])
    item.ContentSequence = ContentSequence([outline])
    return item


def _find_nearest_frame(
    points_mm: NDArray[np.float64], images: Sequence[Dataset]
) -> tuple[Dataset, int | None, NDArray[np.float64]]:
    """Find the frame whose plane is nearest to the points.

    Returns:
        The image, the frame number in a multi-frame image (else None), and the points as (column, row) on the frame.
    """
    best: tuple[float, Dataset, int | None, NDArray[np.float64]] | None = None
    for image in images:
        for number, (position, orientation, spacing) in _frame_planes(image):
            along_columns, along_rows = orientation[:3] * spacing[1], orientation[3:] * spacing[0]  # mm per column, per row
            normal = np.cross(orientation[:3], orientation[3:])
            offsets = points_mm - position
            distance = float(np.abs(offsets @ normal).mean())
            if best is None or distance < best[0]:
                pixels = np.stack([offsets @ along_columns / spacing[1] ** 2, offsets @ along_rows / spacing[0] ** 2], axis=1)
                best = distance, image, number, np.clip(pixels, -0.5, [image.Columns - 0.5, image.Rows - 0.5])
    assert best is not None
    return best[1], best[2], best[3]


def _frame_planes(image: Dataset) -> list[tuple[int | None, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]]:
    """Return (frame number or None, (position, orientation, row and column spacing)) of every frame."""

    def plane(position: Any, orientation: Any, spacing: Any) -> tuple[Any, Any, Any]:
        return np.array(position, float), np.array(orientation, float), np.array(spacing, float)

    if "PerFrameFunctionalGroupsSequence" not in image:
        return [(None, plane(image.ImagePositionPatient, image.ImageOrientationPatient, image.PixelSpacing))]
    shared = image.SharedFunctionalGroupsSequence[0]
    planes: list[Any] = []
    for number, frame in enumerate(image.PerFrameFunctionalGroupsSequence, start=1):
        orientation = (frame if "PlaneOrientationSequence" in frame else shared).PlaneOrientationSequence[0].ImageOrientationPatient
        spacing = (frame if "PixelMeasuresSequence" in frame else shared).PixelMeasuresSequence[0].PixelSpacing
        planes.append((number, plane(frame.PlanePositionSequence[0].ImagePositionPatient, orientation, spacing)))
    return planes


def _version() -> str:
    from importlib.metadata import version

    return version("omnimri")
