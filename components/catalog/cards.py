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


class Layout(_Strict):
    """How the files of a dataset lie in its folder. Globs are relative to it. DICOM needs none of this: its headers tell."""

    labels: tuple[str, ...] = Field(default=(), description="globs of NIfTI label maps (values by the card's label map)")
    tissue_maps: dict[int, str] = Field(default_factory=dict, description="label value -> glob of its probability map (NIfTI)")
    boxes: tuple[str, ...] = Field(default=(), description="globs of lesion tables in fastMRI+'s form (CSV)")
    patient: str | None = Field(default=None, description="regular expression on the relative path; group 1 names the patient")
    sequences: dict[str, str] = Field(default_factory=dict, description="text in the file name -> sequence")

    @field_validator("patient")
    @classmethod
    def _has_one_group(cls, value: str | None) -> str | None:
        if value is not None and re.compile(value).groups != 1:
            raise ValueError("the patient expression needs exactly one group, e.g. '(sub-[^/]+)'")
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
    formats: tuple[Literal["DICOM", "NIfTI", "k-space HDF5"], ...]
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
