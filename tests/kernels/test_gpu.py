"""On a real GPU every configuration of every kernel computes the specification, forward and backward (`make gpu-test`).

Needs only torch, triton, numpy and pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import triton_launch
from kernels.moe_layer import moe, moe_reference
from kernels.window_attention import window_attention, window_attention_reference
from kernels.window_attention.geometry import Triple, bias_table_rows

pytestmark = pytest.mark.gpu

MOST_CONFIGS = 5
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BARS = {torch.float32: (1e-5, 1e-5), torch.float16: (5e-3, 8e-3), torch.bfloat16: (5e-3, 8e-3)}
"""Relative RMS error of output and gradients against float32 (docs/kernels.md)."""

WINDOWS: list[tuple[Triple, Triple, Triple, int, int]] = [
    ((14, 14, 21), (7, 7, 7), (3, 3, 3), 3, 32),
    ((14, 14, 21), (7, 7, 7), (0, 0, 0), 3, 32),
    ((13, 16, 15), (7, 7, 7), (3, 3, 3), 2, 16),
    ((16, 16, 16), (8, 8, 8), (4, 4, 4), 2, 64),
    ((16, 16, 16), (4, 4, 4), (2, 2, 2), 3, 32),
    ((1, 56, 56), (1, 7, 7), (0, 3, 3), 3, 32),
    ((5, 15, 20), (2, 7, 7), (1, 3, 3), 2, 24),
    ((9, 32, 30), (4, 6, 6), (2, 3, 3), 2, 16),
    ((1, 40, 40), (1, 16, 16), (0, 8, 8), 2, 48),
    ((3, 3, 3), (8, 8, 8), (4, 4, 4), 2, 32),
]
LAYERS = [(1000, 8, 2, 256, 320), (777, 7, 7, 136, 72), (4096, 128, 8, 256, 192), (1, 4, 2, 64, 64), (300, 64, 1, 72, 40)]


@pytest.fixture(params=[*range(MOST_CONFIGS), None], ids=lambda index: "tuned" if index is None else f"config{index}")
def every_config(request: pytest.FixtureRequest) -> Iterator[None]:
    """Launch each kernel with its configuration of one number, or as it is in use: tuned, and with PyTorch's grouped products."""
    if request.param is None:
        yield
        return

    def run(kernel: Any, grid: Any, configs: Sequence[Any], arguments: Mapping[str, Any], constants: Mapping[str, Any]) -> None:
        config = configs[min(request.param, len(configs) - 1)]
        kernel[grid](**arguments, **constants, **triton_launch.launch_options(config))

    triton_launch.observe(run)
    yield
    triton_launch.observe(None)


def _error(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y.double()).norm() / y.double().norm().clamp(min=1e-30))


def _compare(
    op: Callable[..., Sequence[Tensor]], reference: Callable[..., Sequence[Tensor]], inputs: list[Tensor], dtype: torch.dtype
) -> None:
    """Against the specification in float32 (float64 for float32) on the same rounded inputs."""
    rounded = [x.to("cuda", dtype) for x in inputs]
    exact = torch.float64 if dtype == torch.float32 else torch.float32
    ours, expected = op(*rounded), reference(*(x.to(exact) for x in rounded))
    eager = reference(*rounded)
    forward, gradient = BARS[dtype]
    for index, (x, y, theirs) in enumerate(zip(ours, expected, eager, strict=True)):
        bar = forward if index == 0 else gradient
        assert torch.isfinite(x).all()
        if dtype == torch.float32:  # where a gradient is a small difference of large numbers, PyTorch's own error is larger
            assert _error(x, y) <= max(bar, 2 * _error(theirs, y)), (index, _error(x, y), _error(theirs, y))
        else:
            assert _error(x, y) <= bar, (index, _error(x, y), _error(theirs, y))
            assert _error(x, y) <= max(2 * _error(theirs, y), 1e-3), (index, _error(x, y), _error(theirs, y))


def _differentiated(call: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    def run(*inputs: Tensor) -> list[Tensor]:
        *leaves, dout = [x.detach().requires_grad_() for x in inputs]
        out = call(*leaves)
        out.backward(dout.detach())
        return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None and leaf.grad.abs().sum() > 0)]

    return run


@pytest.mark.usefixtures("every_config")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", WINDOWS, ids=str)
def test_window_attention(case: tuple[Triple, Triple, Triple, int, int], dtype: torch.dtype) -> None:
    size, window, shift, heads, head_dim = case
    torch.manual_seed(0)
    qkv, table = torch.randn(2, *size, 3, heads, head_dim), torch.randn(bias_table_rows(window), heads)
    inputs = [qkv, table, torch.randn(3, heads, head_dim), torch.randn(2, *size, heads * head_dim)]
    _compare(
        _differentiated(lambda q, t, p: window_attention(q, t, window, shift, p)),
        _differentiated(lambda q, t, p: window_attention_reference(q, t, window, shift, p)),
        inputs,
        dtype,
    )


