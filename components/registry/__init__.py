"""Model registry: registration, lineage, promotion gates, audit log, reproduction and serving."""

from components.registry.lineage import origin, versions_with_dataset, versions_with_patients
from components.registry.model_version import Lineage, ModelVersion
from components.registry.promotion import history, promote, refusal, rollback
from components.registry.promotion_gate import gate_failures
from components.registry.registration import list_versions, register, show_version
from components.registry.reproduction import reproduce

__all__ = [
    "Lineage",
    "ModelVersion",
    "gate_failures",
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
