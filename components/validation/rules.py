"""The rules for a curated corpus: name, statement, expectation, and the share of rows that may fail.

A rule with a tolerance of 0 must be met by every row, or the corpus is refused: leakage, identity, broken references. Rules about
faults of single scans (a header in other units, a mask off the tissue) tolerate the given share: the rows that fail are quarantined
and excluded, the others are used. Ranges are those of clinical scanners; they detect wrong units (s instead of ms).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from components.registries import TASKS

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

SPLITS = ["train", "validation", "test"]
SCAN_TOLERANCE = 0.02
"""Share of rows that may break a rule about faults of single scans."""


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        table: one of :data:`TABLES`.
        name: identifies the rule in reports, unique within its table.
        statement: the requirement, in words that a radiologist understands.
        build: creates the expectation, given its description, notes and metadata.
        tolerance: share of rows that may fail; they are quarantined.
    """

    table: str
    name: str
    statement: str
    build: Callable[..., Expectation]
    tolerance: float = 0.0

    @property
    def title(self) -> str:
        """``table.name``."""
        return f"{self.table}.{self.name}"

    def expectation(self) -> Expectation:
        """Return the expectation with the name, statement and tolerance of the rule."""
        meta = {"name": self.name, "tolerance": self.tolerance}
        limit = f"Up to {self.tolerance:.0%} of rows may fail; they are quarantined." if self.tolerance else "No row may fail."
        mostly: dict[str, Any] = {"mostly": 1 - self.tolerance} if self.tolerance else {}
        return self.build(description=self.statement, notes=f"{self.title}. {limit}", meta=meta, **mostly)


def _expect_true(column: str) -> Callable[..., Expectation]:
    return _expect_in(column, [True])


def _expect_in(column: str, values: list[Any]) -> Callable[..., Expectation]:
    import great_expectations.expectations as gxe

    return partial(gxe.ExpectColumnValuesToBeInSet, column=column, value_set=values)


def _expect_between(column: str, low: float | None, high: float | None = None) -> Callable[..., Expectation]:
    import great_expectations.expectations as gxe

    return partial(gxe.ExpectColumnValuesToBeBetween, column=column, min_value=low, max_value=high)


def _expect_unique(column: str) -> Callable[..., Expectation]:
    import great_expectations.expectations as gxe

    return partial(gxe.ExpectColumnValuesToBeUnique, column=column)


def _expect_equal(first: str, second: str) -> Callable[..., Expectation]:
    import great_expectations.expectations as gxe

    return partial(gxe.ExpectColumnPairValuesToBeEqual, column_A=first, column_B=second)


def _expect_greater(first: str, second: str) -> Callable[..., Expectation]:
    import great_expectations.expectations as gxe

    return partial(
        gxe.ExpectColumnPairValuesAToBeGreaterThanB, column_A=first, column_B=second, ignore_row_if="either_value_is_missing"
    )


def _not_empty_rule(table: str) -> Rule:
    import great_expectations.expectations as gxe

    return Rule(table, "has_rows", "The table is not empty.", partial(gxe.ExpectTableRowCountToBeBetween, min_value=1))


def _volume_rules() -> list[Rule]:
    return [
        *_identity_rules(),
        *_intensity_rules(),
        *_header_rules(),
        *_geometry_rules(),
        *_annotation_rules(),
    ]


def _identity_rules() -> list[Rule]:
    """Return the rules of the volume table about identity, split and dataset."""
    rule = partial(Rule, "volumes")
    return [
        rule("is_listed_once", "Every volume is listed once.", _expect_unique("volume_id")),
        rule("content_is_not_repeated", "No two volumes contain the same image.", _expect_unique("content_md5")),
        rule("split_is_known", "The split is train, validation or test.", _expect_in("split", SPLITS)),
        rule("split_is_its_patients", "A volume is in the split of its patient.", _expect_equal("split", "split_of_patient")),
        rule("dataset_has_a_card", "The dataset has a card.", _expect_true("dataset_known")),
        rule("synthetic_as_on_card", "Generated images are marked as synthetic, scans are not.", _expect_true("synthetic_as_card")),
        rule(
            "anatomy_as_on_card", "The body part in the header is that of the dataset card.", _expect_true("anatomy_as_card"), 0.05
        ),
        rule("patient_is_a_pseudonym", "The patient is identified by a pseudonym.", _expect_true("patient_is_pseudonym")),
        rule("header_names_nobody", "No text of the header can identify a patient.", _expect_true("header_names_nobody")),
        rule("files_name_nobody", "No file or series name can identify a patient.", _expect_true("files_name_nobody")),
    ]


