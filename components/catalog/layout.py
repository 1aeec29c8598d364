"""Layout of a dataset's files: which of them are images, labels and tables, and what the tables say about images."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Plane = Literal["axial", "sagittal", "coronal"]
_AXIS_OF = {"L": "L", "R": "L", "A": "A", "P": "A", "S": "S", "I": "S"}
"""Anatomical direction -> name of its axis."""
IMAGE_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".mha", ".mhd", ".npy", ".h5", ".hdf5")
"""Suffixes of the files that ``layout.images`` selects from; sidecars and tables are not selected by it."""


def matches_any(relative: str, patterns: Iterable[str]) -> bool:
    """Return whether one of the globs matches a path relative to the dataset folder. ``*`` also matches ``/``."""
    return any(fnmatch.fnmatch(relative, pattern) for pattern in patterns)


class StrictModel(BaseModel):
    """A part of a card; a misspelled field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _require_one_group(expression: str | None) -> str | None:
    try:
        groups = re.compile(expression).groups if expression is not None else 1
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if groups != 1:
        raise ValueError("the expression needs exactly one group, e.g. '(sub-[^/]+)'")
    return expression


class Table(StrictModel):
    """A table (CSV separated by comma, semicolon or tab; or XLSX) with rows about images."""

    path: str = Field(description="glob of the table")
    key: str | int = Field(
        default=0, description="column that identifies the image: its title, or its number from 0 in a table without titles"
    )
    image: str | None = Field(
        default=None,
        description="regular expression on the relative path of an image; group 1 is looked up in the key column. None = the "
        "patient expression of the card; for DICOM, Patient ID",
    )

    @field_validator("image")
    @classmethod
    def _check_group(cls, value: str | None) -> str | None:
        return _require_one_group(value)


class LabelTable(Table):
    """A table with findings, reports, sex or age of patients or examinations."""

    findings: dict[str | int, str] = Field(
        default_factory=dict, description="column (title or number) -> finding, e.g. {acl: acl tear}"
    )
    report: str | int | None = Field(default=None, description="column (title or number) of the radiology report")
    sex: str | int | None = Field(default=None, description="column (title or number) of the sex, if the headers lack it")
    age: str | int | None = Field(default=None, description="column (title or number) of the age in years, if the headers lack it")
    values: dict[str, bool] = Field(
        default={"0": False, "1": True, "no": False, "yes": True, "false": False, "true": True},
        description="cell, lower case -> finding present; any other cell = unknown",
    )


class BoxTable(Table):
    """A table with one 3-D lesion box per row: its first and last slice, row and column, both inclusive.

    Indices follow the storage order of the image file (for single-frame DICOM, the order of the instance numbers).
    """

    slices: tuple[str | int, str | int] = Field(description="columns (title or number) of the first and the last slice")
    rows: tuple[str | int, str | int] = Field(description="columns of the first and the last row")
    columns: tuple[str | int, str | int] = Field(description="columns of the first and the last column")
    first: Literal[0, 1] = Field(default=0, description="index of the first slice, row and column in the table: 0 or 1")
    label: str = Field(default="lesion", description="finding that the boxes mark")


