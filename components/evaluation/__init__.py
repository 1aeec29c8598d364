"""The five tasks on held-out patients, with baselines beside them and a page to look at."""

from components.evaluation.evaluate import evaluate, weights_digest
from components.evaluation.results import EvaluationReport, ResultRow

__all__ = ["EvaluationReport", "ResultRow", "evaluate", "weights_digest"]
