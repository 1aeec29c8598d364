"""The DeepSpeed engine around an objective: optimizer, schedule, checkpoints, and the weights that come out.

What the engine does not do is done here so that a resumed run is the same run: the learning rate is a function of the step, and so
are the data and their random numbers.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from components.errors import JobFailed
from components.settings import StageSettings, TrainingSettings
from components.training.checkpoints import Checkpoints, tag_of
from components.training.cost import batch_flops, batch_tokens
from components.training.ema import Average
from model_core.losses.reduction import Step, all_reduce_sum, rank, world_size
from model_core.objectives import InstructionTuning, LossOutput, Objective
from model_core.swin import WindowAttention

LARGEST_BUCKET = 500_000_000
SMALLEST_SHARED = 100_000
"""ZeRO-3 keeps smaller parameters whole on every process (DeepSpeed's own threshold)."""
AVERAGE = "decoder_average.safetensors"
LONGEST_BUILD_S = 600
FLOOR = 0.1
"""The cosine ends at this share of the peak."""


def learning_rate(step: int, settings: StageSettings) -> float:
    """Linear warm-up, then a cosine to a tenth of the peak."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return settings.learning_rate * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def parameter_groups(objective: Objective, weight_decay: float) -> list[dict[str, Any]]:
    """What the stage trains; norms, biases and tables (one axis, an embedding, or relative positions) without decay."""
    trained = objective.trainable()
    tables = {id(module.weight) for module in objective.modules() if isinstance(module, nn.Embedding)}
    tables |= {id(module.bias_table) for module in objective.modules() if isinstance(module, WindowAttention)}
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in tables]
    rest = [p for p in trained if p.ndim < 2 or id(p) in tables]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, over all processes.

    Attributes:
        loss, parts: means over the step; tasks: mean loss of each task that was there.
        gradient_norm: before clipping; below 0 or not finite where DeepSpeed met numbers that are none.
        samples, tokens, flops: of all processes.
        load_layers_E: tokens by layer and expert; None in a stage without experts.
    """

    loss: float
    parts: dict[str, float]
    tasks: dict[str, float]
    gradient_norm: float
    learning_rate: float
    samples: int
    tokens: int
    flops: float
    load_layers_E: Tensor | None


class Engine:
    """One objective under DeepSpeed on this process."""

    def __init__(self, objective: Objective, settings: StageSettings, training: TrainingSettings, folder: Path) -> None:
        import deepspeed

        self.settings, self.training, self.objective = settings, training, objective
        self.checkpoints = Checkpoints(folder, rank(), world_size(), training.keep_checkpoints, training.keep_every)
        objective.train()
        if training.activation_checkpointing:
            objective.model.gradient_checkpointing_enable({"use_reentrant": False})
        groups = parameter_groups(objective, settings.weight_decay)
        averages = isinstance(objective, InstructionTuning) and training.decoder_average > 0
        self.average = Average(objective.model.image_decoder, training.decoder_average) if averages else None
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)
        exact = [(buffer, buffer.clone()) for buffer in objective.buffers()]
        self.engine, _, _, _ = deepspeed.initialize(
            model=objective,
            optimizer=optimizer,
            model_parameters=[p for group in groups for p in group["params"]],
            config=self._config(training, sum(p.numel() for group in groups for p in group["params"])),
            dist_init_required=False,
        )
        for buffer, value in exact:  # DeepSpeed has rounded them with the weights
            buffer.data = value.to(self.engine.device)
        if self.average is not None:
            self.average.averaged.to(self.engine.device)

    def _config(self, training: TrainingSettings, parameters: int) -> dict[str, Any]:
        # DeepSpeed sets aside two buckets of 500 million numbers, whatever the model has.
        aligned = 2 * world_size()
        bucket = min(-(-parameters // aligned) * aligned, LARGEST_BUCKET)
        zero: dict[str, Any] = {"stage": training.zero_stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
        if training.zero_stage == 3:
            zero["stage3_param_persistence_threshold"] = min(SMALLEST_SHARED, parameters // 1000)
        return {
            "train_micro_batch_size_per_gpu": self.settings.micro_batch,
            "gradient_accumulation_steps": self.settings.gradient_accumulation,
            "gradient_clipping": self.settings.gradient_clip,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": training.precision == "bfloat16"},
            "steps_per_print": 10**9,
            "wall_clock_breakdown": False,
        }

    def step(self, micro_batches: Sequence[Any], number: int) -> StepResult:
        """Forward and backward over the micro-batches, then one optimizer step. A result that is not finite says that the weights
        are not to be trusted: go back to a checkpoint."""
        rate = learning_rate(number, self.settings)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        micro_batches = [batch.to(self.engine.device) for batch in micro_batches]
        whole = Step.of([self.objective.counts(batch) for batch in micro_batches])
        outputs: list[LossOutput] = []
        own_norm = float("nan")
        for batch in micro_batches:
            output: LossOutput = self.engine(batch, whole)
            self.engine.backward(output.total, scale_wrt_gas=False)
            if self.training.zero_stage == 0:  # DeepSpeed does not say it then
                own_norm = float(get_total_norm([p.grad for p in self.objective.parameters() if p.grad is not None]))
            self.engine.step()
            outputs.append(output)
        if self.average is not None:
            self.average.update()
        norm = self.engine.get_global_grad_norm()
        return self._result(micro_batches, outputs, own_norm if norm is None else float(norm), rate)

    def _result(self, micro_batches: Sequence[Any], outputs: Sequence[LossOutput], norm: float, rate: float) -> StepResult:
        """Put together what micro-batches and processes have measured, in one exchange."""
        parts, tasks = list(outputs[0].parts), list(outputs[0].tasks)
        rows = [
            [
                output.total.detach(),
                *output.parts.values(),
                *(values[place] for place in (0, 1) for values in output.tasks.values()),
            ]
            for output in outputs
        ]
        values = torch.stack([torch.stack(row).double() for row in rows]).sum(0).cpu()
        work = [float(sum(measure(self.objective, batch) for batch in micro_batches)) for measure in (batch_tokens, batch_flops)]
        together = torch.cat([values, torch.tensor(work, dtype=torch.float64)])
        together = all_reduce_sum(together.to(self.engine.device)).cpu()
        means = (together[: 1 + len(parts)] / world_size()).tolist()
        sums, counts = (together[1 + len(parts) + place * len(tasks) :][: len(tasks)].tolist() for place in (0, 1))
        loads = [output.load_layers_E for output in outputs if output.load_layers_E is not None]
        return StepResult(
            loss=means[0],
            parts=dict(zip(parts, means[1:], strict=True)),
            tasks={name: total / count for name, total, count in zip(tasks, sums, counts, strict=True) if count},
            gradient_norm=norm,
            learning_rate=rate,
            samples=self.settings.micro_batch * self.settings.gradient_accumulation * world_size(),
            tokens=int(together[-2]),
            flops=float(together[-1]),
            load_layers_E=torch.stack(loads).sum(0).cpu() if loads else None,
        )

    def save(self, step: int) -> None:
        """Write a checkpoint of ``step`` finished steps, complete and on disk. It counts once :meth:`Checkpoints.name` names it
        (that of step 0 needs no name)."""
        self.checkpoints.make_room(step)
        tag, root = tag_of(step), self.checkpoints.root
        facts: dict[str, Any] = {"step": step, "universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
        self.engine.save_checkpoint(str(root), tag=tag, client_state=facts, save_latest=False)
        if self.average is not None and rank() == 0:
            save_file(self.average.state(), root / tag / AVERAGE)
        self.checkpoints.seal(step, {"zero_stage": self.training.zero_stage})

    def load(self) -> int | None:
        """Go back to the last whole checkpoint, by however many processes it was written; its number of finished steps, None where
        there is none.

        Raises:
            JobFailed: there are checkpoints, and none can be read.
        """
        step = self.checkpoints.last_whole()
        if step is None:
            return None
        elsewhere = self.checkpoints.manifest(step)["world"] != world_size() and self.training.zero_stage > 0
        tag = self.checkpoints.universal(step) if elsewhere else tag_of(step)
        decays = [group["weight_decay"] for group in self.engine.optimizer.param_groups]
        self.engine._config.load_universal_checkpoint = elsewhere
        path, _ = self.engine.load_checkpoint(str(self.checkpoints.root), tag=tag)
        self.engine._config.load_universal_checkpoint = False
        if elsewhere:
            self._undo_sharing(decays)
        if path is None:
            raise JobFailed(
                f"checkpoint {tag} cannot be read", where=str(self.checkpoints.root), remedy="remove this folder and run again"
            )
        if self.average is not None:
            self.average.load(load_file(self.checkpoints.root / tag_of(step) / AVERAGE, device=str(self.engine.device)))
        return step

    def _undo_sharing(self, decays: Sequence[float]) -> None:
        """DeepSpeed's ZeRO-3 loads a universal checkpoint with the first group's settings for every group, and with one counter of
        steps that each of them then counts up (0.19.8)."""
        for group, decay in zip(self.engine.optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        for state in self.engine.optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].clone()

    def with_average(self) -> AbstractContextManager[None]:
        """The model as it will be used, while this is open."""
        return nullcontext() if self.average is None else self.average.in_place()

    def weights(self) -> dict[str, Tensor]:
        """The model's weights as they will be used, float32, whole, on the first process (empty on the others, which must call this
        too): those that the optimizer keeps, not their rounded copies, and the decoder's average."""
        found: dict[str, Tensor] = {}
        average = {} if self.average is None else {f"image_decoder.{name}": p for name, p in self.average.weights().items()}
        for name, tensor in self._whole_parameters():
            if rank() == 0:
                found[name] = average.get(name, tensor).detach().float().cpu().clone()
        if rank() == 0:
            found |= {name: buffer.detach().cpu().clone() for name, buffer in self.objective.model.named_buffers()}
        return found

    def _whole_parameters(self) -> Iterator[tuple[str, Tensor]]:
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self.objective.model.named_parameters():
            kept = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
            if kept is not None:
                yield name, kept
            elif hasattr(parameter, "ds_id"):
                with deepspeed.zero.GatheredParameters([parameter]):
                    yield name, parameter.data
            else:
                yield name, parameter.data


def _shared_memory_where_it_helps() -> None:
    """Keep DeepSpeed from compiling its shared-memory communication for a single process, and from failing where it cannot: gloo
    does the same, more slowly."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None:
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _forget_a_killed_compiler(builder.name)
        try:
            builder.load()
            return
        except Exception as error:
            print(f"no shared-memory communication ({type(error).__name__}); see omnimri doctor. Going on with gloo.", flush=True)
    deepspeed.ops.__compatible_ops__[builder.NAME] = False


def _forget_a_killed_compiler(extension: str) -> None:
    """PyTorch waits for the lock of a build without end, though whoever held it may have been killed."""
    from torch.utils.cpp_extension import _get_build_directory

    lock = Path(_get_build_directory(extension, verbose=False)) / "lock"
    if lock.exists() and time.time() - lock.stat().st_mtime > LONGEST_BUILD_S:
        lock.unlink(missing_ok=True)


def join_processes() -> tuple[int, int]:
    """Meet the other processes; rank and world size."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed

    if torch.cuda.is_available():  # before the first exchange, or all processes of a machine meet on its first GPU
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    else:
        _shared_memory_where_it_helps()
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    return rank(), world_size()
