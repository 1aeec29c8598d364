"""Great Expectations over the curated tables: the gate before training, and the Data Docs."""

from components.validation.validation_gate import TableResult, ValidationReport, validate

__all__ = ["TableResult", "ValidationReport", "validate"]
