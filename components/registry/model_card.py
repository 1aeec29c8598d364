"""The model card, generated from the evaluation and the lineage when a version is registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.catalog import load_card
from components.errors import BadInput
from components.files import read_json
from components.registries import TASKS
from components.registry.promotion_gate import RESULTS
from components.tasks.scope import FAMILIARITY, Scope

if TYPE_CHECKING:
    from components.evaluation import EvaluationReport

TEMPLATE = Path(__file__).with_name("model_card.md.j2")


def model_card(name: str, evaluation: EvaluationReport, settings: str, tags: dict[str, str]) -> str:
    """Return the model card as Markdown.

    Args:
        settings: the profile as it was used, JSON.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, autoescape=False)  # noqa: S701 (Markdown)
    return environment.from_string(TEMPLATE.read_text()).render(
        name=name,
        limits=limitations(evaluation),
        scope=Scope.read(evaluation.folder),
        familiarity=read_json(familiarity) if (familiarity := evaluation.folder / FAMILIARITY).exists() else None,
        datasets=_datasets(evaluation, settings),
        rows=evaluation.rows,
        groups=evaluation.subgroups,
        sweep=evaluation.sweep,
        tags={tag: value for tag, value in sorted(tags.items()) if tag != RESULTS},
    )


def limitations(evaluation: EvaluationReport) -> list[str]:
    """Return the limitations that the evaluation shows, one sentence each."""
    from components.evaluation.verdicts import MIN_PATIENTS

    sentences = [evaluation.note] if evaluation.note else []
    for task in TASKS:
        rows = [row for row in evaluation.rows if row.task == task]
        if not rows:
            sentences.append(f"{task.capitalize()} was not measured.")
            continue
        worse = [row.metric for row in rows if row.verdict == "worse"]
        behind = [row.metric for row in rows if row.behind and row.verdict != "worse"]
        if worse:
            sentences.append(f"{task.capitalize()} is worse than a baseline without a network: {', '.join(worse)}.")
        if behind:
            sentences.append(
                f"{task.capitalize()} is below such a baseline, but not significantly with these patients: {', '.join(behind)}."
            )
        if (patients := max(row.patients for row in rows)) < MIN_PATIENTS:
            sentences.append(f"{task.capitalize()} was measured on {patients} patients, too few for a statistical verdict.")
    return sentences


def _datasets(evaluation: EvaluationReport, settings: str) -> list[dict[str, Any]]:
    """Return name, license and number of patients of every dataset of the profile."""
    from components.evaluation.results import COHORT

    file = evaluation.folder / COHORT
    cohort = read_json(file) if file.exists() else {}
    rows = []
    for dataset in json.loads(settings).get("datasets", ()):
        try:
            card = load_card(dataset["card"])
            named = {"name": card.name, "licence": card.licence or "not stated"}
        except BadInput:  # a user's card that no longer exists
            named = {"name": dataset["card"], "licence": "not known"}
        rows.append(
            {**named, **{split: len(cohort.get(dataset["card"], {}).get(split, ())) for split in ("train", "validation", "test")}}
        )
    return rows
