"""A trained stage and the job that trains it: what decides its weights, where its folder is, and whether it is complete.

The folder of a stage is ``training/<digest>/``, with the digest of everything that decides its weights (:func:`stage_inputs`).
``done.json`` is written last; while it is missing, the next call resumes the work in the folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from components.curation.corpus import Corpus
from components.errors import BadInput, JobFailed
from components.files import atomic_directory, read_json, read_lines, read_state, write_json
from components.home import Home
from components.launching import JobSpec, Launcher, LocalLauncher, configure_for_cluster
from components.model_files import has_digest, weights_digest
from components.provenance import SHORT, code_digest, digest, file_md5
from components.registries import PLUGINS, STAGES
from components.settings import ModelSettings, Settings, StageName, TrainingSettings
from components.tracking import Journal, Tracking
from components.tracking.journal import JOURNAL
from components.verified_files import is_sealed, seal

DONE, JOB, RUN, METRICS = "done.json", "job.json", "run.json", "curve.jsonl"
WEIGHTS = "weights"
"""Entry of ``done.json``: digest of the stage's model."""
IMPORTS = (
    "components.training.engine",
    "components.training.figures",
    "components.training.loader",
    "deepspeed",
    "matplotlib.backends.backend_agg",
    "mlflow.store.tracking.sqlalchemy_store",
    "model_core.modeling_omnimri",
    "torch._inductor.compile_fx",
)
"""Modules that every stage's process imports, and that take longest."""
CODE = ("components/training", "components/tasks", "model_core", "kernels")
"""Sources whose code decides the weights; those of plugins count, too."""


@dataclass(frozen=True)
class StageResult:
    """A trained stage.

    Attributes:
        folder: all files of the stage; ``model_dir``: its model, as ``save_pretrained`` writes it.
        run_id: MLflow run that trained it.
        reused: the stage had been trained before, and nothing was computed now.
        resumed_at: step of the checkpoint from which the last job resumed; None = it started from the beginning.
        first_loss, last_loss: means over the first and the last tenth of the steps.
        seconds: wall time of the steps of the last job; step_seconds: median of one step.
        peak_memory_mib: maximum resident memory of the last job's first process, MiB.
        rollbacks: number of times that steps were undone.
        data_wait_share: share of the steps' time in which the first process waited for data.
    """

    stage: StageName
    digest: str
    folder: Path
    model_dir: Path
    run_id: str
    reused: bool
    resumed_at: int | None
    steps: int
    first_loss: float
    last_loss: float
    seconds: float
    step_seconds: float
    peak_memory_mib: float
    rollbacks: int = 0
    data_wait_share: float = 0.0


def stage_inputs(stage: StageName, settings: Settings, corpus: str, parent: str = "") -> Mapping[str, str]:
    """Return, by name, the digests of everything that decides a stage's weights; :func:`stage_digest` is computed from them.

    The number of processes that share the samples of a step is not among them: half as many, with twice the micro-batch, are the
    same stage, and resume from the checkpoint of the others. Where samples are compared with each other, the number of samples of
    a micro-step over all processes counts, too.

    Args:
        stage: Name of the stage.
        settings: Settings of the run.
        corpus: Digest of the curated corpus.
        parent: Digest of the previous stage; "" = none.
    """
    registered, training, own = STAGES[stage], settings.training, settings.training.stage(stage)
    micro_batch_total = own.micro_batch * training.processes
    batch = [micro_batch_total * own.gradient_accumulation]
    batch += registered.comparison_sizes(micro_batch_total, training.processes)
    if own.volume_steps:
        batch.append(own.volume_samples_total(training.processes) * own.gradient_accumulation)
    average = training.decoder_average if registered.averages_decoder else None
    recipe = own.model_dump(mode="json", exclude={"micro_batch", "gradient_accumulation", "volume_samples"})
    return {
        "corpus": corpus,
        "seed": str(settings.seed),
        "settings: model": settings.model.digest(),
        "settings: training": digest(
            training.zero_stage,
            training.offload_optimizer,
            training.optimizer_bits,
            training.precision,
            average,
            registered.adapter_rank(training),
        ),
        f"settings: training.{stage}": digest(batch, recipe),
        "tokenizer and backbone files": digest(_outside_files(settings.model)),
        "code of training": code_digest(*CODE),
        "parent stage": parent,
    }


