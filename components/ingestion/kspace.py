"""fastMRI's k-space files (HDF5), and lesion tables in fastMRI+'s form.

fastMRI stores images upside down: rows run from posterior to anterior. They are turned here, k-space included, so that a volume is
the same way up whatever file it came from. fastMRI+'s ``y`` counts from the top of the turned image already.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np
from numpy.typing import NDArray

from components.errors import BadInput
from components.files import atomic_file
from components.fourier import fft2c, ifft2c
from components.ingestion import headers
from components.ingestion.volume import Acquisition, Box

_SPACE = "{http://www.ismrm.org/ISMRMRD}"
_ROOT = "ismrmrdHeader"
KEPT_SECTIONS = ("acquisitionSystemInformation", "encoding", "sequenceParameters")
"""Of the ISMRMRD header; subject, study and measurement information are left out."""
_KEPT_SYSTEM = ("systemVendor", "systemModel", "systemFieldStrength_T", "receiverChannels")
BOX_COLUMNS = ("slice", "study_level", "x", "y", "width", "height", "label")
DATASETS = ("kspace", "reconstruction_rss", "reconstruction_esc", "mask")
ACQUISITION = re.compile(r"(?:AX|COR|SAG)(?:T1|T2|PD|FLAIR|DIFF)(?:FS)?(?:PRE|POST)?(?:_FBK)?")
"""fastMRI's names of acquisitions. Other text in this attribute is not copied: it may name the patient."""
SEQUENCES = {"T1": "T1-weighted", "T2": "T2-weighted", "FLAIR": "T2-FLAIR", "PD": "PD-weighted"}


def check(path: Path) -> None:
    """Raise :class:`BadInput` unless the file has k-space in fastMRI's shape."""
    try:
        with h5py.File(path) as file:
            shape = file["kspace"].shape if "kspace" in file else None
            complex_values = shape is not None and np.issubdtype(file["kspace"].dtype, np.complexfloating)
    except OSError:
        raise BadInput("HDF5 cannot be read", where=path.name, remedy="get the file again") from None
    if shape is None or len(shape) not in (3, 4) or not complex_values:
        raise BadInput(
            f"'kspace' must be complex of (slices, [coils,] rows, columns), found {shape}", where=path.name,
            remedy="give files in fastMRI's form",
        )  # fmt: skip


def write_clean(source: Path, target: Path, patient: str) -> None:
    """Copy arrays and the allowed parts of the header."""
    with atomic_file(target) as temporary, h5py.File(source) as file, h5py.File(temporary, "w", libver="earliest") as clean:
        for name in DATASETS:
            if name in file:
                clean.create_dataset(name, data=file[name][()], track_times=False)
        if "ismrmrd_header" in file:
            clean.create_dataset("ismrmrd_header", data=_clean_header(file["ismrmrd_header"][()]), track_times=False)
        acquisition = str(file.attrs.get("acquisition", ""))
        if ACQUISITION.fullmatch(acquisition):
            clean.attrs["acquisition"] = acquisition
        clean.attrs["patient_id"] = patient


def _clean_header(text: bytes | str) -> str:
    root = ElementTree.fromstring(text)  # noqa: S314 (expat of Python 3.11 bounds entity expansion; files are local)
    clean = ElementTree.Element(f"{_SPACE}{_ROOT}")
    for section in KEPT_SECTIONS:
        for found in root.findall(f"{_SPACE}{section}"):
            if section == "acquisitionSystemInformation":
                for child in [child for child in found if child.tag.removeprefix(_SPACE) not in _KEPT_SYSTEM]:
                    found.remove(child)
            clean.append(found)
    ElementTree.register_namespace("", _SPACE[1:-1])
    return ElementTree.tostring(clean, encoding="unicode")


