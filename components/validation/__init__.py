"""Validate the curated tables with Great Expectations: the gate before training, and the Data Docs."""

from components.validation.validation_gate import (
    TableResult,
    ValidationInputs,
    ValidationReport,
    current_report,
    validate,
    validation_inputs,
)

__all__ = ["TableResult", "ValidationInputs", "ValidationReport", "current_report", "validate", "validation_inputs"]
