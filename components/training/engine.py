"""The DeepSpeed engine around an objective: optimizer, schedule, checkpoints, and export of the weights.

The learning rate, the data and their random numbers are functions of the step, not state of the engine, so that a resumed run
equals an uninterrupted one.
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
from components.training.checkpoints import Checkpoints, checkpoint_tag
from components.training.cost import batch_flops, batch_tokens
from components.training.ema import WeightEMA
from components.training.stages.base import Stage
from model_core.adapters import add_adapters, is_adapted, merge_adapters
from model_core.losses.reduction import Step, all_reduce_sum, rank, world_size
from model_core.objectives import LossOutput, Objective
from model_core.swin import WindowAttention

MAX_BUCKET = 500_000_000
"""DeepSpeed's default size of a communication bucket, numbers."""
PERSISTENCE_THRESHOLD = 100_000
"""ZeRO-3 does not partition smaller parameters (DeepSpeed's default)."""
BETAS = (0.9, 0.95)
LARGEST_8BIT_GROUP = 2**30
"""Parameters of a group at most: ZeRO 1 and 2 make one tensor of it, whose size bitsandbytes passes to its kernel as 32 bits."""
EMA_FILE = "decoder_average.safetensors"
MAX_BUILD_S = 600
FINAL_RATE = 0.1
"""Learning rate at the end of the cosine, as a share of the peak."""


