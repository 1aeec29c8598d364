"""k-space files (HDF5) of fastMRI: also the form in which ISMRMRD raw data is stored under ``data/``.

fastMRI stores images upside down: rows run from posterior to anterior. They are flipped when read, k-space included, so that a
volume has the same orientation whatever file it came from. Both axes may be oversampled: k-space is that of the encoded space, and
images are cropped to the reconstructed one, as fastMRI's own reference images are; the k-space of the volume is that of the cropped
image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from components.errors import BadInput
from components.ingestion import acquisition_headers
from components.ingestion.deidentification import allowlists
from components.ingestion.formats import hdf5, ismrmrd_header
from components.ingestion.formats.base import (
    FileHeader,
    Format,
    Output,
    PlannedFile,
    PlannedSeries,
    ReadBackError,
    WriteContext,
)
from components.ingestion.formats.ismrmrd_header import first_number
from components.ingestion.formats.kspace_lines import require_center, require_finite, require_lines
from components.ingestion.formats.nifti_writer import content_md5
from components.ingestion.formats.orientation import canonical_directions, keep_slices_first, round_affine
from components.ingestion.formats.voxels import remove_nonfinite, require_signal
from components.ingestion.quarantine import UnsupportedInput
from components.ingestion.source_folder import Plan, SourceFolder
from components.ingestion.volume import ALL, Acquisition, Band, Volume
from model_core.mri_physics.coils import mix_coils, whitening_matrix
from model_core.mri_physics.fourier import fft2c_numpy, ifft2c_numpy

READER = "kspace"
"""``reader`` of these series in manifests."""
DATASETS = ("kspace", "reconstruction_rss", "reconstruction_esc")
NOISE = "noise_covariance"
"""Data set with the (C, C) covariance of the coils' noise, of files that have a noise scan: coils are pre-whitened when read."""
ACQUISITION = re.compile(r"(?:AX|COR|SAG)(?:T1|T2|PD|FLAIR|DIFF)(?:FS)?(?:PRE|POST)?(?:_FBK)?")
"""Names of acquisitions that fastMRI publishes. Other text of this attribute is not copied: it may contain the patient's name."""
SEQUENCES = {"T1": "T1-weighted", "T2": "T2-weighted", "FLAIR": "T2-FLAIR", "PD": "PD-weighted"}
_FIELD_OF_VIEW = "encoding/{}Space/fieldOfView_mm/{}"
_NO_SIZE = "no field of view in the header (ismrmrd_header): voxels of 1 mm are assumed where it is missing"
PLANES = {"AX": "axial", "COR": "coronal", "SAG": "sagittal"}
"""Beginning of an acquisition's name -> plane."""


@dataclass(frozen=True)
class PlannedKspace(PlannedFile):
    """A fastMRI file.

    Attributes:
        patient: pseudonym, which is written to the file.
    """

    patient: str

    def prepare(self, context: WriteContext) -> KspaceOutput:
        """Return arrays and the allowed parts of the header.

        Raises:
            BadInput: not the format of fastMRI, or undersampled.
        """
        _check(self.source)
        with h5py.File(self.source) as file:
            header = ismrmrd_header.parse_header(file["ismrmrd_header"][()]) if "ismrmrd_header" in file else {}
            arrays = {name: file[name][()] for name in DATASETS if name in file}
            acquisition = str(file.attrs.get("acquisition", ""))
        require_finite(arrays["kspace"], self.source.name)
        require_lines(arrays["kspace"], self.source.name)
        notes = () if _states_size(header) else (_NO_SIZE,)
        return KspaceOutput(arrays, header, self.patient, acquisition=acquisition, notes=notes)


class FastMriFormat(Format):
    """HDF5 files with fully sampled Cartesian k-space in the layout of fastMRI."""

    name = "fastmri"
    is_fallback = True

    @override
    def sniff(self, head: bytes, path: Path) -> bool:
        return head.startswith(hdf5.MAGIC)

    @override
    def plan(self, headers: Sequence[FileHeader], folder: SourceFolder, plan: Plan) -> None:
        for header in headers:
            relative = folder.relative(header.path)
            patient = folder.patient(relative)
            stem = folder.stem(patient, relative)
            image = PlannedKspace(header.path, f"{stem}.h5", "image", patient)
            plan.series.append(plan_kspace_series(image, relative, relative, header.path.stem, folder))

    @override
    def read(self, files: Sequence[Path], sidecar: Path | None, anatomy: str | None) -> Volume:
        return read_kspace(files[0], anatomy)

    @override
    def read_path(self, path: Path) -> Volume:
        return read_kspace(path, None)

    @override
    def count_voxels(self, path: Path, limit: int) -> int:
        return hdf5.count_values(path)


