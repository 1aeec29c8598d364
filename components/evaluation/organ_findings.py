"""Findings of whole organs: the shares of structures that a model sees in a volume, and the volumetry of validation patients."""

from __future__ import annotations

from collections import defaultdict

from components.curation.corpus import Corpus
from components.curation.text.structure_names import is_diffuse
from components.evaluation.model_answers import AnswerGenerator
from components.evaluation.volume_cases import read_volume
from components.progress import track
from components.settings import EvaluationSettings
from components.tasks.volumetry import MeasuredVolume, Shares, Volumetry, fit_finding, measure_shares


def volume_shares(volume_id: str, corpus: Corpus, answers: AnswerGenerator, settings: EvaluationSettings) -> Shares:
    """Return the shares of the structures that the model sees in the slices of a volume; none if it knows no structure."""
    if volume_id not in answers.shares:
        readings = read_volume(corpus, volume_id, answers, settings)
        shown = readings.shown_by_slices
        answers.shares[volume_id] = {} if shown is None else measure_shares(shown, readings.spacing_mm)
    return answers.shares[volume_id]


def measure_volumetry(answers: AnswerGenerator, corpus: Corpus, settings: EvaluationSettings) -> Volumetry:
    """Fit the findings of whole organs that datasets state about validation patients, each on all volumes with a statement."""
    stated: dict[str, dict[str, bool]] = defaultdict(dict)
    for row in corpus.volume_instructions:
        if row.split == "validation" and row.scope == "volume" and row.positive is not None and is_diffuse(row.finding or ""):
            stated[(row.finding or "").lower()][row.volume_id] = row.positive
    findings = []
    for name, present in sorted(stated.items()):
        measured = [
            MeasuredVolume(corpus.volumes[volume_id].patient_id, volume_shares(volume_id, corpus, answers, settings), positive)
            for volume_id, positive in track(sorted(present.items()), f"volumetry: {name}")
        ]
        if (fitted := fit_finding(name, measured)) is not None:
            findings.append(fitted)
    return Volumetry(tuple(findings))
