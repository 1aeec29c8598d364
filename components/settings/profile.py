"""A whole profile: read from YAML, changed by overrides, validated once when a command starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from components.assets import asset
from components.errors import BadInput
from components.settings.archives import PacsSettings
from components.settings.data import CurationSettings, DatasetSettings, IngestionSettings
from components.settings.evaluation import EvaluationSettings, RegistrySettings
from components.settings.kubernetes import KubernetesSettings
from components.settings.section import Section
from components.settings.training import ModelSettings, TrainingSettings


class Settings(Section):
    """A whole profile."""

    profile: str = Field(description="name of the profile, for people")
    seed: int = Field(default=20260101, description="seed of all random numbers")
    launcher: Literal["local", "kubernetes"] = Field(default="local", description="where training jobs run")
    datasets: tuple[DatasetSettings, ...]
    ingestion: IngestionSettings = IngestionSettings()
    pacs: PacsSettings = PacsSettings()
    curation: CurationSettings = CurationSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings
    kubernetes: KubernetesSettings = KubernetesSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    registry: RegistrySettings = RegistrySettings()

    @model_validator(mode="after")
    def _require_pretrained_backbone(self) -> Settings:
        if self.training.adapter_rank and self.model.backbone is None:
            raise ValueError(
                "training.adapter_rank freezes the backbone, whose weights would be random: set model.backbone to the folder of a "
                "dense Qwen2.5 checkpoint, or training.adapter_rank to 0"
            )
        return self


def profiles() -> list[str]:
    """Return the names of the profiles that ship with OmniMRI."""
    return sorted(path.stem for path in asset("profiles").glob("*.yaml"))


def load_settings(profile: str, overrides: list[str] | None = None) -> Settings:
    """Read ``profiles/<profile>.yaml`` (or a YAML path) and apply ``section.field=value`` overrides.

    Raises:
        BadInput: no such profile, malformed YAML or override, or an invalid value.
    """
    path = Path(profile) if profile.endswith((".yaml", ".yml")) else asset("profiles") / f"{profile}.yaml"
    try:
        raw: Any = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise BadInput("no such profile", where=profile, remedy=f"choose one of {', '.join(profiles())}, or a .yaml path") from None
    except yaml.YAMLError as error:
        raise BadInput(f"not YAML: {error}", where=str(path), remedy="fix the file") from None
    if not isinstance(raw, dict):
        raise BadInput("a profile is a mapping of sections", where=str(path), remedy="see profiles/demo.yaml")
    for override in overrides or []:
        _apply_override(raw, override)
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(str(key) for key in fault['loc'])}: {fault['msg']}" for fault in error.errors())
        where = " ".join([str(path), *(f"--set {override}" for override in overrides or [])])
        raise BadInput(faults, where=where, remedy="fix the named fields; profiles/demo.yaml shows their form") from None


def _apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one dotted field of a raw profile from ``a.b.c=value`` (value in YAML)."""
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise BadInput("an override has the form section.field=value", where=override, remedy="e.g. training.processes=2")
    *sections, field = name.split(".")
    node = raw
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise BadInput(f"{section} is not a section", where=override, remedy="see profiles/demo.yaml for the names")
    node[field] = yaml.safe_load(value)
