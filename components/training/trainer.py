"""The process that trains a stage: ``python -m components.training.trainer job.json``, one for each rank.

It resumes from the last valid checkpoint, and returns to it when a step fails. On SIGTERM or Ctrl-C it finishes the step, writes a
checkpoint and exits with status 75. Metrics reach ``curve.jsonl`` and MLflow together with the checkpoint of their steps,
so that nothing is recorded twice.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import signal
import statistics
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from transformers.utils.logging import disable_progress_bar

from components.curation.corpus import Corpus
from components.errors import JobFailed
from components.files import atomic_directory, read_json, write_json
from components.home import Home
from components.launching.job import INTERRUPTED
from components.model_files import PREPROCESSING
from components.processes import end_with_parent, on_stop
from components.provenance import digest
from components.registries import STAGES
from components.settings import Settings, StageName
from components.tasks.known_structures import NONE_KNOWN, KnownStructures
from components.tracking import Journal, Tracking
from components.training.batches import StageBatches
from components.training.dense_checkpoint import upcycled_model
from components.training.engine import Engine, StepResult, join_processes
from components.training.figures import stage_figures
from components.training.loader import load_batches
from components.training.loss_spikes import Fault, LossSpikeGuard
from components.training.metrics_log import MetricsLog
from components.training.mixture import Rank
from components.training.trained_stage import StageResult, write_result
from components.training.trainjob_status import TrainJobStatus
from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.losses.reduction import all_reduce_sum
from model_core.processing import Processor
from model_core.tokenization import special_ids

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class TrainingJob:
    """The content of ``job.json``."""

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
    def read(cls, path: Path) -> TrainingJob:
        """Read ``job.json``."""
        raw = read_json(path)
        tracking = Tracking(raw["tracking_uri"], Home(Path(raw["home"]), Path(raw["data"])))
        return cls(
            stage=raw["stage"],
            digest=raw["digest"],
            folder=path.parent,
            corpus=Corpus.open(Path(raw["corpus_root"])),
            settings=Settings.model_validate(raw["settings"]),
            tokenizer=Path(raw["tokenizer"]),
            parent_model=Path(raw["parent_model"]) if raw["parent_model"] else None,
            run_id=raw["run_id"],
            tracking=tracking,
        )

    @property
    def rng_seed(self) -> int:
        """Seed of PyTorch's generator in this stage."""
        return int(digest(self.settings.seed, self.stage, "random numbers")[:12], 16)


def initial_model(job: TrainingJob, processor: Processor) -> OmniMRIForConditionalGeneration:
    """Return the model of the previous stage, or a new one: an upcycled checkpoint if the settings name one, else random."""
    if job.parent_model is not None:
        model: OmniMRIForConditionalGeneration = OmniMRIForConditionalGeneration.from_pretrained(job.parent_model)
        return model
    torch.manual_seed(job.settings.seed)
    chosen = job.settings.model
    if chosen.backbone is not None:
        return upcycled_model(chosen.backbone, chosen.preset, processor.tokenizer, chosen.codes)
    fields = {**special_ids(processor.tokenizer), **chosen.codes}
    return OmniMRIForConditionalGeneration(OmniMRIConfig.from_preset(chosen.preset, len(processor.tokenizer), **fields))


class StopSignal:
    """Record of a request to stop: SIGTERM, SIGHUP, Ctrl-C, or (on Linux) the death of the parent process."""

    def __init__(self) -> None:
        self.received = False
        on_stop(self._receive, signal.SIGINT)
        end_with_parent()

    def _receive(self, number: int, frame: object) -> None:
        self.received = True

    def received_by_any(self, world_size: int) -> bool:
        """Return whether any process received the signal: all of them must stop after the same step."""
        if world_size == 1:
            return self.received
        received = torch.tensor(float(self.received), device="cuda" if torch.cuda.is_available() else "cpu")
        return bool(all_reduce_sum(received) > 0)


