"""ISMRMRD raw data (HDF5): Cartesian, fully sampled acquisitions, sorted into k-space by the counters of their lines.

A file may contain several images (contrasts, phases, repetitions, sets): each becomes a file of its own under ``data/``, in the
layout of :mod:`components.ingestion.formats.fastmri`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import fft
from typing_extensions import override

from components.errors import BadInput
from components.ingestion.formats import hdf5
from components.ingestion.formats.base import FileHeader, Format, WriteContext
from components.ingestion.formats.fastmri import NOISE, KspaceOutput, PlannedKspace, plan_kspace_series, read_kspace
from components.ingestion.formats.ismrmrd_header import first_number, parse_header
from components.ingestion.formats.kspace_lines import require_finite, require_lines
from components.ingestion.formats.orientation import LPS_TO_RAS
from components.ingestion.formats.voxels import require_single
from components.ingestion.quarantine import UnsupportedInput, rejection_of
from components.ingestion.source_folder import Plan, SourceFolder
from components.ingestion.volume import Volume
from model_core.mri_physics.coils import noise_covariance, whitening_matrix

COUNTERS = ("contrast", "phase", "repetition", "set")
"""Encoding counters that distinguish images."""
_NON_IMAGE_FLAGS = (19, 20, 23, 24, 26, 27, 28, 29, 30, 31)
"""Flags (ismrmrd.h) of noise, calibration, navigator, phase-correction, feedback and dummy lines."""
_NOISE_FLAG = 19
_REVERSED_FLAG = 22
_MAX_VALUES = 2**31
ImageCounters = tuple[int, ...]
"""Values of :data:`COUNTERS` of one image."""
Header = dict[str, list[str]]


@dataclass(frozen=True)
class PlannedRawImage(PlannedKspace):
    """One image of a raw data file.

    Attributes:
        counters: values of :data:`COUNTERS`.
    """

    counters: ImageCounters

    @override
    def prepare(self, context: WriteContext) -> KspaceOutput:
        return read_image(self.source, self.patient, self.counters)


class IsmrmrdFormat(Format):
    """HDF5 files with ISMRMRD acquisitions."""

    name = "ismrmrd"

    @override
    def sniff(self, head: bytes, path: Path) -> bool:
        return head.startswith(hdf5.MAGIC) and _contains_acquisitions(path)

    @override
    def plan(self, headers: Sequence[FileHeader], folder: SourceFolder, plan: Plan) -> None:
        for header in headers:
            try:
                images = list_images(header.path)
            except BadInput as error:
                plan.reject([header.path], rejection_of(error))
                continue
            relative = folder.relative(header.path)
            patient = folder.patient(relative)
            for counters in images:
                name = f"{relative}\0{counters}" if len(images) > 1 else relative
                target = f"{folder.stem(patient, name)}.h5"
                image = PlannedRawImage(header.path, target, "image", patient, counters)
                plan.series.append(plan_kspace_series(image, name, relative, "", folder))

    @override
    def read_path(self, path: Path) -> Volume:
        images = list_images(path)
        require_single(len(images), "images", path)
        with TemporaryDirectory() as folder:
            target = Path(folder) / "image.h5"
            read_image(path, "", images[0]).write(target)
            return read_kspace(target, None)

    @override
    def count_voxels(self, path: Path, limit: int) -> int:
        return hdf5.count_values(path)


FORMAT = IsmrmrdFormat()


def _contains_acquisitions(path: Path) -> bool:
    try:
        with h5py.File(path) as file:
            return hdf5.is_hard_link(file, "dataset") and all(hdf5.is_hard_link(file["dataset"], name) for name in ("data", "xml"))
    except Exception:  # h5py raises many types for damaged files
        return False


def list_images(path: Path) -> list[ImageCounters]:
    """Return the images of a file in ascending order of their counters.

    Raises:
        BadInput: the file cannot be read, or contains no line of an image.
    """
    heads = _read_heads(path)
    lines = heads["idx"][_is_image_line(heads)]
    images = {tuple(int(line[name]) for name in COUNTERS) for line in lines}
    if not images:
        raise BadInput("no line of an image", where=path.name, remedy="give the measurement, not its calibration alone")
    return sorted(images)


def _read_heads(path: Path) -> NDArray[Any]:
    """Return the headers of all acquisitions (a structured array)."""
    try:
        with h5py.File(path) as file:
            if not hdf5.is_stored(file["dataset/data"]):
                raise BadInput("ISMRMRD that claims more than it contains", where=path.name, remedy="get the file again")
            return np.asarray(file["dataset/data"].fields("head")[()])
    except (KeyError, ValueError, TypeError):
        raise UnsupportedInput(
            "unsupported",
            "ISMRMRD acquisitions in another layout than the library's: no field 'head'",
            where=path.name,
            remedy="write the file with the ISMRMRD library",
        ) from None
    except (OSError, RuntimeError):  # h5py raises either for a damaged file
        raise BadInput("ISMRMRD cannot be read", where=path.name, remedy="get the file again") from None


def _is_image_line(heads: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which acquisitions are lines of images in the first encoded space."""
    mask = sum(1 << (flag - 1) for flag in _NON_IMAGE_FLAGS)
    return np.asarray(((heads["flags"] & np.uint64(mask)) == 0) & (heads["encoding_space_ref"] == 0))


