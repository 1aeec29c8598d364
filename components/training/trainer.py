"""The process that trains a stage: ``python -m components.training.trainer job.json``, one or several side by side.

It goes on from the last whole checkpoint, if there is one, and back to it when a step goes wrong. On SIGTERM or Ctrl-C it finishes
the step, writes a checkpoint and ends with status 75. Figures reach ``curve.jsonl`` and MLflow together with the checkpoint that
holds them, so that nothing is recorded twice.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import os
import signal
import statistics
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from transformers.utils.logging import disable_progress_bar

from components.curation.corpus import Corpus
from components.errors import JobFailed
from components.files import atomic_directory, read_json, write_json
from components.home import Home
from components.launching.local_launcher import INTERRUPTED
from components.provenance import digest
from components.settings import Settings, StageName
from components.tracking import Journal, Tracking
from components.training.batches import BatchMaker, Rank
from components.training.dense_checkpoint import upcycled_model
from components.training.engine import Engine, StepResult, join_processes
from components.training.figures import stage_pictures
from components.training.loader import batches
from components.training.loss_spikes import Guard
from components.training.metrics_log import Curve
from components.training.samples import Samples
from components.training.stages import StageResult, write_result
from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.losses.reduction import all_reduce_sum
from model_core.objectives import Alignment, InstructionTuning, MultimodalPretraining, Objective, VisionPretraining
from model_core.processing import Processor
from model_core.tokenization import special_ids

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    return OmniMRIForConditionalGeneration(OmniMRIConfig.from_preset(job.settings.model.preset, len(processor.tokenizer), **ids))


class Stop:
    """Whether somebody asked this process to end."""

    def __init__(self) -> None:
        self.asked = False
        for asked in (signal.SIGTERM, signal.SIGINT):
            signal.signal(asked, self._ask)
        if sys.platform == "linux":  # end with the process that started this one
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True

    def agreed(self, world: int) -> bool:
        """Whether any process was asked: all must stop after the same step."""
        if world == 1:
            return self.asked
        asked = torch.tensor(float(self.asked), device="cuda" if torch.cuda.is_available() else "cpu")
        return bool(all_reduce_sum(asked) > 0)


class Training:
    """One process's part in training a stage, from the last checkpoint to the end."""

    def __init__(self, job: Job, place: Rank, stop: Stop) -> None:
        self.job, self.place, self.stop = job, place, stop
        training = job.settings.training
        self.settings = training.stage(job.stage)
        self.processor = Processor.from_pretrained(job.tokenizer)
        model = starting_model(job, self.processor)
        torch.manual_seed(job.key)
        self.objective = OBJECTIVES[job.stage](model)
        self.samples = Samples.of(job.corpus, "train")
        self.maker = self._maker(place)
        self.objective.begin(self._first_batches())
        self.engine = Engine(self.objective, self.settings, training, job.folder)
        self.guard = Guard.open(job.folder, training.spike_deviations, training.max_rollbacks)
        self.curve = self._curve(0)
        self.journal = Journal.open(job.folder, job.run_id) if place.number == 0 else None
        if self.journal is not None:
            profile = {"volumes": len(self.samples.numbers), "slices": len(self.samples.slices)}
            self.journal.input("curated corpus, training split", job.corpus.digest, "training", profile)
        self.started = time.monotonic()

    def run(self) -> None:
        """Train to the end.

        Raises:
            JobFailed: steps went wrong too often, or no checkpoint can be read.
            SystemExit: asked to stop before; the checkpoint is written, and the run is marked killed, not finished.
        """
        status = "FAILED"
        try:
            first = self.engine.load()
            if first is None:
                self.engine.save(0)  # to come back to, if the first steps go wrong
            step = first or 0
            self.curve = self._curve(step)
            self._record("RUNNING")  # with what a job noted and was killed before telling
            while (fault := self._train_from(step)) is not None:
                step = self._go_back(*fault)
            self._finish(first or 0)
            status = "FINISHED"
        except SystemExit:
            status = "KILLED"
            raise
        finally:
            if status != "FINISHED":
                self._record(status)

    def _maker(self, place: Rank) -> BatchMaker:
        config = self.objective.model.config
        return BatchMaker(self.job.stage, self.samples, self.settings, config, self.processor, self.job.settings.seed, place)

    def _first_batches(self) -> Iterator[Any]:
        """Batches of the stage as a single process would have them, so that what is fitted on them is the same everywhere."""
        alone = self._maker(Rank())
        for step in itertools.count():
            yield from alone[step]

    def _curve(self, steps: int) -> Curve:
        return Curve.resume(self.job.folder, steps, self.job.settings.training.precision, self.place.count)

    def _train_from(self, first: int) -> tuple[int, str] | None:
        """Train to the end, or to a step that went wrong: which, and how."""
        training = self.job.settings.training
        numbers = [self.guard.data_step(step) for step in range(first, self.settings.steps)]
        with closing(batches(self.maker, numbers, training.loader_workers, pin=torch.cuda.is_available())) as data:
            for step in range(first, self.settings.steps):
                begun = time.monotonic()
                micro_batches = next(data)
                loaded = time.monotonic()
                result = self.engine.step(micro_batches, step)
                self.curve.add(step, result, loaded - begun, time.monotonic() - loaded)
                fault = self.guard.fault(self.curve.losses, result.gradient_norm)
                if fault is not None:
                    return step, fault
                _say(self.place.number, self.job.stage, step, self.settings.steps, result)
                self._keep(step + 1)
        return None

    def _keep(self, done: int) -> None:
        """What is due after so many finished steps: pictures, a checkpoint with the curve that belongs to it, an early end."""
        training, last = self.job.settings.training, self.settings.steps
        if training.pictures_every and done % training.pictures_every == 0 and done < last:
            self._pictures(f"step-{done:06d}/")
        stopping = self.stop.agreed(self.place.count)
        if done % self.settings.checkpoint_every and done < last and not stopping:
            return
        self.engine.save(done)
        if self.place.number == 0:
            self.curve.write()
        self.engine.checkpoints.name(done)
        if stopping and done < last:
            raise SystemExit(INTERRUPTED)
        self._record("RUNNING")

    def _go_back(self, at: int, reason: str) -> int:
        """Undo the steps since the last good checkpoint, and leave out their data; the step to go on with."""
        to = self.engine.checkpoints.last_whole()
        assert to is not None
        self.guard.undo(at, to, reason, self.place.number == 0)
        self.engine.load()
        self.curve = self._curve(to)
        if self.journal is not None:
            undone = "; ".join(f"step {one.at} back to {one.to}: {one.reason}" for one in self.guard.rollbacks)
            self.journal.tag("omnimri.rollbacks", undone)
        return to

    def _record(self, status: str) -> None:
        if self.journal is not None:
            self.journal.status = status
            self.journal.deliver(self.job.tracking, self.curve.kept)

    def _pictures(self, folder: str = "") -> None:
        """On all processes: ZeRO-3 needs them to compute; the first keeps the pictures."""
        with self.engine.with_average():
            figures = stage_pictures(self.job.stage, self.objective, self.processor, self.job.corpus, self.curve)
        if self.journal is not None:
            for name, figure in figures.items():
                self.journal.picture(folder + name, figure)

    def _finish(self, first: int) -> None:
        """Write the model, the pictures and the result; then tell the tracking server whatever it does not know yet."""
        self._pictures()
        weights = self.engine.weights()
        if self.journal is None:
            return
        job, points = self.job, self.curve.points
        model = self.objective.model.float().eval()
        with atomic_directory(job.folder / "model") as folder:
            model.save_pretrained(folder, state_dict=weights)
            self.processor.save_pretrained(folder)
            curation = job.settings.curation
            write_json(folder / "preprocessing.json", {"matrix": curation.matrix, "pixel_mm": curation.pixel_mm})
        first_loss, last_loss = self.curve.tenth_means()
        waited = sum(point["data_wait_share"] * point["seconds"] for point in points) / sum(point["seconds"] for point in points)
        write_result(
            StageResult(
                stage=job.stage,
                digest=job.digest,
                folder=job.folder,
                model_dir=job.folder / "model",
                run_id=job.run_id,
                reused=False,
                resumed_at=first or None,
                steps=len(points),
                first_loss=first_loss,
                last_loss=last_loss,
                seconds=round(time.monotonic() - self.started, 2),
                step_seconds=round(statistics.median(point["seconds"] for point in points), 4),
                peak_memory_mib=round(_peak_memory_mib()),
                rollbacks=len(self.guard.rollbacks),
                data_wait_share=round(waited, 4),
            )
        )
        self.journal.status = "FINISHED"
        self.journal.insist(job.tracking, points)


def _peak_memory_mib() -> float:
    import resource

    return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, psutil.Process().memory_info().rss / 2**20)


def _say(rank: int, stage: str, step: int, steps: int, result: StepResult) -> None:
    if rank == 0 and (step % 10 == 0 or step + 1 == steps):
        print(f"{stage} {step + 1}/{steps} loss {result.loss:.4f} gradient {result.gradient_norm:.2f}", flush=True)


def main(path: Path) -> int:
    """Run one process of a job; its exit status."""
    stop = Stop()
    disable_progress_bar()
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    # A debugging aid of the deterministic mode, which costs a tenth of each step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # A tracking server that is away must not hold training up: what it misses is told later.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    rank, world = join_processes()
    job = Job.read(path)
    with (job.folder / f"lock-{rank}").open("w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process, not of those that it forks
        except OSError:
            raise JobFailed("another process trains this stage", where=str(job.folder), remedy="wait for it, or end it") from None
        Training(job, Rank(rank, world), stop).run()
    torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main(Path(sys.argv[1])))
