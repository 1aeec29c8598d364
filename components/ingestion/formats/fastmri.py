"""k-space files (HDF5): fastMRI's, and the form in which ISMRMRD raw data is kept under ``data/``.

fastMRI stores images upside down: rows run from posterior to anterior. They are turned here, k-space included, so that a volume is
the same way up whatever file it came from. Both axes may be oversampled: k-space is that of the encoded space, and images are cut
to the reconstructed one, as fastMRI's own reference images are; k-space is then that of the cut image.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np
from numpy.typing import NDArray

from components.errors import BadInput
from components.files import atomic_file
from components.ingestion import acquisition_headers
from components.ingestion.deidentification import allowlists
from components.ingestion.formats.gzipped import MAX_DEFLATE_RATIO
from components.ingestion.formats.nifti import content_md5, settled, slice_first
from components.ingestion.quarantine import UnsupportedInput
from components.ingestion.volume import Acquisition
from model_core.mri_physics.fourier_numpy import fft2c, ifft2c

_SPACE = "http://www.ismrm.org/ISMRMRD"
DATASETS = ("kspace", "reconstruction_rss", "reconstruction_esc")
ACQUISITION = re.compile(r"(?:AX|COR|SAG)(?:T1|T2|PD|FLAIR|DIFF)(?:FS)?(?:PRE|POST)?(?:_FBK)?")
"""fastMRI's names of acquisitions. Other text in this attribute is not copied: it may name the patient."""
SEQUENCES = {"T1": "T1-weighted", "T2": "T2-weighted", "FLAIR": "T2-FLAIR", "PD": "PD-weighted"}
_MATRICES = tuple(
    f"encoding/{space}Space/{what}/{axis}"
    for space in ("encoded", "recon")
    for what in ("matrixSize", "fieldOfView_mm")
    for axis in "xyz"
)
_LIMITS = tuple(
    f"encoding/encodingLimits/{axis}/{what}"
    for axis in ("kspace_encoding_step_1", "kspace_encoding_step_2")
    for what in ("minimum", "maximum", "center")
)
KEPT = (
    "acquisitionSystemInformation/systemVendor",
    "acquisitionSystemInformation/systemModel",
    "acquisitionSystemInformation/systemFieldStrength_T",
    "acquisitionSystemInformation/receiverChannels",
    *_MATRICES,
    *_LIMITS,
    "sequenceParameters/TR",
    "sequenceParameters/TE",
    "sequenceParameters/TI",
    "sequenceParameters/flipAngle_deg",
)
"""Of an ISMRMRD header: two published words and numbers."""
_WORDS = {KEPT[0]: allowlists.vendor, KEPT[1]: allowlists.scanner}


def is_believable(values: h5py.Dataset) -> bool:
    """Whether an array is not larger than what the file stores of it can be: HDF5 hands out zeros for what was never written."""
    stored = values.id.get_storage_size()
    return 0 < values.size * values.dtype.itemsize <= stored * MAX_DEFLATE_RATIO


def check(path: Path) -> None:
    """Raise :class:`BadInput` unless the file has fully sampled k-space in fastMRI's shape."""
    try:
        with h5py.File(path) as file:
            found = file.get("kspace")
            shape = found.shape if isinstance(found, h5py.Dataset) else None
            complex_values = shape is not None and np.issubdtype(found.dtype, np.complexfloating)
            undersampled = "mask" in file
            sound = all(is_believable(file[name]) for name in DATASETS if isinstance(file.get(name), h5py.Dataset))
    except OSError:
        raise BadInput("HDF5 cannot be read", where=path.name, remedy="get the file again") from None
    if not sound:
        raise BadInput("an empty array, or one that claims more than the file holds", where=path.name, remedy="get the file again")
    if shape is None or len(shape) not in (3, 4) or not complex_values:
        raise BadInput(
            f"'kspace' must be complex of (slices, [coils,] rows, columns), found {shape}",
            where=path.name,
            remedy="give files in fastMRI's form, or ISMRMRD",
        )
    if undersampled:
        raise UnsupportedInput(
            "unsupported",
            "undersampled k-space (a test file with a mask): there is no reference image",
            where=path.name,
            remedy="give the training and validation files",
        )


