"""The model card: generated from what was measured and recorded when a version is registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.catalog import load_card
from components.errors import BadInput
from components.evaluation import EvaluationReport
from components.evaluation.results import COHORT
from components.evaluation.verdicts import FEWEST
from components.files import read_json
from components.registry.promotion_gate import RESULTS
from components.settings import TASKS

TEMPLATE = Path(__file__).with_name("model_card.md.j2")


def model_card(name: str, evaluation: EvaluationReport, settings: str, tags: dict[str, str]) -> str:
    """The card's Markdown.

    Args:
        settings: the profile as it was used, JSON.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, autoescape=False)  # noqa: S701 (Markdown)
    return environment.from_string(TEMPLATE.read_text()).render(
        name=name,
        limits=limits(evaluation),
        datasets=_datasets(evaluation, settings),
        rows=evaluation.rows,
        groups=evaluation.subgroups,
        sweep=evaluation.sweep,
        tags={tag: value for tag, value in sorted(tags.items()) if tag != RESULTS},
    )


def limits(evaluation: EvaluationReport) -> list[str]:
    """What the measurements say against the model."""
    found = [evaluation.note] if evaluation.note else []
    for task in TASKS:
        rows = [row for row in evaluation.rows if row.task == task]
        if not rows:
            found.append(f"{task.capitalize()} was not measured.")
            continue
        worse = [row.metric for row in rows if row.verdict == "worse"]
        behind = [row.metric for row in rows if row.behind and row.verdict != "worse"]
        if worse:
            found.append(f"{task.capitalize()} is worse than an answer that needs no network: {', '.join(worse)}.")
        if behind:
            found.append(
                f"{task.capitalize()} is behind such an answer, though these patients cannot settle it: {', '.join(behind)}."
            )
        if (patients := max(row.patients for row in rows)) < FEWEST:
            found.append(f"{task.capitalize()} was measured on {patients} patients, too few for any verdict.")
    return found


def _datasets(evaluation: EvaluationReport, settings: str) -> list[dict[str, Any]]:
    """Name, licence and patients of every dataset of the profile."""
    file = evaluation.folder / COHORT
    cohort = read_json(file) if file.exists() else {}
    rows = []
    for dataset in json.loads(settings).get("datasets", ()):
        try:
            card = load_card(dataset["card"])
            named = {"name": card.name, "licence": card.licence or "not stated"}
        except BadInput:  # a card of the user's own that is not here any more
            named = {"name": dataset["card"], "licence": "not known"}
        rows.append(
            {**named, **{split: len(cohort.get(dataset["card"], {}).get(split, ())) for split in ("train", "validation", "test")}}
        )
    return rows
