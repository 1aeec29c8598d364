"""The mixture of experts is that of transformers' Qwen2-MoE; grouped products and the Triton kernels compute the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock, load_balancing_loss_func

from kernels.dispatch import interpreted
from kernels.moe_experts import cpu
from kernels.moe_experts.autograd import experts_op
from kernels.moe_experts.cpu import experts_grouped
from kernels.moe_experts.reference import experts_reference
from kernels.moe_layer import MoEOutput, balanced_bias, moe, moe_hidden, moe_reference
from kernels.moe_routing.autograd import route_op
from kernels.moe_routing.reference import route
from model_core.moe import SparseMoeBlock


def _config() -> Qwen2MoeConfig:
    return Qwen2MoeConfig(
        hidden_size=16,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        num_experts=5,
        num_experts_per_tok=2,
        norm_topk_prob=True,
    )


def test_a_block_equals_that_of_transformers() -> None:
    torch.manual_seed(0)
    theirs = Qwen2MoeSparseMoeBlock(_config())
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ours = SparseMoeBlock(_config())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 7, 16)
    hidden, routed = ours(x)
    torch.testing.assert_close(hidden, theirs(x), atol=1e-5, rtol=1e-5)
    logits = theirs.gate(x)[0]
    torch.testing.assert_close(routed.load_balance_loss, load_balancing_loss_func((logits,), 5, 2))
    torch.testing.assert_close(routed.z_loss, logits.logsumexp(-1).square().mean())


def test_padding_is_not_counted() -> None:
    torch.manual_seed(0)
    weights = torch.randn(4, 8), torch.randn(4, 12, 8), torch.randn(4, 8, 6)
    hidden = torch.randn(10, 8)
    valid = torch.arange(10) < 6
    masked, alone = moe(hidden, *weights, top_k=2, valid_T=valid), moe(hidden[:6], *weights, top_k=2)
    torch.testing.assert_close(masked.load_balance_loss, alone.load_balance_loss)
    torch.testing.assert_close(masked.z_loss, alone.z_loss)
    assert torch.equal(masked.counts_E, alone.counts_E)


def test_a_bias_influences_the_choice_but_not_the_weight() -> None:
    torch.manual_seed(0)
    hidden, router = torch.randn(6, 8), torch.randn(4, 8)
    plain = route(hidden, router, 1, norm_topk_prob=False)
    forced = route(hidden, router, 1, norm_topk_prob=False, expert_bias=torch.tensor([0.0, 0, 0, 10]))
    assert (forced.experts_TK == 3).all()
    torch.testing.assert_close(forced.weights_TK[:, 0], plain.probabilities_TE[:, 3])


def test_the_bias_rises_for_idle_experts_until_the_load_is_balanced() -> None:
    torch.manual_seed(0)
    hidden, router, bias = torch.randn(512, 8) + 1, torch.randn(6, 8), torch.zeros(6)
    loads = []
    for _ in range(300):
        chosen = route(hidden, router, 2, scoring="sigmoid", expert_bias=bias).experts_TK
        loads.append(chosen.flatten().bincount(minlength=6))
        bias = balanced_bias(bias, loads[-1], rate=5e-3)
    mean = 512 * 2 / 6
    assert loads[0].max() > 1.5 * mean
    assert loads[-1].max() < 1.1 * mean


def _grouped_and_reference() -> list[Any]:
    return [pytest.param(experts_reference, id="reference"), pytest.param(experts_grouped, id="grouped")]


@pytest.mark.parametrize("experts_op", _grouped_and_reference())
def test_every_expert_gets_a_gradient_even_without_tokens(experts_op: Callable[..., Tensor]) -> None:
    gate_up, down = torch.randn(3, 8, 4, requires_grad=True), torch.randn(3, 4, 4, requires_grad=True)
    experts = torch.zeros(5, 1, dtype=torch.long)
    experts_op(torch.randn(5, 4), torch.ones(5, 1), experts, gate_up, down).sum().backward()
    assert gate_up.grad is not None and down.grad is not None
    assert gate_up.grad[0].abs().sum() > 0 and gate_up.grad[1:].abs().sum() == 0


@given(tokens=st.integers(1, 9), experts=st.integers(1, 7), data=st.data())
@settings(max_examples=30)
def test_it_is_the_sum_over_the_chosen_experts(tokens: int, experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, experts))
    torch.manual_seed(tokens * 100 + experts)
    x = torch.randn(tokens, 6, dtype=torch.float64)
    router = torch.randn(experts, 6, dtype=torch.float64)
    gate_up, down = torch.randn(experts, 8, 6, dtype=torch.float64), torch.randn(experts, 6, 4, dtype=torch.float64)
    routing = route(x, router, top_k)
    expected = torch.zeros_like(x)
    for t in range(tokens):
        for k in range(top_k):
            e = int(routing.experts_TK[t, k])
            gate, up = (gate_up[e] @ x[t]).chunk(2)
            expected[t] += float(routing.weights_TK[t, k]) * (down[e] @ (torch.nn.functional.silu(gate) * up))
    torch.testing.assert_close(moe(x, router, gate_up, down, top_k).hidden_TH, expected, atol=1e-6, rtol=1e-6)


def test_gradients_of_the_specification_pass_gradcheck() -> None:
    """In float64, of hidden states and experts; the router's own gradient is float32 by definition."""
    torch.manual_seed(0)
    x, weights = (
        torch.randn(5, 4, dtype=torch.float64, requires_grad=True),
        torch.rand(5, 2, dtype=torch.float64, requires_grad=True),
    )
    gate_up = torch.randn(3, 6, 4, dtype=torch.float64, requires_grad=True)
    down = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True)
    experts = torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0], [0, 1]])
    assert torch.autograd.gradcheck(lambda x, w, g, d: experts_reference(x, w, experts, g, d), (x, weights, gate_up, down))