class StageTrainer:
    """The training of a stage on one process, from the last checkpoint to the end."""

    def __init__(self, job: TrainingJob, rank: Rank, stop: StopSignal) -> None:
        self.job, self.rank, self.stop = job, rank, stop
        training = job.settings.training
        self.stage, self.settings = STAGES[job.stage], training.stage(job.stage)
        self.processor = Processor.from_pretrained(job.tokenizer)
        model = initial_model(job, self.processor)
        torch.manual_seed(job.rng_seed)
        self.objective = self.stage.build_objective(model, self.settings)
        self.samples = self.stage.select_samples(job.corpus, "train")
        self.batches = self._batches(rank)
        self.objective.begin(self._batches_of_all_processes())
        self.engine = Engine(self.stage, self.objective, self.settings, training, job.folder)
        self.guard = LossSpikeGuard.open(job.folder, training.spike_deviations, training.max_rollbacks)
        self.log = self._read_log(0)
        self.journal = Journal.open(job.folder, job.run_id) if rank.index == 0 else None
        if self.journal is not None:
            profile = {"volumes": len(self.samples.numbers), "slices": len(self.samples.slices)}
            self.journal.add_input("curated corpus, training split", job.corpus.digest, "training", profile)
        self.trainjob = TrainJobStatus.from_environment() if rank.index == 0 else None
        self.started = time.monotonic()

    def run(self) -> None:
        """Train to the end.

        Raises:
            JobFailed: steps failed too often, or no checkpoint can be read.
            SystemExit: a stop was requested; the checkpoint is written, and the run is marked killed, not finished.
        """
        status = "FAILED"
        try:
            resumed_at = self.engine.load()
            if resumed_at is None:
                self.engine.save(0)  # the rollback target of the first steps
            step = resumed_at or 0
            self.log = self._read_log(step)
            self._report("RUNNING")  # deliver what an earlier process recorded and could not send
            while (fault := self._train_from(step)) is not None:
                step = self._roll_back(fault)
            self._finish(resumed_at)
            status = "FINISHED"
        except SystemExit:
            status = "KILLED"
            raise
        finally:
            if self.trainjob is not None:
                self.trainjob.close()
            if status != "FINISHED":
                self._report(status)

    def _batches(self, rank: Rank) -> StageBatches:
        config = self.objective.model.config
        return StageBatches(self.stage, self.samples, self.settings, config, self.processor, self.job.settings.seed, rank)

    def _batches_of_all_processes(self) -> Iterator[Any]:
        """Yield the micro-batches of every process in the order of their samples, to fit the same on any number of processes.

        How many of the first samples are volumes depends on the size of a whole step, not on that of a process's share.
        """
        shares = cache(lambda index: self._batches(Rank(index, self.rank.world_size)))
        for step in itertools.count():
            for micro_step in range(self.settings.gradient_accumulation):
                for index in range(self.rank.world_size):
                    yield shares(index)[step][micro_step]

    def _read_log(self, steps: int) -> MetricsLog:
        return MetricsLog.resume(self.job.folder, steps, self.job.settings.training.precision, self.rank.world_size)

    def _train_from(self, first: int) -> Fault | None:
        """Train from step ``first`` to the end, or to a step that fails, and return its fault."""
        training = self.job.settings.training
        data_indices = [self.guard.data_index(step) for step in range(first, self.settings.steps)]
        with closing(load_batches(self.batches, data_indices, training.loader_workers, pin=torch.cuda.is_available())) as loaded:
            for step in range(first, self.settings.steps):
                started = time.monotonic()
                micro_batches = next(loaded)
                received = time.monotonic()
                result = self.engine.step(micro_batches, step)
                self.log.add(step, result, received - started, time.monotonic() - received)
                reason = self.guard.find_fault(self.log.losses, result.gradient_norm)
                if reason is not None:
                    return Fault(step, reason)
                _print_progress(self.rank.index, self.job.stage, step, self.settings.steps, result)
                if self.trainjob is not None:
                    metrics = {"loss": result.loss, "gradient_norm": result.gradient_norm}
                    self.trainjob.report(step + 1, self.settings.steps, metrics)
                self._after_step(step + 1)
        return None

    def _after_step(self, done: int) -> None:
        """Do what is due after ``done`` finished steps: figures, a checkpoint with its metrics, and an early stop."""
        training, last = self.job.settings.training, self.settings.steps
        if training.pictures_every and done % training.pictures_every == 0 and done < last:
            self._draw_figures(f"step-{done:06d}/")
        stopping = self.stop.received_by_any(self.rank.world_size)
        if done % self.settings.checkpoint_every and done < last and not stopping:
            return
        self.engine.save(done)
        if self.rank.index == 0:
            self.log.write()
        self.engine.checkpoints.publish(done)
        if stopping and done < last:
            raise SystemExit(INTERRUPTED)
        self._report("RUNNING")

    def _roll_back(self, fault: Fault) -> int:
        """Undo the steps since the last valid checkpoint, skip their data, and return the step to continue from."""
        target = self.engine.checkpoints.last_valid()
        assert target is not None
        self.guard.record_rollback(fault, target, self.rank.index == 0)
        self.engine.load()
        self.log = self._read_log(target)
        if self.journal is not None:
            undone = "; ".join(f"step {item.at} back to {item.to}: {item.reason}" for item in self.guard.rollbacks)
            self.journal.set_tag("omnimri.rollbacks", undone)
        return target

    def _report(self, status: str) -> None:
        if self.journal is not None:
            self.journal.status = status
            self.journal.deliver(self.job.tracking, self.log.saved_points)

    def _draw_figures(self, folder: str = "") -> None:
        """Draw the stage's figures, on all processes (ZeRO-3 needs them to compute); the first process stores them."""
        with self.engine.averaged_weights():
            figures = stage_figures(self.stage, self.objective, self.processor, self.job.corpus, self.log)
        if self.journal is not None:
            for name, figure in figures.items():
                self.journal.add_figure(folder + name, figure)

    def _finish(self, resumed_at: int | None) -> None:
        """Write figures, model and result; then send the tracking server everything that it does not have yet."""
        self._draw_figures()
        weights = self.engine.weights()
        if self.journal is None:
            return
        model = self.objective.model.cpu().float().eval()  # not on the GPU, beside DeepSpeed's states
        with atomic_directory(self.job.folder / "model") as folder:
            model.save_pretrained(folder, state_dict=weights)
            self.processor.save_pretrained(folder)
            curation = self.job.settings.curation
            known = KnownStructures.from_corpus(self.job.corpus) if self.stage.teaches_structures(self.settings) else NONE_KNOWN
            grid = {"matrix": curation.matrix, "pixel_mm": curation.pixel_mm}
            write_json(folder / PREPROCESSING, {**grid, "label_maps": known.to_json()})
        write_result(self._result(resumed_at))
        self.journal.status = "FINISHED"
        self.journal.deliver_with_retries(self.job.tracking, self.log.points)

    def _result(self, resumed_at: int | None) -> StageResult:
        job, points = self.job, self.log.points
        first_loss, last_loss = self.log.tenth_means()
        waited = sum(point["data_wait_share"] * point["seconds"] for point in points) / sum(point["seconds"] for point in points)
        return StageResult(
            stage=job.stage,
            digest=job.digest,
            folder=job.folder,
            model_dir=job.folder / "model",
            run_id=job.run_id,
            reused=False,
            resumed_at=resumed_at or None,
            steps=len(points),
            first_loss=first_loss,
            last_loss=last_loss,
            seconds=round(time.monotonic() - self.started, 2),
            step_seconds=round(statistics.median(point["seconds"] for point in points), 4),
            peak_memory_mib=round(_peak_memory_mib()),
            rollbacks=len(self.guard.rollbacks),
            data_wait_share=round(waited, 4),
        )


def _peak_memory_mib() -> float:
    import resource

    return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, psutil.Process().memory_info().rss / 2**20)


def _print_progress(rank: int, stage: str, step: int, steps: int, result: StepResult) -> None:
    if rank == 0 and (step % 10 == 0 or step + 1 == steps):
        print(f"{stage} {step + 1}/{steps} loss {result.loss:.4f} gradient {result.gradient_norm:.2f}", flush=True)


def main(path: Path) -> int:
    """Run one process of a job and return its exit status."""
    stop = StopSignal()
    disable_progress_bar()
    # It asks the package `kernels` for a function, finds this repository's folder, and warns; peft imports it, too.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    # A debugging aid of the deterministic mode, which costs a tenth of each step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # An unreachable tracking server must not delay training: the journal delivers later.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    index, world_size = join_processes()
    job = TrainingJob.read(path)
    with (job.folder / f"lock-{index}").open("w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by this process, not by its forks
        except OSError:
            raise JobFailed("another process trains this stage", where=str(job.folder), remedy="wait for it, or end it") from None
        StageTrainer(job, Rank(index, world_size), stop).run()
    torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main(Path(sys.argv[1])))
