"""Formats whose files contain one image each, or several along a fourth axis: NIfTI, MetaImage, NumPy, and plugins like them.

Such a format implements ``sniff`` and ``load``. Its files become NIfTI under ``data/``, with a sidecar, tables and label maps as
the card declares them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from components.errors import BadInput
from components.ingestion import acquisition_headers
from components.ingestion.annotations.encodings import decode_text
from components.ingestion.annotations.sidecars import component_of
from components.ingestion.file_names import not_magnitude_by_name, session_of
from components.ingestion.formats.base import FileHeader, Format, PlannedFile, PlannedSeries, Role, WriteContext
from components.ingestion.formats.dicom.image_content import ADC, COMPLEX, IMAGINARY, MAGNITUDE, PHASE, REAL
from components.ingestion.formats.nifti_header import NAME_ORIENTATION, NO_ORIENTATION
from components.ingestion.formats.nifti_writer import NiftiOutput
from components.ingestion.formats.orientation import to_canonical
from components.ingestion.formats.stored_labels import stored_label_image
from components.ingestion.formats.voxels import remove_nonfinite, require_gray_values, require_single
from components.ingestion.planned_annotations import PlannedSidecar
from components.ingestion.quarantine import UnsupportedInput, rejection_of
from components.ingestion.source_folder import Plan, SourceFolder, match_group, matches_any
from components.ingestion.volume import Volume
from components.registries import FORMATS

MAX_B_OF_REFERENCE = 50.0
"""Largest b-value, in s/mm2, of an image that counts as without diffusion weighting."""
_SEQUENCES_OF_MAPS = ("quantitative map", ADC)
"""Sequences that a card declares for maps which it wants as images."""
_NAME_CHANNELS = "name each in layout.channels; if they repeat one image, name it in layout.sequences: the first is then used"


@dataclass(frozen=True)
class ImageFacts:
    """Facts of a header that decide whether and how a file is ingested.

    Attributes:
        shape: sides (x, y, z[, channels]); empty where only the voxels tell.
        not_image: reason why the values are no magnitude image; "" if they may be one.
        notes: choices and guesses that the user should know.
        has_orientation: whether the header states where left and right are.
    """

    shape: tuple[int, ...] = ()
    not_image: str = ""
    notes: tuple[str, ...] = ()
    has_orientation: bool = True


@dataclass(frozen=True)
class ImageHeader(FileHeader):
    """Result of inspecting an image file.

    Attributes:
        facts: of its header.
    """

    facts: ImageFacts = ImageFacts()


@dataclass(frozen=True)
class PlannedImage(PlannedFile):
    """An image file or label map, or one channel of an image, to be written as NIfTI.

    Attributes:
        format: registered name of the source's format.
        channel: index along the fourth axis; None = the whole file.
        b_values: the table that the channel was chosen by, if it was.
    """

    format: str
    channel: int | None = None
    b_values: Path | None = field(default=None, kw_only=True)

    @property
    @override
    def sources(self) -> tuple[Path, ...]:
        files = _image_file_format(self.format).source_files(self.source)
        return files if self.b_values is None else (*files, self.b_values)

    def load(self, context: WriteContext) -> Any:
        """Load the source as a NIfTI image."""
        return _image_file_format(self.format).load(self.source)

    @override
    def prepare(self, context: WriteContext) -> NiftiOutput:
        image = self.load(context)
        if self.role == "label":
            return NiftiOutput(stored_label_image(image, self.target, context.card), self.role)
        values = np.asanyarray(image.dataobj)
        notes = require_gray_values(values if self.channel is None else values[..., self.channel])
        return NiftiOutput(image, self.role, self.channel, notes)


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

    def facts_of(self, path: Path) -> ImageFacts:
        """Return what the header of a file states beyond its shape.

        Raises:
            BadInput: the file cannot be ingested, whatever its role is.
        """
        return ImageFacts()

    @override
    def inspect(self, path: Path) -> ImageHeader:
        return ImageHeader(path, self.name, facts=self.facts_of(path))

    @override
    def companions(self, path: Path) -> tuple[Path, ...]:
        return self.source_files(path)[1:]

    def plan_image(
        self, path: Path, target: str, role: Role, relative: str, folder: SourceFolder, channel: int | None
    ) -> PlannedImage:
        """Return the planned output of an image or label map.

        Args:
            relative: path in the source folder.
        """
        return PlannedImage(path, target, role, self.name, channel)

    @override
    def plan(self, headers: Sequence[ImageHeader], folder: SourceFolder, plan: Plan) -> None:
        for header in headers:
            folder.used |= set(self.companions(header.path))
            folder.sidecars.find(header.path)  # the sidecar of a label map or a rejected image is no stray file either
            try:
                self._plan_file(header, folder, plan)
            except BadInput as error:
                plan.reject([header.path], rejection_of(error))

    @override
    def read_path(self, path: Path) -> Volume:
        return self.read_described(path, {})

    def read_described(self, path: Path, fields: Mapping[str, Any]) -> Volume:
        """Read one file of a user as one volume, with the fields of its sidecar.

        Raises:
            BadInput: the file cannot be read as exactly one volume, or is no image by its header or by the sidecar.
        """
        image = self.load(path)
        reason, component = self.facts_of(path).not_image, component_of(fields)
        if not reason and component not in ("", MAGNITUDE, ADC):
            reason = f"{component} by its sidecar (Image Type or Units)"
        if reason:
            raise UnsupportedInput("not magnitude", reason, where=path.name, remedy="give the magnitude image")
        return volume_from_image(image, fields, path)

    def _plan_file(self, header: ImageHeader, folder: SourceFolder, plan: Plan) -> None:
        """Add an image or a label map to the plan.

        Raises:
            BadInput: the file is neither, or the card does not explain it.
        """
        path, relative = header.path, folder.relative(header.path)
        patient = folder.patient(relative)
        case = match_group(folder.layout.case, relative) or patient
        label_suffix = folder.label_suffix(relative)
        if not header.facts.has_orientation and folder.layout.orientation is None:
            raise UnsupportedInput("geometry", NO_ORIENTATION, remedy=NAME_ORIENTATION)
        if label_suffix:
            target = f"{folder.stem(patient, relative)}.{label_suffix}.nii"
            plan.add_label_map(case, self.plan_image(path, target, "label", relative, folder, None))
            return
        _require_magnitude(header, relative, folder)
        channels = self._channels(header, relative, folder)
        for channel in channels:
            plan.add_image(case, self._plan_series(path, relative, patient, channel, folder), path)
        if len(header.facts.shape) == 4 and not folder.layout.channels and header.facts.shape[3] > 1:
            _, used = _weighted_image(header, relative, folder)
            plan.notice([path], f"several images along the fourth axis, which count as repeats: {used}")
        for sidecar, fault in folder.sidecars.faults(path).items():
            plan.reject([sidecar], rejection_of(fault))
        for note in (*header.facts.notes, *folder.sidecars.notes(path)):
            plan.notice([path], note)
        if not header.facts.has_orientation:
            plan.notice([path], "no orientation in the header: that of layout.orientation is used")

    def _plan_series(self, path: Path, relative: str, patient: str, channel: int | None, folder: SourceFolder) -> PlannedSeries:
        is_channel = bool(folder.layout.channels) and channel is not None
        name = f"{relative}\0{channel}" if is_channel else relative
        stem = folder.stem(patient, name)
        image = self.plan_image(path, f"{stem}.nii", "image", relative, folder, channel)
        if channel is not None and not is_channel:
            image = replace(image, b_values=folder.sidecars.b_values(path))
        files: list[PlannedFile] = [image]
        sequence = folder.layout.channels[channel] if is_channel and channel is not None else folder.sequence(relative)
        sidecars = folder.sidecars.find(path)
        if sidecars or sequence:
            files.append(PlannedSidecar.of(path, sidecars, f"{stem}.json", sequence))
        files += folder.plan_tables(relative, None, stem)
        files += folder.plan_boxes(relative, None, stem, self._grid(path) if folder.boxes else ())
        visit = folder.pseudonyms.visit(patient, session_of(relative) or "")
        return PlannedSeries(patient, folder.pseudonyms.series(name), "nifti", files, visit)

    def _grid(self, path: Path) -> tuple[int, ...]:
        """Return slices, rows and columns of an image; empty where its header cannot be read (writing it reports the fault)."""
        try:
            return tuple(self.shape_of(path)[2::-1])
        except BadInput:
            return ()

    def _channels(self, header: ImageHeader, relative: str, folder: SourceFolder) -> list[int | None]:
        """Return which images of a file become volumes: an index along the fourth axis for each, or None for the whole file.

        No header states what a fourth axis is: the card names its channels, or one sequence that the images repeat. Of diffusion
        with a table of b-values beside it, the first weighted image is used: one with b = 0 is no DWI.

        Raises:
            BadInput: a header that cannot be read.
            UnsupportedInput: a 4-D file that the card does not explain, or explains differently.
        """
        declared = folder.layout.channels
        if not declared and folder.sequence(relative):
            return [_weighted_image(header, relative, folder)[0]]
        shape = header.facts.shape or self.shape_of(header.path)
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


def _weighted_image(header: ImageHeader, relative: str, folder: SourceFolder) -> tuple[int | None, str]:
    """Return which of several images of a file is used, and what the user should know.

    Of diffusion with a table of b-values (BIDS, FSL) it is the index of the first image above 50 s/mm2; None = the first image.
    """
    shape, first = header.facts.shape, "the first image is used"
    table = folder.sidecars.b_values(header.path) if folder.sequence(relative) == "DWI" else None
    if table is None or len(shape) != 4:
        return None, first
    try:
        values = [float(value) for value in decode_text(table.read_bytes())[0].split()]
    except ValueError:
        return None, f"{first}; the table of b-values contains something else than numbers"
    if len(values) != shape[3]:
        return None, f"{first}; the table of b-values has {len(values)} for {shape[3]} images"
    index = next((index for index, value in enumerate(values) if value > MAX_B_OF_REFERENCE), 0)
    if not index:
        return None, first
    return index, f"the first image with a b-value above {MAX_B_OF_REFERENCE:.0f} s/mm2 is used"


def _require_magnitude(header: ImageHeader, relative: str, folder: SourceFolder) -> None:
    """Require that a file is a magnitude image by its header, its sidecar and its name.

    Raises:
        UnsupportedInput: a mask, a map, statistics, or another component of the signal.
    """
    if header.facts.not_image:
        remedy = "declare it in layout.labels or layout.tissue_maps if it is a mask; clear its intent code if it is an image"
        raise UnsupportedInput("not magnitude", header.facts.not_image, remedy=remedy)
    is_map = folder.sequence(relative) in _SEQUENCES_OF_MAPS
    component = folder.sidecars.content(header.path)
    if component not in ("", MAGNITUDE, ADC) and not (is_map and component not in (PHASE, REAL, IMAGINARY, COMPLEX)):
        raise UnsupportedInput(
            "not magnitude", f"{component} by its sidecar (Image Type or Units)", remedy="fix the sidecar if it is not"
        )
    reason = not_magnitude_by_name(relative)
    if reason and not (is_map and reason == "a derived map") and not _is_declared(reason, relative, folder):
        is_mask = "mask" in reason or "probability" in reason
        remedy = "declare it in layout.labels or layout.tissue_maps" if is_mask else "none needed"
        remedy += "; if it is an image, name its ending in layout.images or, of a map, its sequence in layout.sequences"
        raise UnsupportedInput("not magnitude", f"{reason} by its name, which the card does not declare", remedy=remedy)


def _is_declared(reason: str, relative: str, folder: SourceFolder) -> bool:
    """Return whether the card says that a file with this name is an image: a glob of ``images`` that has this ending matches it."""
    named = [pattern.rpartition("/")[2] for pattern in folder.layout.images if matches_any(relative, [pattern])]
    return any(not_magnitude_by_name(f"sub-x_{name}") == reason for name in named)


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
    voxels = np.ascontiguousarray(remove_nonfinite(values, name))
    return Volume(voxels=voxels, affine=affine, acquisition=acquisition_headers.acquisition_from_sidecar(fields, affine, anatomy))
