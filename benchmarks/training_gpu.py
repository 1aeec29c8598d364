"""Training of every stage on one GPU: the engine that trains, the loader that feeds it, our kernels and their eager references.

python -m benchmarks.training_gpu --profile single_gpu [--corpus .omnimri/curated] [--steps 8]

Each stage runs in a process of its own, through DeepSpeed, as `omnimri train` would train it with this profile (batches, precision,
activation checkpointing, loader processes), but from new weights and without checkpoints. The same engine then continues with the
references in place of the kernels: attention by masks and gathered biases, experts in a loop. The first steps of both, in which
kernels are compiled and tuned, are not counted. Running out of memory is recorded as a result.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import RESULTS, machine, versions, write_rows
from benchmarks.training_step import eager
from components.curation.corpus import Corpus
from components.registries import STAGES
from components.settings import Settings, StageName, load_settings
from components.training.batches import StageBatches
from components.training.cost import peak_flops
from components.training.engine import Engine, join_processes
from components.training.loader import load_batches
from components.training.samples import Samples
from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.processing import Processor
from model_core.tokenization import special_ids, train_tokenizer

WARMUP_STEPS = 4
"""First steps of a peer, which are not counted. Of four steps of stage 1, one uses blocks of slices."""
PEERS: dict[str, Callable[[], AbstractContextManager[None]]] = {"OmniMRI": nullcontext, "eager references": eager}


@dataclass(frozen=True)
class TrainingSpeed:
    """Measured steps of a stage.

    Attributes:
        peak_gib: maximum allocated by PyTorch, GiB of the GPU.
        parameters: of the whole network, millions.
        note: why there is no measurement.
    """

    profile: str
    stage: StageName
    peer: str
    step_ms: float | None = None
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    data_wait_share: float | None = None
    peak_gib: float | None = None
    loss: float | None = None
    parameters: int | None = None
    note: str = ""


def build_engine(stage: StageName, settings: Settings, corpus: Corpus, folder: Path) -> tuple[Engine, StageBatches]:
    """Return a new network under the stage's objective, and its batches."""
    samples = Samples.from_corpus(corpus, "train")
    texts = [text for one in corpus.instructions if one.split == "train" for text in (one.instruction, one.response)]
    processor = Processor(train_tokenizer(texts, min(settings.model.vocabulary, 1024)))
    ids = special_ids(processor.tokenizer)
    torch.manual_seed(0)
    # The vocabulary has the size that the profile sets, whatever this corpus can fill.
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = OmniMRIForConditionalGeneration(OmniMRIConfig.from_preset(settings.model.preset, settings.model.vocabulary, **ids))
        objective = STAGES[stage].build_objective(model, settings.training.stage(stage))
    batches = StageBatches(STAGES[stage], samples, settings.training.stage(stage), model.config, processor, settings.seed)
    return Engine(STAGES[stage], objective, settings.training.stage(stage), settings.training, folder), batches


def measure_speed(engine: Engine, data: Iterator[Any], steps: int, precision: str) -> dict[str, float]:
    """Measure the steps after the warm-up."""
    waited = tokens = samples = flops = 0.0
    cuda = torch.cuda.is_available()
    for number in range(WARMUP_STEPS + steps):
        if number == WARMUP_STEPS:
            waited = tokens = samples = flops = 0.0
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
        requested = time.perf_counter()
        micro_batches = next(data)
        waited += time.perf_counter() - requested
        result = engine.step(micro_batches, number)
        tokens, samples, flops = tokens + result.tokens, samples + result.samples, flops + result.flops
        if cuda:
            torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return {
        "step_ms": round(seconds / steps * 1e3, 1),
        "samples_per_second": round(samples / seconds, 1),
        "tokens_per_second": round(tokens / seconds),
        "mfu": round(flops / seconds / peak_flops(precision), 4),
        "data_wait_share": round(waited / seconds, 4),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else 0.0,
        "loss": round(result.loss, 4),
    }


def profile_step(engine: Engine, micro_batches: list[Any]) -> str:
    """Return PyTorch's table of one step: operations by self time on the device."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as recorded:
        engine.step(micro_batches, 1)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return recorded.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60)


def measure_stage(stage: StageName, name: str, corpus: Path, steps: int) -> tuple[list[TrainingSpeed], str]:
    """Measure both peers on one stage; return the profile of ours, too."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29711")
    join_processes()
    settings = load_settings(name)
    rows, table = [], ""
    with tempfile.TemporaryDirectory() as folder:
        engine, stage_batches = build_engine(stage, settings, Corpus.open(corpus), Path(folder))
        parameters = sum(p.numel() for p in engine.objective.model.parameters()) // 10**6
        precision, workers = settings.training.precision, settings.training.loader_workers
        for peer, kernels in PEERS.items():
            needed = range(2 * WARMUP_STEPS + steps)
            try:
                with kernels(), closing(load_batches(stage_batches, needed, workers, pin=torch.cuda.is_available())) as data:
                    measured = measure_speed(engine, data, steps, precision)
                    row = TrainingSpeed(settings.profile, stage, peer, **measured, parameters=parameters)  # type: ignore[arg-type]
                    if peer == "OmniMRI":
                        table = profile_step(engine, next(data))
            except Exception as error:  # a peer that cannot do this is a result, not a crash
                first = (str(error).splitlines() or [""])[0]
                row = TrainingSpeed(
                    settings.profile, stage, peer, parameters=parameters, note=f"{type(error).__name__}: {first[:120]}"
                )
            print(row, flush=True)
            rows.append(row)
    return rows, table


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="single_gpu")
    parser.add_argument("--corpus", type=Path, default=Path(".omnimri/curated"))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    arguments = parser.parse_args()
    results: list[TrainingSpeed] = []
    tables: list[str] = []
    name = load_settings(arguments.profile).profile
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for stage in arguments.stages:
            rows, table = pool.submit(measure_stage, stage, arguments.profile, arguments.corpus, arguments.steps).result()
            results, tables = results + rows, [*tables, f"{name}, {stage}, one step\n{table}"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    write_rows(f"training_{name}", [asdict(row) for row in results], versions(), device)
    (RESULTS / f"training_{name}_profile.txt").write_text(f"{machine(device)}; {versions()}\n" + "\n".join(tables))


if __name__ == "__main__":
    main()
