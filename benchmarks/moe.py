"""Mixture-of-experts layer, forward and backward, compared with transformers' loop, grouped products and (GPU) Liger-Kernel.

python -m benchmarks.moe --device cpu | cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeExperts

from benchmarks.harness import Measurement, measure, write
from kernels.moe_experts.cpu import experts_grouped
from kernels.moe_layer import moe
from kernels.moe_routing.autograd import route_op
from kernels.moe_routing.reference import route


@dataclass(frozen=True)
class Case:
    """Number of tokens and sizes of a layer."""

    tokens: int
    experts: int
    top_k: int
    hidden_size: int
    width: int
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """Name of the case in tables."""
        return (
            f"T{self.tokens} E{self.experts} K{self.top_k} H{self.hidden_size} I{self.width} "
            f"{str(self.dtype).removeprefix('torch.')}"
        )


CUDA = [
    Case(8192, 8, 2, 896, 4864, torch.bfloat16),
    Case(8192, 8, 2, 3584, 18944, torch.bfloat16),
    Case(8192, 128, 8, 2048, 768, torch.bfloat16),
    Case(8192, 64, 4, 1024, 512, torch.bfloat16),
]
CPU = [
    Case(2048, 8, 2, 512, 1024, torch.bfloat16),
    Case(2048, 8, 2, 896, 2432, torch.bfloat16),
    Case(2048, 8, 2, 512, 1024, torch.float32),
    Case(1024, 4, 2, 128, 256, torch.float32),
    Case(1024, 64, 4, 256, 256, torch.bfloat16),
]
Layer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _transformers(case: Case, implementation: str) -> Layer:
    """Build transformers' experts behind our float32 router, so that only the experts differ."""
    config = Qwen2MoeConfig(
        hidden_size=case.hidden_size,
        moe_intermediate_size=case.width,
        num_experts=case.experts,
        num_experts_per_tok=case.top_k,
        experts_implementation=implementation,  # type: ignore[call-arg]  # of the base class
    )
    with torch.device("meta"):
        experts = Qwen2MoeExperts(config)

    def run(hidden: Tensor, router: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        routing = route(hidden, router, case.top_k)
        parameters = {"gate_up_proj": gate_up, "down_proj": down}
        arguments = hidden, routing.experts_TK, routing.weights_TK.to(hidden.dtype)
        return torch.func.functional_call(experts, parameters, arguments)

    return run


def _grouped(case: Case) -> Layer:
    def run(hidden: Tensor, router: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        routing = route(hidden, router, case.top_k)
        return experts_grouped(hidden, routing.weights_TK, routing.experts_TK, gate_up, down)

    return run


def _liger(case: Case) -> Layer:
    from liger_kernel.ops.fused_moe import LigerFusedMoEFunction  # installed separately from a wheel; not a dependency

    def run(hidden: Tensor, router: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        routing = route(hidden, router, case.top_k)
        return LigerFusedMoEFunction.apply(hidden, gate_up, down, routing.experts_TK.int(), routing.weights_TK)

    return run


def _peers(case: Case, device: str) -> dict[str, Layer]:
    peers = {
        "transformers, eager loop": _transformers(case, "eager"),
        "transformers, grouped_mm": _transformers(case, "grouped_mm"),
        "sort + grouped_mm": _grouped(case),
    }
    if device == "cuda":
        try:
            peers["Liger-Kernel fused_moe"] = _liger(case)
        except ImportError as error:
            reason = str(error)

            def missing(*_: Tensor) -> Tensor:
                raise ImportError(reason)

            peers["Liger-Kernel fused_moe"] = missing
    else:
        del peers["sort + grouped_mm"]  # is our own implementation on a CPU

    def ours(hidden_TH: Tensor, router_weight_EH: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor) -> Tensor:
        return moe(hidden_TH, router_weight_EH, gate_up_E2IH, down_EHI, case.top_k).hidden_TH

    return peers | {"ours": ours}


def run(case: Case, device: str) -> list[Measurement]:
    """Measure forward without gradients, then forward and backward; on a GPU also router and sort alone."""
    torch.manual_seed(0)
    shapes = (
        (case.tokens, case.hidden_size),
        (case.experts, case.hidden_size),
        (case.experts, 2 * case.width, case.hidden_size),
        (case.experts, case.hidden_size, case.width),
    )
    inputs = [(torch.randn(shape, device=device) * shape[-1] ** -0.5).to(case.dtype).requires_grad_() for shape in shapes]
    dout = torch.randn(case.tokens, case.hidden_size, device=device, dtype=case.dtype)

    def forward(layer: Layer) -> Callable[[], object]:
        def call() -> object:
            with torch.no_grad():
                return layer(*inputs)

        return call

    def both(layer: Layer) -> Callable[[], object]:
        def call() -> None:
            for leaf in inputs:
                leaf.grad = None
            layer(*inputs).backward(dout)

        return call

    peers = _peers(case, device)
    rows = [
        *measure(case.name, "forward", {name: forward(layer) for name, layer in peers.items()}, device),
        *measure(case.name, "forward + backward", {name: both(layer) for name, layer in peers.items()}, device),
    ]
    return rows + _router(case, inputs) if device == "cuda" else rows


@torch.no_grad()
def _router(case: Case, inputs: list[Tensor]) -> list[Measurement]:
    hidden, router = inputs[:2]
    valid = torch.ones(case.tokens, dtype=torch.bool, device="cuda")

    def eager() -> object:
        routing = route(hidden, router, case.top_k)
        order = routing.experts_TK.flatten().argsort(stable=True)
        counts = torch.nn.functional.one_hot(routing.experts_TK, case.experts).sum((0, 1))
        balance = (counts * routing.probabilities_TE.mean(0)).sum()
        return order, counts, balance, routing.logits_TE.logsumexp(-1).square().mean()

    def ours() -> object:
        return route_op(hidden, router, None, valid, case.top_k, True, False)

    return measure(case.name, "router and sort", {"eager": eager, "ours": ours}, "cuda")


def main() -> None:
    """Run all cases and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    device = parser.parse_args().device
    rows = [row for case in (CPU if device == "cpu" else CUDA) for row in run(case, device)]
    write(f"moe_{device}", rows)


if __name__ == "__main__":
    main()
