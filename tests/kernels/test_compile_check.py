"""Every Triton kernel in every configuration compiles for real GPUs, without one, and fits them."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.provenance import REPOSITORY
from kernels.compile_check import SELECTIONS, SPILL_BUDGET, TARGETS, cases

TABLE = REPOSITORY / "benchmarks" / "results" / "compiled.csv"
STALE = "the committed table is of other kernels or another Triton: make kernels-table"

Rows = list[dict[str, str]]


def _rows(path: Path) -> Rows:
    with path.open() as file:
        return list(csv.DictReader(file))


def _configurations(rows: Rows) -> set[tuple[str, str]]:
    return {(row["kernel"], row["config"]) for row in rows}


@pytest.fixture(scope="module")
def committed() -> Rows:
    return _rows(TABLE)


def _compile(target: str, selection: str, table: Path) -> Rows:
    """Compile in a process of its own: the interpreter of the other tests and the compiler exclude each other."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels.compile_check", "--select", selection, "--targets", target, "--output", str(table)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1000)
    assert done.returncode == 0, "\n".join(line for line in done.stdout.splitlines() if "<--" in line) + done.stderr[-2000:]
    return _rows(table)


def test_every_kernel_compiles_as_in_the_committed_table(committed: Rows, tmp_path: Path) -> None:
    rows = _compile("sm_90", "every_kernel", tmp_path / "compiled.csv")
    assert {row["kernel"] for row in rows} == {row["kernel"] for row in committed}
    assert rows == [row for row in committed if row["target"] == "sm_90" and row["case"] in SELECTIONS["every_kernel"]], STALE


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_in_every_configuration(target: str, committed: Rows, tmp_path: Path) -> None:
    """Also for AMD, and with the largest experts, which take a minute of a core."""
    rows = _compile(target, "every_configuration", tmp_path / "compiled.csv")
    known = [row for row in committed if row["target"] == target]
    assert _configurations(rows) == _configurations(known), STALE
    assert rows == [row for row in known if row["case"] in SELECTIONS["every_configuration"]], STALE


def test_the_committed_table_has_every_case_and_keeps_the_budgets(committed: Rows) -> None:
    assert {(row["target"], row["case"]) for row in committed} == {(target, case.name) for target in TARGETS for case in cases()}
    assert len({row["kernel"] for row in committed}) == 16
    assert all(int(row["registers"]) > 0 for row in committed)
    assert all(row["spills"] == "0" for row in committed if "backward" not in row["kernel"])
    assert max(int(row["spills"]) for row in committed) <= SPILL_BUDGET["backward"]