def write_clean(source: Path, target: Path, patient: str) -> str:
    """Copy arrays and the allowed parts of the header; returns the MD5 of the k-space.

    Raises:
        BadInput: not fastMRI's form, or undersampled.
    """
    check(source)
    with h5py.File(source) as file:
        header = header_values(file["ismrmrd_header"][()]) if "ismrmrd_header" in file else {}
        arrays = {name: file[name][()] for name in DATASETS if name in file}
        acquisition = str(file.attrs.get("acquisition", ""))
    return write(target, arrays, header, patient, acquisition=acquisition)


def write(
    target: Path,
    arrays: dict[str, NDArray[Any]],
    header: dict[str, list[str]],
    patient: str,
    *,
    acquisition: str = "",
    affine: NDArray[np.float64] | None = None,
) -> str:
    """Write a k-space file; returns the MD5 of the k-space.

    Args:
        arrays: by name, see :data:`DATASETS`.
        affine: (4, 4), pixel of the image of the whole k-space, as it is (not turned) -> RAS+ mm; None = unknown.
    """
    with atomic_file(target) as temporary, h5py.File(temporary, "w", libver="earliest") as clean:
        for name, values in arrays.items():
            clean.create_dataset(name, data=values, track_times=False)
        if header:
            clean.create_dataset("ismrmrd_header", data=clean_header(header), track_times=False)
        if ACQUISITION.fullmatch(acquisition):
            clean.attrs["acquisition"] = acquisition
        if affine is not None:
            clean.attrs["affine"] = settled(affine)
        clean.attrs["patient_id"] = patient
    return content_md5(np.ascontiguousarray(arrays["kspace"]).tobytes(), arrays["kspace"].shape)


def header_values(text: bytes | str) -> dict[str, list[str]]:
    """Path of an element of an ISMRMRD header -> its texts, of the first encoding only; empty where it is no XML."""
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 (expat of Python 3.11 bounds entity expansion; files are local)
    except ElementTree.ParseError:
        return {}
    found: dict[str, list[str]] = defaultdict(list)

    def walk(element: ElementTree.Element, path: str) -> None:
        seen = False
        for child in element:
            name = child.tag.rpartition("}")[2]
            if name == "encoding" and seen:
                continue
            seen = seen or name == "encoding"
            inner = f"{path}/{name}" if path else name
            if len(child):
                walk(child, inner)
            else:
                found[inner].append((child.text or "").strip())

    walk(root, "")
    return dict(found)


def clean_header(values: dict[str, list[str]]) -> str:
    """An ISMRMRD header of what may be kept, numbers written as Python reads them."""
    root = ElementTree.Element(f"{{{_SPACE}}}ismrmrdHeader")
    for path in KEPT:
        for text in values.get(path, []):
            value = _WORDS[path](text) if path in _WORDS else _number(text)
            if value is not None:
                *parents, leaf = path.split("/")
                place = root
                for name in parents:
                    inside = place.find(f"{{{_SPACE}}}{name}")
                    place = ElementTree.SubElement(place, f"{{{_SPACE}}}{name}") if inside is None else inside
                ElementTree.SubElement(place, f"{{{_SPACE}}}{leaf}").text = str(value)
    ElementTree.register_namespace("", _SPACE)
    return ElementTree.tostring(root, encoding="unicode")


def _number(text: str) -> str | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return f"{number:g}" if np.isfinite(number) and abs(number) < 1e9 else None


def first_number(values: dict[str, list[str]], path: str) -> float | None:
    """The first number at a path of a header."""
    found = (_number(text) for text in values.get(path, []))
    return next((float(number) for number in found if number is not None), None)


