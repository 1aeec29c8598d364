"""The process that trains a stage: ``python -m components.training.worker job.json``, one or several side by side.

It goes on from the last checkpoint, if there is one. On SIGTERM it finishes the step, writes a checkpoint and ends with status 75.
Losses reach MLflow and ``curve.jsonl`` together with the checkpoint that holds them, so that nothing is recorded twice.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from transformers.utils.logging import disable_progress_bar

from components.curation.corpus import Corpus
from components.errors import JobFailed
from components.files import atomic_directory, atomic_file, read_json, write_json
from components.home import Home
from components.launching.local import INTERRUPTED
from components.provenance import digest
from components.settings import Settings, StageName
from components.tracking import StageRun, Tracking
from components.training.backbone import upcycled_model
from components.training.batches import BatchMaker, Rank
from components.training.engine import Engine, StepResult, join_processes, seed_step
from components.training.samples import Samples
from components.training.stages import StageResult, write_result
from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.objectives import Alignment, InstructionTuning, MultimodalPretraining, Objective, VisionPretraining
from model_core.processing import Processor
from model_core.tokenization import special_ids

if TYPE_CHECKING:
    from collections.abc import Iterator

CURVE = "curve.jsonl"
OBJECTIVES: dict[StageName, type[Objective]] = {
    "vision_pretraining": VisionPretraining,
    "alignment": Alignment,
    "multimodal_pretraining": MultimodalPretraining,
    "instruction_tuning": InstructionTuning,
}
_PR_SET_PDEATHSIG = 1


@dataclass
class Job:
    """What ``job.json`` says."""

    stage: StageName
    digest: str
    folder: Path
    corpus: Corpus
    settings: Settings
    tokenizer: Path
    parent_model: Path | None
    run_id: str
    tracking: Tracking

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read a job's description."""
        raw = read_json(path)
        tracking = Tracking(raw["tracking_uri"], Home(Path(raw["home"]), Path(raw["data"])))
        return cls(
            stage=raw["stage"], digest=raw["digest"], folder=path.parent, corpus=Corpus.open(Path(raw["corpus_root"])),
            settings=Settings.model_validate(raw["settings"]), tokenizer=Path(raw["tokenizer"]),
            parent_model=Path(raw["parent_model"]) if raw["parent_model"] else None, run_id=raw["run_id"], tracking=tracking,
        )  # fmt: skip

    @property
    def key(self) -> int:
        """Seed of this stage's random numbers."""
        return int(digest(self.settings.seed, self.stage, "random numbers")[:12], 16)


def starting_model(job: Job, processor: Processor) -> OmniMRIForConditionalGeneration:
    """The model of the stage before, or a new one: an upcycled checkpoint where the settings name one, else of the seed alone."""
    if job.parent_model is not None:
        model: OmniMRIForConditionalGeneration = OmniMRIForConditionalGeneration.from_pretrained(job.parent_model)
        return model
    torch.manual_seed(job.settings.seed)
    if job.settings.model.backbone is not None:
        return upcycled_model(job.settings.model.backbone, job.settings.model.preset, processor.tokenizer)
    ids = special_ids(processor.tokenizer)
    return OmniMRIForConditionalGeneration(
        OmniMRIConfig.from_preset(job.settings.model.preset, len(processor.tokenizer), **ids)
    )  # fmt: skip


