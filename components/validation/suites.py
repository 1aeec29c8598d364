"""What must be true of each table. One suite per table, in code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from components.settings import TASKS

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

SPLITS = ["train", "validation", "test"]
IDENTIFYING = r"(?:\b\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b|\b(?:19|20)\d{2}-?[01]\d-?[0-3]\d\b|\b\d{7,}\b|\w\^\w|\S+@\S+\.\S+)"
"""Dates, numbers of seven or more digits, DICOM person names (``Doe^Jane``), e-mail addresses."""


def suites() -> dict[str, list[Expectation]]:
    """Table name -> expectations. Ranges are those of clinical scanners; they catch wrong units (s for ms, gauss for tesla)."""
    import great_expectations.expectations as gxe

    def among(column: str, *values: Any) -> Expectation:
        return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=list(values))

    def between(column: str, low: float, high: float | None = None) -> Expectation:
        return gxe.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high)

    def unique(column: str) -> Expectation:
        return gxe.ExpectColumnValuesToBeUnique(column=column)

    def same(first: str, second: str) -> Expectation:
        return gxe.ExpectColumnPairValuesToBeEqual(column_A=first, column_B=second)

    def free_of_identity(column: str) -> Expectation:
        return gxe.ExpectColumnValuesToNotMatchRegex(column=column, regex=IDENTIFYING)

    def text(column: str) -> Expectation:
        return gxe.ExpectColumnValueLengthsToBeBetween(column=column, min_value=1)

    return {
        "volumes": [
            unique("volume_id"), unique("content_md5"), among("split", *SPLITS), same("split", "split_of_patient"),
            among("finite", True), between("voxel_deviation", 1e-4), between("voxel_maximum", 0.5),
            between("intensity_scale", 1e-12),
            among("modality", "MR"), between("repetition_time_ms", 1.5, 30_000), between("echo_time_ms", 0.3, 1_000),
            between("inversion_time_ms", 5, 10_000), between("flip_angle_deg", 0.5, 180), between("field_strength_t", 0.01, 21),
            gxe.ExpectColumnPairValuesAToBeGreaterThanB(
                column_A="repetition_time_ms", column_B="echo_time_ms", ignore_row_if="either_value_is_missing"
            ),
            between("age_years", 0, 90), between("slices", 1), between("rows", 8), between("columns", 8),
            between("unknown_label_values", 0, 0), among("shape_in_store", True), among("described", True),
            gxe.ExpectColumnValuesToMatchRegex(column="patient_id", regex=r"^p(?:[0-9a-f]{12}|atient-\d+)$"),
        ],
        "descriptions": [
            unique("volume_id"), among("volume_known", True), text("text"), free_of_identity("text"),
            among("provenance_complete", True),
        ],
        "instructions": [
            unique("sample_id"), among("task", *TASKS), among("volume_known", True), same("split", "split_of_volume"),
            same("split", "split_of_patient"), among("slice_inside", True), text("instruction"), text("response"),
            free_of_identity("instruction"), free_of_identity("response"), among("boxes_inside", True),
            between("acceleration", 1, 32), among("has_what_its_task_needs", True), among("held_out_but_trained", False),
        ],
        "splits": [unique("patient_id"), among("split", *SPLITS)],
    }  # fmt: skip
