"""Typed settings, one module for each part of a profile. Every field has a unit and a default.

Unknown names, wrong types and contradictions are rejected with the field, the fault and the remedy.
"""

from components.settings.archives import PacsSettings, ServerSettings
from components.settings.data import CurationSettings, DatasetSettings, IngestionSettings, VisualSettings
from components.settings.evaluation import EvaluationSettings, RegistrySettings
from components.settings.kubernetes import KubernetesSettings
from components.settings.profile import Settings, load_settings, profiles
from components.settings.section import Category, MaskKind, Section, StageName, TaskName
from components.settings.training import MixtureSettings, ModelSettings, StageSettings, TrainingSettings

__all__ = [
    "Category",
    "CurationSettings",
    "DatasetSettings",
    "EvaluationSettings",
    "IngestionSettings",
    "KubernetesSettings",
    "MaskKind",
    "MixtureSettings",
    "ModelSettings",
    "PacsSettings",
    "RegistrySettings",
    "Section",
    "ServerSettings",
    "Settings",
    "StageName",
    "StageSettings",
    "TaskName",
    "TrainingSettings",
    "VisualSettings",
    "load_settings",
    "profiles",
]
