"""Base class of all groups of settings, and the types that several of them share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from components.provenance import digest
from components.registries import TASKS

StageName = str
"""Name of a training stage: a key of :data:`components.registries.STAGES`."""


def _registered_task(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"no such task; the tasks are {', '.join(TASKS)}")
    return name


TaskName = Annotated[str, AfterValidator(_registered_task)]
"""Name of a task of :data:`components.registries.TASKS`."""

MaskKind = Literal["random", "equispaced", "magic"]
Category = Literal["image_only", "paired", "instruction"]
"""Category of training data (Table 2 of the paper)."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A frozen group of settings; a misspelled name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def digest(self) -> str:
        """Return the content digest of these settings."""
        return digest(self)
