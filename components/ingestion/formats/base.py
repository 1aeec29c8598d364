"""Interface of an image format: recognize its files, plan their series, de-identify them, and read them back.

An image format is one module that defines ``FORMAT``, an instance of a :class:`Format`, and one entry in
:data:`components.registries.FORMATS` (a plugin adds its entry with ``FORMATS.add``). A format whose files contain one image each
derives from :class:`components.ingestion.formats.image_files.ImageFileFormat` and implements two methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from components.catalog import DatasetCard
from components.ingestion.annotations import lesion_boxes
from components.ingestion.deidentification.pseudonyms import Pseudonyms
from components.ingestion.quarantine import Rejection
from components.ingestion.volume import Box, Volume

if TYPE_CHECKING:
    from components.ingestion.source_folder import Plan, SourceFolder

Role = Literal["image", "label", "annotation"]


@dataclass(frozen=True)
class WriteContext:
    """Dataset-wide inputs for writing a de-identified file.

    Attributes:
        card: card of the dataset (label map, layout).
        pseudonyms: keyed names of the dataset.
    """

    card: DatasetCard
    pseudonyms: Pseudonyms


class Output(ABC):
    """De-identified content in memory, to be written as one file.

    Attributes:
        content: MD5 of the image content regardless of the header; "" for a file that is no image.
        notes: what the user should know about the voxels of an image.
    """

    content: str = ""
    notes: tuple[str, ...] = ()

    @abstractmethod
    def write(self, path: Path) -> None:
        """Write the file; its folder exists."""

    @abstractmethod
    def check(self, path: Path) -> Any:
        """Read the file with the reader that curation uses, and compare it with this content.

        Returns:
            What :meth:`Format.check_series` needs to check this file with the others of its volume; None if the series has to be
            read whole for that.

        Raises:
            ReadBackError: another content.
        """


class ReadBackError(Exception):
    """A written file differs from the content that was to be written. The message names what differs, no value."""


@dataclass(frozen=True)
class PlannedFile(ABC):
    """One file to be written under ``data/``. Each kind of output is a subclass, which must be picklable for worker processes.

    Attributes:
        source: file of the source folder that it is written from.
        target: path relative to ``data/`` (POSIX form).
        role: its role in the series.
    """

    source: Path
    target: str
    role: Role

    @property
    def sources(self) -> tuple[Path, ...]:
        """All source files whose content decides the output, in a fixed order: the manifest records their MD5."""
        return (self.source,)

    @abstractmethod
    def prepare(self, context: WriteContext) -> Output:
        """Read the source, and return its de-identified content, which is then written and read back.

        Everything that can be wrong with the source is found here: what :class:`Output` does afterwards fails only where the
        machine or a program is at fault.

        Raises:
            OmniMRIError: the source cannot be used.
        """


@dataclass
class PlannedSeries:
    """One volume to be ingested.

    Attributes:
        patient, series_id, visit: pseudonyms; ``visit`` is "" where the source states none.
        reader: name in the manifest of the form in which the images are stored (see :data:`READERS`).
        files: images, labels and annotations to be written.
    """

    patient: str
    series_id: str
    reader: str
    files: list[PlannedFile] = field(default_factory=list)
    visit: str = ""


@dataclass(frozen=True)
class FileHeader:
    """Result of inspecting one source file.

    Attributes:
        path: the file.
        format: registered name of its format; None for a file of no known format.
        rejection: reason why the file cannot be ingested.
    """

    path: Path
    format: str | None
    rejection: Rejection | None = None


class Format(ABC):
    """An image format.

    Attributes:
        name: key in :data:`components.registries.FORMATS`.
        reads_gzipped: whether :meth:`sniff` also gets the decompressed head of gzipped files.
        is_fallback: whether the format claims files of a container (any HDF5 file) that no other format recognizes; it is asked
            last.
    """

    name: ClassVar[str]
    reads_gzipped: ClassVar[bool] = False
    is_fallback: ClassVar[bool] = False

    @abstractmethod
    def sniff(self, head: bytes, path: Path) -> bool:
        """Return whether a file belongs to this format.

        Args:
            head: first bytes of the content (:data:`components.ingestion.formats.sniff.HEAD_BYTES` at most).
            path: the file, for formats that must look deeper. Suffixes are not reliable.
        """

    def inspect(self, path: Path) -> FileHeader:
        """Read what planning needs from one file. Runs in worker processes."""
        return FileHeader(path, self.name)

    def companions(self, path: Path) -> tuple[Path, ...]:
        """Return the files beside a file that belong to it and are no images by themselves, such as the voxels of a header."""
        return ()

    @abstractmethod
    def plan(self, headers: Sequence[Any], folder: SourceFolder, plan: Plan) -> None:
        """Add the series of this format to the plan, and reject files that cannot be used.

        Args:
            headers: results of :meth:`inspect` for all files of this format, in the order of the folder's listing.
        """

    def read(self, files: Sequence[Path], sidecar: Path | None, anatomy: str | None) -> Volume:
        """Read the ingested image files of one series. Only formats that are stored in their own form under ``data/`` implement it.

        Args:
            files: image files in the order of the manifest.
            sidecar: JSON sidecar of the series.
            anatomy: body part of the dataset card, used where the header has none.
        """
        raise NotImplementedError(f"{self.name} files are stored in another format under data/")

    def check_series(self, files: Sequence[Path], read_back: Sequence[Any]) -> None:
        """Check that files which were read back one by one form a valid volume.

        Only formats whose :meth:`Output.check` returns the content of a file implement it; other series are read back whole.

        Args:
            files: see :meth:`read`.
            read_back: result of :meth:`Output.check` for each of them.

        Raises:
            BadInput: :meth:`read` would raise it.
        """
        raise NotImplementedError(f"{self.name} files are read back whole")

    def place_boxes(self, boxes_3d: Sequence[lesion_boxes.Box3D], files: Sequence[Path], volume: Volume) -> tuple[Box, ...]:
        """Transform boxes, drawn in the storage order of the files, to the grid of the volume."""
        return lesion_boxes.split_into_slices(list(boxes_3d))

    @abstractmethod
    def read_path(self, path: Path) -> Volume:
        """Read one file of a user (for prediction) as one volume.

        Raises:
            BadInput: the file cannot be read as exactly one volume.
        """

    def count_voxels(self, path: Path, limit: int) -> int:
        """Return how many values an untrusted file claims to decode to, without allocating memory for them.

        The default, the size of the file, bounds formats without compression and references.

        Args:
            limit: the caller rejects files with more values, so that a format may stop looking beyond it.

        Raises:
            BadInput: a damaged header, more bytes than the header claims, or a reference to another file.
        """
        return path.stat().st_size


READERS = {"kspace": "fastmri"}
"""``reader`` of a series in a manifest -> registered format, where the two names differ."""