def _layer(tokens: int, experts: int, hidden_size: int, width: int) -> list[Tensor]:
    """Inputs whose choices no rounding can change: the router sees well separated logits."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, hidden_size)
    router = torch.randn(experts, hidden_size) * 0.5
    gate_up, down = torch.randn(experts, 2 * width, hidden_size), torch.randn(experts, hidden_size, width)
    return [hidden, router, gate_up * hidden_size**-0.5, down * width**-0.5, torch.randn(tokens, hidden_size)]


@pytest.mark.usefixtures("every_config")
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_moe(case: tuple[int, int, int, int, int], dtype: torch.dtype, scoring: Any) -> None:
    tokens, experts, top_k, hidden_size, width = case
    inputs = _layer(tokens, experts, hidden_size, width)

    def call(op: Callable[..., Any]) -> Callable[..., list[Tensor]]:
        def run(hidden: Tensor, *rest: Tensor) -> Tensor:
            out = op(hidden, *rest, top_k, scoring=scoring)
            return out.hidden_TH + (out.load_balance_loss + out.z_loss).to(hidden.dtype) * 1e-3

        return _differentiated(run)

    _compare(call(moe), call(moe_reference), inputs, dtype)


def test_the_sort_is_stable_and_exact() -> None:
    from kernels.moe_routing.autograd import route_op

    hidden, router, *_ = (x.cuda() for x in _layer(5000, 128, 64, 8))
    valid = torch.ones(5000, dtype=torch.bool, device="cuda")
    _, _, _, chosen, order, place, ends, counts, _ = route_op(hidden, router, None, valid, 8, True, False)
    expected = chosen.flatten().argsort(stable=True)
    assert torch.equal(order.long(), expected)
    assert torch.equal(place.flatten().long()[expected], torch.arange(40000, device="cuda"))
    assert torch.equal(ends.long(), counts.cumsum(0))


def test_three_deterministic_runs_give_the_same_bits() -> None:
    size, window, shift = (14, 14, 21), (7, 7, 7), (3, 3, 3)
    torch.manual_seed(0)
    qkv, table = torch.randn(2, *size, 3, 3, 32), torch.randn(bias_table_rows(window), 3)
    attention = [x.to("cuda", torch.bfloat16) for x in (qkv, table, torch.randn(3, 3, 32), torch.randn(2, *size, 96))]
    layer = [x.to("cuda", torch.bfloat16) for x in _layer(3000, 16, 256, 128)]
    torch.use_deterministic_algorithms(True)
    try:
        runs = [
            [
                *_differentiated(lambda q, t, p: window_attention(q, t, window, shift, p))(*attention),
                *_differentiated(lambda h, *w: moe(h, *w, 4).hidden_TH)(*layer),
            ]
            for _ in range(3)
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, y) for run in runs[1:] for x, y in zip(run, runs[0], strict=True))


def test_a_layer_never_waits_for_the_device() -> None:
    layer = [x.to("cuda", torch.bfloat16) for x in _layer(2048, 8, 256, 256)]
    step = _differentiated(lambda h, *w: moe(h, *w, 2).hidden_TH)
    for _ in range(2):  # compile, choose configurations
        leaves = [x.detach().requires_grad_() for x in layer[:-1]]
        moe(*leaves, 2).hidden_TH.backward(layer[-1])
    assert step(*layer)
    leaves = [x.detach().requires_grad_() for x in layer[:-1]]
    torch.cuda.set_sync_debug_mode("error")
    try:
        moe(*leaves, 2).hidden_TH.backward(layer[-1])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_no_score_tensor_is_made() -> None:
    """Peak memory of forward and backward stays below a fifth of what eager attention takes."""
    size, window, shift = (28, 28, 28), (7, 7, 7), (3, 3, 3)
    qkv = torch.randn(2, *size, 3, 3, 32, device="cuda", dtype=torch.bfloat16)
    table, pad = torch.randn(bias_table_rows(window), 3, device="cuda"), torch.zeros(3, 3, 32, device="cuda", dtype=torch.bfloat16)
    dout = torch.randn(2, *size, 96, device="cuda", dtype=torch.bfloat16)

    def extra(op: Callable[..., Tensor]) -> int:
        step = _differentiated(lambda q, t, p: op(q, t, window, shift, p))
        step(qkv, table, pad, dout)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(qkv, table, pad, dout)
        return torch.cuda.max_memory_allocated() - before

    assert extra(window_attention) <= 0.2 * extra(window_attention_reference)