def test_more_choices_than_experts_are_rejected() -> None:
    with pytest.raises(ValueError, match="top_k 3"):
        moe(torch.zeros(1, 2), torch.zeros(2, 2), torch.zeros(2, 4, 2), torch.zeros(2, 2, 2), top_k=3)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("router_weight", (3, 9)), ("gate_up", (2, 8, 8)), ("down", (3, 9, 4)), ("expert_bias", (2,)), ("valid", (4,))],
)
def test_inconsistent_sizes_are_rejected_by_name(name: str, shape: tuple[int, ...]) -> None:
    """A kernel would read foreign memory."""
    sizes = {"hidden": (5, 8), "router_weight": (3, 8), "gate_up": (3, 8, 8), "down": (3, 8, 4), "expert_bias": (3,), "valid": (5,)}
    hidden, router, gate_up, down, bias, valid = (torch.zeros(size) for size in (sizes | {name: shape}).values())
    with pytest.raises(ValueError, match=f"^{name} is"):
        moe(hidden, router, gate_up, down, 1, expert_bias=bias, valid_T=valid.bool())


def test_the_router_computes_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    hidden, router = torch.randn(64, 16), torch.randn(8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        under = route(hidden, router, 2).logits_TE
        out = moe(hidden, router, torch.randn(8, 16, 16), torch.randn(8, 16, 8), 2).hidden_TH
    torch.testing.assert_close(under, hidden @ router.t(), atol=1e-5, rtol=1e-5)
    assert out.dtype == torch.bfloat16


def _inputs(tokens: int, experts: int, hidden_size: int, width: int) -> list[Tensor]:
    torch.manual_seed(tokens + 100 * experts)
    shapes = (tokens, hidden_size), (experts, hidden_size), (experts, 2 * width, hidden_size), (experts, hidden_size, width)
    return [torch.randn(shape) * (0.3 if len(shape) == 3 else 1.0) for shape in shapes]


def _results(op: Callable[..., MoEOutput], inputs: list[Tensor], top_k: int, **options: Any) -> list[Tensor]:
    """Output, both losses, counts, and gradients of hidden states, router and experts."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = op(*leaves, top_k, **options)
    torch.manual_seed(1)
    ((out.hidden_TH * torch.randn_like(out.hidden_TH)).sum() + 3 * out.load_balance_loss + 0.5 * out.z_loss).backward()
    values = [out.hidden_TH, out.load_balance_loss, out.z_loss, out.counts_E, *(leaf.grad for leaf in leaves)]
    return [value.detach().float() for value in values if value is not None]


def _assert_close(ours: list[Tensor], expected: list[Tensor], bar: float = 1e-5) -> None:
    assert torch.equal(ours[3], expected[3])
    for x, y in zip(ours, expected, strict=True):
        assert (x - y).abs().max() <= bar * max(1.0, float(y.abs().max())), ((x - y).abs().max(), y.abs().max())


@given(experts=st.integers(1, 6), tokens=st.integers(1, 40), data=st.data())
@settings(max_examples=20)
def test_grouped_products_equal_the_specification(experts: int, tokens: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, experts))
    inputs = _inputs(tokens, experts, 8, 12)
    with patch.object(cpu, "GROUPED_EXPERTS", 0):
        ours = _results(moe, inputs, top_k)
    _assert_close(ours, _results(moe_reference, inputs, top_k))


@given(experts=st.integers(1, 6), tokens=st.integers(1, 20), small=st.booleans(), data=st.data())
@settings(max_examples=20)
def test_a_generation_step_equals_the_specification(experts: int, tokens: int, small: bool, data: st.DataObject) -> None:
    """One token, few tokens through all experts, and more than few."""
    top_k = data.draw(st.integers(1, experts))
    inputs = _inputs(tokens, experts, 8, 12)
    with torch.no_grad(), patch.object(cpu, "SMALL_EXPERTS", cpu.SMALL_EXPERTS if small else 0):
        torch.testing.assert_close(moe_hidden(*inputs, top_k), moe_reference(*inputs, top_k).hidden_TH, atol=1e-5, rtol=1e-5)


def test_the_grouped_operator_of_a_traced_graph_passes_opcheck_and_gradcheck() -> None:
    """Shapes for tracing, and gradients, equal those of the loop that runs, also for an expert without rows."""
    rows, weight = (
        torch.randn(7, 6, dtype=torch.float64, requires_grad=True),
        torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True),
    )
    ends = torch.tensor([4, 4, 7], dtype=torch.int32)
    torch.library.opcheck(cpu.grouped_op, (rows, weight, ends))
    assert torch.autograd.gradcheck(lambda *x: cpu.grouped_op(*x, ends), (rows, weight))


@given(
    tokens=st.integers(1, 40),
    experts=st.sampled_from([1, 2, 5, 8, 17]),
    norm=st.booleans(),
    scoring=st.sampled_from(["softmax", "sigmoid"]),
    biased=st.booleans(),
    masked=st.booleans(),
    sizes=st.sampled_from([(16, 8), (20, 12), (33, 17)]),
    data=st.data(),
)
@settings(max_examples=10)
def test_the_triton_kernels_equal_the_specification(
    tokens: int, experts: int, norm: bool, scoring: str, biased: bool, masked: bool, sizes: tuple[int, int], data: st.DataObject
) -> None:
    """Any number of tokens and experts (prime, one, idle ones, K = E), both scorings, with and without padding."""
    top_k = data.draw(st.integers(1, min(experts, 5)))
    inputs = _inputs(tokens, experts, *sizes)
    options: dict[str, Any] = {"norm_topk_prob": norm, "scoring": scoring}
    options["expert_bias"] = torch.randn(experts) if biased else None
    options["valid_T"] = torch.arange(tokens) % 3 != 1 if masked else None
    with interpreted():
        ours = _results(moe, inputs, top_k, **options)
    _assert_close(ours, _results(moe_reference, inputs, top_k, **options))


@pytest.mark.parametrize("on_triton", [False, True], ids=["cpu", "triton"])
def test_no_tokens_give_no_output_and_zero_gradients(on_triton: bool) -> None:
    with interpreted() if on_triton else contextlib.nullcontext():
        results = _results(moe, _inputs(0, 3, 16, 8), 2)
    assert results[0].shape == (0, 16)
    assert all(gradient.abs().sum() == 0 for gradient in results[4:])


def test_a_strided_mask_equals_its_copy() -> None:
    inputs = _inputs(6, 4, 16, 8)
    strided = (torch.arange(24) % 3 != 1).view(6, 4)[:, 1]
    with interpreted():
        ours = _results(moe, inputs, 2, valid_T=strided)
    _assert_close(ours, _results(moe_reference, inputs, 2, valid_T=strided.clone()))


@pytest.mark.parametrize("grouped", [False, True], ids=["loop", "grouped"])
def test_the_layer_is_deterministic(grouped: bool) -> None:
    """Many tokens with four choices each: a gather with repeated rows would sum their gradients in any order."""
    inputs = _inputs(512, 16, 64, 32)
    with patch.object(cpu, "GROUPED_EXPERTS", 16 if grouped else 64):
        runs = [_results(moe, inputs, 4) for _ in range(5)]
    assert all(torch.equal(x, y) for run in runs[1:] for x, y in zip(run, runs[0], strict=True))


def test_the_triton_kernels_in_half_precision() -> None:
    inputs = [x.half() for x in _inputs(24, 4, 16, 24)]
    expected = _results(moe_reference, [x.float() for x in inputs], 2)
    with interpreted():
        ours = _results(moe, inputs, 2)
    for x, y, bar in zip(ours, expected, [5e-3] * 4 + [8e-3] * 4, strict=True):
        assert (x - y).norm() <= bar * y.norm()


@given(tokens=st.integers(1, 100), experts=st.integers(1, 9), data=st.data())
@settings(max_examples=10)
def test_the_sort_is_stable_and_a_permutation(tokens: int, experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, min(experts, 4)))
    hidden, router, *_ = _inputs(tokens, experts, 16, 8)
    with interpreted():
        _, _, _, chosen, order, place, ends, counts, _ = route_op(
            hidden, router, None, torch.ones(tokens, dtype=torch.bool), top_k, True, False
        )
    expected = chosen.flatten().argsort(stable=True)
    assert torch.equal(order.long(), expected)
    assert torch.equal(place.flatten().long()[expected], torch.arange(tokens * top_k))
    assert torch.equal(ends.long(), chosen.flatten().bincount(minlength=experts).cumsum(0))
    assert torch.equal(counts, chosen.flatten().bincount(minlength=experts))


def test_a_token_with_nan_affects_only_itself() -> None:
    """Its row is NaN, so that the loss guard sees it; the sort stays a permutation."""
    inputs = _inputs(12, 4, 16, 8)
    inputs[0][3] = torch.nan
    with interpreted():
        out = moe(*inputs, top_k=2).hidden_TH
    assert out[3].isnan().all()
    others = torch.arange(12) != 3
    torch.testing.assert_close(out[others], moe_reference(*inputs, top_k=2).hidden_TH[others], atol=1e-5, rtol=1e-5)


def test_excluded_experts_keep_the_sort_a_permutation() -> None:
    """Fewer experts than choices have a finite preference: none is chosen twice."""
    hidden, router, *_ = _inputs(10, 4, 16, 8)
    bias = torch.tensor([0.0, -torch.inf, -torch.inf, -torch.inf])
    with interpreted():
        _, _, _, chosen, order, *_ = route_op(hidden, router, bias, torch.ones(10, dtype=torch.bool), 2, True, False)
    assert (chosen[:, 0] == 0).all() and (chosen[:, 1] != 0).all()
    assert torch.equal(order.long(), chosen.flatten().argsort(stable=True))


def test_a_loss_of_the_router_alone_has_gradients() -> None:
    inputs = _inputs(9, 4, 16, 8)
    gradients = []
    for op, context in ((moe, interpreted()), (moe_reference, contextlib.nullcontext())):
        leaves = [x.clone().requires_grad_() for x in inputs]
        with context:
            op(*leaves, 2).z_loss.backward()
        gradients.append(leaves[:2])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, atol=1e-6, rtol=1e-5)


def test_a_layer_supports_activation_checkpointing() -> None:
    """Activation checkpointing gives what was saved out a single time."""
    inputs = _inputs(9, 4, 16, 8)
    gradients = []
    for again in (False, True):
        leaves = [x.clone().requires_grad_() for x in inputs]
        with interpreted():
            out = checkpoint(moe, *leaves, 2, use_reentrant=False) if again else moe(*leaves, 2)
            (out.hidden_TH.sum() + out.load_balance_loss + out.z_loss).backward()
        gradients.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(ours, expected) for ours, expected in zip(*gradients, strict=True))


def test_mixed_dtypes_are_rejected() -> None:
    hidden, *weights = _inputs(4, 2, 16, 8)
    with interpreted(), pytest.raises(ValueError, match="cast them"):
        moe(hidden.half(), *weights, top_k=1)


def test_the_operators_pass_opcheck() -> None:
    hidden, router, gate_up, down = (x.requires_grad_() for x in _inputs(9, 3, 16, 8))
    valid = torch.ones(9, dtype=torch.bool)
    with interpreted():
        weights, _, _, _, order, place, ends, _, _ = route_op(hidden, router, None, valid, 2, True, False)
        torch.library.opcheck(route_op, (hidden, router, None, valid, 2, True, False))
        torch.library.opcheck(experts_op, (hidden, weights.detach().requires_grad_(), gate_up, down, order, place, ends))


def test_only_the_pre_activations_of_the_experts_are_saved() -> None:
    """Beside inputs and the sort: (S, 2 I) numbers; neither the activations nor the inputs and outputs of the experts."""
    tokens, experts, top_k, hidden_size, width = 16, 4, 2, 16, 24
    inputs = [x.requires_grad_() for x in _inputs(tokens, experts, hidden_size, width)]
    saved: dict[int, int] = {}
    with (
        interpreted(),
        torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.update({x.data_ptr(): x.numel()}), x)[1], lambda x: x),
    ):
        moe(*inputs, top_k=top_k)
    own = sum(count for pointer, count in saved.items() if pointer not in {x.data_ptr() for x in inputs})
    sort = tokens * top_k * 3 + experts + tokens * top_k
    router = tokens + tokens * top_k + experts + tokens * experts
    assert own <= tokens * top_k * 2 * width + sort + router
