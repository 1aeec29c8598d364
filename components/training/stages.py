"""One stage from the outside: is it trained already, and if not, start (or go on with) the job that trains it.

A stage lives in ``training/<digest>/``, the digest being that of everything that decides its weights: settings, corpus, the stage
before, code. ``done.json`` is written last; while it is missing, the folder is work to go on with.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from components.curation.corpus import Corpus
from components.errors import BadInput, JobFailed
from components.files import atomic_directory, read_json, read_lines, write_json
from components.home import Home
from components.launching import JobSpec, Launcher, LocalLauncher, configure_for_cluster
from components.provenance import SHORT, code_digest, digest, file_md5
from components.settings import CONTRASTIVE, STAGES, ModelSettings, Settings, StageName, block_samples
from components.tracking import Journal, Tracking

DONE, JOB, RUN, CURVE = "done.json", "job.json", "run.json", "curve.jsonl"
CODE = ("components/training", "components/tasks", "model_core", "kernels")


@dataclass(frozen=True)
class StageResult:
    """A trained stage.

    Attributes:
        folder: all that the stage left; ``model_dir``: its model, as ``save_pretrained`` writes it.
        run_id: MLflow run that trained it.
        reused: it had been trained before; then nothing was computed now.
        resumed_at: step of the checkpoint that the last job went on from; None = it began at the beginning.
        first_loss, last_loss: means over the first and the last tenth of the steps.
        seconds: wall time of the steps of the last job; step_seconds: median of one step.
        peak_memory_mib: highest resident memory of the last job's first process.
        rollbacks: how often steps went wrong and were undone.
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


def stage_digest(stage: StageName, corpus_digest: str, settings: Settings, parent: str | None) -> str:
    """Digest of all that decides the stage's weights; ``parent`` is that of the stage before.

    How many processes share out a step's samples does not: half as many, with twice the micro-batch, are the same stage, and go on
    from the checkpoint of the others. Where samples are compared with each other, those of a micro-step must be the same, too.
    """
    training, own = settings.training, settings.training.stage(stage)
    together = own.micro_batch * training.processes
    batch: tuple[int, ...] = (together * own.gradient_accumulation,)
    if stage in CONTRASTIVE:
        batch += (together, block_samples(together, training.processes))
    average = training.decoder_average if stage == "instruction_tuning" else None
    recipe = own.model_dump(mode="json", exclude={"micro_batch", "gradient_accumulation"})
    files = _outside_files(settings.model)
    engine = (training.zero_stage, training.precision, average)
    identity = (stage, corpus_digest, settings.seed, settings.model, files, engine, batch, recipe)
    return digest(*identity, parent, code_digest(*CODE))


def _outside_files(model: ModelSettings) -> dict[str, str]:
    """MD5 of the files of a local tokenizer or backbone, which settings name by path only."""
    folders = [folder for folder in (model.tokenizer, model.backbone) if folder is not None]
    return {str(path): file_md5(path) for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()}


def prepare(corpus_root: Path, settings: Settings, home: Home) -> Path:
    """Folder with the tokenizer of a corpus, trained on its training texts where the settings name none."""
    corpus = Corpus.open(corpus_root)
    identity = digest(corpus.digest, settings.model, _outside_files(settings.model), code_digest("model_core"))
    folder = home.training / f"tokenizer-{identity[:SHORT]}"
    if not folder.exists():
        with atomic_directory(folder) as temporary:
            _tokenizer(corpus, settings.model).save_pretrained(temporary)
    return folder


def _tokenizer(corpus: Corpus, model: ModelSettings) -> Any:
    from model_core.tokenization import add_special_tokens, train_tokenizer

    if model.tokenizer is not None:
        from transformers import AutoTokenizer

        if not (model.tokenizer / "tokenizer.json").exists():
            remedy = "name a folder that holds Qwen2.5's tokenizer.json"
            raise BadInput("no tokenizer in this folder", where=f"model.tokenizer={model.tokenizer}", remedy=remedy)
        return add_special_tokens(AutoTokenizer.from_pretrained(model.tokenizer, local_files_only=True))
    train = {volume_id for volume_id, volume in corpus.volumes.items() if volume.split == "train"}
    texts = [corpus.descriptions[volume_id].text for volume_id in sorted(train)]
    texts += [text for one in corpus.instructions if one.split == "train" for text in (one.instruction, one.response)]
    return train_tokenizer(texts, model.vocabulary)


