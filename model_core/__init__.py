"""The network in plain PyTorch and transformers, without files, training engine or experiment tracking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_core.config import OmniMRIConfig
    from model_core.modeling_omnimri import OmniMRIForConditionalGeneration, OmniMRIOutput

_MODULES = {"OmniMRIConfig": "config", "OmniMRIForConditionalGeneration": "modeling_omnimri", "OmniMRIOutput": "modeling_omnimri"}
__all__ = ["OmniMRIConfig", "OmniMRIForConditionalGeneration", "OmniMRIOutput"]


def __getattr__(name: str) -> Any:
    """Import the network at its first use: transformers takes seconds to import, and curation needs the boxes only."""
    if name not in _MODULES:
        raise AttributeError(name)
    from importlib import import_module

    return getattr(import_module(f"model_core.{_MODULES[name]}"), name)
