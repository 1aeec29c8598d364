"""Shifted window attention with a trained bias, forward and forward with backward, compared with all implementations in PyTorch.

python -m benchmarks.window_attention --device cpu | cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Measurement, measure, write
from kernels.window_attention import window_attention
from kernels.window_attention.geometry import (
    Triple,
    bias_table_rows,
    fit_window,
    middle_row,
    padded_grid,
    partition,
    position_codes_N,
    regions_nN,
    reverse,
)


@dataclass(frozen=True)
class Case:
    """A batch of token grids and its windows."""

    name: str
    batch: int
    size: Triple
    window: Triple
    shifted: bool
    heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def shift(self) -> Triple:
        """Half a window if shifted, else zero."""
        return (self.window[0] // 2, self.window[1] // 2, self.window[2] // 2) if self.shifted else (0, 0, 0)


CUDA = [
    Case("A 56^3 window 7^3 d32", 2, (56, 56, 56), (7, 7, 7), True, 3, 32, torch.bfloat16),
    Case("B 64^3 window 8^3 d32", 2, (64, 64, 64), (8, 8, 8), True, 3, 32, torch.bfloat16),
    Case("C 48^3 padded, window 7^3 d16", 2, (48, 48, 48), (7, 7, 7), True, 3, 16, torch.bfloat16),
    Case("D 64^3 window 4^3 d32", 2, (64, 64, 64), (4, 4, 4), True, 3, 32, torch.bfloat16),
    Case("F 56^2 window 7^2 d32, batch 64", 64, (1, 56, 56), (1, 7, 7), True, 3, 32, torch.bfloat16),
]
CPU = [
    Case("28^3 window 7^3 (343) float32", 1, (28, 28, 28), (7, 7, 7), False, 3, 32, torch.float32),
    Case("28^3 window 7^3 (343) shifted float32", 1, (28, 28, 28), (7, 7, 7), True, 3, 32, torch.float32),
    Case("28^3 window 7^3 (343) shifted bfloat16", 1, (28, 28, 28), (7, 7, 7), True, 3, 32, torch.bfloat16),
    Case("32^3 window 8^3 (512) shifted float32", 1, (32, 32, 32), (8, 8, 8), True, 3, 32, torch.float32),
    Case("8x36x36 window 4x6x6 (144) shifted float32", 1, (8, 36, 36), (4, 6, 6), True, 2, 16, torch.float32),
    Case("32^3 window 4^3 (64) shifted float32", 1, (32, 32, 32), (4, 4, 4), True, 3, 32, torch.float32),
    Case("56^2 window 7^2 (49) shifted float32, batch 8", 8, (1, 56, 56), (1, 7, 7), True, 3, 32, torch.float32),
]


def _windowed(case: Case, qkv: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Pad and roll the grid, partition it into windows, attend, and reverse the steps."""
    used, moved = fit_window(case.size, case.window, case.shift)
    grid = padded_grid(case.size, used)
    x = F.pad(qkv.flatten(4), (0, 0, *(n for a, b in zip(reversed(grid), reversed(case.size), strict=True) for n in (0, a - b))))
    x = x.roll([-step for step in moved], dims=(1, 2, 3)) if any(moved) else x
    q, k, v = partition(x, used).unflatten(-1, (3, case.heads, case.head_dim)).permute(2, 0, 3, 1, 4)
    out = reverse(attend(q, k, v).transpose(1, 2).flatten(2), used, case.batch, grid)
    out = out.roll(moved, dims=(1, 2, 3)) if any(moved) else out
    return out[:, : case.size[0], : case.size[1], : case.size[2]]


Attention = Callable[[Tensor, Tensor], Tensor]


def _in_pytorch(case: Case, device: str, fused: bool) -> Attention:
    """Build attention with bias and mask tensors, added to the scores (as MONAI does) or ``fused`` by PyTorch.

    Index and mask are computed once.
    """
    used, moved = fit_window(case.size, case.window, case.shift)
    code = position_codes_N(case.window, used)
    index = (code[:, None] - code[None, :] + middle_row(case.window)).to(device)
    forbidden = None
    if any(moved):
        region = regions_nN(padded_grid(case.size, used), used, moved)
        forbidden = (region[:, None, :, None] != region[:, None, None, :]).to(device).repeat(case.batch, 1, 1, 1)

    def run(qkv: Tensor, table: Tensor) -> Tensor:
        bias = table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1).to(qkv.dtype)[None]

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if fused:
                mask = bias if forbidden is None else bias.masked_fill(forbidden, torch.finfo(q.dtype).min)
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            scores = (q * case.head_dim**-0.5) @ k.transpose(-1, -2) + bias
            if forbidden is not None:
                scores = scores.masked_fill(forbidden, torch.finfo(q.dtype).min)
            return scores.softmax(-1) @ v

        return _windowed(case, qkv, attend)

    return run


def _flex(case: Case) -> Attention:
    """Build compiled FlexAttention that gathers the bias in its score function."""
    from torch.nn.attention.flex_attention import flex_attention

    used, moved = fit_window(case.size, case.window, case.shift)
    code = position_codes_N(case.window, used).cuda()
    region = regions_nN(padded_grid(case.size, used), used, moved).cuda()
    middle, windows = middle_row(case.window), len(region)
    compiled = torch.compile(flex_attention)

    def run(qkv: Tensor, table: Tensor) -> Tensor:
        def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            biased = s + table[code[i] - code[j] + middle, h]
            return torch.where(region[b % windows, i] == region[b % windows, j], biased, -float("inf"))

        return _windowed(case, qkv, lambda q, k, v: compiled(q, k, v, score_mod=score))

    return run


def _peers(case: Case, device: str) -> dict[str, Attention]:
    eager = _in_pytorch(case, device, fused=False)
    peers = {"eager": eager, "SDPA, expanded bias": _in_pytorch(case, device, fused=True)}
    if device == "cuda":
        peers |= {"torch.compile of eager": torch.compile(eager), "FlexAttention, compiled": _flex(case)}
    return peers | {"ours": lambda qkv, table: window_attention(qkv, table, case.window, case.shift)}


def run(case: Case, device: str) -> list[Measurement]:
    """Measure forward without gradients, then forward and backward."""
    torch.manual_seed(0)
    qkv = torch.randn(case.batch, *case.size, 3, case.heads, case.head_dim, device=device, dtype=case.dtype, requires_grad=True)
    table = torch.randn(bias_table_rows(case.window), case.heads, device=device, requires_grad=True)
    dout = torch.randn(case.batch, *case.size, case.heads * case.head_dim, device=device, dtype=case.dtype)

    def forward(op: Attention) -> Callable[[], object]:
        def call() -> object:
            with torch.no_grad():
                return op(qkv, table)

        return call

    def both(op: Attention) -> Callable[[], object]:
        def call() -> None:
            qkv.grad = table.grad = None
            op(qkv, table).backward(dout)

        return call

    peers = _peers(case, device)
    return [
        *measure(case.name, "forward", {name: forward(op) for name, op in peers.items()}, device),
        *measure(case.name, "forward + backward", {name: both(op) for name, op in peers.items()}, device),
    ]


def main() -> None:
    """Run all cases and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    device = parser.parse_args().device
    rows = [row for case in (CPU if device == "cpu" else CUDA) for row in run(case, device)]
    write(f"window_attention_{device}", rows)


if __name__ == "__main__":
    main()
