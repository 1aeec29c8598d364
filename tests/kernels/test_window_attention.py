"""Window attention is MONAI's, padded and shifted, without its window tensors in the interface."""

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinTransformerBlock, compute_mask

from kernels.window_attention import window_attention
from kernels.windows import bias_table_rows
from model_core.swin import SwinBlock


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("grid", [(4, 8, 8), (4, 7, 10)], ids=["fits", "padded"])
def test_a_block_is_that_of_monai(grid: tuple[int, int, int], shifted: bool) -> None:
    """Same weights, same numbers. MONAI pads with zeros *before* the qkv projection, which is our ``pad_qkv``."""
    torch.manual_seed(0)
    window, heads, width = (2, 4, 4), 2, 8
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


def test_gradients_are_right() -> None:
    qkv = torch.randn(1, 2, 3, 4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    table = torch.randn(bias_table_rows((2, 2, 2)), 2, dtype=torch.float64, requires_grad=True)
    pad = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, t, p: window_attention(q, t, (2, 2, 2), (1, 1, 1), p), (qkv, table, pad))


def test_a_window_larger_than_the_grid_is_plain_attention() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, 1, 3, 3, 3, 2, 4)
    table = torch.zeros(bias_table_rows((4, 6, 6)), 2)
    q, k, v = qkv.flatten(1, 3).permute(2, 0, 3, 1, 4)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).view(2, 1, 3, 3, 8)
    torch.testing.assert_close(window_attention(qkv, table, (4, 6, 6), (2, 3, 3)), expected)


def test_a_table_of_another_window_is_refused() -> None:
    with pytest.raises(ValueError, match="needs"):
        window_attention(torch.zeros(1, 1, 4, 4, 3, 2, 4), torch.zeros(5, 2), (1, 4, 4), (0, 0, 0))
