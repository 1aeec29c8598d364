"""Reading dataset cards: one YAML file per dataset. What is not known is null; nothing is invented."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from components.errors import BadInput

FOLDER = Path(__file__).parent / "datasets"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Format = Literal["DICOM", "NIfTI", "MetaImage", "NumPy", "k-space HDF5", "ISMRMRD", "other"]
"""``k-space HDF5`` is fastMRI's form; ``other`` is what OmniMRI cannot read (the card then only describes)."""
Plane = Literal["axial", "sagittal", "coronal"]


class LabelTable(_Strict):
    """A CSV table (comma, semicolon or tab) with findings of patients or examinations."""

    path: str = Field(description="glob of the table")
    key: str | int = Field(
        default=0, description="column that names the image: by title, or by number from 0 in a table without titles"
    )
    image: str | None = Field(
        default=None,
        description="regular expression on an image's relative path; group 1 is looked up in the key column. None = the card's "
        "patient expression; for DICOM, Patient ID",
    )
    findings: dict[str | int, str] = Field(description="column (title or number) -> finding, e.g. {acl: acl tear}")
    values: dict[str, bool] = Field(
        default={"0": False, "1": True, "no": False, "yes": True, "false": False, "true": True},
        description="cell, lower case -> present; any other cell = not known",
    )  # fmt: skip


class Layout(_Strict):
    """How the files of a dataset lie in its folder. Globs are relative to it and cross folders; so does ``*``. What a file is, its
    content tells; for plain DICOM none of this is needed.
    """

    labels: tuple[str, ...] = Field(default=(), description="globs of label maps (values by the card's label map)")
    tissue_maps: dict[int, str] = Field(
        default_factory=dict,
        description="label value -> glob of its probability map, or of the binary mask of this structure alone",
    )
    case: str | None = Field(
        default=None,
        description="regular expression on the relative path; images and label maps with the same group 1 belong together. None = "
        "those of a patient do",
    )
    boxes: tuple[str, ...] = Field(default=(), description="globs of lesion tables in fastMRI+'s form (CSV)")
    reviewed: tuple[str, ...] = Field(
        default=(),
        description="globs of lists (one name a line) of the files that were looked at for boxes: without a box, no lesion",
    )
    tables: tuple[LabelTable, ...] = Field(default=(), description="tables of findings")
    patient: str | None = Field(default=None, description="regular expression on the relative path; group 1 names the patient")
    sequences: dict[str, str] = Field(default_factory=dict, description="text in the relative path -> sequence")
    channels: tuple[str, ...] = Field(
        default=(),
        description="sequences of the images along the fourth axis of a 4-D file: each becomes a volume. Empty = repeats of one "
        "image, of which the first is used",
    )
    planes: dict[str, Plane] = Field(default_factory=dict, description="NumPy: text in the relative path -> plane; none = axial")
    spacing_mm: tuple[float, float, float] = Field(
        default=(1.0, 1.0, 1.0), description="NumPy: (slice, row, column), as arrays carry none; the default is nominal"
    )
    ignored: tuple[str, ...] = Field(default=(), description="globs of files that are left out on purpose, e.g. derived masks")

    @field_validator("patient", "case")
    @classmethod
    def _has_one_group(cls, value: str | None) -> str | None:
        if value is not None and re.compile(value).groups != 1:
            raise ValueError("the expression needs exactly one group, e.g. '(sub-[^/]+)'")
        return value


class DatasetCard(_Strict):
    """One dataset."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="its name everywhere in OmniMRI, and its folder under data/")
    name: str
    landing_page: str | None = None
    licence: str | None = Field(default=None, description="SPDX id or the publisher's own name for it")
    access: Literal["open", "registration", "agreement", "restricted"] | None = None
    rights: str = Field(description="what may be done with it, in one or two sentences")
    doi: str | None = Field(default=None, description="of the paper to cite")
    region: str | None = None
    anatomy: str | None = None
    formats: tuple[Format, ...]
    layout: Layout = Layout()
    tasks: tuple[str, ...] = ()
    label_map: dict[int, str] = Field(default_factory=dict, description="label value -> structure")
    synthetic: bool = Field(description="generated, no scan of a person")
    public_sample: bool = Field(default=False, description="comes with a Python package, known to everybody already")
    patients: int | None = None
    scans: int | None = None
    volumes: int | None = None


def load_card(dataset_id: str) -> DatasetCard:
    """Read one card.

    Raises:
        BadInput: no such card, or a card whose fields are wrong.
    """
    path = FOLDER / f"{dataset_id}.yaml"
    if not path.is_file():
        raise BadInput("no such dataset card", where=dataset_id, remedy="omnimri catalog list names those there are")
    try:
        card = DatasetCard.model_validate(yaml.safe_load(path.read_text()))
    except (ValidationError, yaml.YAMLError) as error:
        raise BadInput(f"the card does not hold: {error}", where=str(path), remedy="mend the named fields") from None
    if card.id != dataset_id:
        raise BadInput(f"the card calls itself {card.id!r}", where=str(path), remedy="give id and file the same name")
    return card


def list_cards() -> list[DatasetCard]:
    """Every card, by id."""
    return [load_card(path.stem) for path in sorted(FOLDER.glob("*.yaml"))]