def _require_backbone(model: ModelSettings, backbone: Path, tokenizer: Path) -> None:
    """Refuse a checkpoint that does not fit here, before a job is started."""
    from components.training.dense_checkpoint import DenseCheckpoint
    from model_core.processing import Processor

    DenseCheckpoint.open(backbone).require_fit(model.preset, Processor.from_pretrained(tokenizer).tokenizer)


def train_stage(
    stage: StageName,
    corpus_root: Path,
    settings: Settings,
    home: Home,
    parent: StageResult | None,
    parent_run_id: str | None,
    launcher: Launcher | None = None,
) -> StageResult:
    """Train one stage, go on with it, or find it trained.

    Args:
        parent: the stage before; its weights are the start. None for the first.
        parent_run_id: MLflow run of the pipeline.
        launcher: where the job runs; None = on this machine.

    Raises:
        BadInput: the tokenizer or the backbone that the settings name is none, or does not fit.
        JobFailed: the job failed; what it finished stays, and the next call goes on from its last checkpoint.
    """
    corpus = Corpus.open(corpus_root)
    identity = stage_digest(stage, corpus.digest, settings, parent.digest if parent else None)
    folder = home.training / identity[:SHORT]
    tracking = Tracking(home.tracking_uri, home)
    if not (reused := (folder / DONE).exists()):
        folder.mkdir(parents=True, exist_ok=True)
        _submit(stage, identity, corpus_root, settings, home, parent, parent_run_id, folder, tracking, launcher or LocalLauncher())
    result = _read_result(folder, reused)
    _tell_the_rest(result, tracking)
    if parent_run_id is not None:
        tracking.link_stage(parent_run_id, stage, result.run_id)
    return result


def _tell_the_rest(result: StageResult, tracking: Tracking) -> None:
    """What the tracking server missed because it was away when the stage ended."""
    journal = Journal.open(result.folder, result.run_id)
    if not journal.complete:
        journal.deliver(tracking, read_lines(result.folder / CURVE))


def _submit(
    stage: StageName,
    identity: str,
    corpus_root: Path,
    settings: Settings,
    home: Home,
    parent: StageResult | None,
    parent_run_id: str | None,
    folder: Path,
    tracking: Tracking,
    launcher: Launcher,
) -> None:
    """Write the job's description and run it to its end."""
    tokenizer = prepare(corpus_root, settings, home)
    if settings.model.backbone is not None:
        _require_backbone(settings.model, settings.model.backbone, tokenizer)
    if not (folder / RUN).exists():
        parameters = settings.training.stage(stage).model_dump(mode="json")
        write_json(folder / RUN, {"run_id": tracking.create_stage_run(stage, identity, parent_run_id, parameters)})
    write_json(
        folder / JOB,
        {
            "stage": stage,
            "digest": identity,
            "corpus_root": corpus_root,
            "settings": settings.model_dump(mode="json"),
            "tokenizer": tokenizer,
            "parent_model": parent.model_dir if parent else None,
            "home": home.root,
            "data": home.data,
            "tracking_uri": home.tracking_uri,
            "run_id": read_json(folder / RUN)["run_id"],
        },
    )
    handle = launcher.submit(stage_job(stage, identity, settings, folder))
    handle.wait()
    if not (folder / DONE).exists():  # the job's record outlived a folder that somebody removed
        handle.cancel()
        raise JobFailed("ended without a result", where=stage, remedy="run again")


def stage_job(stage: StageName, identity: str, settings: Settings, folder: Path) -> JobSpec:
    """The job that trains a stage."""
    job = JobSpec(
        name=stage,
        module="components.training.trainer",
        arguments=(str(folder / JOB),),
        processes=settings.training.processes,
        folder=folder,
        identity=identity,
    )
    return configure_for_cluster(job, settings.kubernetes) if settings.launcher == "kubernetes" else job


def stage_jobs(corpus_digest: str, settings: Settings, home: Home, until: StageName) -> list[JobSpec]:
    """The jobs of all stages up to one, as they would be submitted for a corpus."""
    jobs, parent = [], None
    for stage in STAGES[: STAGES.index(until) + 1]:
        parent = stage_digest(stage, corpus_digest, settings, parent)
        jobs.append(stage_job(stage, parent, settings, home.training / parent[:SHORT]))
    return jobs


def _read_result(folder: Path, reused: bool) -> StageResult:
    stored = read_json(folder / DONE)
    result = StageResult(**{**stored, "folder": folder, "model_dir": folder / "model", "reused": reused})
    return replace(result, seconds=0.0) if reused else result


def write_result(result: StageResult) -> None:
    """Called last by the job."""
    stored = asdict(result)
    write_json(
        result.folder / DONE, {name: value for name, value in stored.items() if name not in ("folder", "model_dir", "reused")}
    )
