"""What must be true of each table. One suite per table, in code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from components.settings import TASKS

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

SPLITS = ["train", "validation", "test"]
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_NAMED = r"\w\^\w|\S+@\S+\.\S+|\b\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b"
IDENTIFYING = (
    rf"(?i)(?:{_NAMED}|\b(?:19|20)\d{{2}}(?:[01]\d[0-3]\d|[-./][01]?\d[-./][0-3]?\d)\b|\b\d{{7,}}\b"
    rf"|\b\d{{1,2}}[. -]{{1,2}}{_MONTH}[. ,-]{{1,2}}(?:19|20)\d\d\b|\b{_MONTH} \d{{1,2}},? (?:19|20)\d\d\b)"
)
"""Dates, numbers of seven or more digits, DICOM person names (``Doe^Jane``), e-mail addresses: for text."""
IDENTIFYING_NAME = rf"(?:{_NAMED})"
"""The same for series and file names. These hold hexadecimal digests, some of which are long numbers by chance."""


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

    def free_of_identity(column: str, pattern: str = IDENTIFYING) -> Expectation:
        return gxe.ExpectColumnValuesToNotMatchRegex(column=column, regex=pattern)

    def present(column: str) -> Expectation:
        return gxe.ExpectColumnValuesToNotBeNull(column=column)

    def text(column: str) -> Expectation:
        return gxe.ExpectColumnValueLengthsToBeBetween(column=column, min_value=1)

    def filled() -> Expectation:
        return gxe.ExpectTableRowCountToBeBetween(min_value=1)

    tables: dict[str, list[Expectation]] = {
        "volumes": [
            unique("volume_id"), unique("content_md5"), among("split", *SPLITS), same("split", "split_of_patient"),
            among("dataset_known", True), among("synthetic_as_card", True),
            present("intensity_scale"), present("voxel_minimum"), present("voxel_maximum"), present("voxel_deviation"),
            among("finite", True), between("voxel_deviation", 1e-4), between("voxel_maximum", 0.5),
            between("intensity_scale", 1e-12),
            among("modality", "MR"), among("header_numbers_finite", True),
            between("repetition_time_ms", 1.5, 30_000), between("echo_time_ms", 0.3, 1_000),
            between("inversion_time_ms", 5, 10_000), between("flip_angle_deg", 0.5, 180), between("field_strength_t", 0.01, 21),
            gxe.ExpectColumnPairValuesAToBeGreaterThanB(
                column_A="repetition_time_ms", column_B="echo_time_ms", ignore_row_if="either_value_is_missing"
            ),
            between("age_years", 0, 90), between("slices", 1), between("rows", 8), between("columns", 8),
            between("unknown_label_values", 0, 0), among("shape_in_store", True), among("described", True),
            gxe.ExpectColumnValuesToMatchRegex(column="patient_id", regex=r"^p[0-9a-f]{12}$"),
            free_of_identity("header_texts"), free_of_identity("names", IDENTIFYING_NAME),
        ],
        "descriptions": [
            unique("volume_id"), among("volume_known", True), text("text"), free_of_identity("text"),
            free_of_identity("field_texts"),
            among("provenance_complete", True),
        ],
        "instructions": [
            unique("sample_id"), among("task", *TASKS), among("volume_known", True), same("split", "split_of_volume"),
            same("split", "split_of_patient"), among("slice_inside", True), text("instruction"), text("response"),
            free_of_identity("instruction"), free_of_identity("response"), free_of_identity("labels"),
            among("boxes_inside", True),
            between("acceleration", 1, 32), among("has_what_its_task_needs", True), among("held_out_but_trained", False),
            among("structure_as_card", True),
        ],
        "splits": [unique("patient_id"), among("split", *SPLITS)],
    }  # fmt: skip
    return {name: [filled(), *expectations] for name, expectations in tables.items()}
