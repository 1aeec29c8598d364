"""Window attention is MONAI's, padded and shifted; large windows on a CPU and the Triton kernels compute the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets.swin_unetr import SwinTransformerBlock, compute_mask
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from kernels.dispatch import interpreted
from kernels.window_attention import autograd, operation, window_attention, window_attention_reference
from kernels.window_attention.geometry import Triple, bias_table_rows, geometry
from model_core.swin import SwinBlock

SHIFTED_AND_PADDED = ((6, 9, 8), (5, 7, 7), (2, 3, 3))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("grid", [(4, 8, 8), (4, 7, 10)], ids=["fits", "padded"])
@pytest.mark.parametrize("window", [(2, 4, 4), (3, 9, 9)], ids=["small", "large"])
def test_a_block_equals_that_of_monai(window: Triple, grid: Triple, shifted: bool) -> None:
    """Same weights, same numbers. MONAI pads with zeros *before* the qkv projection, which is our ``pad_qkv``."""
    torch.manual_seed(0)
    heads, width = 2, 8
    if window[1] == 9:
        grid = (grid[0] + 3, grid[1] * 2, grid[2] * 2)
    ours = SwinBlock(width, heads, window, shifted).eval()
    shift = tuple(side // 2 for side in window) if shifted else (0, 0, 0)
    theirs = SwinTransformerBlock(width, heads, window, shift, mlp_ratio=4.0, qkv_bias=True).eval()
    with torch.no_grad():
        for ours_p, theirs_p in zip(
            [ours.attention.qkv, ours.attention.proj, ours.norm1, ours.norm2, ours.mlp[0], ours.mlp[2]],
            [theirs.attn.qkv, theirs.attn.proj, theirs.norm1, theirs.norm2, theirs.mlp.linear1, theirs.mlp.linear2],
            strict=True,
        ):
            torch.nn.init.normal_(ours_p.bias)
            theirs_p.load_state_dict(ours_p.state_dict())
        ours.attention.bias_table.normal_()
        theirs.attn.relative_position_bias_table.copy_(ours.attention.bias_table)
    x = torch.randn(2, *grid, width)
    padded = [size + -size % side for size, side in zip(grid, window, strict=True)]
    mask = compute_mask(padded, window, shift, x.device) if shifted else None
    torch.testing.assert_close(ours(x), theirs(x, mask), atol=1e-5, rtol=1e-5)


def test_gradients_of_the_specification_pass_gradcheck() -> None:
    qkv = torch.randn(1, 2, 3, 4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    table = torch.randn(bias_table_rows((2, 2, 2)), 2, dtype=torch.float64, requires_grad=True)
    pad = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, t, p: window_attention_reference(q, t, (2, 2, 2), (1, 1, 1), p), (qkv, table, pad))


def test_a_window_larger_than_the_grid_is_plain_attention() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, 1, 3, 3, 3, 2, 4)
    table = torch.zeros(bias_table_rows((4, 6, 6)), 2)
    q, k, v = qkv.flatten(1, 3).permute(2, 0, 3, 1, 4)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).view(2, 1, 3, 3, 8)
    torch.testing.assert_close(window_attention(qkv, table, (4, 6, 6), (2, 3, 3)), expected)


def test_a_bias_table_of_another_window_is_rejected() -> None:
    with pytest.raises(ValueError, match="needs"):
        window_attention(torch.zeros(1, 1, 4, 4, 3, 2, 4), torch.zeros(5, 2), (1, 4, 4), (0, 0, 0))


def test_a_shift_of_a_whole_window_is_rejected() -> None:
    with pytest.raises(ValueError, match="below the window"):
        window_attention(torch.zeros(1, 1, 4, 4, 3, 2, 4), torch.zeros(49, 2), (1, 4, 4), (0, 4, 0))


def test_padding_of_another_size_is_rejected() -> None:
    with pytest.raises(ValueError, match="pad_qkv"):
        window_attention(torch.zeros(1, 1, 4, 4, 3, 2, 4), torch.zeros(49, 2), (1, 4, 4), (0, 0, 0), torch.zeros(3, 1, 4))


def test_tracing_leaves_no_cached_geometry() -> None:
    """A tensor made while tracing and kept would spoil every later call."""
    qkv, table = torch.randn(1, 1, 5, 6, 3, 1, 8), torch.randn(49, 1)
    with FakeTensorMode() as mode:
        window_attention(mode.from_tensor(qkv), mode.from_tensor(table), (1, 4, 4), (0, 2, 2))
    assert type(window_attention(qkv, table, (1, 4, 4), (0, 2, 2))) is Tensor


@pytest.mark.parametrize("size", [(1, 8, 8), (7, 14, 14)], ids=["small", "large"])
def test_a_block_is_one_graph(size: Triple) -> None:
    block = SwinBlock(16, 1, (7, 7, 7) if size[0] > 1 else (1, 4, 4), shifted=True)
    x = torch.randn(1, *size, 16)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_large_windows_on_a_cpu_in_half_precision(dtype: torch.dtype) -> None:
    """With a bias far from zero, no more than twice as far from float32 as the specification in that precision."""
    size, window, shift = (7, 14, 13), (7, 7, 7), (3, 3, 3)
    qkv, table, pad, dout = _inputs(size, window, 2, 32, batch=1)
    rounded = [x.to(dtype) for x in (qkv, table * 5, pad, dout)]
    expected = _results(_specification(window, shift), *(x.float() for x in rounded))
    ours, eager = (_results(op(window, shift), *rounded) for op in (_the_op, _specification))
    for x, y, z in zip(ours, eager, expected, strict=True):
        assert (x.float() - z).norm() <= 2 * (y.float() - z).norm() + 1e-3 * z.norm()


Op = Callable[[Tensor, Tensor, Tensor], Tensor]


def _results(op: Op, qkv: Tensor, table: Tensor, pad: Tensor, dout: Tensor) -> list[Tensor]:
    """Output and gradients of qkv, table and padding."""
    leaves = [x.clone().requires_grad_() for x in (qkv, table, pad)]
    out = op(*leaves)
    out.backward(dout.to(out.dtype))
    return [out.detach(), *(leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves)]


def _inputs(size: Triple, window: Triple, heads: int, head_dim: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(sum(size) * 100 + sum(window) * 10 + heads)
    qkv = torch.randn(batch, *size, 3, heads, head_dim)
    return (
        qkv,
        torch.randn(bias_table_rows(window), heads),
        torch.randn(3, heads, head_dim),
        torch.randn(batch, *size, heads * head_dim),
    )


def _the_op(window: Triple, shift: Triple) -> Op:
    return lambda qkv, table, pad: autograd.window_attention_op(qkv, table, pad, window, shift)[0].flatten(4)


def _specification(window: Triple, shift: Triple) -> Op:
    return lambda qkv, table, pad: window_attention_reference(qkv, table, window, shift, pad)


def _assert_within(ours: list[Tensor], expected: list[Tensor], forward: float, gradient: float) -> None:
    for x, y, bar in zip(ours, expected, [forward, gradient, gradient, gradient], strict=True):
        assert (x - y).abs().max() <= bar, (x - y).abs().max()


@pytest.mark.parametrize("head_dim", [12, 16])
@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [
        ((14, 7, 14), (7, 7, 7), (0, 0, 0)),
        ((14, 14, 7), (7, 7, 7), (3, 2, 3)),
        SHIFTED_AND_PADDED,
        ((1, 25, 25), (1, 15, 15), (0, 5, 6)),
    ],
    ids=["plain", "shifted", "shifted and padded", "2-D"],
)
def test_large_windows_on_a_cpu_equal_the_specification(size: Triple, window: Triple, shift: Triple, head_dim: int) -> None:
    inputs = _inputs(size, window, 2, head_dim)
    expected = _results(_specification(window, shift), *inputs)
    ours = _results(lambda q, t, p: window_attention(q, t, window, shift, p), *inputs)
    _assert_within(ours, expected, 1e-5, 1e-4)


def test_large_windows_on_a_cpu_are_deterministic() -> None:
    size, window, shift = SHIFTED_AND_PADDED
    inputs = _inputs(size, window, 2, 16)
    runs = [_results(_the_op(window, shift), *inputs) for _ in range(3)]
    assert all(torch.equal(x, y) for run in runs[1:] for x, y in zip(run, runs[0], strict=True))


@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    window=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
    heads=st.integers(1, 2),
    head_dim=st.sampled_from([8, 12, 16]),
    data=st.data(),
)
@settings(max_examples=12)
def test_the_triton_kernels_equal_the_specification(
    size: Triple, window: Triple, heads: int, head_dim: int, data: st.DataObject
) -> None:
    """Any grid, window, shift and padding; the kernel for windows in one tile."""
    shift = data.draw(st.tuples(*(st.integers(0, side - 1) for side in window)))
    inputs = _inputs(size, window, heads, head_dim, batch=1)
    with interpreted():
        ours = _results(_the_op(window, shift), *inputs)
    _assert_within(ours, _results(_specification(window, shift), *inputs), 1e-5, 1e-4)


@pytest.mark.parametrize("shift", [(0, 0, 0), (1, 3, 2)], ids=["plain", "shifted"])
def test_the_triton_kernels_with_many_tiles_equal_the_specification(shift: Triple) -> None:
    """N = 75 tokens: two full tiles of 32 and a tail of 11."""
    size, window = (4, 5, 6), (3, 5, 5)
    inputs = _inputs(size, window, 1, 16, batch=1)
    with interpreted():
        ours = _results(_the_op(window, shift), *inputs)
    _assert_within(ours, _results(_specification(window, shift), *inputs), 1e-5, 1e-4)


def test_the_triton_kernels_in_half_precision() -> None:
    """Against the float32 specification; the interpreter cannot compute bfloat16."""
    size, window, shift = (1, 5, 7), (1, 4, 4), (0, 2, 2)
    qkv, table, pad, dout = (x.half() for x in _inputs(size, window, 2, 16))
    expected = _results(_specification(window, shift), qkv.float(), table.float(), pad.float(), dout.float())
    with interpreted():
        ours = _results(_the_op(window, shift), qkv, table, pad, dout)
    for x, y, bar in zip(ours, expected, [5e-3, 8e-3, 8e-3, 8e-3], strict=True):
        assert (x.float() - y).norm() <= bar * y.norm()


@pytest.mark.parametrize("on_triton", [False, True], ids=["cpu", "triton"])
def test_a_block_supports_activation_checkpointing(on_triton: bool) -> None:
    """Activation checkpointing gives what was saved out a single time."""
    window, shift = ((1, 4, 4), (0, 2, 2)) if on_triton else ((1, 15, 15), (0, 6, 6))
    qkv, table, pad, _ = _inputs((1, 5, 6) if on_triton else (1, 17, 16), window, 1, 8, batch=1)
    gradients = []
    for again in (False, True):
        leaves = [x.clone().requires_grad_() for x in (qkv, table, pad)]
        with interpreted() if on_triton else contextlib.nullcontext():
            op = operation.window_attention
            arguments = (leaves[0], leaves[1], window, shift, leaves[2])
            (checkpoint(op, *arguments, use_reentrant=False) if again else op(*arguments)).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(ours, expected) for ours, expected in zip(*gradients, strict=True))


@pytest.mark.parametrize("on_triton", [False, True], ids=["cpu", "triton"])
def test_the_operators_pass_opcheck(on_triton: bool) -> None:
    window, shift = ((1, 4, 4), (0, 2, 2)) if on_triton else ((1, 15, 15), (0, 6, 6))
    qkv, table, pad, _ = _inputs((1, 5, 6) if on_triton else (1, 17, 16), window, 1, 8, batch=1)
    arguments = tuple(x.requires_grad_() for x in (qkv, table, pad))
    if on_triton:
        with interpreted():
            torch.library.opcheck(autograd.window_attention_op, (*arguments, window, shift))
    else:
        torch.library.opcheck(autograd.window_attention_op, (*arguments, window, shift))


def test_no_score_tensor_is_kept_for_the_backward_pass() -> None:
    """Saved memory grows with the number of tokens, not with tokens times window."""
    size, window = (7, 14, 14), (7, 7, 7)
    qkv, table, pad, _ = _inputs(size, window, 2, 16, batch=1)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.numel()), x)[1], lambda x: x):
        window_attention(qkv.requires_grad_(), table, window, (0, 0, 0), pad)
    places = geometry(size, window, (0, 0, 0), torch.device("cpu")).rows_nN.numel()
    assert sum(saved) < 3 * qkv.numel() < places * 343


def test_regions_of_a_shifted_window_do_not_attend_to_each_other() -> None:
    """Tokens from the opposite border in a shifted window have no influence."""
    window, shift = (1, 16, 16), (0, 8, 8)
    qkv, table, pad, _ = _inputs((1, 32, 32), window, 1, 8, batch=1)
    changed = qkv.clone()
    changed[:, :, :8, :8] += 100.0
    before, after = (window_attention(x, table, window, shift, pad) for x in (qkv, changed))
    assert torch.equal(before[:, :, 24:, 24:], after[:, :, 24:, 24:])
    assert not torch.equal(before[:, :, :8, :8], after[:, :, :8, :8])