FORMAT = FastMriFormat()


def plan_kspace_series(image: PlannedKspace, name: str, relative: str, box_file_name: str, folder: SourceFolder) -> PlannedSeries:
    """Plan a series of one k-space file with the card's boxes and tables.

    Args:
        name: name of the series before it becomes a pseudonym.
        relative: path of the source in its folder.
        box_file_name: key in box tables in the format of fastMRI+; "" where such tables do not describe the image.
    """
    stem = image.target.removesuffix(".h5")
    files: list[PlannedFile] = [image]
    files += folder.plan_boxes(relative, None, stem, (), box_file_name)
    files += folder.plan_tables(relative, None, stem)
    return PlannedSeries(image.patient, folder.pseudonyms.series(name), READER, files)


def _check(path: Path) -> None:
    """Require fully sampled k-space in the layout of fastMRI.

    Raises:
        BadInput: another layout, or a data set that claims more than the file contains.
        UnsupportedInput: undersampled k-space.
    """
    try:
        with h5py.File(path) as file:
            kspace = file.get("kspace")
            shape = kspace.shape if isinstance(kspace, h5py.Dataset) else None
            is_complex = shape is not None and np.issubdtype(kspace.dtype, np.complexfloating)
            is_undersampled = "mask" in file
            is_sound = all(hdf5.is_stored(file[name]) for name in DATASETS if isinstance(file.get(name), h5py.Dataset))
    except OSError:
        raise BadInput("HDF5 cannot be read", where=path.name, remedy="get the file again") from None
    if not is_sound:
        raise BadInput(
            "an empty array, or one that claims more than the file contains", where=path.name, remedy="get the file again"
        )
    if shape is None or len(shape) not in (3, 4) or not is_complex:
        raise UnsupportedInput(
            "unsupported",
            "'kspace' must be a complex array (slices, rows, columns) or (slices, coils, rows, columns), "
            f"not {_describe(shape, is_complex)}",
            where=path.name,
            remedy="give files in the layout of fastMRI, or ISMRMRD",
        )
    if is_undersampled:
        raise UnsupportedInput(
            "unsupported",
            "undersampled k-space (a test file with a mask): there is no reference image",
            where=path.name,
            remedy="give the training and validation files",
        )


def _describe(shape: tuple[int, ...] | None, is_complex: bool) -> str:
    """Describe what a file contains in place of k-space."""
    if shape is None:
        return "absent: HDF5 of another kind"
    if not is_complex and len(shape) > 1 and shape[-1] == 2:
        return f"real and imaginary parts along the last axis {shape}"
    return f"{'a complex' if is_complex else 'another'} array {shape}"


