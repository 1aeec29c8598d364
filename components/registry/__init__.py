"""The registered model: where each version comes from, what lets it be promoted, and who moved it where."""

from components.registry.lineage import origin, versions_with_dataset, versions_with_patients
from components.registry.model_version import Lineage, ModelVersion
from components.registry.promotion import history, promote, refusal, rollback
from components.registry.promotion_gate import gate
from components.registry.registration import list_versions, register, show_version
from components.registry.reproduction import reproduce

__all__ = [
    "Lineage",
    "ModelVersion",
    "gate",
    "history",
    "list_versions",
    "origin",
    "promote",
    "refusal",
    "register",
    "reproduce",
    "rollback",
    "show_version",
    "versions_with_dataset",
    "versions_with_patients",
]
