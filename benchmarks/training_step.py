"""A training step of the demo preset, with our kernels and with their eager references, and its profile.

python -m benchmarks.training_step [--corpus .omnimri/curated]

Both train on the same batches: forward, backward, clipping, fused AdamW. The references are the plain PyTorch that states what the
kernels compute: attention by masks and gathered biases, experts in loops. Two cases: stage 4 on eight instructions of the demo's
corpus, whose windows of 36 tokens and four experts are so small that on a CPU the kernels are their references; and stage 1 on
volumes, with the windows of 512 tokens that the larger presets have.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile, record_function

import model_core.moe
import model_core.swin
from benchmarks.harness import RESULTS, Measurement, machine, measure, versions, write
from components.curation.corpus import Corpus
from components.registries import STAGES
from components.settings import StageSettings, load_settings
from components.training.batches import StageBatches
from components.training.engine import parameter_groups
from components.training.samples import Samples
from kernels.moe_layer import moe, moe_reference
from kernels.window_attention import window_attention, window_attention_reference
from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.batch import ImageBatch
from model_core.objectives import InstructionTuning, Objective, VisionPretraining
from model_core.processing import Processor
from model_core.tokenization import special_ids, train_tokenizer

BATCHES, PROFILED = 4, 8


@contextmanager
def eager() -> Iterator[None]:
    """Replace the kernels with their references."""
    with (
        patch.object(model_core.swin, "window_attention", window_attention_reference),
        patch.object(model_core.moe, "moe", moe_reference),
    ):
        yield


def build_steps(objective: Objective, stage: StageSettings, batches: Sequence[Any]) -> Callable[[], float]:
    """Return a function that takes an optimizer step on each of the batches."""
    groups = parameter_groups(objective, stage.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
    trained = [parameter for group in groups for parameter in group["params"]]

    def steps() -> float:
        for batch in batches:
            loss = objective(batch).total
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return float(loss.detach())

    return steps


def instruction_steps(corpus: Corpus) -> Callable[[], float]:
    """Return steps of stage 4, whose batches differ in the number of target images."""
    settings = load_settings("demo")
    texts = [text for one in corpus.instructions if one.split == "train" for text in (one.instruction, one.response)]
    processor = Processor(train_tokenizer(texts, settings.model.vocabulary))
    torch.manual_seed(0)
    ids = special_ids(processor.tokenizer)
    model = OmniMRIForConditionalGeneration(OmniMRIConfig.from_preset("demo", len(processor.tokenizer), **ids))
    stage = settings.training.stage("instruction_tuning")
    batches = StageBatches(
        STAGES["instruction_tuning"], Samples.from_corpus(corpus, "train"), stage, model.config, processor, settings.seed
    )
    return build_steps(InstructionTuning(model), stage, [batches[step][0] for step in range(BATCHES)])


def volume_steps() -> Callable[[], float]:
    """Return steps of stage 1 with windows of 8 x 8 x 8 tokens, on two volumes of noise of 8 x 128 x 128 voxels."""
    torch.manual_seed(0)
    model = OmniMRIForConditionalGeneration(OmniMRIConfig.from_preset("demo", vision_window=(8, 8, 8)))
    two = torch.arange(2)
    batch = ImageBatch(pixel_values_B1DHW=torch.rand(2, 1, 8, 128, 128), volume_B=two, group_B=two, seed_B=two)
    return build_steps(VisionPretraining(model), load_settings("demo").training.stage("vision_pretraining"), [batch])


@contextmanager
def profiler_labels() -> Iterator[None]:
    """Label the forward passes of both operations in the profile."""

    def label(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **more: Any) -> Any:
            with record_function(f"omnimri::{name} (forward, all in all)"):
                return call(*args, **more)

        return run

    with (
        patch.object(model_core.swin, "window_attention", label("window_attention", window_attention)),
        patch.object(model_core.moe, "moe", label("moe", moe)),
    ):
        yield


def profile_steps(steps: Callable[[], float]) -> str:
    """Return the share of both operations' forward passes, and PyTorch's table of operations by self time."""
    with profiler_labels(), profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(PROFILED // BATCHES):
            steps()
    averages = recorded.key_averages()
    total = sum(event.self_cpu_time_total for event in averages)
    shares = [f"{event.key}: {event.cpu_time_total / total:.1%}" for event in averages if event.key.startswith("omnimri::")]
    return "\n".join([*shares, averages.table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=48)])


def compare(case: str, steps: Callable[[], float], repeats: int) -> list[Measurement]:
    """Measure the steps with the references and with the kernels, alternating."""

    def with_references() -> float:
        with eager():
            return steps()

    return measure(case, "training", {"eager references": with_references, "OmniMRI": steps}, "cpu", repeats)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path(".omnimri/curated"))
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    instructions = instruction_steps(Corpus.open(arguments.corpus))
    rows = compare("stage 4, demo preset: 4 steps of 8 instructions", instructions, arguments.repeats)
    rows += compare("stage 1, windows of 8^3: a step of 2 volumes", volume_steps(), arguments.repeats)
    write("training_step_cpu", rows)
    table = profile_steps(instructions)
    (RESULTS / "training_step_profile.txt").write_text(f"{machine('cpu')}; {versions()}; {PROFILED} steps\n{table}")


if __name__ == "__main__":
    main()
