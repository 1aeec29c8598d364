"""Time callables against each other, and write measurements, machine and versions as CSV and a plot."""

from __future__ import annotations

import csv
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Measurement:
    """Measurement of one operation of one peer.

    Times are in milliseconds (median, 20th and 80th percentile), memory is in MiB in addition to the inputs. ``note`` gives the
    reason if there is no time.
    """

    case: str
    direction: str
    peer: str
    median_ms: float | None
    p20_ms: float | None
    p80_ms: float | None
    peak_mib: float | None
    note: str
    machine: str
    versions: str


def machine(device: str) -> str:
    """Return the name of the GPU, or the CPU model and the number of threads."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {torch.get_num_threads()} threads"


def versions() -> str:
    """Return the versions of PyTorch and Triton."""
    import triton

    return f"torch {torch.__version__}, triton {triton.__version__}"


def measure(
    case: str, direction: str, peers: Mapping[str, Callable[[], object]], device: str, repeats: int = 15
) -> list[Measurement]:
    """Time the peers: on a CPU in turns, so that a load peak affects all; on a GPU by events. A failing peer gets a note."""
    working: dict[str, Callable[[], object]] = {}
    notes = dict.fromkeys(peers, "")
    for name, call in peers.items():
        try:
            call(), call()
            working[name] = call
        except Exception as error:  # a peer that does not support the case is a result, not a crash
            notes[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    times = _time_on_gpu(working) if device == "cuda" else _time_on_cpu(working, repeats)
    rows = []
    for name in peers:
        median, p20, p80 = times.get(name, (None, None, None))
        memory = _measure_peak_mib(working[name]) if device == "cuda" and name in working else None
        rows.append(Measurement(case, direction, name, median, p20, p80, memory, notes[name], machine(device), versions()))
        print(f"{case:44s} {direction:18s} {name:28s} " + (notes[name] or f"{median:9.3f} ms  ({p20:.3f} - {p80:.3f})"), flush=True)
    return rows


def _time_on_cpu(peers: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float, float]]:
    samples: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(repeats):
        for name, call in peers.items():
            start = time.perf_counter()
            call()
            samples[name].append((time.perf_counter() - start) * 1e3)
    deciles = {name: statistics.quantiles(values, n=10) for name, values in samples.items()}
    return {name: (statistics.median(values), deciles[name][1], deciles[name][7]) for name, values in samples.items()}


def _time_on_gpu(peers: Mapping[str, Callable[[], object]]) -> dict[str, tuple[float, float, float]]:
    from triton.testing import do_bench

    return {name: tuple(do_bench(call, warmup=50, rep=200, quantiles=[0.5, 0.2, 0.8])) for name, call in peers.items()}


def _measure_peak_mib(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    allocated = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - allocated) / 2**20


def write_rows(name: str, rows: Iterable[Mapping[str, object]], library_versions: str, device: str = "cpu") -> None:
    """Write ``results/<name>.csv``: rows with equal columns, followed by the machine and the library versions."""
    described = [{**row, "machine": machine(device), "versions": library_versions} for row in rows]
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(described[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(described)


def write(name: str, rows: Iterable[Measurement]) -> None:
    """Write ``results/<name>.csv``, and ``.png`` with the speed of every peer by case, relative to the first peer."""
    rows = list(rows)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Measurement)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    _plot(name, rows)


def _plot(name: str, rows: list[Measurement]) -> None:
    directions = list(dict.fromkeys(row.direction for row in rows))
    figure, axes = plt.subplots(1, len(directions), figsize=(6.5 * len(directions), 4.5), squeeze=False, layout="constrained")
    for axis, direction in zip(axes[0], directions, strict=True):
        selected = [row for row in rows if row.direction == direction]
        cases, peers = (list(dict.fromkeys(getattr(row, key) for row in selected)) for key in ("case", "peer"))
        times = {(row.case, row.peer): row.median_ms for row in selected}
        for index, peer in enumerate(peers):
            speedup = [(times[case, peers[0]] or 0) / (times.get((case, peer)) or float("inf")) for case in cases]
            axis.barh(
                [position + index * 0.8 / len(peers) for position in range(len(cases))],
                speedup,
                height=0.8 / len(peers),
                label=peer,
            )
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_yticks([position + 0.4 for position in range(len(cases))], cases, fontsize=8)
        axis.invert_yaxis()
        axis.set_xlabel(f"times as fast as {peers[0]}")
        axis.set_title(direction)
        axis.legend(fontsize=8)
    figure.suptitle(f"{rows[0].machine} · {rows[0].versions}", fontsize=9)
    figure.savefig(RESULTS / f"{name}.png", dpi=110, metadata={"Software": None})
    plt.close(figure)