def _header_values(file: h5py.File) -> dict[str, str]:
    """Leaf name -> text of the header's elements; the last of a name wins, which is the reconstructed space."""
    if "ismrmrd_header" not in file:
        return {}
    root = ElementTree.fromstring(file["ismrmrd_header"][()])  # noqa: S314
    values = {element.tag.removeprefix(_SPACE): (element.text or "").strip() for element in root.iter() if len(element) == 0}
    for field in root.iter(f"{_SPACE}fieldOfView_mm"):
        values.update({f"fov_{child.tag.removeprefix(_SPACE)}": (child.text or "").strip() for child in field})
    return values


def read(path: Path, anatomy: str | None) -> tuple[NDArray[np.float32], NDArray[np.complex64], NDArray[np.float64], Acquisition]:
    """Magnitude (D, H, W), k-space (D, coils, H, W), affine and acquisition of one file.

    The header has no position, so the affine centres the volume; its directions are those of an axial image.
    """
    check(path)
    with h5py.File(path) as file:
        kspace = np.asarray(file["kspace"][()], dtype=np.complex64)
        values = _header_values(file)
        acquisition = str(file.attrs.get("acquisition", ""))
    kspace = kspace[:, None] if kspace.ndim == 3 else kspace
    images = ifft2c(kspace)[..., ::-1, :]
    voxels = np.sqrt((np.abs(images) ** 2).sum(1))
    slices, rows, columns = voxels.shape

    def size(name: str, count: int) -> float:
        return float(values.get(name) or count) / count

    steps = float(values.get("fov_z") or 1), size("fov_x", rows), size("fov_y", columns)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = steps[0], -steps[1], -steps[2], 1
    affine[:3, 3] = [(columns - 1) / 2 * steps[2], (rows - 1) / 2 * steps[1], -(slices - 1) / 2 * steps[0]]
    sequence = next((kind for text, kind in SEQUENCES.items() if text in acquisition.upper()), None)
    return voxels.astype(np.float32), fft2c(images).astype(np.complex64), affine, _acquisition(values, sequence, affine, anatomy)


def _acquisition(values: dict[str, str], sequence: str | None, affine: NDArray[np.float64], anatomy: str | None) -> Acquisition:
    def number(name: str) -> float | None:
        return float(values[name]) if values.get(name) else None

    repetition, echo, inversion = number("TR"), number("TE"), number("TI")
    return Acquisition(
        sequence=sequence or headers.sequence_kind(repetition, echo, inversion, ""),
        plane=headers.plane_of(affine),
        anatomy=anatomy,
        repetition_time_ms=repetition,
        echo_time_ms=echo,
        inversion_time_ms=inversion,
        flip_angle_deg=number("flipAngle_deg"),
        field_strength_t=number("systemFieldStrength_T"),
        vendor=headers.vendor(values.get("systemVendor")),
        scanner=values.get("systemModel"),
    )


def rows_of(table: Path, file_name: str) -> list[dict[str, Any]] | None:
    """Rows of a fastMRI+ table about one file, without its name; None where it is not in the table (nobody looked).

    Raises:
        BadInput: columns missing.
    """
    with table.open(newline="") as stream:
        reader = csv.DictReader(stream)
        missing = {"file", *BOX_COLUMNS} - set(reader.fieldnames or ())
        if missing:
            raise BadInput(f"columns missing: {', '.join(sorted(missing))}", where=table.name, remedy="give fastMRI+'s columns")
        found = [{name: row[name] for name in BOX_COLUMNS} for row in reader if row["file"] == file_name]
    return found or None


def boxes_and_diagnosis(rows: list[dict[str, Any]]) -> tuple[tuple[Box, ...], dict[str, bool]]:
    """Boxes on the turned image's pixels; where the study is normal, the diagnosis says so."""
    boxes = tuple(
        Box(int(row["slice"]), int(row["y"]), int(row["x"]), int(row["y"]) + int(row["height"]),
            int(row["x"]) + int(row["width"]), str(row["label"]).lower())
        for row in rows if row["x"] != ""
    )  # fmt: skip
    normal = not boxes and any(str(row["label"]).lower().startswith("normal") for row in rows)
    return boxes, {"lesion": False} if normal else dict.fromkeys((box.label for box in boxes), True)
