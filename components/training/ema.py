"""Exponential moving average of the image decoder's weights, which the exported model uses.

A decoder trained on noise of all levels never converges to a fixed point; the mean of its last states is better than any of them
(Karras et al., arXiv:2312.02696). The averaging window grows with the number of steps, up to that of the decay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class WeightEMA:
    """Exponential moving average of a module's weights, float32, the same on every process.

    Args:
        module: The module before training; ZeRO may partition it afterwards.
        decay: Decay per step, in the long run.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        # One weight at a time: PyTorch's fused update accepts no lists of two dtypes on a GPU (2.11, bfloat16 weights).
        def mean(average: Tensor, current: Tensor, _steps: Tensor | int) -> Tensor:
            return average.lerp(current.to(average.dtype), 1 - self._step_decay)

        self.module, self.decay, self._step_decay = module, decay, 0.0
        self.averaged = AveragedModel(module, avg_fn=mean).float()

    def update(self) -> None:
        """Add the module's weights after a step to the average."""
        steps = int(self.averaged.n_averaged)
        self._step_decay = min(self.decay, (1 + steps) / (10 + steps))
        with torch.no_grad(), _gathered(self.module):
            self.averaged.update_parameters(self.module)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors for a checkpoint."""
        return {name: tensor.contiguous() for name, tensor in self.averaged.state_dict().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors of a checkpoint."""
        self.averaged.load_state_dict(state)

    def weights(self) -> dict[str, Tensor]:
        """Return the averaged weights by parameter name."""
        return dict(self.averaged.module.named_parameters())

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Replace the module's weights with their average while the context is open."""
        saved = []
        with torch.no_grad(), _gathered(self.module, write=True):
            for current, average in zip(self.module.parameters(), self.averaged.module.parameters(), strict=True):
                saved.append(current.data.clone())
                current.data.copy_(average)
        yield
        with torch.no_grad(), _gathered(self.module, write=True):
            for current, original in zip(self.module.parameters(), saved, strict=True):
                current.data.copy_(original)


def _gathered(module: nn.Module, write: bool = False) -> AbstractContextManager[Any]:
    """Gather the module's weights from all processes where ZeRO-3 has partitioned them; ``write``: changes are shared again."""
    parameters = list(module.parameters())
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None)
    return gathered
