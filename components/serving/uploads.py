"""Uploaded files: written under numbers instead of their names, unpacked within limits, and told apart into images.

File names may name the patient: of a name only the suffix of a BIDS sequence and the extension are kept.
"""

from __future__ import annotations

import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from components.curation.text.header_facts import HeaderFacts
from components.curation.text.phrasings import scan_name
from components.errors import BadInput
from components.files import atomic_file
from components.inference.prediction import nifti_bytes
from components.inference.untrusted_input import Limits, check_limits
from components.ingestion.file_names import stem_of
from components.ingestion.formats.sniff import detect_format
from components.ingestion.sequence_classification import canonical_sequence
from components.ingestion.study_reader import read_study
from components.ingestion.volume import Volume
from components.registries import FORMATS
from components.serving.kept import Kept

EXTENSIONS = (".nii.gz", ".nii", ".json", ".h5", ".hdf5", ".mrd", ".mha", ".mhd", ".npy", ".npz", ".dcm", ".ima", ".gz", ".zip")
VIEW = "view.nii"
"""File with the voxels of an image as the model receives them, for the viewer."""
_BLOCK = 1 << 20
_PLANES: tuple[Literal["sagittal", "coronal", "axial"], ...] = ("sagittal", "coronal", "axial")


@dataclass(frozen=True)
class UploadedImage:
    """One image of an upload.

    Attributes:
        path: the image's file, or the folder of its DICOM series.
        description: e.g. ``axial T1-weighted brain MRI, 20 slices of 6.0 mm``; nothing in it identifies a patient.
        shape: (D, H, W).
        affine: 16 numbers, row-major: index (d, h, w, 1) -> RAS+ mm.
        view: NIfTI file for the viewer.
    """

    path: Path
    description: str
    shape: tuple[int, int, int]
    affine: tuple[float, ...]
    view: Path

    @property
    def orientation(self) -> tuple[Literal["sagittal", "coronal", "axial"], bool]:
        """Plane of the slices, and whether they run to the left, back or feet."""
        normal = np.asarray(self.affine).reshape(4, 4)[:3, 0]
        axis = int(np.abs(normal).argmax())
        return _PLANES[axis], bool(normal[axis] < 0)


