"""Formats whose files contain one image each, or several along a fourth axis: NIfTI, MetaImage, NumPy, and plugins like them.

Such a format implements ``sniff`` and ``load``. Its files become NIfTI under ``data/``, with a sidecar, tables and label maps as
the card declares them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from components.errors import BadInput
from components.ingestion import acquisition_headers
from components.ingestion.formats.base import FileHeader, Format, PlannedFile, PlannedSeries, Role, WriteContext
from components.ingestion.formats.nifti_writer import select_channel, write_nifti
from components.ingestion.formats.orientation import to_canonical
from components.ingestion.formats.voxels import remove_nonfinite, require_single
from components.ingestion.planned_annotations import PlannedSidecar
from components.ingestion.quarantine import UnsupportedInput, rejection_of
from components.ingestion.source_folder import Plan, SourceFolder, match_group
from components.ingestion.volume import Volume
from components.registries import FORMATS

_NAME_CHANNELS = "name each in layout.channels; if they repeat one image, name it in layout.sequences: the first is then used"


@dataclass(frozen=True)
class PlannedImage(PlannedFile):
    """An image file, or one channel of it, to be written as NIfTI.

    Attributes:
        format: registered name of the source's format.
        channel: index along the fourth axis; None = the whole file.
    """

    format: str
    channel: int | None = None

    @property
    @override
    def sources(self) -> tuple[Path, ...]:
        return _image_file_format(self.format).source_files(self.source)

    def load(self, context: WriteContext) -> Any:
        """Load the source as a NIfTI image."""
        return _image_file_format(self.format).load(self.source)

    @override
    def write(self, target: Path, context: WriteContext) -> str:
        image = self.load(context)
        return write_nifti(image if self.channel is None else select_channel(image, self.channel), target)


def _image_file_format(name: str) -> ImageFileFormat:
    image_format = FORMATS[name]
    assert isinstance(image_format, ImageFileFormat)
    return image_format


class ImageFileFormat(Format):
    """A format of which one file is one image."""

    @abstractmethod
    def load(self, path: Path) -> Any:
        """Return the file as a NIfTI image (nibabel): stored values and geometry. Header text need not be removed.

        Raises:
            BadInput: the file cannot be read, or claims more voxels than it contains.
        """

    def shape_of(self, path: Path) -> tuple[int, ...]:
        """Return the shape (x, y, z[, channels]) of an image; formats override it to read the header only.

        Raises:
            BadInput: the file cannot be read.
        """
        return tuple(self.load(path).shape)

    def source_files(self, path: Path) -> tuple[Path, ...]:
        """Return the file, followed by the file beside it that stores its voxels, if the format has such."""
        return (path,)

    def plan_image(
        self, path: Path, target: str, role: Role, relative: str, folder: SourceFolder, channel: int | None
    ) -> PlannedImage:
        """Return the planned output of an image or label map.

        Args:
            relative: path in the source folder.
        """
        return PlannedImage(path, target, role, self.name, channel)

    @override
    def plan(self, headers: Sequence[FileHeader], folder: SourceFolder, plan: Plan) -> None:
        for header in headers:
            self._plan_file(header.path, folder, plan)

    @override
    def read_path(self, path: Path) -> Volume:
        return volume_from_image(self.load(path), {}, path)

    def _plan_file(self, path: Path, folder: SourceFolder, plan: Plan) -> None:
        relative = folder.relative(path)
        folder.used |= set(self.source_files(path)[1:])
        patient = folder.patient(relative)
        case = match_group(folder.layout.case, relative) or patient
        label_suffix = folder.label_suffix(relative)
        if label_suffix:
            target = f"{folder.stem(patient, relative)}.{label_suffix}.nii"
            plan.label_maps[case].append(self.plan_image(path, target, "label", relative, folder, None))
            return
        try:
            channels = self._channels(path, relative, folder)
        except BadInput as error:
            plan.reject([path], rejection_of(error))
            return
        for channel in channels:
            plan.add_image(case, self._plan_series(path, relative, patient, channel, folder))

    def _plan_series(self, path: Path, relative: str, patient: str, channel: int | None, folder: SourceFolder) -> PlannedSeries:
        name = relative if channel is None else f"{relative}\0{channel}"
        stem = folder.stem(patient, name)
        files: list[PlannedFile] = [self.plan_image(path, f"{stem}.nii", "image", relative, folder, channel)]
        sequence = folder.sequence(relative) if channel is None else folder.layout.channels[channel]
        sidecars = folder.sidecars.find(path)
        if sidecars or sequence:
            files.append(PlannedSidecar.of(path, sidecars, f"{stem}.json", sequence))
        files += folder.plan_tables(relative, None, stem)
        files += folder.plan_boxes(relative, None, stem, self._grid(path) if folder.boxes else ())
        return PlannedSeries(patient, folder.pseudonyms.series(name), "nifti", files)

    def _grid(self, path: Path) -> tuple[int, ...]:
        """Return slices, rows and columns of an image; empty where its header cannot be read (writing it reports the fault)."""
        try:
            return tuple(self.shape_of(path)[2::-1])
        except BadInput:
            return ()

    def _channels(self, path: Path, relative: str, folder: SourceFolder) -> list[int | None]:
        """Return which images of a file become volumes: an index along the fourth axis for each, or None for the whole file.

        No header states what a fourth axis is: the card names its channels, or one sequence that the images repeat.

        Raises:
            BadInput: a header that cannot be read.
            UnsupportedInput: a 4-D file that the card does not explain, or explains differently.
        """
        declared = folder.layout.channels
        if not declared and folder.sequence(relative):
            return [None]
        shape = self.shape_of(path)
        if len(shape) != 4 or (shape[3] == 1 and not declared):
            return [None]
        if not declared:
            raise UnsupportedInput(
                "unsupported",
                f"{shape[3]} images along the fourth axis, and the card does not say what they are",
                remedy=_NAME_CHANNELS,
            )
        if shape[3] != len(declared):
            raise UnsupportedInput(
                "unsupported",
                f"{shape[3]} images along the fourth axis, the card names {len(declared)} channels",
                remedy="fix layout.channels of the card",
            )
        return list(range(len(declared)))


def volume_from_image(image: Any, fields: Mapping[str, Any], path: Path) -> Volume:
    """Return a volume of a user's file, a NIfTI image in memory with the fields of its sidecar.

    Raises:
        BadInput: several images along the fourth axis, or no finite voxel.
    """
    require_single(image.shape[3] if len(image.shape) == 4 else 1, "images", path)
    return canonical_volume(image, fields, None, path.name)


def canonical_volume(image: Any, fields: Mapping[str, Any], anatomy: str | None, name: str) -> Volume:
    """Return a volume in canonical orientation; of a 4-D image, the first.

    Args:
        name: shown in the error message.

    Raises:
        BadInput: no finite voxel.
    """
    values, affine = to_canonical(image)
    voxels = remove_nonfinite(np.ascontiguousarray(values, dtype=np.float32), name)
    return Volume(voxels=voxels, affine=affine, acquisition=acquisition_headers.acquisition_from_sidecar(fields, affine, anatomy))
