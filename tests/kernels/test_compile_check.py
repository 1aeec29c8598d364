"""Every Triton kernel in every configuration compiles for real GPUs, without one, and fits them."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.gpu.compile_check import SPILL_BUDGET, TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_fits(target: str, tmp_path: Path) -> None:
    """In a process of its own: the interpreter of the other tests and the compiler exclude each other."""
    table = tmp_path / "compiled.csv"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels.gpu.compile_check", "--targets", target, "--output", str(table)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, "\n".join(line for line in done.stdout.splitlines() if "<--" in line) + done.stderr[-2000:]
    with table.open() as file:
        rows = list(csv.DictReader(file))
    kernels = {row["kernel"] for row in rows}
    assert len(kernels) == 14 and len(rows) > 120
    assert all(int(row["registers"]) > 0 for row in rows)
    assert all(row["spills"] == "0" for row in rows if "backward" not in row["kernel"])
    assert max(int(row["spills"]) for row in rows) <= SPILL_BUDGET["backward"]
