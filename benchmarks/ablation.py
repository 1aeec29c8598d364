"""Contribution of stages 1 to 3: instruction tuning after them and without them, with the same number of steps.

python -m benchmarks.ablation --profile demo --seeds 3 [--home .omnimri]

Both are measured by ``omnimri evaluate``. Trained stages are reused; stage 4 of a demo alone takes six minutes per seed on two
cores.
"""

from __future__ import annotations

import argparse

from benchmarks.harness import versions, write_rows
from benchmarks.stages import Row, home_of, measure_tasks, parse_arguments, print_rows, seeds_of, summarize, train_stages
from components.curation.corpus import Corpus
from components.settings import load_settings


def main() -> None:
    """Train, measure, and write the results."""
    arguments = parse_arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    home = home_of(arguments)
    corpus = Corpus.open(home.curated)
    rows: list[Row] = []
    for seed in seeds_of(arguments):
        settings = load_settings(arguments.profile, [f"seed={seed}"])
        after, (without,) = train_stages(settings, home)[-1], train_stages(settings, home, ("instruction_tuning",))
        for name, result in (("after stages 1 to 3", after), ("without them", without)):
            rows += [{"stage": name, **row} for row in measure_tasks(result, corpus, settings, home)]
    write_rows(f"ablation_{arguments.profile}", print_rows(summarize(rows)), versions())


if __name__ == "__main__":
    main()
