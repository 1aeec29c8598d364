"""Evaluation: score a model's tasks on held-out patients, next to baselines, with a report page."""

from components.evaluation.evaluate import evaluate
from components.evaluation.results import EvaluationReport, ResultRow

__all__ = ["EvaluationReport", "ResultRow", "evaluate"]
