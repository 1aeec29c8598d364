"""Each format is read like its reference library reads it, or back to the numbers that the file was created from."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import ismrmrd
import ismrmrd.xsd
import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from components.catalog import DatasetCard, Layout
from components.catalog.layout import LabelTable
from components.curation.text.report_phrases import parse_report
from components.errors import BadInput
from components.ingestion import ingest, list_series, read_path, read_quarantine, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.formats.nifti_writer import NiftiOutput
from components.ingestion.volume import Volume
from model_core.mri_physics.fourier import fft2c_numpy, ifft2c_numpy
from tests.helpers import dicom_files

OBLIQUE = np.array(dicom_files.OBLIQUE).reshape(2, 3)
DIRECTIONS = np.stack([*OBLIQUE, np.cross(*OBLIQUE)], axis=1)  # columns: along a row, along a column, across


def card(formats: tuple[str, ...], label_map: dict[int, str] | None = None, **layout: object) -> DatasetCard:
    return DatasetCard(
        id="made-up",
        name="Made up",
        rights="none",
        formats=formats,
        synthetic=True,
        anatomy="knee",  # type: ignore[arg-type]
        layout=Layout(**layout),
        label_map=label_map or {},  # type: ignore[arg-type]
    )


def ingest_and_read(source: Path, dataset: DatasetCard) -> list[Volume]:
    data = source.parent / "data"
    ingest(dataset, source, data, DEMO_KEY)
    return [read_volume(data, series, dataset) for series in list_series(data, dataset.id)]


def voxel_at(volume: Volume, world_mm: NDArray[np.float64]) -> float:
    """Return the voxel at a position (RAS+ mm)."""
    index = np.rint(np.linalg.inv(volume.affine) @ [*world_mm, 1])[:3].astype(int)
    return float(volume.voxels[tuple(index)])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.mark.parametrize("name", ["image.mha", "image.mhd", "image.nrrd.mha"])
@pytest.mark.parametrize("compressed", [False, True])
def test_metaimage_has_the_geometry_of_simpleitk(source: Path, name: str, compressed: bool) -> None:
    values = dicom_files.random_pixels(5, 10, 12).astype(np.int16)
    image = SimpleITK.GetImageFromArray(values)
    image.SetDirection(DIRECTIONS.ravel().tolist())
    image.SetSpacing([0.9, 1.1, 4.0])
    image.SetOrigin([-30.0, -20.0, 10.0])
    SimpleITK.WriteImage(image, str(source / name), compressed)
    (volume,) = ingest_and_read(source, card(("MetaImage",)))
    for x, y, z in [(0, 0, 0), (11, 0, 0), (0, 9, 0), (3, 4, 2), (11, 9, 4)]:
        left, back, up = image.TransformIndexToPhysicalPoint((x, y, z))
        assert voxel_at(volume, np.array([-left, -back, up])) == values[z, y, x]
    assert not read_quarantine(source.parent / "data", "made-up")  # the data file of a .mhd is part of it


def test_a_metaimage_header_must_not_refer_to_another_folder(source: Path) -> None:
    header = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_SHORT\nElementDataFile = ../secret.raw\n"
    (source.parent / "secret.raw").write_bytes(b"\1\0" * 64)
    (source / "image.mhd").write_text(header)
    with pytest.raises(BadInput, match="not beside it"):
        read_path(source / "image.mhd")


def _write_mrnet(source: Path) -> None:
    for number, plane in enumerate(("axial", "coronal", "sagittal")):
        (source / "train" / plane).mkdir(parents=True)
        for exam in ("0000", "0001"):
            np.save(
                source / "train" / plane / f"{exam}.npy",
                dicom_files.random_pixels(4, 8, 8, seed=2 * number + int(exam)).astype(np.uint8),
            )
    for finding, rows in (("acl", "0000,1\n0001,0\n"), ("meniscus", "0000,0\n")):
        (source / f"train-{finding}.csv").write_text(rows)


def test_mrnet_arrays_get_plane_sequence_and_findings_from_the_card(source: Path) -> None:
    _write_mrnet(source)
    tables = [
        LabelTable(path=f"*-{finding}.csv", key=0, image=r"/(\d+)\.npy$", findings={1: text})
        for finding, text in (("acl", "acl tear"), ("meniscus", "meniscal tear"))
    ]
    mrnet = card(
        ("NumPy",),
        patient=r"(\w+/)\w+/\d+\.npy$",
        tables=tables,
        planes={"coronal/": "coronal", "sagittal/": "sagittal"},
        sequences={"coronal/": "T1-weighted", "sagittal/": "T2-weighted", "axial/": "PD-weighted"},
        spacing_mm=(3.0, 0.6, 0.6),
    )
    volumes = ingest_and_read(source, mrnet)
    assert sorted((volume.acquisition.plane, volume.acquisition.sequence) for volume in volumes) == sorted(
        2 * [("axial", "PD-weighted"), ("coronal", "T1-weighted"), ("sagittal", "T2-weighted")]
    )
    assert all(volume.spacing_mm == pytest.approx((3.0, 0.6, 0.6)) for volume in volumes)
    assert {tuple(sorted(volume.diagnosis.items())) for volume in volumes} == {
        (("acl tear", True), ("meniscal tear", False)),
        (("acl tear", False),),  # the second table has no row of the second examination
    }
    arrays = {dicom_files.random_pixels(4, 8, 8, seed=seed).astype(np.uint8).tobytes() for seed in range(6)}
    assert {volume.voxels.astype(np.uint8).tobytes() for volume in volumes} == arrays  # displayed as stored


REPORT = """St. Elsewhere Hospital
PATIENT: Jane Roe, born 03.02.1970

