"""Dataset cards: content, rights and layout of one dataset each. Unknown fields are null; every statistic cites its source."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from components.catalog.layout import Layout, StrictModel
from components.registries import FORMATS
from components.settings import TaskName

DOI = re.compile(r"10\.\d{4,9}/\S+")

Access = Literal["open", "registration", "agreement", "restricted"]
Region = Literal["North America", "South America", "Europe", "Asia", "Africa", "Oceania"]
READABLE_FORMATS = ("DICOM", "NIfTI", "MetaImage", "NumPy", "k-space HDF5", "ISMRMRD")
"""Formats that ingestion reads, by their usual names: ``k-space HDF5`` is the fastMRI format."""
OTHER_FORMATS = ("HDF5", "MATLAB", "NRRD", "PNG", "pickle", "other")
"""Formats that a card may list without ingestion reading them. A card with no other formats only documents its dataset."""


def _require_known_format(name: str) -> str:
    """Accept the usual name of a format, or the name of a registered one, such as a plugin's."""
    if name not in (*READABLE_FORMATS, *OTHER_FORMATS, *FORMATS):
        raise ValueError(f"no such format; one of {', '.join((*READABLE_FORMATS, *FORMATS, *OTHER_FORMATS))}")
    return name


Format = Annotated[str, AfterValidator(_require_known_format)]

MAX_STORED_LABEL = 255
"""Largest label value under ``data/``."""

COUNTS = ("patients", "scans", "volumes", "slices")
STATISTICS = (*COUNTS, "male", "female", "age_years", "mean_age_years", "field_strengths_t")
"""Fields that a card must not fill without a source."""
SOURCED_FACTS = ("licence", "label_map", "vendors", "layout", "overlaps")
"""Further fields whose source a card may cite; the cards packaged with OmniMRI must cite it."""


class GeneratedSource(StrictModel):
    """Cohort that OmniMRI generates. A patient does not depend on the number of patients."""

    anatomy: Literal["brain", "head", "brain tumor", "knee", "prostate", "heart", "breast"] = Field(
        description="body part: one module of components/samples/anatomies"
    )
    form: Literal["dicom", "nifti", "kspace", "multicoil"] = Field(description="file format and layout")
    patients: int = Field(ge=1, le=1_000_000, description="number of patients; a profile may choose another (datasets.patients)")
    seed: int = Field(default=152, ge=0, description="seed of all random numbers")
    difficulty: float = Field(
        default=0.5, ge=0, le=1, description="0 (easy) to 1 (hard): contrast of findings from 1.5 to 0.5 times, noise from 1 to 4 %"
    )

    pixels: int | None = Field(
        default=None,
        ge=32,
        le=1024,
        description="rows and columns, over the same field of view; null = those of the anatomy",
    )

    def of_size(self, patients: int | None) -> GeneratedSource:
        """Return the same cohort with another number of patients; None = its own."""
        return self if patients is None else self.model_copy(update={"patients": patients})


class ServerSource(StrictModel):
    """Image archive (PACS) that a dataset is fetched from."""

    server: str = Field(
        min_length=1,
        description="a name of the profile's pacs.servers, or a URL: https://host/dicom-web or dicom://AE_TITLE@host:port",
    )
    query: str = Field(default="Modality=MR", description="series to fetch, as in QIDO-RS, e.g. Modality=MR&BodyPartExamined=BRAIN")
    recent_days: int | None = Field(
        default=None, ge=1, description="only studies of the last so many days are asked for; null = all"
    )


class Source(StrictModel):
    """Source of a statistic."""

    where: str = Field(min_length=8, description="URL or DOI, with section or table, and the counting method if it was counted")
    checked: bool = Field(
        description="true: verified at the source when the card was written; false: recalled from the publication, not verified"
    )