def read(path: Path, anatomy: str | None) -> tuple[NDArray[np.float32], NDArray[np.complex64], NDArray[np.float64], Acquisition]:
    """Magnitude (D, H, W), k-space (D, coils, H, W), affine and acquisition of one file.

    fastMRI's header has no position, so the affine centres the volume; its directions are those of an axial image.

    Raises:
        BadInput: no k-space in fastMRI's shape.
    """
    check(path)
    with h5py.File(path) as file:
        kspace = np.asarray(file["kspace"][()], dtype=np.complex64)
        values = header_values(file["ismrmrd_header"][()]) if "ismrmrd_header" in file else {}
        acquisition = str(file.attrs.get("acquisition", ""))
        known = np.array(file.attrs["affine"], dtype=np.float64) if "affine" in file.attrs else None
        reference = next((file[name].shape[-2:] for name in DATASETS[1:] if name in file), None)
    kspace = kspace[:, None] if kspace.ndim == 3 else kspace
    images = ifft2c(kspace)
    encoded = images.shape[-2:]
    wanted = reference or tuple(int(first_number(values, f"encoding/reconSpace/matrixSize/{axis}") or 0) for axis in "xy")
    kept = tuple(min(want, have) if want else have for want, have in zip(wanted, encoded, strict=True))
    corner = tuple((have - keep) // 2 for have, keep in zip(encoded, kept, strict=True))
    images = images[..., corner[0] : corner[0] + kept[0], corner[1] : corner[1] + kept[1]]
    if known is None:
        affine = _centred(values, encoded, images.shape)
        images = images[..., ::-1, :]
    else:
        known[:3, 3] += known[:3, 1] * corner[0] + known[:3, 2] * corner[1]
        moved, affine = slice_first(images.transpose(0, 2, 3, 1), known)
        images = np.ascontiguousarray(moved.transpose(0, 3, 1, 2))
    voxels = np.sqrt((np.abs(images) ** 2).sum(1))
    sequence = next((kind for text, kind in SEQUENCES.items() if text in acquisition.upper()), None)
    return voxels.astype(np.float32), fft2c(images).astype(np.complex64), affine, _acquisition(values, sequence, affine, anatomy)


def _centred(values: dict[str, list[str]], encoded: tuple[int, ...], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The affine of turned axial images around the origin; pixels are the encoded field of view over the encoded matrix."""

    def size(axis: str, count: int) -> float:
        return (first_number(values, f"encoding/encodedSpace/fieldOfView_mm/{axis}") or count) / count

    depth = first_number(values, "encoding/reconSpace/fieldOfView_mm/z") or first_number(values, _MATRICES[5]) or 1.0
    steps = depth, size("x", encoded[0]), size("y", encoded[1])
    slices, _, rows, columns = shape
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = steps[0], -steps[1], -steps[2], 1
    affine[:3, 3] = [(columns - 1) / 2 * steps[2], (rows - 1) / 2 * steps[1], -(slices - 1) / 2 * steps[0]]
    return affine


def _acquisition(
    values: dict[str, list[str]], sequence: str | None, affine: NDArray[np.float64], anatomy: str | None
) -> Acquisition:
    repetition, echo, inversion = (first_number(values, f"sequenceParameters/{name}") for name in ("TR", "TE", "TI"))
    return Acquisition(
        sequence=sequence or acquisition_headers.sequence_kind(repetition, echo, inversion, ""),
        plane=acquisition_headers.plane_of(affine),
        anatomy=anatomy,
        repetition_time_ms=repetition,
        echo_time_ms=echo,
        inversion_time_ms=inversion,
        flip_angle_deg=first_number(values, "sequenceParameters/flipAngle_deg"),
        field_strength_t=first_number(values, "acquisitionSystemInformation/systemFieldStrength_T"),
        vendor=allowlists.vendor(next(iter(values.get(KEPT[0], [])), "")),
        scanner=allowlists.scanner(next(iter(values.get(KEPT[1], [])), "")),
    )