def stage_digest(stage: StageName, settings: Settings, corpus: str, parent: str = "") -> str:
    """Return the digest of a stage: that of its :func:`stage_inputs`."""
    return digest(dict(stage_inputs(stage, settings, corpus, parent)))


def _outside_files(model: ModelSettings) -> dict[str, str]:
    """Return the MD5 of each file of a local tokenizer or backbone, which settings name only by path."""
    folders = [folder for folder in (model.tokenizer, model.backbone) if folder is not None]
    return {str(path): file_md5(path) for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()}


def prepare_tokenizer(corpus_root: Path, settings: Settings, home: Home) -> Path:
    """Return the folder of a corpus's tokenizer, which is trained on its training texts unless the settings name one.

    Raises:
        BadInput: the folder that the settings name has no tokenizer.
    """
    corpus = Corpus.open(corpus_root)
    identity = digest(corpus.digest, settings.model, _outside_files(settings.model), code_digest("model_core"))
    folder = home.training / f"tokenizer-{identity[:SHORT]}"
    if not is_sealed(folder):
        with atomic_directory(folder) as temporary:
            _build_tokenizer(corpus, settings.model).save_pretrained(temporary)
            seal(temporary)
    return folder


def _build_tokenizer(corpus: Corpus, model: ModelSettings) -> Any:
    from model_core.tokenization import add_special_tokens, train_tokenizer

    if model.tokenizer is not None:
        from transformers import AutoTokenizer

        if not (model.tokenizer / "tokenizer.json").exists():
            remedy = "name a folder that contains Qwen2.5's tokenizer.json"
            raise BadInput("no tokenizer in this folder", where=f"model.tokenizer={model.tokenizer}", remedy=remedy)
        return add_special_tokens(AutoTokenizer.from_pretrained(model.tokenizer, local_files_only=True))
    train = {volume_id for volume_id, volume in corpus.volumes.items() if volume.split == "train"}
    texts = [corpus.descriptions[volume_id].text for volume_id in sorted(train)]
    texts += [text for record in corpus.instructions if record.split == "train" for text in (record.instruction, record.response)]
    return train_tokenizer(texts, model.vocabulary)


def _require_backbone(model: ModelSettings, backbone: Path, tokenizer: Path) -> None:
    """Reject a checkpoint that does not fit the preset or the tokenizer, before a job is started."""
    from components.training.dense_checkpoint import DenseCheckpoint
    from model_core.processing import Processor

    DenseCheckpoint.open(backbone).require_fit(model.preset, Processor.from_pretrained(tokenizer).tokenizer)


def _require_resumable(job: JobSpec, training: TrainingSettings) -> None:
    """Reject a number of processes that cannot resume the stage, before a job is started."""
    from components.training.checkpoints import Checkpoints

    if not training.resumes_on_any_processes:
        Checkpoints(job.folder, world_size=training.processes).require_same_processes()


def train_stage(
    stage: StageName,
    corpus_root: Path,
    settings: Settings,
    home: Home,
    parent: StageResult | None,
    parent_run_id: str | None,
    launcher: Launcher | None = None,
) -> StageResult:
    """Train one stage, resume it, or return its result if it is complete.

    Args:
        stage: Name of the stage.
        corpus_root: Folder of the curated corpus.
        settings: Settings of the run.
        home: Folders of this installation.
        parent: The previous stage, whose weights are the start; None for the first.
        parent_run_id: MLflow run of the pipeline.
        launcher: Where the job runs; None = on this machine.

    Raises:
        BadInput: the tokenizer or the backbone that the settings name is none, or does not fit; or the stage's checkpoints are of
            another number of processes, and the optimizer's state allows only theirs.
        JobFailed: the job failed; its checkpoints stay, and the next call resumes from the last one.
    """
    corpus = Corpus.open(corpus_root)
    identity = stage_digest(stage, settings, corpus.digest, parent.digest if parent else "")
    job = stage_job(stage, identity, settings, home.training / identity[:SHORT])
    tracking = Tracking(home.tracking_uri, home)
    if not (reused := is_trained(job.folder)):
        _require_resumable(job, settings.training)
        (job.folder / DONE).unlink(missing_ok=True)
        _describe_job(job, corpus_root, settings, home, tracking, parent, parent_run_id)
        _run_job(job, launcher or LocalLauncher())
    result = _read_result(job.folder, reused)
    _deliver_missing_records(result, tracking)
    if parent_run_id is not None:
        tracking.link_stage(parent_run_id, stage, result.run_id)
    return result


