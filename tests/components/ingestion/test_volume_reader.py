"""All formats are read into the same orientation, with labels and boxes on the same anatomy."""

import json
import subprocess
from pathlib import Path

import dcm2niix
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import pixel_array
from pydicom.uid import ExplicitVRLittleEndian

from components.catalog import load_card
from components.errors import BadInput
from components.ingestion import list_series, read_path, read_volume
from components.ingestion.acquisition_headers import classify_timing
from components.ingestion.formats.dicom.pixels import decode_pixels
from components.ingestion.formats.orientation import to_canonical
from components.ingestion.quarantine import UnsupportedInput
from components.ingestion.volume_reader import read_scan
from components.samples.anatomies.brain import BRAIN, LESION, STRUCTURES
from components.samples.cohort import forms
from model_core.mri_physics.fourier import ifft2c_numpy
from tests.helpers.real_world.common import ramp
from tests.helpers.real_world.nifti_files import write_nifti_file


def test_dicom_geometry_is_that_of_dcm2niix(sources: Path, tmp_path: Path) -> None:
    """Compare with the converter that most labs use, on the same files."""
    series = sorted((sources / "synthetic-brain-dicom" / "DCM-0001").glob("S1*.dcm"))
    folder = tmp_path / "series"
    folder.mkdir()
    for path in series:
        (folder / path.name).write_bytes(path.read_bytes())
    subprocess.run([dcm2niix.bin, "-z", "n", "-f", "theirs", "-o", str(tmp_path), str(folder)], check=True, capture_output=True)
    theirs, affine = to_canonical(nib.load(tmp_path / "theirs.nii"))
    ours = read_path(folder)
    np.testing.assert_allclose(ours.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(ours.voxels, theirs)


@pytest.mark.parametrize(
    ("sample", "sequence"),
    [
        ("synthetic-brain-dicom", "T1-weighted"),
        ("synthetic-brain-nifti", "T2-weighted"),
        ("synthetic-brain-kspace", "T2-weighted"),
    ],
)
def test_image_and_labels_are_read_in_their_original_orientation(data: Path, sample: str, sequence: str) -> None:
    card = load_card(sample)
    assert card.generated is not None
    form = forms()[card.generated.form]
    grid = form.grid(BRAIN)
    patients = [form.generate(card.generated, number) for number in range(2)]
    for series in list_series(data, sample):
        volume = read_volume(data, series, card)
        if volume.acquisition.sequence != sequence:
            continue
        correlations = [np.corrcoef(volume.voxels.ravel(), patient.images[sequence].ravel())[0, 1] for patient in patients]
        assert max(correlations) > 0.98
        patient = patients[int(np.argmax(correlations))]
        if volume.labels is not None:
            np.testing.assert_array_equal(volume.labels, patient.labels)
        if sample != "synthetic-brain-kspace":  # its files have no position
            np.testing.assert_allclose(volume.affine, grid.affine, atol=1e-4)


def test_boxes_of_the_flipped_table_lie_on_the_lesion(data: Path) -> None:
    card = load_card("synthetic-brain-kspace")
    assert card.generated is not None
    patient = forms()["kspace"].generate(card.generated, 1)
    volume = next(v for series in list_series(data, card.id) if (v := read_volume(data, series, card)).boxes)
    covered = np.zeros_like(patient.labels, dtype=bool)
    for box in volume.boxes:
        covered[box.slice_index, box.row0 : box.row1, box.col0 : box.col1] = True
    assert covered[patient.labels == STRUCTURES[LESION]].all()


def test_kspace_agrees_with_its_image(data: Path) -> None:
    card = load_card("synthetic-brain-kspace")
    volume = read_volume(data, list_series(data, card.id)[0], card)
    assert volume.kspace is not None
    root = np.sqrt((np.abs(ifft2c_numpy(volume.kspace)) ** 2).sum(1))
    np.testing.assert_allclose(root, volume.voxels, atol=1e-4 * float(root.max()))


def test_a_sagittal_volume_has_sagittal_slices(tmp_path: Path) -> None:
    values = np.arange(4 * 6 * 8, dtype=np.int16).reshape(4, 6, 8)
    nib.save(nib.Nifti1Image(values, np.diag([5.0, 1.0, 1.0, 1.0])), tmp_path / "image.nii")
    volume = read_path(tmp_path / "image.nii")
    assert volume.acquisition.plane == "sagittal" and volume.voxels.shape == (4, 8, 6)
    corner = volume.affine @ [0, 0, 0, 1]
    assert corner[:3].tolist() == [15.0, 5.0, 7.0]  # first slice rightmost, first row superior, first column anterior
    assert volume.voxels[0, 0, 0] == values[3, 5, 7]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("image.nii.gz", b"", r"an empty file \(get the file again\)"),
        ("image.nii.gz", b"no image at all" * 40, "no image by its content, although its suffix is that of one"),
        ("image.nii.gz", b"\x1f\x8b\x08" + b"\0" * 50, "a gzipped file that is damaged or cut short"),
        ("image.nii", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", r"not fetched .* \(datalad get"),
        ("images.zip", b"PK\3\4" + b"\0" * 400, r"a ZIP archive \(unpack it\)"),
        ("image.dat", b"no image at all" * 40, r"no image of a known format by its content \(convert it"),
    ],
)
def test_a_file_of_no_known_format_is_rejected_by_what_it_is(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "image.json").write_text("{}")  # is read with the image, and hides nothing
    for read in (read_path, read_scan):
        with pytest.raises(BadInput, match=reason):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("timing", "kind"),
    [
        ((500.0, 12.0, None, "SE"), "T1-weighted"),
        ((2000.0, 3.0, 900.0, "GR\\IR"), "T1-weighted"),
        ((4000.0, 95.0, None, "SE"), "T2-weighted"),
        ((9000.0, 120.0, 2500.0, "SE\\IR"), "T2-FLAIR"),
        ((3000.0, 20.0, None, "SE"), "PD-weighted"),
        ((None, 20.0, None, "SE"), None),
    ],
)
def test_the_sequence_follows_from_the_timing(timing: tuple[float, float, float, str], kind: str | None) -> None:
    assert classify_timing(*timing) == kind


