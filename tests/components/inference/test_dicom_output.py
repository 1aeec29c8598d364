"""The answer about a DICOM series is DICOM: valid, of the same patient, at the same position."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest

from components.inference.dicom_output import save_dicom
from components.inference.prediction import FoundBox, FoundVolumeBox, Prediction
from components.ingestion import read_path
from components.ingestion.study_reader import StudySource, read_study
from components.ingestion.volume import Volume
from components.samples.anatomies.brain import BRAIN, GRID
from components.samples.dicom_series import create_mr_image
from components.samples.phantom import generate_patient


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a T1 series of twenty slices; the file names are not in slice order."""
    folder, patient = tmp_path_factory.mktemp("series"), generate_patient(BRAIN, 0, GRID, (152, 0), 0.5)
    for index, plane in enumerate(patient.simulate_magnitude("T1-weighted")):
        create_mr_image(BRAIN, patient, BRAIN.protocols[0], 1, index, plane).save_as(
            folder / f"{(index * 7) % 20:02d}.dcm", enforce_file_format=True
        )
    return folder


@pytest.fixture(scope="module")
def volume(series: Path) -> Volume:
    return read_path(series)


def answer(volume: Volume, task: str, **fields: object) -> Prediction:
    preview = np.zeros((8, 8), np.float32)
    plain = Prediction(task, "Modality: MRI. One lesion.", (0,), np.asarray(volume.affine), preview)  # type: ignore[arg-type]
    return replace(plain, **fields)  # type: ignore[arg-type]


def validate_dicom(path: Path) -> None:
    """Validate a file with dicom3tools, which checks every module of the standard."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("no validator: apt-get install dicom3tools")
    errors = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True).stderr
    assert not [line for line in errors.splitlines() if line.startswith("Error")], errors


@pytest.fixture(scope="module")
def mask(volume: Volume) -> np.ndarray:
    return (volume.voxels > np.percentile(volume.voxels, 90)).astype(np.uint8)


def test_a_mask_becomes_a_segmentation_of_the_same_pixels(series: Path, volume: Volume, mask: np.ndarray, tmp_path: Path) -> None:
    [path] = save_dicom(answer(volume, "segmentation", mask=mask), "Segment the white matter.", series, tmp_path)
    written = hd.seg.segread(path)
    assert written.PatientID == "DCM-0000" and written.get_segment_description(1).SegmentLabel == "white matter"
    images = {pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID: pydicom.dcmread(file) for file in series.iterdir()}
    bright = np.percentile(np.stack([image.pixel_array for image in images.values()]), 90)
    uids = [uid for uid in images if images[uid].pixel_array.max() > bright]
    masks = written.get_pixels_by_source_instance(uids, segment_numbers=[1], ignore_spatial_locations=True)[..., 0]
    for uid, mask_slice in zip(uids, masks, strict=True):
        np.testing.assert_array_equal(mask_slice, images[uid].pixel_array > bright)
    validate_dicom(path)


@pytest.mark.parametrize(
    ("instruction", "label", "meaning"),
    [
        ("Segment the white matter lesions in this brain MRI.", "lesion", "Lesion"),
        ("Segment the tumor in the white matter.", "tumor", "Neoplasm"),
        ("Segment the white matter hyperintensity.", "hyperintensity", "Morphologically Abnormal Structure"),
        ("Segment the edema.", "edema", "Morphologically Abnormal Structure"),
        ("Segment the grey matter.", "grey matter", "Gray Matter"),
        ("Segment the femur.", "structure", "Anatomical Structure"),
    ],
)
def test_a_finding_is_not_coded_as_the_tissue_that_it_lies_in(
    series: Path, volume: Volume, mask: np.ndarray, tmp_path: Path, instruction: str, label: str, meaning: str
) -> None:
    [path] = save_dicom(answer(volume, "segmentation", mask=mask), instruction, series, tmp_path)
    segment = hd.seg.segread(path).get_segment_description(1)
    assert (segment.SegmentLabel, segment.segmented_property_type.meaning.lower()) == (label, meaning.lower())


def test_an_empty_mask_is_written_too(series: Path, volume: Volume, mask: np.ndarray, tmp_path: Path) -> None:
    [path] = save_dicom(answer(volume, "segmentation", mask=np.zeros_like(mask)), "Segment the lesion.", series, tmp_path)
    assert not hd.seg.segread(path).pixel_array.any()
    validate_dicom(path)


def test_boxes_become_outlines_on_the_image_that_shows_them(series: Path, volume: Volume, tmp_path: Path) -> None:
    """The corners of a box are on the image and the pixels of its voxels."""
    box = FoundBox("lesion", 6, 30, 40, 50, 70)
    [path] = save_dicom(answer(volume, "detection", boxes=(box,)), "Is there a lesion?", series, tmp_path)
    validate_dicom(path)
    report = pydicom.dcmread(path)
    text = report.to_json()
    assert report.VerificationFlag == "UNVERIFIED" and report.PatientID == "DCM-0000" and "not for clinical use" in text
    findings = next(item for item in report.ContentSequence if item.ConceptNameCodeSequence[0].CodeMeaning == "Findings")
    outline = findings.ContentSequence[1].ContentSequence[0]
    uid = outline.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    [image] = [header for header in map(pydicom.dcmread, series.iterdir()) if uid == header.SOPInstanceUID]
    columns, rows = np.array(outline.GraphicData).reshape(-1, 2).T
    crop = image.pixel_array[round(rows.min()) : round(rows.max()), round(columns.min()) : round(columns.max())]
    expected = volume.voxels[6, 30:50, 40:70]
    assert sorted(crop.ravel().tolist()) == pytest.approx(sorted(expected.ravel().tolist()))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write T1 and T2 series of one patient and visit into one folder."""
    folder, patient = tmp_path_factory.mktemp("study"), generate_patient(BRAIN, 0, GRID, (152, 0), 0.5)
    for number, sequence in enumerate(("T1-weighted", "T2-weighted")):
        protocol = next(one for one in BRAIN.protocols if one.sequence == sequence)
        for index, plane in enumerate(patient.simulate_magnitude(sequence)):
            image = create_mr_image(BRAIN, patient, protocol, number + 1, index, plane)
            image.save_as(folder / f"{index:02d}-{number}.dcm", enforce_file_format=True)
    return folder


