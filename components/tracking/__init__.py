"""Runs in MLflow: one for each pipeline run, one below it for each stage."""

from components.tracking.journal import Journal
from components.tracking.runs import StageRun, Tracking

__all__ = ["Journal", "StageRun", "Tracking"]