@dataclass
class Curve:
    """Losses by step. The file is written before the checkpoint that it belongs to is named, MLflow hears of it after."""

    path: Path
    points: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def resume(cls, path: Path, steps: int) -> Curve:
        """The curve of the first ``steps`` steps; what a killed job did beyond its last checkpoint is forgotten."""
        lines = path.read_text().splitlines() if path.exists() else []
        return cls(path, [point for point in map(json.loads, lines) if point["step"] < steps])

    def add(self, step: int, result: StepResult, seconds: float, samples: int) -> None:
        """Note a step."""
        point = {"step": step, "loss": result.loss, "learning_rate": result.learning_rate, "gradient_norm": result.gradient_norm}
        point.update({"seconds": seconds, "samples_per_second": samples / seconds, **result.parts})
        self.points.append(point)

    def write(self) -> None:
        """Write the file anew."""
        with atomic_file(self.path) as temporary:
            temporary.write_text("".join(json.dumps(point) + "\n" for point in self.points))

    def tell(self, run: StageRun) -> None:
        """Log the steps that the run does not have yet."""
        known = run.last_step("loss")
        missing = [point for point in self.points if point["step"] > known]
        run.log_curve((int(point["step"]), {k: v for k, v in point.items() if k != "step"}) for point in missing)

    def tenth_means(self) -> tuple[float, float]:
        """Mean loss over the first and the last tenth of the steps."""
        losses = [point["loss"] for point in self.points]
        share = max(len(losses) // 10, 1)
        return statistics.fmean(losses[:share]), statistics.fmean(losses[-share:])


class Stop:
    """Whether somebody asked this process to end."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)
        if sys.platform == "linux":  # end with the process that started this one
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True

    def agreed(self, world: int) -> bool:
        """Whether any process was asked: all must stop after the same step."""
        if world == 1:
            return self.asked
        flag = torch.tensor([float(self.asked)])
        torch.distributed.all_reduce(flag)
        return bool(flag.item() > 0)


def train(job: Job, rank: int, world: int, stop: Stop) -> None:
    """Train to the end.

    Raises:
        SystemExit: asked to stop before; the checkpoint is written, and the run is marked killed, not finished.
    """
    processor = Processor.from_pretrained(job.tokenizer)
    model = starting_model(job, processor)
    objective = OBJECTIVES[job.stage](model)
    settings = job.settings.training.stage(job.stage)
    samples = Samples.of(job.corpus, "train")
    maker = BatchMaker(job.stage, samples, settings, model.config, processor, job.settings.seed, Rank(rank, world))
    seed_step(job.key, -1, 0)
    objective.begin(_whole_batches(BatchMaker(job.stage, samples, settings, model.config, processor, job.settings.seed)))
    engine = Engine(objective, settings, job.settings.training, job.folder)
    first = engine.load()
    curve = Curve.resume(job.folder / CURVE, first)
    started, durations = time.monotonic(), []
    with job.tracking.stage_run(job.run_id) if rank == 0 else _NoRun() as run:
        if run is not None and first == 0:
            profile = {"volumes": len(samples.numbers), "slices": len(samples.slices)}
            run.log_dataset("curated corpus, training split", job.corpus.digest, "training", profile)
        if run is not None:
            curve.tell(run)  # what a job noted and was killed before telling
        for step, micro_batches in zip(range(first, settings.steps), maker.steps(first), strict=False):
            begun = time.monotonic()
            seed_step(job.key, step, rank)
            result = engine.step(micro_batches, step)
            durations.append(time.monotonic() - begun)
            curve.add(step, result, durations[-1], settings.micro_batch * settings.gradient_accumulation * world)
            _say(rank, job.stage, step, settings.steps, result)
            stopping = stop.agreed(world)
            if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps or stopping:
                engine.save(step + 1)
                if rank == 0:
                    curve.write()
                engine.name(step + 1, rank)
                if run is not None:
                    curve.tell(run)
            if stopping and step + 1 < settings.steps:
                raise SystemExit(INTERRUPTED)
        if rank == 0:
            _finish(job, objective, processor, curve, run, started, durations, first)


def _whole_batches(maker: BatchMaker) -> Iterator[Any]:
    for micro_batches in maker.steps(0):
        yield from micro_batches


def _finish(
    job: Job, objective: Objective, processor: Processor, curve: Curve, run: StageRun | None, started: float,
    durations: list[float], first: int,
) -> None:  # fmt: skip
    """Write the model, the pictures and, last, the result."""
    from components.training.pictures import stage_pictures

    model = objective.model.float().eval()
    with atomic_directory(job.folder / "model") as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        curation = job.settings.curation
        write_json(folder / "preprocessing.json", {"matrix": curation.matrix, "pixel_mm": curation.pixel_mm})
    if run is not None:
        for name, figure in stage_pictures(job.stage, objective, processor, job.corpus, curve.points).items():
            run.log_figure(figure, name)
    first_loss, last_loss = curve.tenth_means()
    write_result(
        StageResult(
            stage=job.stage, digest=job.digest, folder=job.folder, model_dir=job.folder / "model", run_id=job.run_id, reused=False,
            resumed_at=first or None, steps=len(curve.points), first_loss=first_loss, last_loss=last_loss,
            seconds=round(time.monotonic() - started, 2),
            step_seconds=round(statistics.median(point["seconds"] for point in curve.points), 4),
            peak_memory_mib=round(_peak_memory_mib()),
        )
    )  # fmt: skip


def _peak_memory_mib() -> float:
    import resource

    return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, psutil.Process().memory_info().rss / 2**20)


def _say(rank: int, stage: str, step: int, steps: int, result: StepResult) -> None:
    if rank == 0 and (step % 10 == 0 or step + 1 == steps):
        print(f"{stage} {step + 1}/{steps} loss {result.loss:.4f} gradient {result.gradient_norm:.2f}", flush=True)


class _NoRun:
    """The run of the processes that record nothing."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def main(path: Path) -> int:
    """Run one process of a job; its exit status."""
    stop = Stop()
    disable_progress_bar()
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    # A debugging aid of the deterministic mode, which costs a tenth of each step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    rank, world = join_processes()
    job = Job.read(path)
    with (job.folder / f"lock-{rank}").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JobFailed("another process trains this stage", where=str(job.folder), remedy="wait for it, or end it") from None
        train(job, rank, world, stop)
    torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main(Path(sys.argv[1])))
