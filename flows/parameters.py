"""Parameters of the deployed flows. Prefect's UI builds forms from them, with the descriptions as help texts."""

from __future__ import annotations

from typing import Literal

from prefect.input import RunInput
from pydantic import BaseModel, ConfigDict, Field

from components.settings import Settings, load_settings

Goal = Literal["corpus", "candidate"]
"""Last result of a run that follows an update."""


class Form(BaseModel):
    """A frozen form; a misspelled name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Profile(Form):
    """The settings of a run. They are read when it starts, and recorded with the model."""

    name: str = Field(default="demo", title="Profile", description="a profile of profiles/, or the path of a YAML file")
    overrides: list[str] = Field(
        default=[],
        title="Overrides",
        description="single settings, as section.field=value, e.g. evaluation.cases_per_task=48",
    )

    def settings(self) -> Settings:
        """Load the settings.

        Raises:
            BadInput: no such profile, or an invalid value.
        """
        return load_settings(self.name, self.overrides)


class Change(Form):
    """A change of the data, as the watcher announces it."""

    kind: Literal["folder", "server", "remote", "tag", "all"] = Field(
        default="all",
        description="a source folder or server, the data version of the upstream branch, or a tagged one; all = check every source",
    )
    name: str = Field(default="", description="of a folder or server: its dataset card; else the branch or the pattern of tags")
    revision: str | None = Field(default=None, description="of a data version: its digest")


class Promotion(Form):
    """A version, and the alias that it is to get."""

    version: str = Field(default="candidate", description="version number or alias")
    to: Literal["staging", "production"] = Field(default="production", description="new alias")
    reason: str | None = Field(default=None, description="reason to override a gate that refuses; recorded")


class Approval(RunInput):
    """A person's answer, which resumes a suspended promotion."""

    version: str = Field(title="Version", description="the version that this answer is about")
    approve: bool = Field(default=False, title="Approve", description="promote this version")
    by: str = Field(min_length=1, title="By", description="name of the person who decides; recorded with the version")
    comment: str = Field(default="", title="Comment", description="recorded with the version")
