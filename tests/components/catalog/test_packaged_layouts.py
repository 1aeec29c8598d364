"""Packaged cards ingest files in the published layouts: images, label maps, sequences and patients."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from components.catalog import load_card
from components.ingestion import ingest, list_series, read_volume

KEY = bytes(range(32))
SHAPE = (10, 9, 8)

# card; path -> content ("image", an integer: mask with this value, an imaginary number: 4-D image with this number of channels);
# expected (sequence, highest label) of the volumes; expected number of patients
DATASETS = [
    (
        "brats-men-2023",
        {
            "T/BraTS-MEN-00004-000/BraTS-MEN-00004-000-t1c.nii.gz": "image",
            "T/BraTS-MEN-00004-000/BraTS-MEN-00004-000-t2f.nii.gz": "image",
            "T/BraTS-MEN-00004-000/BraTS-MEN-00004-000-seg.nii.gz": 3,
            "T/BraTS-MEN-00004-001/BraTS-MEN-00004-001-t2w.nii.gz": "image",
            "T/BraTS-MEN-00004-001/BraTS-MEN-00004-001-seg.nii.gz": 1,
            "V/BraTS-MEN-00009-000/BraTS-MEN-00009-000-t1n.nii.gz": "image",
        },
        [("T1-weighted post-contrast", 3), ("FLAIR", 3), ("T2-weighted", 1), ("T1-weighted", None)],
        2,
    ),
    (
        "acdc",
        {
            "training/patient001/patient001_4d.nii.gz": "image",
            "training/patient001/patient001_frame01.nii.gz": "image",
            "training/patient001/patient001_frame01_gt.nii.gz": 1,
            "training/patient001/patient001_frame12.nii.gz": "image",
            "training/patient001/patient001_frame12_gt.nii.gz": 2,
        },
        [("cine", 1), ("cine", 2)],
        1,
    ),
    (
        "hnts-mrg-2024",
        {
            "train/2/midRT/2_midRT_T2.nii.gz": "image",
            "train/2/midRT/2_midRT_mask.nii.gz": 2,
            "train/2/midRT/2_preRT_T2_registered.nii.gz": "image",
            "train/2/midRT/2_preRT_mask_registered.nii.gz": 1,
            "train/2/preRT/2_preRT_T2.nii.gz": "image",
            "train/2/preRT/2_preRT_mask.nii.gz": 1,
        },
        [("T2-weighted", 1), ("T2-weighted", 2)],
        1,
    ),
    (
        "msd-prostate",
        {
            "imagesTr/prostate_00.nii.gz": 2j,
            "labelsTr/prostate_00.nii.gz": 2,
            "imagesTs/prostate_03.nii.gz": 2j,
        },
        [("T2-weighted", 2), ("ADC", 2), ("T2-weighted", None), ("ADC", None)],
        2,
    ),
    (
        "isles-2022",
        {
            "sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001_adc.nii.gz": "image",
            "sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001_dwi.nii.gz": "image",
            "derivatives/sub-strokecase0001/ses-0001/sub-strokecase0001_ses-0001_msk.nii.gz": 1,
        },
        [("ADC", 1), ("DWI", 1)],
        1,
    ),
    (
        "totalsegmentator-mri",
        {
            "s0001/mri.nii.gz": "image",
            "s0001/segmentations/liver.nii.gz": 1,
            "s0001/segmentations/autochthon_left.nii.gz": 1,
        },
        [(None, 5)],
        1,
    ),
    (
        "spider",
        {
            "images/1_t1.mha": "image",
            "images/1_t2.mha": "image",
            "masks/1_t1.mha": 100,
            "masks/1_t2.mha": 201,
        },
        [("T1-weighted", 100), ("T2-weighted", 201)],
        1,
    ),
    (
        "promise12",
        {
            "training_data/Case00.mhd": "image",
            "training_data/Case00_segmentation.mhd": 1,
            "test_data/Case01.mhd": "image",
        },
        [("T2-weighted", 1), ("T2-weighted", None)],
        2,
    ),
    (
        "mrnet",
        {
            "train/axial/0000.npy": "image",
            "train/sagittal/0000.npy": "image",
            "valid/coronal/1130.npy": "image",
        },
        [("PD-weighted", None), ("T2-weighted", None), ("T1-weighted", None)],
        2,
    ),
    (
        "fastmri-knee",
        {
            "singlecoil_train/file1000001.h5": "image",
            "multicoil_test/file1000082.h5": "image",
        },
        [("PD-weighted", None), ("PD-weighted", None)],
        2,
    ),
]


def _write_file(path: Path, content: str | int | complex, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["kspace"] = (rng.normal(size=(3, 2, 16, 12)) + 1j * rng.normal(size=(3, 2, 16, 12))).astype(np.complex64)
            file.attrs["acquisition"] = "CORPDFS_FBK"
        return
    if isinstance(content, int):
        voxels = np.zeros(SHAPE, np.int16)
        voxels[2:4, 3:6, 2:5] = content
    else:
        voxels = rng.integers(1, 900, (*SHAPE, int(content.imag)) if isinstance(content, complex) else SHAPE, dtype=np.int16)
    if path.suffix == ".npy":
        np.save(path, voxels)
    elif path.suffix in (".mha", ".mhd"):
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))
    else:
        nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0])), path)


@pytest.mark.parametrize(("name", "files", "expected", "patients"), DATASETS, ids=[name for name, *_ in DATASETS])
def test_files_in_the_published_layout_are_ingested(
    tmp_path: Path, name: str, files: dict[str, str | int | complex], expected: list[tuple[str | None, int | None]], patients: int
) -> None:
    for seed, (path, content) in enumerate(files.items()):
        _write_file(tmp_path / "source" / path, content, seed)
    card = load_card(name)
    report = ingest(card, tmp_path / "source", tmp_path / "data", KEY)
    volumes = [read_volume(tmp_path / "data", series, card) for series in list_series(tmp_path / "data", name)]
    actual = [(volume.acquisition.sequence, None if volume.labels is None else int(volume.labels.max())) for volume in volumes]
    assert Counter(actual) == Counter(expected)
    assert (report.patients, report.quarantined) == (patients, ())
