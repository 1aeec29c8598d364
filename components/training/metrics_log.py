"""Metrics of every step, in the stage's folder: the source of what the tracking server receives, independent of its outages."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from components.files import atomic_file, read_lines
from components.training.cost import peak_flops
from components.training.engine import StepResult
from components.training.trained_stage import METRICS

EXPERT_LOAD = "expert_load.jsonl"


@dataclass
class MetricsLog:
    """Losses and throughput by step, and the experts' load between checkpoints.

    The files are written before the checkpoint of their steps is published.

    Args:
        folder: The stage's folder.
        precision: Precision whose peak the throughput is compared with.
        world_size: Number of processes.
    """

    folder: Path
    precision: str = "float32"
    world_size: int = 1
    points: list[dict[str, Any]] = field(default_factory=list)
    loads: list[dict[str, Any]] = field(default_factory=list)
    written: int = 0
    _load: torch.Tensor | None = None

    @classmethod
    def resume(cls, folder: Path, steps: int, precision: str = "float32", world_size: int = 1) -> MetricsLog:
        """Load metrics up to the resumed checkpoint, of ``steps`` finished steps; discard later points."""
        log = cls(folder, precision, world_size)
        log.points = [point for point in read_lines(folder / METRICS) if point["step"] < steps]
        log.written = len(log.points)
        log.loads = [load for load in read_lines(folder / EXPERT_LOAD) if load["step"] <= steps]
        return log

    @property
    def saved_points(self) -> list[dict[str, Any]]:
        """Points on disk: those of a checkpoint, not of steps that may be undone."""
        return self.points[: self.written]

    @property
    def losses(self) -> list[float]:
        """Loss of every step."""
        return [point["loss"] for point in self.points]

    def add(self, step: int, result: StepResult, waited_s: float, computed_s: float) -> None:
        """Add a step: losses, throughput (from the seconds of data waiting and of computation), and the state of the machine."""
        seconds = waited_s + computed_s
        point: dict[str, Any] = {"step": step, "loss": result.loss}
        point |= {"learning_rate": result.learning_rate, "gradient_norm": result.gradient_norm}
        point |= {**result.parts, **{f"task/{name}": loss for name, loss in result.tasks.items()}}
        point |= {
            "seconds": seconds,
            "samples_per_second": result.samples / seconds,
            "tokens_per_second": result.tokens / seconds,
            "mfu": result.flops / seconds / (peak_flops(self.precision) * self.world_size),
            "data_wait_share": waited_s / seconds,
        }
        self.points.append({**point, **_system_metrics()})
        if result.load_layers_E is not None:
            self._load = result.load_layers_E if self._load is None else self._load + result.load_layers_E

    def write(self) -> None:
        """Write both files, each replaced as a whole."""
        if self._load is not None:
            share = self._load.float() / self._load.float().sum(-1, keepdim=True).clamp(min=1)
            rounded = [[round(value, 5) for value in row] for row in share.tolist()]
            self.loads.append({"step": int(self.points[-1]["step"]) + 1, "load": rounded})
            self._load = None
        self.written = len(self.points)
        for name, lines in ((METRICS, self.points), (EXPERT_LOAD, self.loads)):
            if lines:
                with atomic_file(self.folder / name) as temporary:
                    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def tenth_means(self) -> tuple[float, float]:
        """Return the mean loss over the first and the last tenth of the steps."""
        tenth = max(len(self.losses) // 10, 1)
        return statistics.fmean(self.losses[:tenth]), statistics.fmean(self.losses[-tenth:])

    def expert_load(self) -> tuple[list[int], NDArray[np.float32]]:
        """Return steps, and the share of tokens per layer and expert in the steps up to each one, (times, layers, experts)."""
        return [load["step"] for load in self.loads], np.array([load["load"] for load in self.loads], np.float32)


_PROCESS = psutil.Process()
_LAST_SAMPLE: dict[str, float] = {}


def _system_metrics() -> dict[str, float]:
    """Return the state of the machine under the names of MLflow's system metrics, sampled at most once per second."""
    now = time.monotonic()
    if now - _LAST_SAMPLE.get("time", 0.0) < 1:
        return {}
    _LAST_SAMPLE["time"] = now
    disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
    metrics = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_percentage": psutil.virtual_memory().percent,
        "system/process_memory_megabytes": _PROCESS.memory_info().rss / 1e6,
        "system/network_receive_megabytes": network.bytes_recv / 1e6,
        "system/network_transmit_megabytes": network.bytes_sent / 1e6,
    }
    if disk is not None:
        metrics["system/disk_read_megabytes"] = disk.read_bytes / 1e6
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        metrics["system/gpu_0_memory_usage_megabytes"] = (total - free) / 1e6
        metrics["system/gpu_0_memory_usage_percentage"] = 100 * (total - free) / total
    return metrics
