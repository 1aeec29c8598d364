"""Performance of each stage on held-out patients, over several seeds.

python -m benchmarks.stages --profile study --seeds 3 [--home .omnimri]

Stage 1: mean absolute error in masked patches, against the mean of the visible ones. Stage 2: recall of a slice's own description
among those of all held-out volumes, against chance. Stage 3: perplexity of a token and flow-matching error of visual tokens,
against an untrained backbone. Stage 4: the tasks as ``omnimri evaluate`` measures them, against its baselines; and memorization in
diagnosis: the same questions about training patients. Trained stages are reused; without them a demo takes ten to fifteen minutes
per seed on two cores, the study profile an hour and a half.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import versions, write_rows
from components.curation.corpus import Corpus
from components.evaluation import evaluate
from components.evaluation.model_answers import AnswerGenerator, load_cases
from components.files import read_json
from components.home import Home
from components.registries import STAGES, TASKS
from components.settings import Settings, StageName, load_settings
from components.training import StageResult, train_stage
from components.training.batches import StageBatches
from components.training.samples import Samples
from model_core import OmniMRIForConditionalGeneration
from model_core.losses.contrastive import standardize
from model_core.objectives import Alignment, Objective, VisionPretraining
from model_core.processing import Processor

BATCHES, RANKS = 16, (1, 5)
Row = dict[str, Any]


def train_stages(settings: Settings, home: Home, stages: tuple[StageName, ...] = STAGES.built_in) -> list[StageResult]:
    """Train stages one after another, or reuse them."""
    results: list[StageResult] = []
    for stage in stages:
        results.append(train_stage(stage, home.curated, settings, home, results[-1] if results else None, None))
    return results


def load_objective(result: StageResult, settings: Settings) -> Objective:
    """Return a stage's objective with the heads that only its checkpoint contains."""
    model = OmniMRIForConditionalGeneration.from_pretrained(result.model_dir)
    objective = STAGES[result.stage].build_objective(model, settings.training.stage(result.stage))
    tag = read_json(result.folder / "checkpoint.json")["tag"]
    states = result.folder / "checkpoints" / tag / "mp_rank_00_model_states.pt"
    objective.load_state_dict(torch.load(states, map_location="cpu", weights_only=True)["module"])
    return objective.eval()


def held_out_batches(result: StageResult, corpus: Corpus, settings: Settings) -> StageBatches:
    """Return batches of test patients in the form of the stage."""
    processor, samples = Processor.from_pretrained(result.model_dir), Samples.from_corpus(corpus, "test")
    config = OmniMRIForConditionalGeneration.from_pretrained(result.model_dir).config
    return StageBatches(STAGES[result.stage], samples, settings.training.stage(result.stage), config, processor, 0)


@torch.no_grad()
def measure_masked_patches(result: StageResult, corpus: Corpus, settings: Settings) -> Iterator[Row]:
    """Measure stage 1."""
    objective, batches = load_objective(result, settings), held_out_batches(result, corpus, settings)
    assert isinstance(objective, VisionPretraining)
    errors, trivial = [], []
    for step in range(BATCHES):
        (batch,) = batches[step]
        seen, restored = objective.restore(batch.pixel_values_B1DHW, batch.seed_B)
        hidden = restored != batch.pixel_values_B1DHW
        shown = ~hidden
        mean = (seen.sum((1, 2, 3, 4)) / shown.sum((1, 2, 3, 4))).view(-1, 1, 1, 1, 1)
        errors.append(float((restored - batch.pixel_values_B1DHW).abs()[hidden].mean()))
        trivial.append(float((mean - batch.pixel_values_B1DHW).abs()[hidden].mean()))
    yield {"figure": "error in masked patches", "value": statistics.fmean(errors), "trivial": statistics.fmean(trivial)}


