"""The network: plain PyTorch and transformers. No files, no engine, no tracking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_core.config import OmniMRIConfig
    from model_core.modeling_omnimri import OmniMRIForConditionalGeneration, OmniMRIOutput

_HOMES = {"OmniMRIConfig": "config", "OmniMRIForConditionalGeneration": "modeling_omnimri", "OmniMRIOutput": "modeling_omnimri"}
__all__ = ["OmniMRIConfig", "OmniMRIForConditionalGeneration", "OmniMRIOutput"]


def __getattr__(name: str) -> Any:
    """Load the network when it is first asked for: transformers takes seconds, and curation wants the form of boxes only."""
    if name not in _HOMES:
        raise AttributeError(name)
    from importlib import import_module

    return getattr(import_module(f"model_core.{_HOMES[name]}"), name)