@given(
    bits=st.sampled_from([(8, 8), (16, 16), (16, 12), (16, 10)]),
    signed=st.booleans(),
    frames=st.integers(1, 3),
    stray=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_plain_pixels_equal_those_of_pydicoms_decoder(
    bits: tuple[int, int], signed: bool, frames: int, stray: bool, seed: int
) -> None:
    """``stray``: other data in the bits beside the value."""
    allocated, stored = bits
    low, high = (0, 2**allocated) if stray else (-(2 ** (stored - 1)), 2 ** (stored - 1)) if signed else (0, 2**stored)
    values = np.random.default_rng(seed).integers(low, high, (frames, 5, 4)).astype(f"u{allocated // 8}")
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames, dataset.SamplesPerPixel = 5, 4, frames, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, stored - 1
    dataset.PixelRepresentation, dataset.PhotometricInterpretation = int(signed), "MONOCHROME2"
    dataset.PixelData = values.tobytes()
    ours, reference = decode_pixels(dataset), pixel_array(dataset, raw=True)
    assert ours.dtype == reference.dtype and ours.shape == reference.shape
    np.testing.assert_array_equal(ours, reference)


@pytest.mark.parametrize(("axis", "plane"), [(0, "sagittal"), (1, "coronal"), (2, "axial")])
def test_a_single_slice_is_one_slice_whatever_the_size_of_its_voxels(tmp_path: Path, axis: int, plane: str) -> None:
    shape = tuple(1 if place == axis else side for place, side in enumerate((24, 28, 16)))
    path = write_nifti_file(tmp_path / "slice.nii", ramp(shape), np.eye(4))
    volume = read_path(path)
    assert len(volume.voxels) == 1 and volume.acquisition.plane == plane


@pytest.mark.parametrize("phase", [{"ImageType": ["ORIGINAL", "PRIMARY", "P"]}, {"Units": "rad"}])
def test_an_image_that_its_sidecar_calls_phase_is_refused(tmp_path: Path, phase: dict[str, object]) -> None:
    path = write_nifti_file(tmp_path / "scan.nii", ramp())
    path.with_suffix(".json").write_text(json.dumps(phase))
    with pytest.raises(UnsupportedInput, match=r"scan.nii: phase by its sidecar \(Image Type or Units\)"):
        read_scan(path)


def test_statistics_are_refused_by_their_intent_code(tmp_path: Path) -> None:
    image = nib.Nifti1Image(ramp(), np.eye(4))
    image.header.set_intent("t test", (10,))
    nib.save(image, tmp_path / "scan.nii")
    with pytest.raises(UnsupportedInput, match=r"scan.nii: statistics by its intent code"):
        read_path(tmp_path / "scan.nii")


@pytest.mark.parametrize("has_sidecar", [False, True])
def test_a_position_that_contradicts_itself_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, has_sidecar: bool) -> None:
    image = nib.Nifti1Image(ramp(), np.eye(4))
    image.set_sform(np.diag([-1.0, 1, 1, 1]), 2)
    image.set_qform(np.eye(4), 1)
    nib.save(image, tmp_path / "scan.nii")
    if has_sidecar:
        (tmp_path / "scan.json").write_text("{}")
    read_scan(tmp_path / "scan.nii")
    assert "scan.nii: sform and qform disagree: the sform is used" in caplog.text
