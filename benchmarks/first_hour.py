"""Where the time of a user's first hour goes: every first command, split into imports, server start, data and compute.

    python -m benchmarks.first_hour [--profile debug] [--repeats 3] [--home FOLDER]

Measured are ``--help``, ``doctor``, a first run, the same run again, and ``predict`` of each task on the 189 slices of the ICBM152
brain. Each command is a process of its own; its wall time includes the start of Python, its CPU time that of its children.
``--home`` takes the predictions from the staging version of an existing home (of a demo, for example) instead of the version that
the run has made, and leaves out the runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import versions, write_rows
from benchmarks.orchestration import environment
from benchmarks.serving import QUESTIONS
from components.catalog import load_card
from components.provenance import git_commit
from components.samples import build_sample

COLUMNS = ("imports", "server", "data", "model", "training", "evaluation", "registration")
BRAIN = "icbm152-2009"
Times = dict[str, float]


class Commands:
    """Runs commands in folders of their own and keeps their times.

    Attributes:
        rows: of the table, in the order of the measurements.
    """

    def __init__(self, root: Path, variables: dict[str, str], profile: str) -> None:
        self.root, self.variables, self.profile = root, variables, profile
        self.rows: list[dict[str, str]] = []

    def measure(self, name: str, words: list[str], repeats: int) -> str:
        """Run a command several times, add a row with the medians, and return the standard output of the last run."""
        runs: list[Times] = []
        output = ""
        for _ in range(repeats):
            seconds, output = self._run(words)
            runs.append(seconds)
        self.rows.append(self._row(name, runs))
        print({key: value for key, value in self.rows[-1].items() if value}, flush=True)
        return output

    def _run(self, words: list[str]) -> tuple[Times, str]:
        phases = self.root / "phases.json"
        started, cpu = time.perf_counter(), _cpu_of_children()
        command = [sys.executable, "-m", "benchmarks.phases", str(phases), *words]
        done = subprocess.run(command, env=self.variables, capture_output=True, text=True)
        total = time.perf_counter() - started
        if done.returncode not in (0, 1):  # 1: a gate refuses the model of a few steps
            raise SystemExit(f"{' '.join(words)}: {done.stderr[-2000:]}")
        return {**json.loads(phases.read_text()), "total": total, "cpu": _cpu_of_children() - cpu}, done.stdout

    def _row(self, name: str, runs: list[Times]) -> dict[str, str]:
        def median(column: str) -> str:
            return f"{statistics.median(run.get(column, 0.0) for run in runs):.2f}"

        known = {f"{column}_s": median(column) for column in COLUMNS if any(column in run for run in runs)}
        rest = statistics.median(run["total"] - sum(run.get(column, 0.0) for column in COLUMNS) for run in runs)
        return {
            "commit": git_commit()[:7],
            "command": name,
            "profile": self.profile,
            "total_s": median("total"),
            **{f"{column}_s": known.get(f"{column}_s", "") for column in COLUMNS},
            "rest_s": f"{rest:.2f}",
            "cpu_s": median("cpu"),
            "repeats": str(len(runs)),
        }


def _cpu_of_children() -> float:
    """Return the CPU time of all processes that this one has started and waited for, seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def brain_file(folder: Path) -> Path:
    """Write the ICBM152 brain as its archive has it, and return its T1, 189 slices of 233 x 197 pixels."""
    build_sample(load_card(BRAIN), folder, None)
    return next(folder.rglob("*t1_tal_nlin*.nii*"))


def measure_predictions(commands: Commands, image: Path, repeats: int) -> None:
    """Measure an answer of each task about the brain; the row names the task that the model answered."""
    for task, question in QUESTIONS.items():
        words = ["predict", str(image), question, "--out", str(commands.root / "out"), "--json"]
        output = commands.measure(f"predict, {task}", words, repeats)
        answered = json.loads(output)["task"]
        if answered != task:
            commands.rows[-1]["command"] += f" (answered as {answered})"


def main() -> None:
    """Measure and write ``results/first_hour_PROFILE.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="debug")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--output", help="name of the CSV; default first_hour_PROFILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="omnimri-first-hour-") as folder:
        root = Path(folder)
        variables = environment(root, None)
        if arguments.home is not None:
            variables["OMNIMRI_HOME"] = str(arguments.home.resolve())
        commands = Commands(root, variables, arguments.profile)
        commands.measure("--help", ["--help"], arguments.repeats)
        commands.measure("doctor", ["doctor"], arguments.repeats)
        if arguments.home is None:
            run = ["run", "--profile", arguments.profile, "--json"]
            commands.measure("run, first", run, 1)
            commands.measure("run, unchanged", run, arguments.repeats)
        measure_predictions(commands, brain_file(root / "brain"), arguments.repeats)
    write_rows(arguments.output or f"first_hour_{arguments.profile}", commands.rows, versions())


if __name__ == "__main__":
    main()
