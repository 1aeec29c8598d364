"""MLflow runs: one for each pipeline run, and a child run for each stage."""

from components.tracking.journal import Journal
from components.tracking.runs import StageRun, Tracking

__all__ = ["Journal", "StageRun", "Tracking"]