class KspaceOutput(Output):
    """A k-space file in the layout of fastMRI."""

    def __init__(
        self,
        arrays: dict[str, NDArray[Any]],
        header: dict[str, list[str]],
        patient: str,
        *,
        acquisition: str = "",
        affine: NDArray[np.float64] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Take the content of a file.

        Args:
            arrays: by name, see :data:`DATASETS` and :data:`NOISE`.
            header: as :func:`components.ingestion.formats.ismrmrd_header.parse_header` returns it.
            patient: pseudonym.
            affine: (4, 4), pixel of the uncropped image as stored (not flipped) -> RAS+ mm; None = unknown.
            notes: what the user should know about the data.

        Raises:
            BadInput: k-space without a finite value, or without signal.
        """
        require_signal(arrays["kspace"])
        self._arrays, self._header, self._patient = arrays, header, patient
        self._acquisition = acquisition if ACQUISITION.fullmatch(acquisition) else ""
        self._affine = round_affine(affine) if affine is not None else None
        self.notes = notes
        self.content = content_md5(np.ascontiguousarray(arrays["kspace"]).view(np.uint8).data, arrays["kspace"].shape)

    @override
    def write(self, path: Path) -> None:
        with h5py.File(path, "w", libver="earliest") as clean:
            for name, values in self._arrays.items():
                clean.create_dataset(name, data=values, track_times=False)
            if self._header:
                clean.create_dataset("ismrmrd_header", data=ismrmrd_header.clean_header(self._header), track_times=False)
            if self._acquisition:
                clean.attrs["acquisition"] = self._acquisition
            if self._affine is not None:
                clean.attrs["affine"] = self._affine
            clean.attrs["patient_id"] = self._patient

    @override
    def check(self, path: Path) -> None:
        _check(path)
        with h5py.File(path) as file:
            if set(file) - {"ismrmrd_header"} != self._arrays.keys():
                raise ReadBackError("other arrays")
            for name, values in self._arrays.items():  # slice by slice: no second copy of the whole
                if not all(np.array_equal(file[name][index], part, equal_nan=True) for index, part in enumerate(values)):
                    raise ReadBackError("other k-space")
            affine = file.attrs.get("affine")
        if not np.array_equal(affine if affine is not None else (), self._affine if self._affine is not None else ()):
            raise ReadBackError("another affine")


def read_kspace(path: Path, anatomy: str | None) -> Volume:
    """Read one file: magnitude (D, H, W), k-space (D, coils, H, W), affine and acquisition.

    fastMRI's header has no position, so the affine centers the volume at the origin; its directions are the canonical ones of the
    plane that the name of the acquisition states. Coils are pre-whitened if the file states the covariance of their noise.

    Raises:
        BadInput: no k-space in the layout of fastMRI.
    """
    _check(path)
    with h5py.File(path) as file:
        header = ismrmrd_header.parse_header(file["ismrmrd_header"][()]) if "ismrmrd_header" in file else {}
        acquisition = str(file.attrs.get("acquisition", ""))
        stored_affine = np.array(file.attrs["affine"], dtype=np.float64) if "affine" in file.attrs else None
        encoded = file["kspace"].shape[-2:]
        images, corner, acquired = _read_images(file, path.name, header)
    if stored_affine is None:
        affine = _centered_affine(header, encoded, images.shape, _stated_plane(acquisition))
        images, acquired = images[..., ::-1, :], (_flip(acquired[0]), acquired[1])
    else:
        stored_affine[:3, 3] += stored_affine[:3, 1] * corner[0] + stored_affine[:3, 2] * corner[1]
        coils_last, affine = keep_slices_first(images.transpose(0, 2, 3, 1), stored_affine)
        images, acquired = coils_last.transpose(0, 3, 1, 2), _turn(acquired, stored_affine, affine)
    voxels = np.empty((len(images), *images.shape[2:]), dtype=np.float32)
    kspace = np.empty(images.shape, dtype=np.complex64)
    for index, image in enumerate(images):
        voxels[index] = np.sqrt((np.abs(image) ** 2).sum(0))
        kspace[index] = fft2c_numpy(image)
    sequence = next((kind for text, kind in SEQUENCES.items() if text in acquisition.upper()), None)
    return Volume(
        voxels=remove_nonfinite(voxels, path.stem),
        affine=affine,
        acquisition=_acquisition(header, sequence, affine, anatomy),
        kspace=kspace,
        acquired=acquired if acquired != (ALL, ALL) else None,
    )


def _read_images(
    file: h5py.File, name: str, header: dict[str, list[str]]
) -> tuple[NDArray[np.complex64], tuple[int, ...], tuple[Band, Band]]:
    """Return the cropped coil images (D, C, H, W), their first row and column, and the acquired frequencies of rows and columns.

    One slice of the encoded space is in memory at a time: an oversampled file is much larger than its images.

    Raises:
        BadInput: values that are not finite, or a center that is not in the middle.
    """
    kspace = file["kspace"]
    reference = next((file[name].shape[-2:] for name in DATASETS[1:] if name in file), None)
    whitening = whitening_matrix(file[NOISE][()]) if NOISE in file else None
    slices, encoded = len(kspace), kspace.shape[-2:]
    energy_HW = np.zeros(encoded)
    images: NDArray[np.complex64] = np.empty(0, dtype=np.complex64)
    corner: tuple[int, ...] = (0, 0)
    for index in range(slices):
        coils = np.asarray(kspace[index], dtype=np.complex64).reshape(-1, *encoded)
        require_finite(coils, name)
        energy_HW += (np.abs(coils).astype(np.float64) ** 2).sum(0)
        cropped, corner = _crop(ifft2c_numpy(coils), reference or _reconstructed_matrix(header))
        if not index:
            images = np.empty((slices, *cropped.shape), dtype=np.complex64)
        images[index] = cropped if whitening is None else mix_coils(whitening, cropped)
    require_center(energy_HW, name)
    return images, corner, (_band(energy_HW.sum(1) > 0), _band(energy_HW.sum(0) > 0))


def _band(has_data: NDArray[np.bool_]) -> Band:
    """Return the lowest and the highest frequency with data, cycles per pixel; :data:`ALL` if the outermost have data."""
    size, lines = len(has_data), np.flatnonzero(has_data)
    if not lines.size or len(lines) == size or (lines[0] == 0 and lines[-1] == size - 1):
        return ALL
    return (int(lines[0]) - size // 2) / size, (int(lines[-1]) - size // 2) / size


def _flip(band: Band) -> Band:
    """Return the frequencies of a reversed axis."""
    return -band[1], -band[0]


def _turn(bands: tuple[Band, Band], source: NDArray[np.float64], turned: NDArray[np.float64]) -> tuple[Band, Band]:
    """Return the frequencies of rows and columns of an image whose axes were permuted and reversed."""
    alike = source[:3, 1:3].T @ turned[:3, 1:3]
    chosen = [int(np.abs(alike[:, axis]).argmax()) for axis in (0, 1)]
    rows, columns = (bands[old] if alike[old, new] > 0 else _flip(bands[old]) for new, old in enumerate(chosen))
    return rows, columns


def _reconstructed_matrix(header: dict[str, list[str]]) -> tuple[int, ...]:
    """Return rows and columns of the reconstructed space; 0 where the header does not state them."""
    return tuple(int(first_number(header, f"encoding/reconSpace/matrixSize/{axis}") or 0) for axis in "xy")


def _crop(images: NDArray[Any], matrix: tuple[int, ...]) -> tuple[NDArray[Any], tuple[int, ...]]:
    """Crop images (..., rows, columns) around their center to a matrix (0 = uncropped); return them with first row and column."""
    encoded = images.shape[-2:]
    rows, columns = (min(size, available) if size else available for size, available in zip(matrix, encoded, strict=True))
    corner = (encoded[0] - rows) // 2, (encoded[1] - columns) // 2
    return images[..., corner[0] : corner[0] + rows, corner[1] : corner[1] + columns], corner


def _stated_plane(acquisition: str) -> str:
    """Return the plane that fastMRI's name of an acquisition begins with; axial without one."""
    return next((plane for prefix, plane in PLANES.items() if acquisition.upper().startswith(prefix)), "axial")


def _centered_affine(
    header: dict[str, list[str]], encoded: tuple[int, ...], shape: tuple[int, ...], plane: str
) -> NDArray[np.float64]:
    """Return the affine of flipped images around the origin; a pixel is the encoded field of view over the encoded matrix."""

    def pixel_size(axis: str, count: int) -> float:
        return (first_number(header, _FIELD_OF_VIEW.format("encoded", axis)) or count) / count

    depth = _slice_mm(header) or 1.0
    affine = np.eye(4)
    affine[:3, :3] = canonical_directions(plane) * (depth, pixel_size("x", encoded[0]), pixel_size("y", encoded[1]))
    slices, _, rows, columns = shape
    affine[:3, 3] = -affine[:3, :3] @ ((np.array([slices, rows, columns]) - 1) / 2)
    return affine + 0.0  # no negative zeros


def _slice_mm(header: dict[str, list[str]]) -> float | None:
    """Return the thickness of a slice; None or 0 where the header does not state it."""
    return first_number(header, _FIELD_OF_VIEW.format("recon", "z")) or first_number(header, _FIELD_OF_VIEW.format("encoded", "z"))


def _states_size(header: dict[str, list[str]]) -> bool:
    """Return whether a header states the size of a voxel along each axis."""
    return all([_slice_mm(header), *(first_number(header, _FIELD_OF_VIEW.format("encoded", axis)) for axis in "xy")])


def _acquisition(
    header: dict[str, list[str]], sequence: str | None, affine: NDArray[np.float64], anatomy: str | None
) -> Acquisition:
    repetition, echo, inversion = (first_number(header, f"sequenceParameters/{name}") for name in ("TR", "TE", "TI"))
    return Acquisition(
        sequence=sequence or acquisition_headers.classify_timing(repetition, echo, inversion, ""),
        plane=acquisition_headers.slice_plane(affine),
        anatomy=anatomy,
        repetition_time_ms=repetition,
        echo_time_ms=echo,
        inversion_time_ms=inversion,
        flip_angle_deg=first_number(header, "sequenceParameters/flipAngle_deg"),
        field_strength_t=first_number(header, ismrmrd_header.FIELD_STRENGTH),
        vendor=allowlists.allowed_vendor(next(iter(header.get(ismrmrd_header.VENDOR, [])), "")),
        scanner=allowlists.allowed_scanner(next(iter(header.get(ismrmrd_header.SCANNER, [])), "")),
    )