def read_image(source: Path, patient: str, image: ImageCounters) -> KspaceOutput:
    """Return one image of a file in the layout of fastMRI.

    Raises:
        BadInput: not Cartesian, undersampled, or reversed lines (echo-planar).
    """
    import ismrmrd

    all_heads = heads = _read_heads(source)
    has_counters = np.all([heads["idx"][name] == value for name, value in zip(COUNTERS, image, strict=True)], axis=0)
    chosen = _is_image_line(heads) & has_counters
    heads, indices = heads[chosen], np.flatnonzero(chosen)
    with ismrmrd.File(source, mode="r") as file:
        container = file["dataset"]
        with h5py.File(source) as plain:
            header = parse_header(plain["dataset/xml"][0])
        _check_trajectory(source, heads, header)
        kspace, slices = _sort_lines(source, heads, container.acquisitions.data, indices, header)
        noise = _read_noise(source, all_heads, container.acquisitions.data, kspace.shape[1])
    echo_times = header.get("sequenceParameters/TE", [])
    contrast = image[0]
    if len(echo_times) > contrast:
        header["sequenceParameters/TE"] = [echo_times[contrast]]
    require_finite(kspace, source.name)
    require_lines(kspace, source.name)
    affine = _affine(heads, header, slices, kspace.shape)
    covariance = noise_covariance(noise)
    if noise.shape[1] > len(noise) and whitening_matrix(covariance) is not None:
        return KspaceOutput({"kspace": kspace, NOISE: covariance}, header, patient, affine=affine)
    notes = ("a noise scan that determines no covariance of the coils: they are not pre-whitened",) if noise.size else ()
    return KspaceOutput({"kspace": kspace}, header, patient, affine=affine, notes=notes)


def _read_noise(source: Path, heads: NDArray[Any], acquisitions: Any, coils: int) -> NDArray[np.complex64]:
    """Return the samples (C, N) of the noise scans of a file, N = 0 without one.

    Raises:
        BadInput: another number of coils than that of the images, or values that are not finite.
    """
    scans = np.flatnonzero(heads["flags"] & np.uint64(1 << (_NOISE_FLAG - 1)))
    counts = sorted({int(count) for count in heads["active_channels"][scans]})
    if counts and counts != [coils]:
        raise BadInput(
            f"a noise scan of {counts[0] if counts[0] != coils else counts[-1]} coils beside images of {coils}",
            where=source.name,
            remedy="give the noise scan of the same measurement, or none",
        )
    samples = [acquisitions[index]["data"].view(np.complex64).reshape(coils, -1) for index in scans]
    noise = np.concatenate([np.empty((coils, 0), np.complex64), *samples], axis=1)
    require_finite(noise, source.name)
    return noise


