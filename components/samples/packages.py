"""Copy real images that are included in installed packages. Nothing is downloaded."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from components.errors import BadInput


def package_folder(name: str) -> Path:
    """Return the folder of an installed package, without importing it.

    Raises:
        BadInput: the package is not installed.
    """
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise BadInput("the package that contains this sample is not installed", where=name, remedy=f"pip install {name}")
    return Path(spec.origin).parent


def _copy(sources: list[Path], folder: Path) -> None:
    for source in sources:
        if not source.is_file():
            raise BadInput(
                "the installed package lacks this file", where=source.name, remedy="install the pinned versions (constraints.txt)"
            )
        shutil.copyfile(source, folder / source.name)


def copy_icbm152(folder: Path) -> None:
    """Copy T1, gray-matter and white-matter maps of the ICBM 152 average, from nilearn."""
    _copy(sorted((package_folder("nilearn") / "datasets" / "data").glob("mni_icbm152_*.nii.gz")), folder)


def copy_nibabel_samples(folder: Path) -> None:
    """Copy Siemens DICOM and diffusion, functional and anatomical NIfTI, from nibabel."""
    root = package_folder("nibabel")
    nifti = root / "tests" / "data"
    _copy([nifti / "example4d.nii.gz", nifti / "anatomical.nii", nifti / "functional.nii"], folder)
    dicom = root / "nicom" / "tests" / "data"
    _copy([dicom / name for name in ("0.dcm", "1.dcm", "csa_slice_norm.dcm")], folder)
    for name in ("siemens_dwi_0", "siemens_dwi_1000"):
        with gzip.open(dicom / f"{name}.dcm.gz") as packed:
            (folder / f"{name}.dcm").write_bytes(packed.read())


def copy_pydicom_samples(folder: Path) -> None:
    """Copy MR images in several transfer syntaxes, a truncated file and a CT, from pydicom."""
    files = package_folder("pydicom") / "data" / "test_files"
    _copy([*sorted(files.glob("MR_*.dcm")), files / "CT_small.dcm"], folder)


PACKAGE_SAMPLES: dict[str, Callable[[Path], None]] = {
    "icbm152-2009": copy_icbm152,
    "nibabel-samples": copy_nibabel_samples,
    "pydicom-samples": copy_pydicom_samples,
}
"""Dataset id -> function that copies its files into a folder."""