def _about_study(study: Path, **fields: object) -> tuple[Prediction, StudySource]:
    """Return an answer about the second series of a study."""
    first, second = read_study([study])[0]
    return answer(second.volume, "detection", dicom_series=(second.files, first.files), **fields), second


def test_a_mask_about_a_study_references_its_series_alone(study: Path, tmp_path: Path) -> None:
    bright = (read_study([study])[0][1].volume.voxels > 200).astype(np.uint8)
    prediction, series = _about_study(study, mask=bright)
    [path] = save_dicom(prediction, "Segment the lesion in this T2-weighted MRI.", None, tmp_path)
    written = hd.seg.segread(path)
    images = [pydicom.dcmread(file, stop_before_pixels=True) for file in series.files]
    assert {uid for _, _, uid in written.get_source_image_uids()} <= {image.SOPInstanceUID for image in images}
    assert written.StudyInstanceUID == images[0].StudyInstanceUID and written.FrameOfReferenceUID == images[0].FrameOfReferenceUID
    assert written.get_volume(combine_segments=True).array.sum() == bright.sum()
    validate_dicom(path)


def test_boxes_of_a_volume_are_measured_regions_in_the_patients_coordinates(study: Path, tmp_path: Path) -> None:
    """Read back by highdicom: the faces end where the voxels of a box end; the evidence is the whole study."""
    box = FoundVolumeBox("lesion", 6, 30, 40, 9, 50, 70)
    prediction, series = _about_study(study, volume_boxes=(box, replace(box, label="cyst")), boxes=box.by_slice)
    report_path, path = save_dicom(prediction, "Find every lesion.", None, tmp_path)
    assert (report_path.name, path.name) == ("report.dcm", "measurements.dcm")
    written = hd.sr.srread(path)
    first, second = written.content.get_volumetric_roi_measurement_groups()
    assert first.finding_type.meaning == "Lesion" and first.tracking_identifier == "lesion 1"
    assert second.tracking_identifier == "cyst 2" and second.tracking_uid != first.tracking_uid
    images = [pydicom.dcmread(file, stop_before_pixels=True) for file in series.files]
    assert first.roi.frame_of_reference_uid == images[0].FrameOfReferenceUID
    corners = np.concatenate(first.roi.graphic_data)
    into_voxels = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ np.asarray(series.volume.affine))
    ends = corners @ into_voxels[:3, :3].T + into_voxels[:3, 3]
    np.testing.assert_allclose(ends.min(0), [5.5, 29.5, 39.5], atol=1e-3)
    np.testing.assert_allclose(ends.max(0), [8.5, 49.5, 69.5], atol=1e-3)
    assert len(first.roi.graphic_data) == 6 and all(len(np.unique(face.round(6), axis=0)) == 4 for face in first.roi.graphic_data)
    [length] = first.get_measurements()
    assert length.value == pytest.approx(30 * series.volume.spacing_mm[2], abs=0.01) and length.unit.value == "mm"
    evidence = {
        instance.ReferencedSOPInstanceUID
        for name in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
        for one in written.get(name, [])
        for of_series in one.ReferencedSeriesSequence
        for instance in of_series.ReferencedSOPSequence
    }
    assert evidence == {pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID for file in study.iterdir()}
    validate_dicom(report_path)
    validate_dicom(path)


def test_the_same_boxes_are_the_same_object(study: Path, tmp_path: Path) -> None:
    prediction, _ = _about_study(study, volume_boxes=(FoundVolumeBox("lesion", 6, 30, 40, 9, 50, 70),))
    uids = [pydicom.dcmread(save_dicom(prediction, "Find it.", None, tmp_path / name)[1]).SOPInstanceUID for name in "ab"]
    assert uids[0] == uids[1]


def test_a_study_without_dicom_has_no_dicom_answer(volume: Volume, tmp_path: Path) -> None:
    assert not save_dicom(answer(volume, "report"), "Report.", None, tmp_path)


@pytest.mark.parametrize("task", ["diagnosis", "report"])
def test_text_becomes_a_report(series: Path, volume: Volume, tmp_path: Path, task: str) -> None:
    [path] = save_dicom(answer(volume, task), "Generate a report.", series, tmp_path)
    assert "One lesion." in pydicom.dcmread(path).to_json()
    validate_dicom(path)


def test_no_dicom_is_written_for_another_format(volume: Volume, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no image")
    assert not save_dicom(answer(volume, "report"), "Report.", tmp_path, tmp_path / "out") and not (tmp_path / "out").exists()