def _check_trajectory(source: Path, heads: NDArray[Any], header: Header) -> None:
    """Require Cartesian lines of equal length in one readout direction.

    Raises:
        UnsupportedInput: other trajectories.
    """
    fault = ""
    if header.get("encoding/trajectory", ["cartesian"])[0] != "cartesian" or np.any(heads["trajectory_dimensions"] > 0):
        fault = "not Cartesian"
    elif np.any(heads["flags"] & np.uint64(1 << (_REVERSED_FLAG - 1))):
        fault = "reversed lines (echo-planar), which need a phase correction"
    elif len(np.unique(heads["active_channels"])) != 1 or len(np.unique(heads["number_of_samples"])) != 1:
        fault = "lines of unequal length or number of coils"
    if fault:
        raise UnsupportedInput(
            "unsupported",
            f"ISMRMRD data that is {fault}",
            where=source.name,
            remedy="give reconstructed images, or Cartesian k-space",
        )


def _sort_lines(
    source: Path, heads: NDArray[Any], acquisitions: Any, indices: NDArray[np.intp], header: Header
) -> tuple[NDArray[np.complex64], NDArray[np.int_]]:
    """Sort lines into k-space (slices, coils, readout, phase), averaging repeated lines; return it with the slice counters.

    Args:
        heads: headers of the image's lines.
        acquisitions: all acquisitions of the file.
        indices: positions of the image's lines among them.

    Raises:
        BadInput: lines outside of the encoded space, or an implausibly large one.
        UnsupportedInput: undersampled.
    """
    first = heads[0]
    samples, coils = int(first["number_of_samples"]), int(first["active_channels"])
    last_line = int(heads["idx"]["kspace_encode_step_1"].max())
    columns = _encoded_size(header, "x", samples), _encoded_size(header, "y", last_line + 1)
    depth = _encoded_size(header, "z", 1)
    slices = _order_slices(heads)
    slice_index = {int(counter): index for index, counter in enumerate(slices)}
    shape = (len(slices), depth, coils, *columns)
    if np.prod(shape, dtype=object) > _MAX_VALUES or samples > columns[0]:
        raise BadInput(f"a header that claims k-space of {shape}", where=source.name, remedy="get the file again")
    lines = np.zeros(shape, dtype=np.complex64)
    count = np.zeros((len(slices), depth, columns[1]), dtype=np.int32)
    phase_shift, partition_shift = _center_shift(header, 1, columns[1]), _center_shift(header, 2, depth)
    for head, index in zip(heads, indices, strict=True):
        counters = head["idx"]
        s, z = slice_index[int(counters["slice"])], int(counters["kspace_encode_step_2"]) + partition_shift
        y, x = int(counters["kspace_encode_step_1"]) + phase_shift, columns[0] // 2 - int(head["center_sample"])
        if not (0 <= y < columns[1] and 0 <= z < depth and 0 <= x <= columns[0] - samples):
            raise BadInput("lines outside of the encoded space", where=source.name, remedy="get the file again")
        data = acquisitions[index]["data"].view(np.complex64).reshape(coils, samples)
        if count[s, z, y] == 1 and data.any() and np.array_equal(lines[s, z, :, x : x + samples, y], data):
            raise BadInput(
                f"line {counters['kspace_encode_step_1']} of slice {counters['slice']} is stored twice",
                where=source.name,
                remedy="get the file again; averages of a line differ by their noise",
            )
        lines[s, z, :, x : x + samples, y] += data
        count[s, z, y] += 1
    _check_sampling(source, count)
    lines /= np.maximum(count, 1)[:, :, None, None, :]
    if depth > 1:
        lines = _transform_partitions(lines, header)
    return lines.reshape(-1, coils, *columns), slices


