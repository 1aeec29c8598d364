"""What stages 1 to 3 are good for: instruction tuning after them and without them, for the same number of steps.

python -m benchmarks.ablation --profile demo --seeds 3 [--home .omnimri]

Both are measured by ``omnimri evaluate``. Stages that are trained already are found; without the three stages before, a demo's
stage 4 takes six minutes a seed on two cores.
"""

from __future__ import annotations

import argparse

from benchmarks.harness import versions, write_rows
from benchmarks.stages import Row, arguments_of, home_of, seeds_of, summarised, tasks, told, trained
from components.curation.corpus import Corpus
from components.settings import load_settings


def main() -> None:
    """Train, measure, write."""
    arguments = arguments_of(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    home = home_of(arguments)
    corpus = Corpus.open(home.curated)
    rows: list[Row] = []
    for seed in seeds_of(arguments):
        settings = load_settings(arguments.profile, [f"seed={seed}"])
        after, (without,) = trained(settings, home)[-1], trained(settings, home, ("instruction_tuning",))
        for name, result in (("after stages 1 to 3", after), ("without them", without)):
            rows += [{"stage": name, **row} for row in tasks(result, corpus, settings, home)]
    write_rows(f"ablation_{arguments.profile}", told(summarised(rows)), versions())


if __name__ == "__main__":
    main()
