"""Training steps of the demo's stage 4 alone and beside one busy process, with several settings of OpenMP's threads.

    python -m benchmarks.under_load [--corpus .omnimri/curated] [--rounds 3]

Every setting is a process of its own that stays while the settings take turns, so that a load peak of the machine affects all. The
competitor is an endless loop in Python. Measured are four steps of eight instructions.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import versions, write_rows
from components.curation.corpus import Corpus

SETTINGS: dict[str, dict[str, str]] = {
    "two threads that spin (OpenMP's default)": {},
    "two threads that sleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "two threads, 100 spins": {"GOMP_SPINCOUNT": "100"},
    "two threads, 300 spins": {"GOMP_SPINCOUNT": "300"},
    "two threads, 1,000 spins": {"GOMP_SPINCOUNT": "1000"},
    "two threads, 10,000 spins": {"GOMP_SPINCOUNT": "10000"},
    "two threads that sleep, each on a core of its own": {"OMP_WAIT_POLICY": "PASSIVE", "OMP_PROC_BIND": "true"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
COMPETITOR = "while True: pass"


class Worker:
    """A process with one setting that takes steps when it is asked to."""

    def __init__(self, setting: dict[str, str], corpus: Path) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}
        command = [sys.executable, "-m", "benchmarks.under_load", "--worker", "--corpus", str(corpus)]
        self._process = subprocess.Popen(
            command, env={**inherited, **setting}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.steps()

    def steps(self) -> tuple[float, float]:
        """Return the wall and CPU time of the steps, seconds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        wall, cpu = self._process.stdout.readline().split()
        return float(wall), float(cpu)

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()


def serve(corpus: Path) -> None:
    """Take steps for each line of standard input and print their wall and CPU time."""
    from benchmarks.training_step import instruction_steps

    steps = instruction_steps(Corpus.open(corpus))
    for _ in sys.stdin:
        started, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        steps()
        now = resource.getrusage(resource.RUSAGE_SELF)
        used = now.ru_utime - cpu.ru_utime + now.ru_stime - cpu.ru_stime
        print(time.perf_counter() - started, used, flush=True)


def measure(workers: dict[str, Worker], rounds: int) -> list[dict[str, str]]:
    """Let the settings take turns, alone and beside the competitor, and return the rows of the table."""
    times: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for name, worker in workers.items():
            times.setdefault((name, False), []).append(worker.steps())
            competitor = subprocess.Popen([sys.executable, "-c", COMPETITOR])
            try:
                times.setdefault((name, True), []).append(worker.steps())
            finally:
                competitor.kill()
                competitor.wait()
    rows = []
    for name in workers:
        (alone, cpu_alone), (beside, cpu_beside) = (
            [statistics.median(column) for column in zip(*times[name, busy], strict=True)] for busy in (False, True)
        )
        row = {"setting": name, "alone_s": f"{alone:.2f}", "beside_s": f"{beside:.2f}", "times": f"{beside / alone:.2f}"}
        rows.append({**row, "cpu_alone_s": f"{cpu_alone:.2f}", "cpu_beside_s": f"{cpu_beside:.2f}", "rounds": str(rounds)})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and write ``results/under_load.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path(".omnimri/curated"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", action="store_true", help="take steps on request (used by the benchmark itself)")
    arguments = parser.parse_args()
    if arguments.worker:
        serve(arguments.corpus)
        return
    workers: dict[str, Worker] = {}
    try:
        for name, setting in SETTINGS.items():
            workers[name] = Worker(setting, arguments.corpus)
        rows = measure(workers, arguments.rounds)
    finally:
        for worker in workers.values():
            worker.stop()
    write_rows("under_load", rows, versions())


if __name__ == "__main__":
    main()
