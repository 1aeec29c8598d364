"""Settings of what is read and curated: datasets, ingestion, curation, and the model that describes images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from components.settings.section import Fraction, Section


class DatasetSettings(Section):
    """One dataset of a run."""

    card: str = Field(description="id of the dataset card: one of components/catalog/datasets, or one of your own")
    path: Path | None = Field(default=None, description="source folder; none = the sample data that OmniMRI generates itself")
    patients: int | None = Field(
        default=None, ge=1, description="size of a generated cohort without a path; none = generated.patients of the card"
    )
    server: str | None = Field(
        default=None, description="instead of a path: a server of pacs.servers, or a URL; none = the server that the card names"
    )
    query: str | None = Field(
        default=None,
        description="series to fetch, e.g. Modality=MR&BodyPartExamined=BRAIN; none = the query of the card",
    )

    @model_validator(mode="after")
    def _require_one_source(self) -> DatasetSettings:
        if self.path is not None and (self.server is not None or self.query is not None):
            raise ValueError("a dataset comes from a folder or from a server: remove path, or server and query")
        if self.server is not None and self.patients is not None:
            raise ValueError("patients is the size of a generated cohort: remove it, or server")
        return self

    @model_validator(mode="after")
    def _require_generated(self) -> DatasetSettings:
        if self.path is not None and self.patients is not None:
            raise ValueError("patients is the size of a generated cohort: remove it, or path")
        return self


class IngestionSettings(Section):
    """Reading and de-identification of source files."""

    workers: int = Field(default=2, ge=1, description="number of processes")
    key_file: Path | None = Field(
        default=None,
        description="file with the secret key of the pseudonyms; none = a random key, created once and stored in the home folder",
    )
    public_demo_key: bool = Field(
        default=False,
        description="use the published demo key (sample datasets only), so that every machine produces the same bytes",
    )


class VisualSettings(Section):
    """The vision-language model that describes images: a server on this machine or cluster, or a checkpoint in a local folder."""

    server: str | None = Field(default=None, description="URL of an OpenAI-compatible server, e.g. http://127.0.0.1:8000/v1")
    model: str | None = Field(default=None, description="name of the model on the server")
    revision: str = Field(default="", description="version of the served model; a new value repeats every request")
    folder: Path | None = Field(default=None, description="local folder of a Qwen-VL checkpoint (safetensors), instead of a server")
    allow_hosts: tuple[str, ...] = Field(
        default=(), description="hosts outside of this machine and cluster that may receive the images"
    )
    batch: int = Field(default=8, ge=1, description="volumes per batch of requests")
    slices: int = Field(default=4, ge=1, description="slices of each volume that the model sees")
    field_characters: int = Field(default=160, ge=8, description="maximum length of a free-text field, characters")
    timeout_s: float = Field(default=120.0, gt=0, description="timeout of one request, seconds")
    retries: int = Field(default=5, ge=0, description="attempts after the first, with exponential backoff")

    @model_validator(mode="after")
    def _require_one_model(self) -> VisualSettings:
        if (self.server is None) == (self.folder is None):
            raise ValueError("give either server (with model) or folder")
        if self.server is not None and not self.model:
            raise ValueError("a server needs the name of its model")
        return self


class CurationSettings(Section):
    """From de-identified files to the three training sets."""

    matrix: int = Field(default=96, ge=32, multiple_of=32, description="in-plane size, pixels")
    pixel_mm: float = Field(default=2.25, gt=0, description="in-plane spacing, mm")
    validation_fraction: Fraction = Field(default=0.15, description="share of patients in the validation split")
    test_fraction: Fraction = Field(default=0.25, description="share of patients in the test split")
    split_seed: int = Field(default=0, description="key of the patient hash that decides the split")
    accelerations: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(4,), description="undersampling factors of reconstruction instructions"
    )
    slices_per_volume: int = Field(default=8, ge=1, description="instruction slices per volume and task, evenly spaced")
    workers: int = Field(default=2, ge=1, description="number of processes")
    visual: VisualSettings | None = Field(
        default=None, description="model for sections 2 and 3 of the descriptions; none = label statistics only"
    )

    @model_validator(mode="after")
    def _require_training_patients(self) -> CurationSettings:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction leave no patients to train on: lower one of them below 1 in sum")
        return self
