"""Figures of every step, in the stage's folder: what the tracking server is told, and what outlives its outages."""

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
from components.training.stages import CURVE

LOAD = "expert_load.jsonl"


@dataclass
class Curve:
    """Losses and speeds by step, and the experts' load between checkpoints. The files are written before the checkpoint that they
    belong to is named.

    Args:
        precision: arithmetic, whose peak the speed is compared with; world: processes.
    """

    folder: Path
    precision: str = "float32"
    world: int = 1
    points: list[dict[str, Any]] = field(default_factory=list)
    loads: list[dict[str, Any]] = field(default_factory=list)
    written: int = 0
    _load: torch.Tensor | None = None

    @classmethod
    def resume(cls, folder: Path, steps: int, precision: str = "float32", world: int = 1) -> Curve:
        """The curve of the first ``steps`` steps; what came after the checkpoint that is gone on from is forgotten."""
        curve = cls(folder, precision, world)
        curve.points = [point for point in read_lines(folder / CURVE) if point["step"] < steps]
        curve.written = len(curve.points)
        curve.loads = [one for one in read_lines(folder / LOAD) if one["step"] <= steps]
        return curve

    @property
    def kept(self) -> list[dict[str, Any]]:
        """The points that are on disk: those of a checkpoint, and not of steps that may be undone."""
        return self.points[: self.written]

    @property
    def losses(self) -> list[float]:
        """By step."""
        return [point["loss"] for point in self.points]

    def add(self, step: int, result: StepResult, waited_s: float, computed_s: float) -> None:
        """Note a step: figures of training, of speed (it ``waited_s`` for data and ``computed_s``), and of the machine."""
        seconds = waited_s + computed_s
        point: dict[str, Any] = {"step": step, "loss": result.loss}
        point |= {"learning_rate": result.learning_rate, "gradient_norm": result.gradient_norm}
        point |= {**result.parts, **{f"task/{name}": loss for name, loss in result.tasks.items()}}
        point |= {
            "seconds": seconds,
            "samples_per_second": result.samples / seconds,
            "tokens_per_second": result.tokens / seconds,
            "mfu": result.flops / seconds / (peak_flops(self.precision) * self.world),
            "data_wait_share": waited_s / seconds,
        }
        self.points.append({**point, **_system()})
        if result.load_layers_E is not None:
            self._load = result.load_layers_E if self._load is None else self._load + result.load_layers_E

    def write(self) -> None:
        """Write the files anew."""
        if self._load is not None:
            share = self._load.float() / self._load.float().sum(-1, keepdim=True).clamp(min=1)
            rounded = [[round(x, 5) for x in row] for row in share.tolist()]
            self.loads.append({"step": int(self.points[-1]["step"]) + 1, "load": rounded})
            self._load = None
        self.written = len(self.points)
        for name, lines in ((CURVE, self.points), (LOAD, self.loads)):
            if lines:
                with atomic_file(self.folder / name) as temporary:
                    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def tenth_means(self) -> tuple[float, float]:
        """Mean loss over the first and the last tenth of the steps."""
        share = max(len(self.losses) // 10, 1)
        return statistics.fmean(self.losses[:share]), statistics.fmean(self.losses[-share:])

    def expert_load(self) -> tuple[list[int], NDArray[np.float32]]:
        """Steps, and the share of tokens of every layer and expert in the steps up to each, (times, layers, experts)."""
        return [one["step"] for one in self.loads], np.array([one["load"] for one in self.loads], np.float32)


_PROCESS = psutil.Process()
_LAST_SAMPLE: dict[str, float] = {}


def _system() -> dict[str, float]:
    """The machine at this moment, sampled at most once a second, in the names of MLflow's page of system metrics."""
    now = time.monotonic()
    if now - _LAST_SAMPLE.get("time", 0.0) < 1:
        return {}
    _LAST_SAMPLE["time"] = now
    disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
    figures = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_percentage": psutil.virtual_memory().percent,
        "system/process_memory_megabytes": _PROCESS.memory_info().rss / 1e6,
        "system/network_receive_megabytes": network.bytes_recv / 1e6,
        "system/network_transmit_megabytes": network.bytes_sent / 1e6,
    }
    if disk is not None:
        figures["system/disk_read_megabytes"] = disk.read_bytes / 1e6
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        figures["system/gpu_0_memory_usage_megabytes"] = (total - free) / 1e6
        figures["system/gpu_0_memory_usage_percentage"] = 100 * (total - free) / total
    return figures