def _intensity_rules() -> list[Rule]:
    """Return the rules of the volume table about stored intensities."""
    rule = partial(Rule, "volumes")
    return [
        rule("statistics_are_there", "The intensity statistics are numbers.", _expect_true("statistics_known")),
        rule("voxels_are_numbers", "Every voxel is a finite number.", _expect_true("finite"), SCAN_TOLERANCE),
        rule("image_is_not_constant", "The image is not constant.", _expect_between("voxel_deviation", 1e-4), SCAN_TOLERANCE),
        rule(
            "neighbours_agree",
            "Pixels resemble their neighbors: it is an image, not noise.",
            _expect_between("neighbour_correlation", 0.15),
            SCAN_TOLERANCE,
        ),
        rule(
            "signal_reaches_the_scale",
            "The brightest tissue is near 1.",
            _expect_between("voxel_maximum", 0.5, 500),
            SCAN_TOLERANCE,
        ),
        rule(
            "no_large_negative_signal",
            "Magnitude images have no large negative signal.",
            _expect_between("voxel_minimum", -5.0),
            SCAN_TOLERANCE,
        ),
        rule("intensity_scale_is_positive", "The intensity scale is above zero.", _expect_between("intensity_scale", 1e-12)),
    ]


def _header_rules() -> list[Rule]:
    """Return the rules of the volume table about header fields."""
    rule = partial(Rule, "volumes")
    return [
        rule("modality_is_mr", "The modality is MR.", _expect_in("modality", ["MR"])),
        rule("header_numbers_are_finite", "The numbers in the header are finite.", _expect_true("header_numbers_finite")),
        rule(
            "repetition_time_in_ms",
            "The repetition time is in the range of MRI, in milliseconds.",
            _expect_between("repetition_time_ms", 1.5, 30_000),
            SCAN_TOLERANCE,
        ),
        rule(
            "echo_time_in_ms",
            "The echo time is in the range of MRI, in milliseconds.",
            _expect_between("echo_time_ms", 0.3, 1_000),
            SCAN_TOLERANCE,
        ),
        rule(
            "inversion_time_in_ms",
            "The inversion time is in the range of MRI, in milliseconds.",
            _expect_between("inversion_time_ms", 5, 10_000),
            SCAN_TOLERANCE,
        ),
        rule("flip_angle_in_degrees", "The flip angle is in degrees.", _expect_between("flip_angle_deg", 1.6, 180), SCAN_TOLERANCE),
        rule(
            "field_strength_in_tesla",
            "The field strength is in tesla.",
            _expect_between("field_strength_t", 0.01, 21),
            SCAN_TOLERANCE,
        ),
        rule(
            "echo_before_repetition",
            "The echo time is shorter than the repetition time.",
            _expect_greater("repetition_time_ms", "echo_time_ms"),
            SCAN_TOLERANCE,
        ),
        rule("age_in_years", "The age is in years, 90 at most.", _expect_between("age_years", 0, 90), SCAN_TOLERANCE),
        rule("sequence_in_vocabulary", "The sequence is in the vocabulary.", _expect_true("sequence_known"), 0.1),
        rule(
            "sequence_as_timing",
            "The name of the sequence does not contradict its timing.",
            _expect_true("sequence_as_timing"),
            0.1,
        ),
    ]