def _encoded_size(header: Header, axis: str, default: int) -> int:
    return int(first_number(header, f"encoding/encodedSpace/matrixSize/{axis}") or default)


def _center_shift(header: Header, step: int, size: int) -> int:
    """Return what to add to the counter of an encoding step so that the center of k-space is at ``size // 2``."""
    center = first_number(header, f"encoding/encodingLimits/kspace_encoding_step_{step}/center")
    return size // 2 - int(center or size // 2)


def _transform_partitions(lines: NDArray[np.complex64], header: Header) -> NDArray[np.complex64]:
    """Transform the second phase-encoding axis (axis 1) of 3-D k-space to slices, cropped to the reconstructed depth."""
    depth = lines.shape[1]
    along = fft.fftshift(fft.ifft(fft.ifftshift(lines, axes=1), axis=1, norm="ortho"), axes=1)
    reconstructed = min(int(first_number(header, "encoding/reconSpace/matrixSize/z") or depth), depth)
    start = (depth - reconstructed) // 2
    return np.asarray(along[:, start : start + reconstructed], dtype=np.complex64)


def _order_slices(heads: NDArray[Any]) -> NDArray[np.int_]:
    """Return the slice counters in the order of their positions along the slice direction."""
    counters, first = np.unique(heads["idx"]["slice"], return_index=True)
    along = (heads["position"][first].astype(np.float64) * heads["slice_dir"][first[0]]).sum(axis=1)
    return np.asarray(counters[np.argsort(along, kind="stable")], dtype=int)


def _check_sampling(source: Path, count: NDArray[np.int32]) -> None:
    """Reject gaps between the outermost lines: acceleration leaves gaps, partial Fourier does not.

    Args:
        count: acquisitions of each line (slices, partitions, phase).

    Raises:
        UnsupportedInput: undersampled.
    """
    for axis in (1, 2):
        sampled = np.flatnonzero(count.any(axis=(0, 3 - axis)))
        missing = int(sampled[-1] - sampled[0] + 1 - len(sampled))
        if missing:
            raise UnsupportedInput(
                "unsupported",
                f"undersampled k-space ({missing} lines missing): there is no reference image",
                where=source.name,
                remedy="give fully sampled data",
            )


def _affine(heads: NDArray[Any], header: Header, slices: NDArray[np.int_], shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """Return (slice, readout, phase, 1) -> RAS+ mm of the whole encoded image; None where the lines carry no directions."""
    slice_heads = [heads[heads["idx"]["slice"] == counter][0] for counter in slices]
    directions = [np.array(slice_heads[0][name], dtype=np.float64) for name in ("slice_dir", "read_dir", "phase_dir")]
    if any(abs(float(np.linalg.norm(direction)) - 1) > 0.01 for direction in directions):
        return None

    def extent_mm(axis: str, default: int) -> float:
        return float(first_number(header, f"encoding/encodedSpace/fieldOfView_mm/{axis}") or default)

    first, last = (np.array(head["position"], dtype=np.float64) for head in (slice_heads[0], slice_heads[-1]))
    rows, columns = shape[-2:]
    read, phase = directions[1] * extent_mm("x", rows) / rows, directions[2] * extent_mm("y", columns) / columns
    if len(slices) > 1:
        step = (last - first) / (len(slices) - 1)
        step = step if np.linalg.norm(step) > 0 else directions[0] * extent_mm("z", 1)
        center = first
    else:
        encoded = _encoded_size(header, "z", 1)
        step = directions[0] * extent_mm("z", 1) / encoded
        center = first - step * (shape[0] // 2 if encoded > 1 else 0)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = step, read, phase
    affine[:3, 3] = center - read * (rows // 2) - phase * (columns // 2)
    return np.asarray(LPS_TO_RAS @ affine)