class UploadFolder:
    """The files of one upload in a folder of their own."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder, self.limits = folder, limits
        self.incoming = folder / "incoming"
        self.incoming.mkdir(parents=True)
        self._stems: dict[tuple[str, ...], str] = {}
        self._files = self._bytes = 0

    def add(self, name: str, stream: BinaryIO) -> None:
        """Write a file under a number; unpack a zip archive.

        Raises:
            BadInput: too many files or bytes, or a damaged or encrypted archive.
        """
        path = self._write(name, stream)
        if path.suffix != ".gz" and zipfile.is_zipfile(path) and detect_format(path) is None:
            try:
                self._unpack(path)
            except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, zlib.error, ValueError) as error:
                reason = f"the zip archive cannot be unpacked ({type(error).__name__})"
                raise BadInput(reason, where="upload", remedy="send an intact archive without password") from None
            path.unlink()

    def _unpack(self, path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir() and not entry.filename.startswith("__MACOSX"):
                    with archive.open(entry) as stream:
                        self._write(entry.filename, stream)  # type: ignore[arg-type]

    def _write(self, name: str, stream: BinaryIO) -> Path:
        self._files += 1
        if self._files > self.limits.files:
            raise BadInput("too many files", where="upload", remedy=f"send at most {self.limits.files} files")
        path = self.incoming / self._numbered(name)
        with path.open("wb") as file:
            while piece := stream.read(_BLOCK):
                self._bytes += len(piece)
                if self._bytes > self.limits.unpacked_bytes:
                    remedy = f"send at most {self.limits.unpacked_bytes >> 20} MiB, unpacked"
                    raise BadInput("the upload is too large", where="upload", remedy=remedy)
                file.write(piece)
        return path

    def _numbered(self, name: str) -> str:
        """Return a file name without the user's words: files of one folder and stem (an image and its sidecar) share a number."""
        *folders, base = re.split(r"[\\/]", name)
        extension = next((one for one in EXTENSIONS if base.lower().endswith(one)), "")
        stem = stem_of(base) if extension else base
        place = (*folders, stem)
        if place not in self._stems:
            suffix = stem.rpartition("_")[2]
            self._stems[place] = f"{len(self._stems):05d}" + (f"_{suffix}" if canonical_sequence(suffix) else "")
        numbered = f"{self._stems[place]}{extension}"
        return numbered if not (self.incoming / numbered).exists() else f"{self._files:05d}-{numbered}"

    def images(self) -> tuple[list[UploadedImage], list[str]]:
        """Return the images of the upload, and a reason for each file or series that is none.

        Raises:
            BadInput: no image, or a file beyond the limits.
        """
        found: list[UploadedImage] = []
        reasons: list[str] = []
        for path in self._separated():
            try:
                [source], _ = read_study([path])
                found.append(self._image(path, source.volume, len(found)))
            except BadInput as error:
                reasons.append(error.what)
        if not found:
            remedy = "send NIfTI, DICOM, MetaImage, NumPy, or fastMRI or ISMRMRD k-space"
            raise BadInput(reasons[0] if reasons else "no image among the files", where="upload", remedy=remedy)
        return found, reasons

    def _separated(self) -> list[Path]:
        """Return one file or folder for each image; the files of each DICOM series are moved into a folder."""
        from components.ingestion.formats.dicom.format import group_series

        files = sorted(path for path in self.incoming.iterdir() if path.suffix != ".json")
        formats = {path: detect_format(path) for path in files}
        dicom = [path for path in files if formats[path] == "dicom"]
        voxels = 0
        for path in files:
            check_limits(path, self.limits)
            if path in dicom:
                voxels += FORMATS["dicom"].count_voxels(path, self.limits.voxels)
        if voxels > self.limits.voxels:
            raise BadInput("the series have too many voxels", where="upload", remedy=f"send at most {self.limits.voxels} voxels")
        separated = [path for path in files if formats[path] not in (None, "dicom")]
        for number, series in enumerate(group_series(dicom, Path("upload")) if dicom else []):
            target = self.folder / f"series-{number}"
            target.mkdir()
            for path in series:
                path.rename(target / path.name)
            separated.append(target)
        return separated

    def _image(self, path: Path, volume: Volume, number: int) -> UploadedImage:
        description = describe(volume)
        if volume.kspace is not None:
            volume = as_received(volume)
        view = self.folder / f"{number}-{VIEW}"
        with atomic_file(view) as temporary:
            temporary.write_bytes(nifti_bytes(volume.voxels, volume.affine))
        depth, height, width = volume.voxels.shape
        affine = tuple(float(value) for value in volume.affine.ravel())
        return UploadedImage(path, description, (depth, height, width), affine, view)


def as_received(volume: Volume) -> Volume:
    """Return a volume with k-space as the model receives it: undersampled k-space gives the first image of its reconstruction."""
    from components.inference.sliding_window import ResampledVolume

    side = max(volume.voxels.shape[1:])
    return ResampledVolume.from_volume(volume, side, float(volume.spacing_mm[1])).volume


def describe(volume: Volume) -> str:
    """Describe an image by what its header states, in words of the controlled vocabularies."""
    facts = HeaderFacts.of_volume(volume)
    name = scan_name(facts.sequence, facts.plane, volume.acquisition.anatomy)
    slices = f"{facts.slices} slices of {facts.slice_mm:.1f} mm"
    coils = 0 if volume.kspace is None else volume.kspace.shape[1]
    kspace = [] if not coils else ["k-space"] if coils == 1 else [f"k-space of {coils} coils"]
    return ", ".join([name, *kspace, slices])


def receive(kept: Kept, files: Iterable[tuple[str, BinaryIO]], limits: Limits) -> tuple[list[UploadedImage], list[str], Path]:
    """Write files into a new folder and read their images; the folder is removed if there is none.

    Raises:
        BadInput: no image, or a file beyond the limits.
    """
    folder = kept.create_folder()
    try:
        upload = UploadFolder(folder, limits)
        for name, stream in files:
            upload.add(name, stream)
        images, reasons = upload.images()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return images, reasons, folder