FINDINGS:
There is a 14 mm enhancing lesion in the left frontal lobe. No midline shift.
Jane was restless during the scan; motion artifacts. The images of 4 May 2024 were seen with Dr. Miller.
IMPRESSION: Glioma is suspected. Discussed with the ward of Roe.
RECOMMENDATION:
Follow-up in 6 weeks.
Signed: B. Miller"""


def _write_reports(source: Path, rows: list[list[str]]) -> DatasetCard:
    """Write images ``sub-0``, ``sub-1``, ``sub-2`` and a table of reports; return their card."""
    for number in range(3):
        image = nib.Nifti1Image(dicom_files.random_pixels(4, 12, 12, seed=number).astype(np.float32), np.eye(4))  # type: ignore[attr-defined]
        nib.save(image, source / f"sub-{number}_T1w.nii")  # type: ignore[attr-defined]
    with (source / "reports.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    table = LabelTable(path="reports.csv", key="study", image=r"(sub-\d+)_T1w", report="text")
    return card(("NIfTI",), patient=r"(sub-\d+)", tables=[table])


def test_reports_of_a_table_are_ingested_without_identifying_text_and_reach_the_description(source: Path) -> None:
    """The second image has a row without a text, the third none."""
    rows = [["study", "patient_name", "radiologist", "text"], ["sub-0", "Roe, Jane", "Miller", REPORT], ["sub-1", "Doe", "", ""]]
    reports = sorted((volume.report for volume in ingest_and_read(source, _write_reports(source, rows))), reverse=True)
    assert reports == [
        "FINDINGS:\nThere is a 14 mm enhancing lesion in the left frontal lobe.\nNo midline shift.\n"
        "IMPRESSION:\nGlioma is suspected.\nRECOMMENDATION:\nFollow-up in 6 weeks.",
        "",
        "",
    ]
    assert parse_report(reports[0]) == {
        "pathological_findings.masses_or_suspicious_lesions": "There is a 14 mm enhancing lesion in the left frontal lobe",
        "tissue_signal_characteristics.symmetry_and_structural_integrity": "No midline shift",
        "diagnostic_impression.suggestive_of": "Glioma is suspected",
        "diagnostic_impression.recommendation": "Follow-up in 6 weeks",
    }
    stored = b"".join(path.read_bytes() for path in (source.parent / "data").rglob("*.json"))
    assert b"lesion in the left" in stored
    assert not [word for word in (b"Jane", b"Roe", b"Miller", b"1970", b"May 2024", b"Elsewhere", b"sub-0") if word in stored]


def test_a_missing_text_column_is_reported(source: Path) -> None:
    report = ingest(_write_reports(source, [["study", "words"], ["sub-0", "No lesion."]]), source, source.parent / "data", DEMO_KEY)
    assert {entry.reason for entry in report.quarantined} == {"no column 'text'"}


def test_arrays_of_python_objects_are_not_unpickled(source: Path) -> None:
    np.save(source / "0000.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match="Python objects"):
        read_path(source / "0000.npy")


@pytest.mark.parametrize("coils", [None, 3])
def test_oversampled_fastmri_is_cropped_like_its_reference_and_keeps_its_pixel_size(source: Path, coils: int | None) -> None:
    """640 x 368 encoded over 440 x 253 mm, 320 x 320 reconstructed, at a twentieth of the size."""
    rng = np.random.default_rng(1)
    encoded, cropped = (32, 18), (16, 16)
    images = rng.standard_normal((3, coils or 1, *encoded)) + 1j * rng.standard_normal((3, coils or 1, *encoded))
    kspace = fft2c_numpy(images)
    root = np.sqrt((np.abs(images) ** 2).sum(1))
    reference = root[:, 8:24, 1:17].astype(np.float32)
    header = (
        '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>'
        "<encodedSpace><matrixSize><x>32</x><y>18</y><z>1</z></matrixSize>"
        "<fieldOfView_mm><x>440</x><y>247.5</y><z>4.5</z></fieldOfView_mm></encodedSpace>"
        "<reconSpace><matrixSize><x>16</x><y>16</y><z>1</z></matrixSize>"
        "<fieldOfView_mm><x>220</x><y>220</y><z>4.5</z></fieldOfView_mm></reconSpace></encoding></ismrmrdHeader>"
    )
    with h5py.File(source / "file1.h5", "w") as file:
        file["kspace"] = kspace if coils else kspace[:, 0]
        file["ismrmrd_header"] = header
        file.attrs["acquisition"] = "CORPDFS_FBK"
    (volume,) = ingest_and_read(source, card(("k-space HDF5",), patient="([^/]+)$"))
    assert volume.voxels.shape == (3, *cropped)
    np.testing.assert_allclose(volume.voxels[:, ::-1], reference, rtol=1e-4)  # stored upside down
    assert volume.spacing_mm == pytest.approx((4.5, 13.75, 13.75)) and volume.acquisition.sequence == "PD-weighted"
    assert volume.kspace is not None and volume.kspace.shape == (3, coils or 1, *cropped)
    np.testing.assert_allclose(np.sqrt((np.abs(ifft2c_numpy(volume.kspace)) ** 2).sum(1)), volume.voxels, rtol=1e-3)


def test_fastmri_plus_boxes_count_from_the_top_of_the_flipped_image_and_reviewed_files_without_any_are_normal(source: Path) -> None:
    for number, name in enumerate(("looked-1", "looked-2", "not-looked")):
        image = np.full((2, 1, 16, 16), 0.01 * (number + 1), dtype=complex)
        image[1, 0, 3:5, 6:9] = 1.0  # near the top as stored, near the bottom as displayed
        with h5py.File(source / f"{name}.h5", "w") as file:
            file["kspace"] = fft2c_numpy(image)
    with (source / "knee.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "slice", "study_level", "x", "y", "width", "height", "label"])
        writer.writerow(["looked-1", 1, "No", 6, 11, 3, 2, "Meniscus Tear"])
    (source / "knee_file_list.csv").write_text("looked-1\nlooked-2\n")
    knee = card(("k-space HDF5",), boxes=["knee.csv"], reviewed=["*_file_list.csv"], patient="([^/]+)$")
    volumes = ingest_and_read(source, knee)
    (boxed,) = [volume for volume in volumes if volume.boxes]
    box = boxed.boxes[0]
    inside = boxed.voxels[box.slice_index, box.row0 : box.row1, box.col0 : box.col1]
    assert box.label == "meniscus tear" and inside.shape == (2, 3) and (inside > 0.9).all()
    assert sorted(str(volume.diagnosis) for volume in volumes) == ["{'lesion': False}", "{'meniscus tear': True}", "{}"]


def _write_raw(path: Path, images: NDArray[np.complex128], contrasts: int = 1, skip: int = 0) -> None:
    """Write ISMRMRD lines of images (slices, coils, readout, phase), slices out of order, repeated for each contrast."""
    slices, coils, readout, phase = images.shape
    kspace = fft2c_numpy(images)
    header = ismrmrd.xsd.ismrmrdHeader(
        experimentalConditions=ismrmrd.xsd.experimentalConditionsType(H1resonanceFrequency_Hz=63_000_000),
        encoding=[
            ismrmrd.xsd.encodingType(
                trajectory=ismrmrd.xsd.trajectoryType.CARTESIAN,
                encodedSpace=_space(readout, phase, 48.0, 16.0),
                reconSpace=_space(readout // 2, phase, 24.0, 16.0),
                encodingLimits=ismrmrd.xsd.encodingLimitsType(
                    kspace_encoding_step_1=ismrmrd.xsd.limitType(minimum=0, maximum=phase - 1, center=phase // 2)
                ),
            )
        ],
        sequenceParameters=ismrmrd.xsd.sequenceParametersType(TR=[500.0], TE=[12.0, 80.0][:contrasts], flipAngle_deg=[90.0]),
    )
    dataset = ismrmrd.Dataset(str(path), "dataset", create_if_needed=True)
    dataset.write_xml_header(header.toXML("utf-8"))
    noise = ismrmrd.Acquisition.from_array(np.ones((coils, readout), dtype=np.complex64))
    noise.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    dataset.append_acquisition(noise)
    row, column, across = DIRECTIONS.T
    for contrast in range(contrasts):
        for line in range(0, phase, skip + 1):
            for number in [*range(1, slices, 2), *range(0, slices, 2)]:
                acquisition = ismrmrd.Acquisition.from_array(kspace[number, :, :, line].astype(np.complex64) * (contrast + 1))
                acquisition.center_sample = readout // 2
                acquisition.idx.kspace_encode_step_1, acquisition.idx.slice = line, slices - 1 - number
                acquisition.idx.contrast = contrast
                acquisition.position[:] = np.array([5.0, 6.0, 7.0]) + across * 4.0 * number
                acquisition.read_dir[:], acquisition.phase_dir[:], acquisition.slice_dir[:] = row, column, across
                dataset.append_acquisition(acquisition)
    dataset.close()


def _space(x: int, y: int, wide: float, high: float) -> ismrmrd.xsd.encodingSpaceType:
    return ismrmrd.xsd.encodingSpaceType(
        matrixSize=ismrmrd.xsd.matrixSizeType(x=x, y=y, z=1), fieldOfView_mm=ismrmrd.xsd.fieldOfViewMm(x=wide, y=high, z=4.0)
    )


def test_ismrmrd_lines_form_an_image_with_the_geometry_of_their_directions(source: Path) -> None:
    rng = np.random.default_rng(2)
    images = rng.standard_normal((3, 2, 24, 10)) + 1j * rng.standard_normal((3, 2, 24, 10))
    _write_raw(source / "scan.mrd", images, contrasts=2)
    first, second = sorted(ingest_and_read(source, card(("ISMRMRD",))), key=lambda volume: volume.acquisition.echo_time_ms or 0)
    assert (first.acquisition.echo_time_ms, second.acquisition.echo_time_ms) == (12.0, 80.0)
    np.testing.assert_allclose(second.voxels, 2 * first.voxels, rtol=1e-4)
    root = np.sqrt((np.abs(images) ** 2).sum(1))
    assert first.spacing_mm == pytest.approx((4.0, 1.6, 2.0)) or first.spacing_mm == pytest.approx((4.0, 2.0, 1.6))
    assert sorted(first.voxels.shape) == [3, 10, 12]  # readout oversampling is cropped
    row, column, across = DIRECTIONS.T
    for number, read, phase in [(0, 12, 5), (1, 6, 0), (2, 17, 9), (0, 8, 3)]:
        left, back, up = np.array([5.0, 6, 7]) + across * 4.0 * number + row * 2.0 * (read - 12) + column * 1.6 * (phase - 5)
        assert voxel_at(first, np.array([-left, -back, up])) == pytest.approx(root[number, read, phase], rel=1e-4)


def test_accelerated_raw_data_is_rejected(source: Path) -> None:
    _write_raw(source / "scan.h5", np.ones((1, 1, 24, 10), dtype=complex), skip=1)
    with pytest.raises(BadInput, match="undersampled"):
        read_path(source / "scan.h5")


def _write_nifti(path: Path, values: NDArray[np.int16], affine: NDArray[np.float64] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1, 4, 1]) if affine is None else affine), path)


def test_brats_names_give_sequences_and_the_label_map_of_the_same_time_point(source: Path) -> None:
    for visit in ("000", "001"):
        for number, name in enumerate(("t1n", "t1c", "t2w", "t2f")):
            values = dicom_files.random_pixels(8, 9, 4, seed=number + 10 * int(visit)).astype(np.int16)
            _write_nifti(source / f"BraTS-GLI-00005-{visit}" / f"BraTS-GLI-00005-{visit}-{name}.nii.gz", values)
        labels = np.full((8, 9, 4), 1 + int(visit), dtype=np.int16)
        labels[0] = 0
        _write_nifti(source / f"BraTS-GLI-00005-{visit}" / f"BraTS-GLI-00005-{visit}-seg.nii.gz", labels)
    brats = card(
        ("NIfTI",),
        {1: "necrotic core", 2: "oedema"},
        labels=["*-seg.nii.gz"],
        patient=r"(BraTS-GLI-\d+)-",
        case=r"(BraTS-GLI-\d+-\d+)-",
        sequences={"-t1n.": "T1-weighted", "-t1c.": "T1-weighted post contrast", "-t2w.": "T2-weighted", "-t2f.": "FLAIR"},
    )
    volumes = ingest_and_read(source, brats)
    assert sorted(str(volume.acquisition.sequence) for volume in volumes) == sorted(
        2 * ["T1-weighted", "T1-weighted post contrast", "T2-weighted", "FLAIR"]
    )
    assert sorted(int(volume.labels.max()) for volume in volumes if volume.labels is not None) == 4 * [1] + 4 * [2]


def test_channels_of_a_4d_file_become_volumesand_of_repeats_the_first_is_used(source: Path) -> None:
    _write_nifti(source / "BRATS_001.nii.gz", dicom_files.random_pixels(8, 9, 4, 2).astype(np.int16))
    named = ingest_and_read(source, card(("NIfTI",), channels=["FLAIR", "T1-weighted"]))
    assert sorted(str(volume.acquisition.sequence) for volume in named) == ["FLAIR", "T1-weighted"]
    assert not np.array_equal(named[0].voxels, named[1].voxels)
    (first,) = ingest_and_read(source, card(("NIfTI",), sequences={"BRATS": "BOLD"}))
    assert first.voxels.shape == (4, 9, 8) and first.acquisition.sequence == "BOLD"


@pytest.mark.parametrize("form", ["nii.gz", "nii", "mha"])
def test_a_4d_file_that_the_card_does_not_explain_is_rejected_with_the_remedy(source: Path, form: str) -> None:
    values = dicom_files.random_pixels(8, 9, 4, 3).astype(np.int16)
    if form == "mha":
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values.transpose(), isVector=False), str(source / "four.mha"))
    else:
        _write_nifti(source / f"four.{form}", values)
    _write_nifti(source / "three.nii.gz", values[..., 0])
    _write_nifti(source / "one-of-four.nii.gz", values[..., 1:2])
    assert len(ingest_and_read(source, card(("NIfTI",)))) == 2
    (entry,) = read_quarantine(source.parent / "data", "made-up")
    assert (entry.kind, entry.reason) == ("unsupported", "3 images along the fourth axis, and the card does not say what they are")
    assert "layout.channels" in entry.remedy and "layout.sequences" in entry.remedy
    with pytest.raises(BadInput, match="3 images where one is expected"):
        read_path(source / f"four.{form}")


def test_sidecars_of_upper_folders_are_inherited_and_the_nearest_wins(source: Path) -> None:
    """Test the inheritance principle of BIDS."""
    anat = source / "sub-01" / "ses-1" / "anat"
    _write_nifti(anat / "sub-01_ses-1_T1w.nii.gz", dicom_files.random_pixels(8, 9, 4).astype(np.int16))
    _write_nifti(anat / "sub-01_ses-1_acq-fast_T1w.nii.gz", dicom_files.random_pixels(8, 9, 4, seed=1).astype(np.int16))
    fields = {
        source / "T1w.json": {"EchoTime": 0.003, "MagneticFieldStrength": 1.5, "Manufacturer": "Siemens"},
        source / "T2w.json": {"MagneticFieldStrength": 9.4},
        source / "sub-01" / "sub-01_T1w.json": {"MagneticFieldStrength": 3},
        source / "sub-01" / "ses-1" / "sub-01_acq-fast_T1w.json": {"EchoTime": 0.002},
        anat / "sub-01_ses-1_T1w.json": {"RepetitionTime": 0.5},
    }
    for path, content in fields.items():
        path.write_text(json.dumps(content))
    by_echo_time = {
        volume.acquisition.echo_time_ms: volume.acquisition
        for volume in ingest_and_read(source, card(("NIfTI",), patient="(sub-[^/]+)/"))
    }
    assert set(by_echo_time) == {3.0, 2.0}
    assert by_echo_time[3.0].repetition_time_ms == 500.0 and all(
        acquisition.field_strength_t == 3.0 for acquisition in by_echo_time.values()
    )
    assert [entry.kind for entry in read_quarantine(source.parent / "data", "made-up")] == [
        "no image"
    ]  # T2w.json describes nothing here


def test_masks_of_single_structures_become_one_label_map(source: Path) -> None:
    _write_nifti(source / "s01" / "mri.nii.gz", dicom_files.random_pixels(8, 9, 4).astype(np.int16))
    for number, name in enumerate(("liver", "spleen")):
        mask = np.zeros((8, 9, 4), dtype=np.int16)
        mask[2 * number] = 1
        _write_nifti(source / "s01" / "segmentations" / f"{name}.nii.gz", mask)
    masks = card(
        ("NIfTI",), {1: "liver", 2: "spleen"}, tissue_maps={1: "*/liver.nii.gz", 2: "*/spleen.nii.gz"}, patient="(s[0-9]+)/"
    )
    (volume,) = ingest_and_read(source, masks)
    assert volume.labels is not None and sorted(np.unique(volume.labels)) == [0, 1, 2]


def test_enhanced_echoes_and_times_become_volumesof_one_patient(source: Path) -> None:
    voxels = dicom_files.random_pixels(2, 2, 3, 8, 9)
    frames = [
        {"plane": voxels[echo, time, place], "offset": 4.0 * place, "echo": (12, 80)[echo], "time": time + 1}
        for place in range(3)
        for time in range(2)
        for echo in range(2)
    ]
    dicom_files.write_enhanced(source / "e.dcm", frames)
    volumes = ingest_and_read(source, card(("DICOM",)))
    assert {volume.voxels.astype(np.uint16).tobytes() for volume in volumes} == {
        voxels[echo, time].tobytes() for echo in range(2) for time in range(2)
    }
    assert sorted(volume.acquisition.echo_time_ms or 0 for volume in volumes) == [12, 12, 80, 80]
    assert all(volume.acquisition.repetition_time_ms == 500 and volume.acquisition.vendor == "Siemens" for volume in volumes)


def test_a_path_and_an_ingested_dataset_give_the_same_volume(source: Path) -> None:
    dicom_files.write_series(source, "s", dicom_files.random_pixels(4, 8, 9), dicom_files.OBLIQUE)
    (ingested,) = ingest_and_read(source, card(("DICOM",)))
    alone = read_path(source)
    np.testing.assert_array_equal(alone.voxels, ingested.voxels)
    np.testing.assert_allclose(alone.affine, ingested.affine)


def test_rounding_errors_of_zero_do_not_reach_a_file(tmp_path: Path) -> None:
    """The last bits of a product differ between processors, and with them the bytes of a header."""
    turned = np.array([[-2, 0, 0, 9], [0, 1.9, -0.6, -3.5], [0, 0.6, 1.9, -7], [0, 0, 0, 1.0]])
    noise = np.zeros((4, 4))
    noise[0, 1], noise[2, 0], noise[1, 3] = -3e-17, 8e-18, 4e-15
    written = []
    for affine in (turned, turned + noise):
        NiftiOutput(nib.Nifti1Image(np.arange(8.0, dtype=np.float32).reshape(2, 2, 2), affine)).write(tmp_path / "one.nii")
        written.append((tmp_path / "one.nii").read_bytes())
    assert written[0] == written[1]
    np.testing.assert_allclose(nib.load(tmp_path / "one.nii").affine, turned, atol=1e-6)