def _geometry_rules() -> list[Rule]:
    """Return the rules of the volume table about geometry."""
    from components.validation.expectations import ExpectColumnAffinesToHaveStoredOrientation

    rule = partial(Rule, "volumes")
    return [
        rule(
            "plane_as_geometry",
            "The plane agrees with the direction cosines.",
            _expect_equal("plane", "plane_of_affine"),
            SCAN_TOLERANCE,
        ),
        rule(
            "right_way_up",
            "The affine has the orientation of the store, so that left is left.",
            partial(ExpectColumnAffinesToHaveStoredOrientation, column="affine"),
            SCAN_TOLERANCE,
        ),
        rule(
            "spacing_in_mm", "Voxel sizes are between 0.05 and 50 millimeters.", _expect_true("spacing_plausible"), SCAN_TOLERANCE
        ),
        rule("has_slices", "There is at least one slice.", _expect_between("slices", 1)),
        rule("has_rows_of_pixels", "Slices have at least 8 rows.", _expect_between("rows", 8)),
        rule("has_columns_of_pixels", "Slices have at least 8 columns.", _expect_between("columns", 8)),
    ]


def _annotation_rules() -> list[Rule]:
    """Return the rules of the volume table about annotations, arrays and descriptions."""
    rule = partial(Rule, "volumes")
    return [
        rule("labels_are_on_card", "Every label value is on the card.", _expect_between("unknown_label_values", 0, 0)),
        rule(
            "annotation_lies_on_tissue",
            "Annotated regions show signal.",
            _expect_between("annotated_on_tissue", 0.3),
            SCAN_TOLERANCE,
        ),
        rule("lesion_as_labelled", "A volume with lesion labels is recorded as having a lesion.", _expect_true("lesion_as_labels")),
        rule(
            "arrays_as_recorded", "Image, mask and k-space are in the store, in the recorded shape.", _expect_true("shape_in_store")
        ),
        rule("is_described", "Every volume has a description.", _expect_true("described")),
        rule(
            "same_side_in_all_sequences",
            "The lesion of a patient is on the same side in all sequences.",
            _expect_true("side_agrees"),
            SCAN_TOLERANCE,
        ),
    ]


def _description_rules() -> list[Rule]:
    from components.validation.expectations import ExpectColumnDescriptionsToUseVocabulary, ExpectColumnMeasuresToBePlausible

    rule = partial(Rule, "descriptions")
    return [
        rule("is_listed_once", "Every volume is described once.", _expect_unique("volume_id")),
        rule("volume_is_known", "The volume described is in the corpus.", _expect_true("volume_known")),
        rule("text_is_not_empty", "The text is not empty, and of readable length.", _expect_between("text_length", 1, 4_000)),
        rule("names_nobody", "No text can identify a patient.", _expect_true("names_nobody")),
        rule("has_all_fields", "Exactly the 19 fields of the template are present.", _expect_true("fields_complete")),
        rule("has_every_source", "Every text has a source, and every empty field has none.", _expect_true("provenance_complete")),
        rule("sources_are_known", "The sources are those of the template.", _expect_true("provenance_known")),
        rule(
            "words_in_vocabulary",
            "Sequence, plane and grading use the vocabulary of the template.",
            partial(ExpectColumnDescriptionsToUseVocabulary, column="fields"),
        ),
        rule("text_is_its_fields", "The paragraph is that of the fields.", _expect_true("text_is_fields")),
        rule("header_fields_as_header", "Sequence and plane are those of the header.", _expect_true("fields_as_header")),
        rule("side_as_measured", "Sides in the text are those of the labels.", _expect_true("side_as_measured")),
        rule(
            "lesion_as_known",
            "The text names a lesion exactly if the volume has one.",
            _expect_true("lesion_as_known"),
        ),
        rule(
            "measures_are_plausible",
            "Sizes are in mm, volumes in ml, and they are consistent.",
            partial(ExpectColumnMeasuresToBePlausible, column="measures"),
            SCAN_TOLERANCE,
        ),
        rule(
            "model_is_named", "A description with answers of a vision-language model names the model.", _expect_true("model_named")
        ),
    ]


