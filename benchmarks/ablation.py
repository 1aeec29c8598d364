"""Contribution of stages 1 to 3, and of each part of the network that lets it see and place findings: the same run without it.

python -m benchmarks.ablation --profile demo --seeds 3 [--parts stages intensities ...] [--home .omnimri] [--set KEY=VALUE]

Every variant is measured by ``omnimri evaluate``. Trained stages are reused; stage 4 of a demo alone takes eight minutes per seed
on two cores, and a part that changes the first stage costs all four.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from benchmarks.harness import versions, write_rows
from benchmarks.stages import (
    Row,
    home_of,
    measure_tasks,
    parse_arguments,
    print_rows,
    seeds_of,
    settings_of,
    summarize,
    train_stages,
)
from components.curation.corpus import Corpus
from components.registries import STAGES
from components.settings import StageName


@dataclass(frozen=True)
class Variant:
    """A run without one part.

    Attributes:
        name: in the table.
        overrides: settings that turn the part off.
        stages: those that are trained.
    """

    name: str
    overrides: tuple[str, ...] = ()
    stages: tuple[StageName, ...] = STAGES.built_in


WHOLE = Variant("whole")
PARTS = {
    "stages": Variant("without stages 1 to 3", stages=("instruction_tuning",)),
    "intensities": Variant("without codes of intensity", ("model.intensity_frequencies=0",)),
    "positions": Variant("without codes of position", ("model.position_frequencies=0",)),
    "structures": Variant(
        "without label maps on every sample, and so without named findings", ("training.instruction_tuning.structure_weight=0",)
    ),
    "average": Variant("without the average of the decoder's weights", ("training.decoder_average=0",)),
}
"""Part -> the run without it."""


def main() -> None:
    """Train, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=["stages"], help="parts to turn off, one at a time")
    arguments = parse_arguments(parser)
    home = home_of(arguments)
    corpus = Corpus.open(home.curated)
    rows: list[Row] = []
    for seed in seeds_of(arguments):
        for variant in (WHOLE, *(PARTS[part] for part in arguments.parts)):
            settings = settings_of(arguments, seed, *variant.overrides)
            trained = train_stages(settings, home, variant.stages)[-1]
            rows += [{"stage": variant.name, **row} for row in measure_tasks(trained, corpus, settings, home)]
    write_rows(f"ablation_{arguments.profile}", print_rows(summarize(rows)), versions())


if __name__ == "__main__":
    main()