class Layout(StrictModel):
    """Layout of the files of a dataset in its folder.

    Globs match the path relative to that folder; ``*`` also matches ``/``. The type of a file is detected from its content.
    Plain DICOM needs no layout.
    """

    images: tuple[str, ...] = Field(
        default=(),
        description="globs of the images; all other images are then excluded. Empty = every image that is not a label map",
    )
    labels: tuple[str, ...] = Field(default=(), description="globs of label maps; the card field label_map names their values")
    tissue_maps: dict[int, str] = Field(
        default_factory=dict,
        description="label value -> glob of its probability map, or of the binary mask of this one structure",
    )
    ignored_structures: tuple[str, ...] = Field(
        default=(),
        description='globs, lower case, of names of structures to exclude from DICOM RT Structure Sets, e.g. "couch*"',
    )
    case: str | None = Field(
        default=None,
        description="regular expression on the relative path; images and label maps with the same group 1 belong together. None = "
        "all images and label maps of a patient belong together",
    )
    boxes: tuple[str | BoxTable, ...] = Field(
        default=(), description="tables of lesion boxes: a glob for a fastMRI+ table (CSV), or path and columns of another table"
    )
    reviewed: tuple[str, ...] = Field(
        default=(),
        description="globs of lists (one file name per line) of files reviewed for lesions: reviewed and without a box = no lesion",
    )
    tables: tuple[LabelTable, ...] = Field(default=(), description="tables of findings, reports, sex and age")
    patient: str | None = Field(default=None, description="regular expression on the relative path; group 1 identifies the patient")
    sequences: dict[str, str] = Field(default_factory=dict, description="text in the relative path -> sequence")
    channels: tuple[str, ...] = Field(
        default=(),
        description="sequences of the images along the fourth axis of a 4-D file: each becomes a volume. Empty = a 4-D file is "
        "treated as repeats of one image and the first is used, if sequences gives its sequence; otherwise it is rejected",
    )
    label_channels: tuple[int, ...] = Field(
        default=(),
        description="label value of each channel along the fourth axis of a label map, 0 = background; a later channel covers an "
        "earlier one where both are set. Empty = label maps with a fourth axis are rejected",
    )
    orientation: str | None = Field(
        default=None,
        description="anatomical directions of the axes (x, y, z) of NIfTI files whose headers state none, e.g. LAS: toward left, "
        "anterior, superior. None = such files are rejected",
    )
    planes: dict[str, Plane] = Field(default_factory=dict, description="NumPy: text in the relative path -> plane; default axial")
    spacing_mm: tuple[float, float, float] = Field(
        default=(1.0, 1.0, 1.0),
        description="NumPy: (slice, row, column) spacing, which arrays do not store; the default is nominal",
    )
    ignored: tuple[str, ...] = Field(default=(), description="globs of files to exclude, e.g. derived masks")

    @field_validator("patient", "case")
    @classmethod
    def _check_group(cls, value: str | None) -> str | None:
        return _require_one_group(value)

    @field_validator("orientation")
    @classmethod
    def _check_orientation(cls, value: str | None) -> str | None:
        if value is not None and sorted("LAS".find(_AXIS_OF.get(code, "?")) for code in value) != [0, 1, 2]:
            raise ValueError("name the direction of each axis with one letter of L/R, A/P and S/I, e.g. LAS")
        return value

    @field_validator("label_channels")
    @classmethod
    def _check_channels(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(label < 0 for label in value):
            raise ValueError("label values must not be negative; 0 is the background")
        return value

    def globs(self) -> Iterator[tuple[str, str]]:
        """Yield each glob as ``(field name, pattern)``."""
        for name in ("images", "labels", "reviewed", "ignored"):
            yield from ((name, pattern) for pattern in getattr(self, name))
        yield from (("boxes", table if isinstance(table, str) else table.path) for table in self.boxes)
        yield from ((f"tissue_maps.{value}", pattern) for value, pattern in self.tissue_maps.items())
        yield from (("tables", table.path) for table in self.tables)

    def excludes(self, relative: str) -> bool:
        """Return whether the layout excludes a file: it is ignored, or ``images`` is given and no glob matches this image."""
        if matches_any(relative, self.ignored):
            return True
        other = relative.lower().endswith(IMAGE_SUFFIXES) and not matches_any(relative, [pattern for _, pattern in self.globs()])
        return bool(self.images) and other

    def selects(self, relative: str) -> bool:
        """Return whether ``images``, if it is given, or another glob matches a file; a plugin's images have any suffix."""
        return not self.images or matches_any(relative, [pattern for _, pattern in self.globs()])


def glob_sections(layout: Layout) -> dict[str, list[str]]:
    """Return section of a layout (images, labels, ...) -> its globs."""
    sections: dict[str, list[str]] = {}
    for name, pattern in layout.globs():
        sections.setdefault(name.partition(".")[0], []).append(pattern)
    return sections