def _instruction_rules() -> list[Rule]:
    """Return the rules of questions about slices."""
    rule = partial(Rule, "instructions")
    return [
        *_question_rules("instructions"),
        rule("is_not_asked_twice", "No question is asked twice about the same image.", _expect_unique("question")),
        rule("volume_is_known", "The volume of the question is in the corpus.", _expect_true("volume_known")),
        rule("patient_is_the_volumes", "The patient is that of the volume.", _expect_true("patient_as_volume")),
        rule("split_is_the_volumes", "An instruction is in the split of its volume.", _expect_equal("split", "split_of_volume")),
        rule("slice_is_inside", "The slice of the question is in the volume.", _expect_true("slice_inside")),
        rule("response_is_not_empty", "The response is not empty.", _expect_between("response_length", 1, 4_000)),
        rule(
            "boxes_are_not_the_image",
            "No box covers almost the whole image.",
            _expect_between("largest_box_share", None, 0.95),
            SCAN_TOLERANCE,
        ),
    ]


def _volume_instruction_rules() -> list[Rule]:
    """Return the rules of questions about volumes and studies."""
    rule = partial(Rule, "volume_instructions")
    return [
        *_question_rules("volume_instructions"),
        rule("is_not_asked_twice", "No question is asked twice about the same images.", _expect_unique("question")),
        rule("scope_is_known", "The scope is a volume or a study.", _expect_in("scope", ["volume", "study"])),
        rule("volumes_are_known", "All images of the question are in the corpus.", _expect_true("volumes_known")),
        rule("is_about_its_images", "The volume of the question is among its images.", _expect_true("about_its_images")),
        rule(
            "images_are_those_of_the_scope",
            "The images are the volume, or the two to six series of its patient and visit, in their order.",
            _expect_true("series_of_scope"),
        ),
        rule("patient_is_the_volumes", "The patient is that of all images.", _expect_true("patient_as_volumes")),
        rule("split_is_the_volumes", "An instruction is in the split of all of its images.", _expect_true("split_as_volumes")),
        rule("response_is_not_empty", "The response is not empty.", _expect_between("response_length", 1, 8_000)),
        rule("names_what_is_asked", "The question names its structure or finding.", _expect_true("names_what_is_asked")),
        rule(
            "boxes_are_not_the_volume",
            "No box covers almost the whole volume.",
            _expect_between("largest_box_share", None, 0.9),
            SCAN_TOLERANCE,
        ),
    ]


def _question_rules(table: str) -> list[Rule]:
    """Return the rules that hold for every question, whether it is about a slice, a volume or a study."""
    from components.validation.expectations import ExpectColumnBoxesToBeInsideTheImage

    rule = partial(Rule, table)
    return [
        rule("is_listed_once", "Every instruction is listed once.", _expect_unique("sample_id")),
        rule("task_is_known", "The task is registered.", _expect_in("task", list(TASKS))),
        rule("split_is_the_patients", "An instruction is in the split of its patient.", _expect_equal("split", "split_of_patient")),
        rule("instruction_is_not_empty", "The instruction is not empty.", _expect_between("instruction_length", 1, 1_000)),
        rule("no_placeholder_is_left", "The instruction contains no unfilled placeholder.", _expect_true("no_placeholder")),
        rule("names_nobody", "No instruction or response can identify a patient.", _expect_true("names_nobody")),
        rule(
            "boxes_are_inside",
            "Boxes are inside the image or the volume, start before end.",
            partial(ExpectColumnBoxesToBeInsideTheImage, column="boxes"),
        ),
        rule("acceleration_is_usual", "The acceleration is between 1 and 32.", _expect_between("acceleration", 1, 32)),
        rule(
            "centre_fraction_is_a_share",
            "The fully sampled share of lines is above 0 and at most 1.",
            _expect_between("centre_fraction", 1e-3, 1),
        ),
        rule("has_what_its_task_needs", "The mask, k-space or truth that the task needs is present.", _expect_true("complete")),
        rule("response_is_of_its_task", "The response has the form of its task.", _expect_true("response_of_task")),
        rule("answer_as_known", "No answer asserts a lesion in a volume without one.", _expect_true("answer_as_known")),
        rule("structure_as_on_card", "A structure has the name on the card.", _expect_true("structure_as_card")),
        rule(
            "kept_phrasings_are_not_trained",
            "Held-out phrasings are not in the training split.",
            _expect_in("held_out_but_trained", [False]),
        ),
        rule("phrasing_is_as_marked", "A phrasing is marked as held out exactly if it is.", _expect_true("phrasing_as_marked")),
        rule(
            "yes_and_no_are_balanced",
            "About half of a dataset's diagnostic answers are yes.",
            _expect_between("share_of_yes", 0.4, 0.6),
        ),
    ]


