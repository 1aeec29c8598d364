"""The average of the image decoder's weights over the last steps, which is what a trained model is used with.

A decoder trained on noise of all sizes is never at rest; the mean of its last states is better than any of them (Karras et al.,
arXiv:2312.02696). The window grows with the steps taken, up to that of the decay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Average:
    """Exponential average of a module's weights, float32, the same on every process.

    Args:
        module: as it is before training; ZeRO may partition it afterwards.
        decay: of a step, in the long run.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        # One weight at a time: PyTorch does not take lists in two dtypes together on a GPU (2.11, bfloat16 weights).
        def mean(average: Tensor, current: Tensor, _steps: Tensor | int) -> Tensor:
            return average.lerp(current.to(average.dtype), 1 - self._kept)

        self.module, self.decay, self._kept = module, decay, 0.0
        self.averaged = AveragedModel(module, avg_fn=mean).float()

    def update(self) -> None:
        """Take the module's weights after a step into account."""
        steps = int(self.averaged.n_averaged)
        self._kept = min(self.decay, (1 + steps) / (10 + steps))
        with torch.no_grad(), _whole(self.module):
            self.averaged.update_parameters(self.module)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {name: tensor.contiguous() for name, tensor in self.averaged.state_dict().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """From a checkpoint."""
        self.averaged.load_state_dict(state)

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights by name."""
        return dict(self.averaged.module.named_parameters())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The module with its average in place of its weights, while this is open."""
        saved = []
        with torch.no_grad(), _whole(self.module, written=True):
            for current, average in zip(self.module.parameters(), self.averaged.module.parameters(), strict=True):
                saved.append(current.data.clone())
                current.data.copy_(average)
        yield
        with torch.no_grad(), _whole(self.module, written=True):
            for current, before in zip(self.module.parameters(), saved, strict=True):
                current.data.copy_(before)


def _whole(module: nn.Module, written: bool = False) -> AbstractContextManager[Any]:
    """The module's weights, gathered from all processes where ZeRO-3 has shared them out."""
    parameters = list(module.parameters())
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if written else None)
    return gathered
