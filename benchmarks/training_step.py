"""A training step of the demo preset, with our kernels and with their eager references, and where its time goes.

python -m benchmarks.training_step [--corpus .omnimri/curated]

Both train stage 4 on the same batches of eight instructions of the demo's corpus: forward, backward, clipping, fused AdamW. The
references are the plain PyTorch that states what the kernels compute: attention by masks and gathered biases, experts in loops.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

import model_core.moe
import model_core.swin
from benchmarks.harness import RESULTS, machine, measure, versions, write
from components.curation.corpus import Corpus
from components.settings import load_settings
from components.training.batches import BatchMaker
from components.training.engine import parameter_groups
from components.training.samples import Samples
from kernels.moe import moe_reference
from kernels.window_attention import window_attention_reference
from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.objectives import InstructionTuning
from model_core.processing import Processor
from model_core.tokenization import special_ids, train_tokenizer

BATCHES, PROFILED = 4, 6


@contextmanager
def eager() -> Iterator[None]:
    """The references in place of the kernels."""
    with patch.object(model_core.swin, "window_attention", window_attention_reference), \
            patch.object(model_core.moe, "moe", moe_reference):  # fmt: skip
        yield


def step_of(corpus: Corpus) -> Callable[[], float]:
    """One optimizer step, on the next of a few batches."""
    settings = load_settings("demo")
    texts = [text for one in corpus.instructions if one.split == "train" for text in (one.instruction, one.response)]
    processor = Processor(train_tokenizer(texts, settings.model.vocabulary))
    torch.manual_seed(0)
    ids = special_ids(processor.tokenizer)
    model = OmniMRIForConditionalGeneration(OmniMRIConfig.from_preset("demo", len(processor.tokenizer), **ids))
    objective, stage = InstructionTuning(model), settings.training.instruction_tuning
    groups = parameter_groups(objective, stage.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
    trained = [parameter for group in groups for parameter in group["params"]]
    maker = BatchMaker("instruction_tuning", Samples.of(corpus, "train"), stage, model.config, processor, settings.seed)
    batches, number = [maker[step][0] for step in range(BATCHES)], iter(range(10**9))

    def step() -> float:
        loss = objective(batches[next(number) % BATCHES]).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def where_time_goes(step: Callable[[], float]) -> str:
    """PyTorch's own table: operations by the time that they take themselves, all steps together."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(PROFILED):
            step()
    return str(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=48))


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path(".omnimri/curated"))
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    step = step_of(Corpus.open(arguments.corpus))

    def with_references() -> float:
        with eager():
            return step()

    peers = {"eager references": with_references, "OmniMRI": step}
    rows = measure("stage 4, demo preset, batch of 8", "training step", peers, "cpu", arguments.repeats)
    write("training_step_cpu", rows)
    table = where_time_goes(step)
    (RESULTS / "training_step_profile.txt").write_text(f"{machine('cpu')}; {versions()}; {PROFILED} steps\n{table}")


if __name__ == "__main__":
    main()