def _deliver_missing_records(result: StageResult, tracking: Tracking) -> None:
    """Send the tracking server what it missed because it was unreachable when the stage ended."""
    journal = Journal.open(result.folder, result.run_id)
    if not journal.complete:
        journal.deliver(tracking, read_lines(result.folder / METRICS))


def _describe_job(
    job: JobSpec,
    corpus_root: Path,
    settings: Settings,
    home: Home,
    tracking: Tracking,
    parent: StageResult | None,
    parent_run_id: str | None,
) -> None:
    """Write ``job.json``, which the trainer reads, and ``run.json`` with the MLflow run, created once."""
    job.folder.mkdir(parents=True, exist_ok=True)
    tokenizer = prepare_tokenizer(corpus_root, settings, home)
    if settings.model.backbone is not None:
        _require_backbone(settings.model, settings.model.backbone, tokenizer)
    run_id = _stage_run(job, settings, tracking, parent_run_id)
    write_json(
        job.folder / JOB,
        {
            "stage": job.name,
            "digest": job.identity,
            "corpus_root": corpus_root,
            "settings": settings.model_dump(mode="json"),
            "tokenizer": tokenizer,
            "parent_model": parent.model_dir if parent else None,
            "home": home.root,
            "data": home.data,
            "tracking_uri": home.tracking_uri,
            "run_id": run_id,
        },
    )


def _stage_run(job: JobSpec, settings: Settings, tracking: Tracking, parent_run_id: str | None) -> str:
    """Return the MLflow run of a stage that is to be trained: a new one if ``run.json`` names none, or one that was deleted."""
    run_id = read_state(job.folder / RUN).get("run_id")
    if run_id is None or not tracking.is_active(run_id):
        parameters = settings.training.stage(job.name).model_dump(mode="json")
        run_id = tracking.create_stage_run(job.name, job.identity, parent_run_id, parameters)
        (job.folder / JOURNAL).unlink(missing_ok=True)  # the new run has nothing yet
        write_json(job.folder / RUN, {"run_id": run_id})
    return str(run_id)


def _run_job(job: JobSpec, launcher: Launcher) -> None:
    """Submit a described job and wait for its end."""
    handle = launcher.submit(job)
    handle.wait()
    if not (job.folder / DONE).exists():  # the job's record on the cluster outlived its folder, which was deleted
        handle.cancel()
        raise JobFailed("ended without a result", where=job.name, remedy="run again")


def stage_job(stage: StageName, identity: str, settings: Settings, folder: Path) -> JobSpec:
    """Return the job that trains a stage; it imports the plugins of this process."""
    job = JobSpec(
        name=stage,
        module="components.training.trainer",
        arguments=(str(folder / JOB),),
        processes=settings.training.processes,
        folder=folder,
        environment={PLUGINS: os.environ[PLUGINS]} if os.environ.get(PLUGINS) else {},
        imports=IMPORTS,
        identity=identity,
    )
    return configure_for_cluster(job, settings.kubernetes) if settings.launcher == "kubernetes" else job


def stage_jobs(corpus: str, settings: Settings, home: Home, until: StageName | None = None) -> list[JobSpec]:
    """Return the jobs of all stages up to one (None = all), as they would be submitted for a corpus with this digest."""
    jobs, parent = [], ""
    for stage in settings.training.stages_until(until):
        parent = stage_digest(stage, settings, corpus, parent)
        jobs.append(stage_job(stage, parent, settings, home.training / parent[:SHORT]))
    return jobs


def is_trained(folder: Path) -> bool:
    """Return whether a stage is complete and its model still has the digest that it was written with."""
    try:
        return has_digest(folder / "model", read_json(folder / DONE).get(WEIGHTS, ""))
    except (FileNotFoundError, ValueError):  # not finished, or cut
        return False


def _read_result(folder: Path, reused: bool) -> StageResult:
    stored = read_json(folder / DONE)
    stored.pop(WEIGHTS, None)
    result = StageResult(**{**stored, "folder": folder, "model_dir": folder / "model", "reused": reused})
    return replace(result, seconds=0.0) if reused else result


def write_result(result: StageResult) -> None:
    """Write ``done.json``, the last file of a stage."""
    stored = {name: value for name, value in asdict(result).items() if name not in ("folder", "model_dir", "reused")}
    write_json(result.folder / DONE, {**stored, WEIGHTS: weights_digest(result.model_dir)})
