"""The network: plain PyTorch and transformers. No files, no engine, no tracking."""

from model_core.config import OmniMRIConfig
from model_core.modeling_omnimri import OmniMRIForConditionalGeneration, OmniMRIOutput

__all__ = ["OmniMRIConfig", "OmniMRIForConditionalGeneration", "OmniMRIOutput"]
