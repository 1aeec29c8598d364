"""Launch of Triton kernels: autotuned on a GPU, with the first configuration where results must be deterministic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
import triton

Grid = Callable[[Mapping[str, Any]], tuple[int, ...]]
Observer = Callable[..., None]

_observer: Observer | None = None


def observe(observer: Observer | None) -> None:
    """Send every launch to ``observer(kernel, grid, configs, arguments, constants)`` instead of the device (compile check)."""
    global _observer
    _observer = observer


def observed() -> bool:
    """Return whether launches go to an observer."""
    return _observer is not None


def launch(
    kernel: Any,
    grid: Grid,
    configs: Sequence[triton.Config],
    key: Sequence[str],
    arguments: Mapping[str, Any],
    size: int = 0,
    **constants: Any,
) -> None:
    """Run ``kernel`` over ``grid``.

    The fastest of ``configs`` is determined by timing, once for each value of ``key`` and power of two of ``size``. With
    ``torch.use_deterministic_algorithms`` and in Triton's interpreter the first is used, so that the same input gives the same
    bits in every run.

    Args:
        grid: number of programs, from the constants and the configuration's values.
        key: names of arguments on which the choice may depend.
        size: amount of work, so that a small first batch does not determine the choice for large ones.
    """
    if torch.version.hip is not None:
        configs = for_amd(configs)
    if _observer is not None:
        _observer(kernel, grid, configs, arguments, constants)
        return
    # Triton launches on the current device, which may differ from that of the tensors.
    device = next(value.device for value in arguments.values() if isinstance(value, torch.Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if len(configs) == 1 or _fixed(kernel):
            kernel[grid](**arguments, **constants, **launch_options(configs[0]))
        else:
            _tuned(kernel, tuple(configs), tuple(key), triton.next_power_of_2(size))[grid](**arguments, **constants)


def for_amd(configs: Sequence[triton.Config]) -> list[triton.Config]:
    """Return the same tiles with at most two stages: a compute unit has 64 KiB of shared memory."""
    shallow: dict[str, triton.Config] = {}
    for config in configs:
        two = triton.Config(config.kwargs, num_warps=config.num_warps, num_stages=min(2, config.num_stages))
        shallow.setdefault(str(two), two)
    return list(shallow.values())


def _fixed(kernel: Any) -> bool:
    interpreted = not isinstance(kernel, triton.JITFunction)
    return interpreted or torch.are_deterministic_algorithms_enabled()


def launch_options(config: triton.Config) -> dict[str, Any]:
    """Return a configuration as keyword arguments of a launch."""
    return {**config.kwargs, "num_warps": config.num_warps, "num_stages": config.num_stages}


@cache
def _tuned(kernel: Any, configs: tuple[triton.Config, ...], key: tuple[str, ...], _size: int) -> Any:
    return triton.autotune(configs=list(configs), key=list(key))(kernel)