def learning_rate(step: int, settings: StageSettings) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to a tenth of the peak."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return settings.learning_rate * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def parameter_groups(objective: Objective, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trained parameters in two groups; norms, biases, embeddings and position tables have no weight decay."""
    trained = objective.trainable()
    tables = {id(module.weight) for module in objective.modules() if isinstance(module, nn.Embedding)}
    tables |= {id(module.bias_table) for module in objective.modules() if isinstance(module, WindowAttention)}
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in tables]
    rest = [p for p in trained if p.ndim < 2 or id(p) in tables]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def split_groups(groups: Sequence[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Return the groups in consecutive parts of at most ``limit`` numbers; a larger parameter is a group of its own."""
    parts: list[dict[str, Any]] = []
    for group in groups:
        size = limit
        for parameter in group["params"]:
            if size + parameter.numel() > limit:
                parts.append({**group, "params": []})
                size = 0
            parts[-1]["params"].append(parameter)
            size += parameter.numel()
    return parts


def build_optimizer(groups: list[dict[str, Any]], rate: float, bits: int) -> torch.optim.Optimizer:
    """Return AdamW with moments of 32 bits, or of 8 (Dettmers et al., arXiv:2110.02861), which small tensors do not have."""
    if bits == 8:
        from bitsandbytes.optim import AdamW8bit

        optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=rate, betas=BETAS)
        return optimizer
    return torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=True)


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, over all processes.

    Attributes:
        loss, parts: means over the step; tasks: mean loss of each task in the step.
        gradient_norm: before clipping; negative or not finite where DeepSpeed found gradients that are not finite.
        samples, tokens, flops: sums over all processes.
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

    def __init__(
        self, stage: Stage, objective: Objective, settings: StageSettings, training: TrainingSettings, folder: Path
    ) -> None:
        import deepspeed

        self.settings, self.training, self.objective = settings, training, objective
        self.checkpoints = Checkpoints(folder, rank(), world_size(), training.keep_checkpoints, training.keep_every)
        self.adapter_rank = stage.adapter_rank(training)
        if self.adapter_rank:
            add_adapters(objective.model.backbone, self.adapter_rank)
        objective.train()
        if training.activation_checkpointing:
            objective.model.gradient_checkpointing_enable({"use_reentrant": False})
        groups = parameter_groups(objective, settings.weight_decay)
        if training.optimizer_bits == 8:
            groups = split_groups(groups, LARGEST_8BIT_GROUP)
        has_ema = stage.averages_decoder and training.decoder_average > 0
        self.ema = WeightEMA(objective.model.image_decoder, training.decoder_average) if has_ema else None
        optimizer = build_optimizer(groups, settings.learning_rate, training.optimizer_bits)
        exact_buffers = [(buffer, buffer.clone()) for buffer in objective.buffers()]
        frozen = {name: p.detach() for name, p in objective.model.named_parameters() if not p.requires_grad}
        self.frozen = frozen if rank() == 0 else {}
        self.engine, _, _, _ = deepspeed.initialize(
            model=objective,
            optimizer=optimizer,
            model_parameters=[p for group in groups for p in group["params"]],
            config=self._config(training, sum(p.numel() for group in groups for p in group["params"])),
            dist_init_required=False,
        )
        for buffer, value in exact_buffers:  # DeepSpeed has rounded them with the weights
            buffer.data = value.to(self.engine.device)
        if self.ema is not None:
            self.ema.averaged.to(self.engine.device)

    def _config(self, training: TrainingSettings, parameters: int) -> dict[str, Any]:
        # DeepSpeed allocates two buckets of 500 million numbers by default, whatever the size of the model.
        alignment = 2 * world_size()
        bucket = min(-(-parameters // alignment) * alignment, MAX_BUCKET)
        zero: dict[str, Any] = {"stage": training.zero_stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
        if training.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        if training.zero_stage == 3:
            zero["stage3_param_persistence_threshold"] = min(PERSISTENCE_THRESHOLD, parameters // 1000)
        return {
            "train_micro_batch_size_per_gpu": self.settings.micro_batch,
            "gradient_accumulation_steps": self.settings.gradient_accumulation,
            "gradient_clipping": self.settings.gradient_clip,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # PyTorch's fused AdamW runs on the host, too, and needs no compiler
            "bf16": {"enabled": training.precision == "bfloat16"},
            "steps_per_print": 10**9,
            "wall_clock_breakdown": False,
        }

    def step(self, micro_batches: Sequence[Any], number: int) -> StepResult:
        """Run forward and backward passes over the micro-batches, then one optimizer step.

        A result that is not finite means that the weights are invalid: load a checkpoint.
        """
        rate = learning_rate(number, self.settings)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        micro_batches = [batch.to(self.engine.device) for batch in micro_batches]
        step = Step.of([self.objective.counts(batch) for batch in micro_batches])
        outputs: list[LossOutput] = []
        own_norm = float("nan")
        for batch in micro_batches:
            output: LossOutput = self.engine(batch, step)
            self.engine.backward(output.total, scale_wrt_gas=False)
            if self.training.zero_stage == 0:  # where DeepSpeed does not report the norm
                own_norm = float(get_total_norm([p.grad for p in self.objective.parameters() if p.grad is not None]))
            self.engine.step()
            outputs.append(output)
        if self.ema is not None:
            self.ema.update()
        norm = self.engine.get_global_grad_norm()
        return self._reduce(micro_batches, outputs, own_norm if norm is None else float(norm), rate)

    def _reduce(self, micro_batches: Sequence[Any], outputs: Sequence[LossOutput], norm: float, rate: float) -> StepResult:
        """Combine the measurements of micro-batches and processes, in one all-reduce."""
        parts, tasks = list(outputs[0].parts), list(outputs[0].tasks)
        rows = [
            [
                output.total.detach(),
                *output.parts.values(),
                *(values[index] for index in (0, 1) for values in output.tasks.values()),
            ]
            for output in outputs
        ]
        values = torch.stack([torch.stack(row).double() for row in rows]).sum(0).cpu()
        work = [float(sum(measure(self.objective, batch) for batch in micro_batches)) for measure in (batch_tokens, batch_flops)]
        own = torch.cat([values, torch.tensor(work, dtype=torch.float64)])
        total = all_reduce_sum(own.to(self.engine.device)).cpu()
        means = (total[: 1 + len(parts)] / world_size()).tolist()
        sums, counts = (total[1 + len(parts) + index * len(tasks) :][: len(tasks)].tolist() for index in (0, 1))
        loads = [output.load_layers_E for output in outputs if output.load_layers_E is not None]
        return StepResult(
            loss=means[0],
            parts=dict(zip(parts, means[1:], strict=True)),
            tasks={name: loss / count for name, loss, count in zip(tasks, sums, counts, strict=True) if count},
            gradient_norm=norm,
            learning_rate=rate,
            samples=self.settings.micro_batch * self.settings.gradient_accumulation * world_size(),
            tokens=int(total[-2]),
            flops=float(total[-1]),
            load_layers_E=torch.stack(loads).sum(0).cpu() if loads else None,
        )

    def save(self, step: int) -> None:
        """Write a checkpoint of ``step`` finished steps, complete and on disk.

        It counts once :meth:`Checkpoints.publish` has named it; that of step 0 needs no name.
        """
        self.checkpoints.clear(step)
        tag, root = checkpoint_tag(step), self.checkpoints.root
        state: dict[str, Any] = {"step": step, "universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
        self.engine.save_checkpoint(str(root), tag=tag, client_state=state, save_latest=False)
        if self.ema is not None and rank() == 0:
            save_file(self.ema.state(), root / tag / EMA_FILE)
        self.checkpoints.seal(step, {"zero_stage": self.training.zero_stage})

    def load(self) -> int | None:
        """Load the last valid checkpoint, whatever number of processes wrote it, if the optimizer's state allows that.

        Returns:
            Its number of finished steps; None where there is no checkpoint.

        Raises:
            BadInput: another number of processes wrote moments of 8 bits.
            JobFailed: there are checkpoints, and none can be read.
        """
        if not self.training.resumes_on_any_processes:
            self.checkpoints.require_same_processes()
        step = self.checkpoints.last_valid()
        if step is None:
            return None
        universal = self.checkpoints.manifest(step)["world"] != world_size() and self.training.zero_stage > 0
        tag = self.checkpoints.convert_to_universal(step) if universal else checkpoint_tag(step)
        decays = [group["weight_decay"] for group in self.engine.optimizer.param_groups]
        self.engine._config.load_universal_checkpoint = universal
        path, _ = self.engine.load_checkpoint(str(self.checkpoints.root), tag=tag)
        self.engine._config.load_universal_checkpoint = False
        if universal:
            self._repair_optimizer_state(decays)
        if path is None:
            raise JobFailed(
                f"checkpoint {tag} cannot be read", where=str(self.checkpoints.root), remedy="remove this folder and run again"
            )
        if self.ema is not None:
            self.ema.load(load_file(self.checkpoints.root / checkpoint_tag(step) / EMA_FILE, device=str(self.engine.device)))
        return step

    def _repair_optimizer_state(self, decays: Sequence[float]) -> None:
        """Restore the weight decay of each group, and give every parameter a step counter of its own.

        DeepSpeed's ZeRO-3 (0.19.8) loads a universal checkpoint with the first group's settings for all groups, and with one step
        counter that all parameters share and increment.
        """
        for group, decay in zip(self.engine.optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        for state in self.engine.optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].clone()

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Give the model the weights that are exported, the decoder's moving average, while the context is open."""
        return nullcontext() if self.ema is None else self.ema.swapped_in()

    def weights(self) -> dict[str, Tensor]:
        """Return the weights to export, float32, whole, on the first process (empty on the others, which must call this, too).

        They are those that the optimizer keeps, and frozen ones as they were, not their rounded copies; the decoder's moving
        average; and the sums of weights and their adapters.
        """
        exported: dict[str, Tensor] = {}
        average = {} if self.ema is None else {f"image_decoder.{name}": p for name, p in self.ema.weights().items()}
        for name, tensor in self._trained_parameters():
            if rank() == 0:
                exported[name] = average.get(name, tensor).detach().float().cpu().clone()
        if rank() == 0:
            exported |= {name: tensor.to("cpu", torch.float32, copy=is_adapted(name)) for name, tensor in self.frozen.items()}
            if self.adapter_rank:
                exported = merge_adapters(self.objective.model.config, self.adapter_rank, exported)
            exported |= {name: buffer.detach().cpu().clone() for name, buffer in self.objective.model.named_buffers()}
        return exported

    def _trained_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every trained parameter of the model, gathered from all processes, in float32 where the optimizer has it so."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self.objective.model.named_parameters():
            if parameter.requires_grad:
                master = safe_get_full_fp32_param(parameter)
                yield name, parameter.data if master is None else master


def _configure_shared_memory() -> None:
    """Build DeepSpeed's shared-memory communication for several processes; fall back to gloo, which is slower, where that fails."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None:
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _remove_stale_build_lock(builder.name)
        try:
            builder.load()
            return
        except Exception as error:
            print(f"no shared-memory communication ({type(error).__name__}); see omnimri doctor. Falling back to gloo.", flush=True)
    deepspeed.ops.__compatible_ops__[builder.NAME] = False


def _remove_stale_build_lock(extension: str) -> None:
    """Remove a build lock whose owner was killed: PyTorch would wait for it without limit."""
    from torch.utils.cpp_extension import _get_build_directory

    lock = Path(_get_build_directory(extension, verbose=False)) / "lock"
    if lock.exists() and time.time() - lock.stat().st_mtime > MAX_BUILD_S:
        lock.unlink(missing_ok=True)


def join_processes() -> tuple[int, int]:
    """Join the process group and return rank and world size."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed

    if torch.cuda.is_available():  # before the first exchange, or all processes of a machine would use its first GPU
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    else:
        _configure_shared_memory()
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    return rank(), world_size()