class DatasetCard(StrictModel):
    """Card of one dataset."""

    id: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$", description="identifier of the dataset in OmniMRI, and its folder name under data/"
    )
    name: str = Field(min_length=1, description="name given by the publishers")
    landing_page: str | None = Field(
        default=None, pattern=r"^https?://\S+$", description="page that describes the dataset and how to get access"
    )
    licence: str | None = Field(default=None, description="SPDX id, or the name that the publisher uses")
    access: Access | None = Field(
        default=None,
        description="open, registration (an account), agreement (signed terms) or restricted (an application, or a fee)",
    )
    rights: str = Field(min_length=1, description="permitted use, in one or two sentences")
    doi: str | None = Field(default=None, description="DOI of the paper to cite, e.g. 10.1038/s41597-023-02181-4")
    version: str | None = Field(default=None, description="release that the statistics describe")
    regions: tuple[Region, ...] = Field(default=(), description="continents where patients were scanned")
    anatomy: str | None = Field(default=None, description="one term for the body part: brain, knee, abdomen, ...")
    formats: tuple[Format, ...] = Field(description="formats of the published images")
    layout: Layout = Field(default=Layout(), description="location of images, labels and tables")
    tasks: tuple[TaskName, ...] = Field(default=(), description="tasks that its annotations or raw data can supervise")
    label_map: dict[int, str] = Field(default_factory=dict, description="label value -> structure, without the background 0")
    field_strengths_t: tuple[float, ...] = Field(default=(), description="tesla")
    vendors: tuple[str, ...] = Field(default=(), description="scanner manufacturers")
    sequences: tuple[str, ...] = Field(default=(), description="MRI sequences")
    coil_reference: Literal["rss", "espirit"] | None = Field(
        default=None,
        description="reference image of k-space of several coils, from all of which reconstruction learns: root sum of squares, "
        "or the ESPIRiT-combined image; null = coils are combined at curation",
    )
    synthetic: bool = Field(description="true: generated data, not scans of people")
    generated: GeneratedSource | None = Field(default=None, description="cohort that OmniMRI generates; null = other data")
    pacs: ServerSource | None = Field(
        default=None, description="archive that the dataset is fetched from, unless a folder is named; null = none"
    )
    public_sample: bool = Field(default=False, description="true: public sample data distributed with a Python package")
    patients: int | None = Field(default=None, ge=0, description="number of people with published images")
    scans: int | None = Field(default=None, ge=0, description="number of examinations: one person, one scanner visit")
    volumes: int | None = Field(default=None, ge=0, description="number of 3-D images, each one sequence of one examination")
    slices: int | None = Field(default=None, ge=0, description="number of 2-D images in all volumes")
    male: int | None = Field(default=None, ge=0, description="number of male patients")
    female: int | None = Field(default=None, ge=0, description="number of female patients")
    age_years: tuple[float, float] | None = Field(default=None, description="age of the youngest and the oldest patient")
    mean_age_years: float | None = Field(default=None, description="mean age in years")
    overlaps: dict[str, int | Literal["all"] | None] = Field(
        default_factory=dict,
        description='id of another card -> number of these patients that are also in it: a count, null (unknown), or "all" (every '
        'patient is in this card or another one marked "all")',
    )
    sources: dict[str, Source] = Field(default_factory=dict, description="field of this card -> its source")
    notes: str | None = Field(default=None, description="caveats about the statistics")

    @field_validator("doi")
    @classmethod
    def _check_doi(cls, value: str | None) -> str | None:
        if value is not None and not DOI.fullmatch(value):
            raise ValueError("not a DOI: give 10.<registrant>/<suffix>, without https://doi.org/")
        return value

    @field_validator("label_map")
    @classmethod
    def _check_label_map(cls, value: dict[int, str]) -> dict[int, str]:
        if any(key <= 0 for key in value):
            raise ValueError("label values must be positive; 0 is the background and has no name")
        if len(value) > MAX_STORED_LABEL:
            raise ValueError(f"{len(value)} structures; label maps are stored with {MAX_STORED_LABEL} at most")
        names = [name.strip().lower() for name in value.values()]
        if "" in names or len(set(names)) < len(names):
            raise ValueError("two label values share one name, or a label value has no name")
        return value

    @field_validator("age_years")
    @classmethod
    def _check_age_range(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] <= value[1] <= 120:
            raise ValueError("give two ages in years, the lower first")
        return value

    @model_validator(mode="after")
    def _check_sources(self) -> DatasetCard:
        unsourced = [name for name in STATISTICS if is_filled(self, name) and name not in self.sources]
        if unsourced:
            raise ValueError(f"{', '.join(unsourced)} without a source: add sources.{unsourced[0]}, or remove the value")
        unused = [name for name in self.sources if name not in (*STATISTICS, *SOURCED_FACTS) or not is_filled(self, name)]
        if unused:
            raise ValueError(f"sources.{unused[0]} is about a field that is empty in this card")
        return self

    @model_validator(mode="after")
    def _check_label_values(self) -> DatasetCard:
        used = {*self.layout.tissue_maps, *self.layout.label_channels} - {0}
        unnamed = sorted(value for value in used if value not in self.label_map)
        if unnamed and (self.label_map or max(unnamed) > MAX_STORED_LABEL):
            raise ValueError(f"label_map does not name the value {unnamed[0]} of layout.tissue_maps or layout.label_channels")
        return self

    @model_validator(mode="after")
    def _check_counts(self) -> DatasetCard:
        counts = [(name, getattr(self, name)) for name in COUNTS if getattr(self, name) is not None]
        for (larger_unit, few), (smaller_unit, many) in pairwise(counts):
            if few > many:
                raise ValueError(f"more {larger_unit} ({few}) than {smaller_unit} ({many})")
        if self.patients is not None and (self.male or 0) + (self.female or 0) > self.patients:
            raise ValueError("more male and female patients than patients")
        if self.id in self.overlaps:
            raise ValueError("overlaps lists the card itself")
        return self

    @model_validator(mode="after")
    def _check_generated(self) -> DatasetCard:
        if self.generated is not None and not self.synthetic:
            raise ValueError("generated data is synthetic: set synthetic: true")
        if self.generated is not None and self.pacs is not None:
            raise ValueError("generated data comes from no server: remove generated, or pacs")
        if self.generated is not None and any(getattr(self, name) is not None for name in COUNTS):
            raise ValueError(f"generated.patients states the size: remove {', '.join(COUNTS)}")
        return self

    @property
    def label_codes(self) -> dict[int, int]:
        """Return label value -> value under ``data/``, where labels have 8 bits: their rank (1, 2, ...) if a value exceeds 255."""
        if self.label_codes_are_values:
            return {value: value for value in self.label_map}
        return {value: rank for rank, value in enumerate(sorted(self.label_map), start=1)}

    @property
    def label_codes_are_values(self) -> bool:
        """Return whether labels are stored under the values of the label map."""
        return max(self.label_map, default=0) <= MAX_STORED_LABEL

    @property
    def stored_label_map(self) -> dict[int, str]:
        """Return value under ``data/`` -> structure."""
        return {self.label_codes[value]: name for value, name in self.label_map.items()}

    @property
    def has_real_patients(self) -> bool:
        """Return whether this is a dataset of real patients, neither synthetic nor a public sample."""
        return not (self.synthetic or self.public_sample)

    @property
    def is_readable(self) -> bool:
        """Return whether ingestion reads at least one of its formats."""
        return any(name not in OTHER_FORMATS for name in self.formats)


def is_filled(card: DatasetCard, name: str) -> bool:
    """Return whether a field of a card has a value."""
    value = getattr(card, name)
    return value not in (None, (), {}) and value != Layout()
