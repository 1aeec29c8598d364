"""Shifted window attention in 2-D and 3-D with a trainable relative-position bias."""

from kernels.window_attention.operation import window_attention
from kernels.window_attention.reference import window_attention_reference

__all__ = ["window_attention", "window_attention_reference"]
