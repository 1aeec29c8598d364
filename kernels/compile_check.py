"""Compile every kernel in every configuration for real GPUs on a machine without one, and read the resources of each.

The launchers themselves are run, on tensors without memory, with an observer that compiles instead of launching: what is checked
is what a GPU would be given. Spills come from the compiled code, shared memory from Triton's own account.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime.driver import driver

from kernels import triton_launch
from kernels.moe_experts import triton_backward as experts_backward
from kernels.moe_experts import triton_forward as experts_forward
from kernels.moe_routing import triton_backward as routing_backward
from kernels.moe_routing import triton_forward as routing_forward
from kernels.window_attention import triton_backward as window_backward
from kernels.window_attention import triton_forward as window_forward
from kernels.window_attention.geometry import bias_table_rows, geometry

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
"""Shared memory of a block, bytes (CUDA programming guide, table of compute capabilities; CDNA 3 ISA guide)."""
SPILL_BUDGET = {"forward": 0, "backward": 128}
"""Bytes of registers per thread that may be spilled."""


@dataclass(frozen=True)
class Case:
    """One call of an operation, forward and backward."""

    name: str
    run: Callable[[], None]


@dataclass(frozen=True)
class Row:
    """Resources of a compiled kernel: registers and spilled bytes per thread, shared memory per block (bytes)."""

    target: str
    case: str
    kernel: str
    config: str
    registers: int
    spills: int
    shared: int


def _window_case(
    name: str,
    size: tuple[int, int, int],
    side: tuple[int, int, int],
    shifted: bool,
    heads: int,
    head_dim: int,
    dtype: torch.dtype,
    batch: int = 2,
) -> Case:
    def run() -> None:
        shift = (side[0] // 2, side[1] // 2, side[2] // 2) if shifted else (0, 0, 0)
        where = geometry(size, side, shift, torch.device("cpu"))
        tokens = size[0] * size[1] * size[2]
        qkv = torch.empty(batch, tokens, 3, heads, head_dim, dtype=dtype, device="meta")
        table = torch.empty(bias_table_rows(side), heads, device="meta")
        pad = torch.empty(3, heads, head_dim, dtype=dtype, device="meta")
        out, lse = window_forward.forward(qkv, table, pad, where)
        window_backward.backward(out, qkv, table, pad, out, lse, where)

    return Case(f"window_attention {name} {str(dtype).removeprefix('torch.')}", run)


def _moe_case(
    tokens: int, experts: int, top_k: int, hidden_size: int, width: int, dtype: torch.dtype, sigmoid: bool = False
) -> Case:
    def run() -> None:
        def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        hidden, router = empty(tokens, hidden_size), empty(experts, hidden_size)
        gate_up, down = empty(experts, 2 * width, hidden_size), empty(experts, hidden_size, width)
        valid = empty(tokens, dtype=torch.bool)
        bias = empty(experts, dtype=torch.float32) if sigmoid else None
        routed = routing_forward.forward(hidden, router, bias, valid, top_k, True, sigmoid)
        number = empty(dtype=torch.float32)
        gradients = routed.probabilities_E, routed.weights_TK, number, number
        routing_backward.backward(
            routed.logits_TE, routed.experts_TK, valid, *gradients, normalised=True, sigmoid=sigmoid, dtype=dtype
        )
        sort = routed.order_S, routed.place_TK, routed.ends_E
        out, pre = experts_forward.forward(hidden, routed.weights_TK, gate_up, down, *sort)
        experts_backward.backward(out, hidden, routed.weights_TK, gate_up, down, *sort, pre)

    return Case(f"moe E{experts} K{top_k} H{hidden_size} I{width} {str(dtype).removeprefix('torch.')}", run)


SELECTIONS = {
    "every_kernel": (
        "window_attention 1x7x7 d32 shifted bfloat16",
        "window_attention 2x7x7 d32 shifted padded bfloat16",
        "window_attention 4x6x6 d16 shifted padded float32",
        "moe E4 K2 H128 I256 float32",
        "moe E4 K1 H64 I64 bfloat16",
    ),
    "every_configuration": (
        "window_attention 1x7x7 d32 shifted bfloat16",
        "window_attention 2x7x7 d32 shifted padded bfloat16",
        "window_attention 4x6x6 d16 shifted padded float32",
        "window_attention one window bfloat16",
        "moe E8 K2 H896 I4864 bfloat16",
        "moe E256 K8 H512 I256 bfloat16",
        "moe E4 K2 H128 I256 float32",
    ),
}
"""Cases that together launch every kernel, in float32 and bfloat16, and every kernel in every configuration."""


def cases() -> Iterator[Case]:
    """Yield the shapes of the benchmarks, and the documented head sizes and dtypes."""
    for dtype in (torch.bfloat16, torch.float32):
        yield _window_case("7x7x7 d32 shifted", (56, 56, 56), (7, 7, 7), True, 3, 32, dtype)
    yield _window_case("7x7x7 d32", (56, 56, 56), (7, 7, 7), False, 3, 32, torch.bfloat16)
    yield _window_case("8x8x8 d32 shifted", (64, 64, 64), (8, 8, 8), True, 3, 32, torch.bfloat16)
    yield _window_case("8x8x8 d64 shifted", (64, 64, 64), (8, 8, 8), True, 3, 64, torch.bfloat16)
    yield _window_case("7x7x7 d16 shifted padded", (48, 48, 48), (7, 7, 7), True, 3, 16, torch.bfloat16)
    yield _window_case("4x6x6 d16 shifted padded", (9, 32, 32), (4, 6, 6), True, 2, 16, torch.float32)
    yield _window_case("4x4x4 d32 shifted", (64, 64, 64), (4, 4, 4), True, 3, 32, torch.bfloat16)
    yield _window_case("1x7x7 d32 shifted", (1, 56, 56), (1, 7, 7), True, 3, 32, torch.bfloat16)
    yield _window_case("1x7x7 d32 shifted", (1, 56, 56), (1, 7, 7), True, 3, 32, torch.float32)
    yield _window_case("2x7x7 d32 shifted padded", (5, 30, 30), (2, 7, 7), True, 3, 32, torch.bfloat16)
    yield _moe_case(8192, 8, 2, 896, 4864, torch.bfloat16)
    yield _moe_case(8192, 128, 8, 2048, 768, torch.bfloat16, sigmoid=True)
    yield _moe_case(1024, 4, 2, 128, 256, torch.float32)
    yield _moe_case(512, 256, 8, 512, 256, torch.bfloat16, sigmoid=True)
    # Sizes of one, which Triton makes constants.
    yield _window_case("one window", (1, 4, 4), (1, 4, 4), False, 1, 16, torch.bfloat16, batch=1)
    yield _moe_case(1, 4, 1, 64, 64, torch.bfloat16)


class _NoDevice:
    """Replacement for the driver of a GPU that Triton expects."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return list(TARGETS.values()).index(self._target)  # Triton keeps what it compiled by device

    def get_current_stream(self, _device: int) -> int:
        return 0


