"""The DeepSpeed engine around an objective: optimizer, schedule, checks, checkpoints.

What the engine does not do is done here so that a resumed run is the same run: the learning rate is a function of the step, and so
is the state of the random numbers.
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from components.errors import JobFailed
from components.files import read_json, write_json
from components.settings import StageSettings, TrainingSettings
from model_core.objectives import LossOutput, Objective

CHECKPOINT = "checkpoint.json"
LARGEST_BUCKET = 500_000_000
FLOOR = 0.1
"""The cosine ends at this share of the peak."""


def learning_rate(step: int, settings: StageSettings) -> float:
    """Linear warm-up, then a cosine to a tenth of the peak."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return settings.learning_rate * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def seed_step(key: int, step: int, rank: int) -> None:
    """Random numbers of a step and process: a function of its number, so nothing needs to be saved."""
    torch.manual_seed((key + 1_000_003 * step + 7_919 * rank) % 2**63)


def parameter_groups(objective: Objective, weight_decay: float) -> list[dict[str, Any]]:
    """What the stage trains; norms, biases and tables (one axis, or an embedding) without decay."""
    trained = objective.trainable()
    tables = {id(module.weight) for module in objective.modules() if isinstance(module, nn.Embedding)}
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in tables]
    rest = [p for p in trained if p.ndim < 2 or id(p) in tables]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


@dataclass(frozen=True)
class StepResult:
    """One optimizer step: mean loss, its parts, gradient norm before clipping, learning rate."""

    loss: float
    parts: dict[str, float]
    gradient_norm: float
    learning_rate: float


class Engine:
    """One objective under DeepSpeed on this process."""

    def __init__(self, objective: Objective, settings: StageSettings, training: TrainingSettings, folder: Path) -> None:
        import deepspeed

        self.settings, self.folder = settings, folder
        groups = parameter_groups(objective, settings.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95))
        self.engine, _, _, _ = deepspeed.initialize(
            model=objective, optimizer=optimizer, model_parameters=[p for group in groups for p in group["params"]],
            config=self._config(training, sum(p.numel() for group in groups for p in group["params"])), dist_init_required=False,
        )  # fmt: skip

    def _config(self, training: TrainingSettings, parameters: int) -> dict[str, Any]:
        # DeepSpeed sets aside two buckets of 500 million numbers, whatever the model has.
        aligned = 2 * torch.distributed.get_world_size()
        bucket = min(-(-parameters // aligned) * aligned, LARGEST_BUCKET)
        return {
            "train_micro_batch_size_per_gpu": self.settings.micro_batch,
            "gradient_accumulation_steps": self.settings.gradient_accumulation,
            "gradient_clipping": self.settings.gradient_clip,
            "zero_optimization": {"stage": training.zero_stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": training.precision == "bfloat16"},
            "steps_per_print": 10**9,
            "wall_clock_breakdown": False,
        }

    def step(self, micro_batches: list[Any], number: int) -> StepResult:
        """Forward and backward over the micro-batches, then one optimizer step.

        Raises:
            JobFailed: the loss or the gradient is not finite; nothing has been changed by this step.
        """
        rate = learning_rate(number, self.settings)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        outputs: list[LossOutput] = []
        for batch in micro_batches:
            output: LossOutput = self.engine(batch.to(self.engine.device))
            if not bool(torch.isfinite(output.total)):
                raise JobFailed(
                    f"the loss of step {number} is not finite", where="training", remedy="lower learning_rate; run again"
                )  # fmt: skip
            self.engine.backward(output.total)
            self._refuse_broken_gradients(number)
            self.engine.step()
            outputs.append(output)
        norm = self.engine.get_global_grad_norm()
        norm = float(norm) if norm is not None else float("nan")
        if not math.isfinite(norm) or norm < 0:  # ZeRO has skipped the step by itself
            raise JobFailed(
                f"the gradient of step {number} is not finite", where="training", remedy="lower learning_rate; run again"
            )
        parts = {name: sum(float(o.parts[name]) for o in outputs) / len(outputs) for name in outputs[0].parts}
        return StepResult(sum(float(o.total.detach()) for o in outputs) / len(outputs), parts, norm, rate)

    def _refuse_broken_gradients(self, number: int) -> None:
        """ZeRO and bfloat16 skip such a step; plain float32 would take it and lose the weights."""
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            raise JobFailed(
                f"the gradient of step {number} is not finite", where="training", remedy="lower learning_rate; run again"
            )

    def save(self, step: int) -> None:
        """Write a checkpoint of ``step`` finished steps. It counts from when :meth:`name` names it."""
        tag = f"step-{step:06d}"
        self.engine.save_checkpoint(str(self.folder / "checkpoints"), tag=tag, client_state={"step": step}, save_latest=False)
        torch.distributed.barrier()

    def name(self, step: int, rank: int) -> None:
        """Make the checkpoint of ``step`` the one to go on from, and remove older ones."""
        tag = f"step-{step:06d}"
        if rank == 0:
            write_json(self.folder / CHECKPOINT, {"tag": tag, "step": step})
            for old in (self.folder / "checkpoints").glob("step-*"):
                if old.name != tag:
                    shutil.rmtree(old)
        torch.distributed.barrier()

    def load(self) -> int:
        """Go back to the last checkpoint; its number of finished steps, 0 where there is none."""
        if not (self.folder / CHECKPOINT).exists():
            return 0
        named = read_json(self.folder / CHECKPOINT)
        path, _ = self.engine.load_checkpoint(str(self.folder / "checkpoints"), tag=named["tag"])
        if path is None:
            raise JobFailed(
                f"checkpoint {named['tag']} cannot be read", where=str(self.folder), remedy="remove this folder and run again"
            )  # fmt: skip
        return int(named["step"])


def _shared_memory_where_it_helps() -> None:
    """Keep DeepSpeed from compiling its shared-memory communication for a single process, and from failing where it cannot: gloo
    does the same, more slowly."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None:
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        try:
            builder.load()
            return
        except Exception as error:
            print(f"no shared-memory communication ({type(error).__name__}); see omnimri doctor. Going on with gloo.", flush=True)
    deepspeed.ops.__compatible_ops__[builder.NAME] = False


def join_processes() -> tuple[int, int]:
    """Meet the other processes; rank and world size."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed

    if not torch.cuda.is_available():
        _shared_memory_where_it_helps()
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
