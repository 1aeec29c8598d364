"""Which tensors the Triton kernels take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_interpreted = False


def uses_triton(x: Tensor) -> bool:
    """Whether an operation on ``x`` runs as a Triton kernel: on a GPU always, on a CPU only inside :func:`interpreted`.

    A tensor without data ("meta") stands for one on a GPU: shapes, saved tensors and costs are those of the kernels.
    """
    return x.is_cuda or x.is_meta or _interpreted


@contextmanager
def interpreted() -> Iterator[None]:
    """Send CPU tensors through the Triton kernels too, in Triton's interpreter: for tests, thousands of times slower.

    ``TRITON_INTERPRET=1`` must be set before triton is first imported.
    """
    global _interpreted
    before, _interpreted = _interpreted, True
    try:
        yield
    finally:
        _interpreted = before
