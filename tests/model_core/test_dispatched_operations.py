"""Operations that the host dispatches for a micro-step of each stage, and those that make it wait for a GPU.

On a GPU the launches of these operations bound a step of small models: a change that adds some must be seen. Views cost nothing
and do not count; an operation of ``kernels`` counts as one. An operation waits for the device if the shape of its result depends on
values, or if Python reads a value.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model_core import OmniMRIForConditionalGeneration
from model_core.losses.reduction import Step
from model_core.processing import Processor
from tests.model_core.test_objectives import _cases, model, processor

__all__ = ["model", "processor"]
READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class DispatchCounter(TorchDispatchMode):
    """Count of operations by name, and of those that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in ("_unsafe_view", "_reshape_alias"):
            self.operations[name] += 1
        by_mask = name in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
        if name in READS or by_mask:
            self.waits[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("stage", "operations", "waits"),
    [(0, 700, 0), (1, 1050, 5), (2, 1060, 17), (3, 2060, 18)],
    ids=["vision_pretraining", "alignment", "multimodal_pretraining", "instruction_tuning"],
)
def test_a_micro_step_dispatches_no_more_operations_than_it_did(
    stage: int, operations: int, waits: int, model: OmniMRIForConditionalGeneration, processor: Processor
) -> None:
    """Forward and backward pass of the debug preset (two layers). The limits are a few percent above the counts of 2026-11-29.

    One wait is for the number of tokens that are no padding, before anything else is computed.
    Stage 4 decodes once more, without gradients, what half of the reconstructions start from (150 operations, since 2026-11-30).
    """
    objective, batch = _cases(model, processor)[stage]
    objective.trainable()
    objective.begin(iter([batch] * 10))
    step = Step.of([objective.counts(batch)])
    with DispatchCounter() as counted:
        objective(batch, step).total.backward()
    assert sum(counted.operations.values()) <= operations, counted.operations.most_common(12)
    assert sum(counted.waits.values()) <= waits, counted.waits


def test_views_are_free_and_reads_wait() -> None:
    x = torch.arange(6.0)
    with DispatchCounter() as counted:
        y = x.view(2, 3)[0] + 1
        y[y > 1].sum().item()
    assert counted.operations == {"add": 1, "gt": 1, "index": 1, "sum": 1, "_local_scalar_dense": 1}
    assert counted.waits == {"index": 1, "_local_scalar_dense": 1}