def _split_rules() -> list[Rule]:
    rule = partial(Rule, "splits")
    return [
        rule("patient_is_listed_once", "Every patient is in one split.", _expect_unique("patient_id")),
        rule("split_is_known", "The split is train, validation or test.", _expect_in("split", SPLITS)),
        rule("patient_has_a_volume", "Every patient has a volume in the corpus.", _expect_true("has_volume")),
        rule("is_a_pseudonym", "The patient is identified by a pseudonym.", _expect_true("is_pseudonym")),
    ]


def _card_rules() -> list[Rule]:
    rule = partial(Rule, "cards")
    return [
        rule("dataset_has_volumes", "Every dataset has volumes.", _expect_between("volumes", 1)),
        rule("no_more_patients_than_on_card", "There are at most as many patients as on the card.", _expect_true("patients_fit")),
        rule("no_more_volumes_than_on_card", "There are at most as many volumes as on the card.", _expect_true("volumes_fit")),
        rule("has_labels_as_on_card", "A dataset with a label map has labeled or boxed volumes.", _expect_true("labels_fit")),
        rule("has_tasks_as_on_card", "Every task on the card has instructions.", _expect_true("tasks_fit")),
    ]


DRIFTS: dict[str, tuple[str, float]] = {
    "volumes": ("The dataset has not lost volumes", 0.25),
    "sequences": ("The mix of sequences is unchanged", 0.2),
    "field_strengths": ("The mix of field strengths is unchanged", 0.2),
    "splits": ("The shares of the splits are unchanged", 0.15),
    "lesions": ("The share of volumes with a lesion is unchanged", 0.2),
    "repetition_time": ("Repetition times are unchanged", 0.35),
    "echo_time": ("Echo times are unchanged", 0.35),
    "age": ("Ages are unchanged", 0.25),
    "intensity_scale": ("Intensities before scaling are unchanged", 1.0),
    "contrast": ("The spread of intensities is unchanged", 0.35),
    "labelled_volume": ("The volumes of structures are unchanged", 0.5),
    "text_length": ("The lengths of descriptions are unchanged", 0.5),
    "tasks": ("The mix of tasks is unchanged", 0.2),
}
"""Quantity -> (statement, largest distance from the last accepted version of the data).

The distance is the total variation distance for mixes, the absolute logarithm of the ratio of geometric means for numbers, and the
lost share for volumes; two standard errors are subtracted from it."""


def _drift_rules() -> list[Rule]:
    return [
        Rule("drift", f"{name}_as_before", f"{statement}, within {limit:g}.", _expect_between(name, None, limit))
        for name, (statement, limit) in DRIFTS.items()
    ]


TABLES = ("volumes", "descriptions", "instructions", "volume_instructions", "splits", "cards", "drift")


def rules() -> dict[str, list[Rule]]:
    """Return table -> rules; the first rule of each table but ``drift`` requires that it is not empty."""
    by_table = {
        "volumes": _volume_rules(),
        "descriptions": _description_rules(),
        "instructions": _instruction_rules(),
        "volume_instructions": _volume_instruction_rules(),
        "splits": _split_rules(),
        "cards": _card_rules(),
        "drift": _drift_rules(),
    }
    return {
        table: table_rules if table == "drift" else [_not_empty_rule(table), *table_rules]
        for table, table_rules in by_table.items()
    }
