"""Dispatch: which tensors are computed by Triton kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_interpreted = False


def uses_triton(x: Tensor) -> bool:
    """Return whether an operation on ``x`` runs as a Triton kernel: always on a GPU, on a CPU only inside :func:`interpreted`.

    A meta tensor represents one on a GPU: shapes, saved tensors and costs are those of the kernels.
    """
    return x.is_cuda or x.is_meta or _interpreted


@contextmanager
def interpreted() -> Iterator[None]:
    """Run CPU tensors through the Triton kernels in Triton's interpreter: for tests, thousands of times slower.

    ``TRITON_INTERPRET=1`` must be set before triton is first imported.
    """
    global _interpreted
    previous, _interpreted = _interpreted, True
    try:
        yield
    finally:
        _interpreted = previous
