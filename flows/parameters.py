"""What the deployed flows are given. Prefect's pages draw a form from these, with the descriptions as its help."""

from __future__ import annotations

from typing import Literal

from prefect.input import RunInput
from pydantic import BaseModel, ConfigDict, Field

from components.settings import Settings, load_settings

Goal = Literal["corpus", "candidate"]
"""Where a run that follows an update ends."""


class Form(BaseModel):
    """A frozen form; a misspelt name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Profile(Form):
    """Which settings a run uses. They are read when it starts, and recorded with the model."""

    name: str = Field(default="demo", title="Profile", description="a profile of profiles/, or the path of a YAML file")
    overrides: list[str] = Field(
        default=[],
        title="Overrides",
        description="single settings, as section.field=value, e.g. evaluation.cases_per_task=48",
    )

    def settings(self) -> Settings:
        """The settings that this names.

        Raises:
            BadInput: no such profile, or a value that the settings refuse.
        """
        return load_settings(self.name, self.overrides)


class Change(Form):
    """What has changed, as the watcher's event says."""

    kind: Literal["folder", "remote", "tag", "all"] = Field(
        default="all",
        description="a source folder, the upstream's data version, a tagged one; all = look at every source folder",
    )
    name: str = Field(default="", description="of a folder: its dataset card; else the branch or the pattern of tags")
    revision: str | None = Field(default=None, description="of a data version: its digest")


class Promotion(Form):
    """Which version goes where."""

    version: str = Field(default="candidate", description="version number or alias")
    to: Literal["staging", "production"] = Field(default="production", description="where to")
    reason: str | None = Field(default=None, description="why, to promote in spite of a gate that refuses; recorded")


class Approval(RunInput):
    """A person's answer, which a waiting promotion is resumed with."""

    version: str = Field(title="Version", description="the version that this answer is about")
    approve: bool = Field(default=False, title="Approve", description="promote this version")
    by: str = Field(min_length=1, title="By", description="who decides; recorded with the version")
    comment: str = Field(default="", title="Comment", description="recorded with the version")
