"""The registered model: where each version comes from, what lets it be promoted, and its aliases."""

from components.registry.gate import gate
from components.registry.records import Lineage, ModelVersion
from components.registry.versions import list_versions, promote, refusal, register, show_version

__all__ = ["Lineage", "ModelVersion", "gate", "list_versions", "promote", "refusal", "register", "show_version"]