@torch.no_grad()
def measure_retrieval(result: StageResult, corpus: Corpus, settings: Settings) -> Iterator[Row]:
    """Measure stage 2: rank all descriptions for the middle slice of every test volume; equal texts are one description."""
    objective = load_objective(result, settings)
    assert isinstance(objective, Alignment)
    samples, processor = Samples.from_corpus(corpus, "test"), Processor.from_pretrained(result.model_dir)
    volumes = sorted(samples.numbers)
    texts = sorted({corpus.descriptions[volume].text for volume in volumes})
    middle = [corpus.volumes[volume].slices // 2 for volume in volumes]
    images = torch.stack([torch.from_numpy(samples.store.read(v, "voxels", m)) for v, m in zip(volumes, middle, strict=True)])
    seen = objective.model.connector(objective.model.vision(images[:, None, None])).mean(1)
    ids, mask = processor.pad([processor.encode_description(text) for text in texts])
    hidden = objective.model(ids, mask).hidden_states
    read = hidden[torch.arange(len(texts)), mask.sum(-1) - 1]
    shared = [objective.image_projection(standardize(seen)), objective.text_projection(standardize(read))]
    similarity = torch.nn.functional.normalize(shared[0], dim=-1) @ torch.nn.functional.normalize(shared[1], dim=-1).T
    own = torch.tensor([texts.index(corpus.descriptions[volume].text) for volume in volumes])
    place = (similarity > similarity.gather(1, own[:, None])).sum(1)
    for rank in RANKS:
        recall = float((place < rank).float().mean())
        yield {"figure": f"recall@{rank} of {len(texts)} descriptions", "value": recall, "trivial": rank / len(texts)}


@torch.no_grad()
def measure_next_tokens(result: StageResult, corpus: Corpus, settings: Settings) -> Iterator[Row]:
    """Measure stage 3."""
    batches = held_out_batches(result, corpus, settings)
    trained_model = OmniMRIForConditionalGeneration.from_pretrained(result.model_dir).eval()
    torch.manual_seed(0)
    untrained = OmniMRIForConditionalGeneration(trained_model.config).eval()
    untrained.vision, untrained.visual_target = trained_model.vision, trained_model.visual_target  # the same thing is predicted
    figures: dict[str, list[float]] = {}
    for name, model in (("value", trained_model), ("trivial", untrained)):
        objective = STAGES[result.stage].build_objective(model, settings.training.stage(result.stage))
        parts = [objective(batch).parts for step in range(BATCHES) for batch in batches[step]]
        figures[name] = [
            math.exp(statistics.fmean(float(part["text"]) for part in parts)),
            statistics.fmean(float(part["visual"]) for part in parts),
        ]
    for place, figure in enumerate(("perplexity of a token", "flow error of a visual token")):
        yield {"figure": figure, "value": figures["value"][place], "trivial": figures["trivial"][place]}


def measure_tasks(result: StageResult, corpus: Corpus, settings: Settings, home: Home) -> Iterator[Row]:
    """Measure stage 4."""
    report = evaluate(result.model_dir, corpus.root, settings.evaluation, home.evaluations, settings.seed)
    for row in report.rows:
        best = (max if row.higher_is_better else min)(row.baselines.values())
        yield {"figure": f"{row.task}: {row.metric}", "value": row.model, "trivial": best}


def measure_memorization(result: StageResult, corpus: Corpus, settings: Settings) -> Iterator[Row]:
    """Measure the memorization of stage 4: every question of diagnosis about a training patient."""
    answers = AnswerGenerator.load(result.model_dir, settings.evaluation, settings.seed)
    asked = [one for one in corpus.instructions if one.split == "train" and one.task == "diagnosis"]
    answered = TASKS["diagnosis"].evaluate(load_cases(corpus, asked), answers, corpus, settings.evaluation)
    (row,) = (row for row in answered.rows if row.metric == "accuracy")
    yield {"figure": "diagnosis: accuracy, training patients", "value": row.model, "trivial": max(row.baselines.values())}


def rows_of(settings: Settings, home: Home) -> Iterator[Row]:
    """Yield every figure of the seed of the settings."""
    corpus = Corpus.open(home.curated)
    results = train_stages(settings, home)
    measures = (measure_masked_patches, measure_retrieval, measure_next_tokens)
    for result, measure in zip(results, measures, strict=False):
        for row in measure(result, corpus, settings):
            yield {"stage": result.stage, **row}
    for row in measure_tasks(results[-1], corpus, settings, home):
        yield {"stage": results[-1].stage, **row}
    for row in measure_memorization(results[-1], corpus, settings):
        yield {"stage": results[-1].stage, **row}
    for result in results:
        yield {"stage": result.stage, "figure": "loss, last tenth", "value": result.last_loss, "trivial": result.first_loss}


def summarize(rows: list[Row]) -> Iterator[Row]:
    """Yield mean and range over the seeds, one row per figure."""
    for key in dict.fromkeys((row["stage"], row["figure"]) for row in rows):
        values, trivial = ([row[name] for row in rows if (row["stage"], row["figure"]) == key] for name in ("value", "trivial"))
        spread = {"mean": statistics.fmean(values), "lowest": min(values), "highest": max(values)}
        spread["trivial"] = statistics.fmean(trivial)
        yield {"stage": key[0], "figure": key[1], "seeds": len(values), **{name: round(x, 4) for name, x in spread.items()}}


def print_rows(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield the same rows, and print each on a line."""
    for row in rows:
        print(*row.values(), sep="  ", flush=True)
        yield row


def parse_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the arguments that both benchmarks of trained stages accept."""
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=None, help="first seed; default: that of the profile")
    parser.add_argument("--home", type=Path, default=None, help="an installation with a curated corpus; default: OMNIMRI_HOME")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. evaluation.cases_per_task=200")
    return parser.parse_args()


def settings_of(arguments: argparse.Namespace, seed: int, *overrides: str) -> Settings:
    """Return the settings of a seed; ``--set`` has the last word."""
    return load_settings(arguments.profile, [f"seed={seed}", *overrides, *arguments.set])


def seeds_of(arguments: argparse.Namespace) -> range:
    """Return the seeds to train with."""
    first = load_settings(arguments.profile).seed if arguments.first is None else arguments.first
    return range(first, first + arguments.seeds)


def home_of(arguments: argparse.Namespace) -> Home:
    """Return the installation in which the stages are trained."""
    return Home(arguments.home.resolve(), arguments.home.resolve() / "data") if arguments.home else Home.open()


def main() -> None:
    """Train, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments = parse_arguments(parser)
    rows = [row for seed in seeds_of(arguments) for row in rows_of(settings_of(arguments, seed), home_of(arguments))]
    write_rows(f"stages_{arguments.profile}", print_rows(summarize(rows)), versions())


if __name__ == "__main__":
    main()