def compile_case(target: str, case: Case) -> list[Row]:
    """Compile all kernels that one case launches."""
    rows: dict[Row, None] = {}

    def compiled(
        kernel: Any, grid: Any, configs: Sequence[triton.Config], arguments: Mapping[str, Any], constants: Mapping[str, Any]
    ) -> None:
        for config in triton_launch.for_amd(configs) if target == "gfx942" else configs:
            options = triton_launch.launch_options(config)
            result = kernel.warmup(**arguments, **constants, **options, grid=(1,))
            registers, spills = _amd_usage(result) if target == "gfx942" else _nvidia_usage(result, TARGETS[target].arch)
            text = " ".join(f"{name}={value}" for name, value in options.items())
            rows[Row(target, case.name, kernel.fn.__name__, text, registers, spills, result.metadata.shared)] = None

    driver.set_active(_NoDevice(TARGETS[target]))
    triton_launch.observe(compiled)
    try:
        case.run()
    finally:
        triton_launch.observe(None)
    return list(rows)


def _nvidia_usage(compiled: Any, arch: int) -> tuple[int, int]:
    """Return registers and spills from the cubin; if there is a stack, the assembler reports how much of it is spills."""
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _output([tools / "cuobjdump", "-res-usage", cubin])
        registers, stack = (int(number) for number in _search(r"REG:(\d+) STACK:(\d+)", usage).groups())
        if not stack:
            return registers, 0
        ptx = Path(folder, "kernel.ptx")
        ptx.write_text(compiled.asm["ptx"])
        architecture = _search(r"\.target (\w+)", compiled.asm["ptx"])[1]
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={architecture}", ptx, "-o", Path(folder, "again.cubin")]
        report = _output(command)
        return registers, int(_search(r"(\d+) bytes spill stores", report)[1])


def _output(command: list[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _search(pattern: str, text: str) -> re.Match[str]:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"no {pattern!r} in {text[:200]!r}")
    return found


def _amd_usage(compiled: Any) -> tuple[int, int]:
    registers, spills = (_search(rf"\.{name}:\s+(\d+)", compiled.asm["amdgcn"])[1] for name in ("vgpr_count", "vgpr_spill_count"))
    return int(registers), 4 * int(spills)


def faults(row: Row) -> list[str]:
    """Return a description of each limit that a compiled kernel exceeds."""
    found = []
    budget = SPILL_BUDGET["backward" if "backward" in row.kernel else "forward"]
    if row.spills > budget:
        found.append(f"spills {row.spills} bytes (budget {budget})")
    if row.shared > SHARED_LIMIT[row.target]:
        found.append(f"needs {row.shared} bytes of shared memory (the device has {SHARED_LIMIT[row.target]})")
    return found


def _job(target: str, index: int) -> list[Row]:
    return compile_case(target, list(cases())[index])


def main() -> int:
    """Compile, print and write the table, and report what exceeds its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--select", choices=SELECTIONS, help="fewer cases, which still launch every kernel or every configuration")
    parser.add_argument("--output", type=Path, help="CSV file")
    parser.add_argument("--processes", type=int, default=None)
    options = parser.parse_args()
    chosen = [index for index, case in enumerate(cases()) if options.match in case.name]
    if options.select:
        chosen = [index for index, case in enumerate(cases()) if index in chosen and case.name in SELECTIONS[options.select]]
    jobs = [(target, index) for target in options.targets for index in chosen]
    with ProcessPoolExecutor(options.processes) as pool:
        rows = [row for result in pool.map(_job, *zip(*jobs, strict=True)) for row in result]
    for row in rows:
        print(*asdict(row).values(), "  <-- " + "; ".join(faults(row)) if faults(row) else "", sep="\t")
    if options.output:
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
    return int(any(faults(row) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
