"""What must be true of a curated corpus: every rule by name, in words, as an expectation, and with the share of rows it forgives.

A rule with a tolerance of 0 holds for every row or the corpus is refused: leakage, identity, broken references. Rules about what
single scans may have wrong (a header in other units, a mask off the tissue) forgive the stated share: those rows go to the
quarantine and are left out, the rest goes on. Ranges are those of clinical scanners: they catch wrong units (s for ms).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from components.settings import TASKS

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

SPLITS = ["train", "validation", "test"]
FEW = 0.02
"""Share of volumes that may be wrong in a way that leaves out the volume and no more."""


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        table: ``volumes``, ``descriptions``, ``instructions``, ``splits``, ``cards`` or ``drift``.
        name: under which a fault is reported, unique within its table.
        statement: what must hold, in words that a radiologist reads.
        make: the expectation, without its names.
        tolerance: share of rows that may fail; they are left out.
    """

    table: str
    name: str
    statement: str
    make: Callable[..., Expectation]
    tolerance: float = 0.0

    @property
    def title(self) -> str:
        """``table.name``."""
        return f"{self.table}.{self.name}"

    def expectation(self) -> Expectation:
        """The Great Expectations form, with name and words."""
        meta = {"name": self.name, "tolerance": self.tolerance}
        notes = f"{self.title}. " + (
            f"Up to {self.tolerance:.0%} of rows may fail; they are left out." if self.tolerance else "No row may fail."
        )
        more: dict[str, Any] = {"mostly": 1 - self.tolerance} if self.tolerance else {}
        return self.make(description=self.statement, notes=notes, meta=meta, **more)


def _is_true(column: str) -> Callable[..., Expectation]:
    return _among(column, [True])


def _among(column: str, values: list[Any]) -> Callable[..., Expectation]:
    import great_expectations.expectations as gxe

    return partial(gxe.ExpectColumnValuesToBeInSet, column=column, value_set=values)


def _between(column: str, low: float | None, high: float | None = None) -> Callable[..., Expectation]:
    import great_expectations.expectations as gxe

    return partial(gxe.ExpectColumnValuesToBeBetween, column=column, min_value=low, max_value=high)


def _unique(column: str) -> Callable[..., Expectation]:
    import great_expectations.expectations as gxe

    return partial(gxe.ExpectColumnValuesToBeUnique, column=column)


def _same(first: str, second: str) -> Callable[..., Expectation]:
    import great_expectations.expectations as gxe

    return partial(gxe.ExpectColumnPairValuesToBeEqual, column_A=first, column_B=second)


def _greater(first: str, second: str) -> Callable[..., Expectation]:
    import great_expectations.expectations as gxe

    return partial(
        gxe.ExpectColumnPairValuesAToBeGreaterThanB, column_A=first, column_B=second, ignore_row_if="either_value_is_missing"
    )


def _filled(table: str) -> Rule:
    import great_expectations.expectations as gxe

    return Rule(table, "has_rows", "The table is not empty.", partial(gxe.ExpectTableRowCountToBeBetween, min_value=1))


def _volumes() -> list[Rule]:
    from components.validation.expectations import ExpectColumnAffinesToBeRightWayUp

    rule = partial(Rule, "volumes")
    return [
        rule("is_listed_once", "Every volume is listed once.", _unique("volume_id")),
        rule("content_is_not_repeated", "No two volumes hold the same image.", _unique("content_md5")),
        rule("split_is_known", "The split is train, validation or test.", _among("split", SPLITS)),
        rule("split_is_its_patients", "A volume is in the split of its patient.", _same("split", "split_of_patient")),
        rule("dataset_has_a_card", "The dataset has a card.", _is_true("dataset_known")),
        rule("synthetic_as_on_card", "Generated images are marked as such, scans are not.", _is_true("synthetic_as_card")),
        rule("anatomy_as_on_card", "The body part in the header is that of the dataset.", _is_true("anatomy_as_card"), 0.05),
        rule("patient_is_a_pseudonym", "The patient is named by a pseudonym.", _is_true("patient_is_pseudonym")),
        rule("header_names_nobody", "No text of the header could name a patient.", _is_true("header_names_nobody")),
        rule("files_name_nobody", "No name of a file or series could name a patient.", _is_true("files_name_nobody")),
        rule("statistics_are_there", "The intensity statistics are numbers.", _is_true("statistics_known")),
        rule("voxels_are_numbers", "Every voxel is a finite number.", _is_true("finite"), FEW),
        rule("image_is_not_constant", "The image shows something.", _between("voxel_deviation", 1e-4), FEW),
        rule(
            "neighbours_agree",
            "Pixels resemble their neighbours: it is an image, not noise.",
            _between("neighbour_correlation", 0.15),
            FEW,
        ),
        rule("signal_reaches_the_scale", "The brightest tissue is near 1.", _between("voxel_maximum", 0.5, 500), FEW),
        rule("no_large_negative_signal", "Magnitude images have no large negative signal.", _between("voxel_minimum", -5.0), FEW),
        rule("intensity_scale_is_positive", "The intensity scale is above zero.", _between("intensity_scale", 1e-12)),
        rule("modality_is_mr", "The modality is MR.", _among("modality", ["MR"])),
        rule("header_numbers_are_finite", "Numbers of the header are finite.", _is_true("header_numbers_finite")),
        rule(
            "repetition_time_in_ms",
            "The repetition time is one of MRI, in milliseconds.",
            _between("repetition_time_ms", 1.5, 30_000),
            FEW,
        ),
        rule("echo_time_in_ms", "The echo time is one of MRI, in milliseconds.", _between("echo_time_ms", 0.3, 1_000), FEW),
        rule(
            "inversion_time_in_ms",
            "The inversion time is one of MRI, in milliseconds.",
            _between("inversion_time_ms", 5, 10_000),
            FEW,
        ),
        rule("flip_angle_in_degrees", "The flip angle is in degrees.", _between("flip_angle_deg", 1.6, 180), FEW),
        rule("field_strength_in_tesla", "The field strength is in tesla.", _between("field_strength_t", 0.01, 21), FEW),
        rule(
            "echo_before_repetition", "The echo comes before the repetition.", _greater("repetition_time_ms", "echo_time_ms"), FEW
        ),
        rule("age_in_years", "The age is in years, 90 at most.", _between("age_years", 0, 90), FEW),
        rule("sequence_in_vocabulary", "The sequence is one of the vocabulary.", _is_true("sequence_known"), 0.1),
        rule("sequence_as_timing", "The sequence's name does not contradict its timing.", _is_true("sequence_as_timing"), 0.1),
        rule("plane_as_geometry", "The plane is that of the direction cosines.", _same("plane", "plane_of_affine"), FEW),
        rule(
            "right_way_up",
            "Slices and rows lead as stored, and left is left.",
            partial(ExpectColumnAffinesToBeRightWayUp, column="affine"),
            FEW,
        ),
        rule("spacing_in_mm", "Voxels are between 0.05 and 50 millimetres.", _is_true("spacing_plausible"), FEW),
        rule("has_slices", "There is at least one slice.", _between("slices", 1)),
        rule("has_rows_of_pixels", "Slices have at least 8 rows.", _between("rows", 8)),
        rule("has_columns_of_pixels", "Slices have at least 8 columns.", _between("columns", 8)),
        rule("labels_are_on_card", "Every label value is on the card.", _between("unknown_label_values", 0, 0)),
        rule("annotation_lies_on_tissue", "What is outlined or boxed shows signal.", _between("annotated_on_tissue", 0.3), FEW),
        rule("lesion_as_labelled", "A volume with lesion labels is one with a lesion.", _is_true("lesion_as_labels")),
        rule("arrays_as_recorded", "Image, mask and k-space are stored, in the recorded shape.", _is_true("shape_in_store")),
        rule("is_described", "Every volume has a description.", _is_true("described")),
        rule("same_side_in_all_sequences", "A patient's lesion is on one side in all sequences.", _is_true("side_agrees"), FEW),
    ]


def _descriptions() -> list[Rule]:
    from components.validation.expectations import ExpectColumnDescriptionsToBeInVocabulary, ExpectColumnMeasuresToBePlausible

    rule = partial(Rule, "descriptions")
    return [
        rule("is_listed_once", "Every volume is described once.", _unique("volume_id")),
        rule("volume_is_known", "The volume described is in the corpus.", _is_true("volume_known")),
        rule("text_is_not_empty", "There is a text, of readable length.", _between("text_length", 1, 4_000)),
        rule("names_nobody", "No text could name a patient.", _is_true("names_nobody")),
        rule("has_all_fields", "All 19 fields of the template are there, and no other.", _is_true("fields_complete")),
        rule("has_every_source", "Every text says where it comes from.", _is_true("provenance_complete")),
        rule("sources_are_known", "The sources are those of the template.", _is_true("provenance_known")),
        rule(
            "words_in_vocabulary",
            "Sequence, plane and grading are in the words of the template.",
            partial(ExpectColumnDescriptionsToBeInVocabulary, column="fields"),
        ),
        rule("text_is_its_fields", "The paragraph says what the fields say.", _is_true("text_is_fields")),
        rule("header_fields_as_header", "Sequence and plane are those of the header.", _is_true("fields_as_header")),
        rule("side_as_measured", "Left and right in the text are those of the labels.", _is_true("side_as_measured")),
        rule(
            "lesion_as_known",
            "The text names a lesion where there is one, and none where there is none.",
            _is_true("lesion_as_known"),
        ),
        rule(
            "measures_are_plausible",
            "Sizes are in mm and volumes in ml, and they fit each other.",
            partial(ExpectColumnMeasuresToBePlausible, column="measures"),
            FEW,
        ),
        rule("model_is_named", "Where a vision-language model answered, it is named.", _is_true("model_named")),
    ]


def _instructions() -> list[Rule]:
    from components.validation.expectations import ExpectColumnBoxesToBeInsideTheImage

    rule = partial(Rule, "instructions")
    return [
        rule("is_listed_once", "Every instruction is listed once.", _unique("sample_id")),
        rule("is_not_asked_twice", "No slice is asked the same question twice.", _unique("question")),
        rule("task_is_known", "The task is one of the five.", _among("task", list(TASKS))),
        rule("volume_is_known", "The volume asked about is in the corpus.", _is_true("volume_known")),
        rule("patient_is_the_volumes", "The patient is that of the volume.", _is_true("patient_as_volume")),
        rule("split_is_the_volumes", "An instruction is in the split of its volume.", _same("split", "split_of_volume")),
        rule("split_is_the_patients", "An instruction is in the split of its patient.", _same("split", "split_of_patient")),
        rule("slice_is_inside", "The slice asked about is in the volume.", _is_true("slice_inside")),
        rule("instruction_is_not_empty", "There is a question.", _between("instruction_length", 1, 1_000)),
        rule("response_is_not_empty", "There is an answer.", _between("response_length", 1, 4_000)),
        rule("no_placeholder_is_left", "No placeholder is left in the question.", _is_true("no_placeholder")),
        rule("names_nobody", "Nothing asked or answered could name a patient.", _is_true("names_nobody")),
        rule(
            "boxes_are_inside",
            "Boxes lie inside of the image, corner before corner.",
            partial(ExpectColumnBoxesToBeInsideTheImage, column="boxes"),
        ),
        rule("boxes_are_not_the_image", "No box is as good as the whole image.", _between("largest_box_share", None, 0.95), FEW),
        rule("acceleration_is_usual", "The acceleration is between 1 and 32.", _between("acceleration", 1, 32)),
        rule(
            "centre_fraction_is_a_share", "The fully sampled share is above 0 and at most 1.", _between("centre_fraction", 1e-3, 1)
        ),
        rule("has_what_its_task_needs", "Mask, k-space or truth that the task needs is there.", _is_true("complete")),
        rule("response_is_of_its_task", "The answer has the form of its task.", _is_true("response_of_task")),
        rule("answer_as_known", "Yes is answered where there is a lesion, no where there is none.", _is_true("answer_as_known")),
        rule("structure_as_on_card", "A structure is called what the card calls it.", _is_true("structure_as_card")),
        rule(
            "kept_phrasings_are_not_trained",
            "Phrasings kept for evaluation are not trained on.",
            _among("held_out_but_trained", [False]),
        ),
        rule("phrasing_is_as_marked", "A phrasing is marked as kept exactly if it is.", _is_true("phrasing_as_marked")),
        rule(
            "yes_and_no_are_balanced", "About half of a dataset's diagnostic answers are yes.", _between("share_of_yes", 0.4, 0.6)
        ),
    ]


def _splits() -> list[Rule]:
    rule = partial(Rule, "splits")
    return [
        rule("patient_is_listed_once", "Every patient is in one split.", _unique("patient_id")),
        rule("split_is_known", "The split is train, validation or test.", _among("split", SPLITS)),
        rule("patient_has_a_volume", "Every patient has a volume in the corpus.", _is_true("has_volume")),
        rule("is_a_pseudonym", "The patient is named by a pseudonym.", _is_true("is_pseudonym")),
    ]


def _cards() -> list[Rule]:
    rule = partial(Rule, "cards")
    return [
        rule("dataset_has_volumes", "Every dataset on a card has volumes.", _between("volumes", 1)),
        rule("no_more_patients_than_on_card", "There are no more patients than the card says.", _is_true("patients_fit")),
        rule("no_more_volumes_than_on_card", "There are no more volumes than the card says.", _is_true("volumes_fit")),
        rule("has_labels_as_on_card", "A dataset with a label map has labelled volumes.", _is_true("labels_fit")),
        rule("has_tasks_as_on_card", "Tasks on the card have instructions.", _is_true("tasks_fit")),
    ]


DRIFTS: dict[str, tuple[str, float]] = {
    "volumes": ("The dataset has not lost volumes", 0.25),
    "sequences": ("The mix of sequences is as it was", 0.2),
    "field_strengths": ("The mix of field strengths is as it was", 0.2),
    "splits": ("The shares of the splits are as they were", 0.15),
    "lesions": ("The share of volumes with a lesion is as it was", 0.2),
    "repetition_time": ("Repetition times are as they were", 0.35),
    "echo_time": ("Echo times are as they were", 0.35),
    "age": ("Ages are as they were", 0.25),
    "intensity_scale": ("Intensities before scaling are as they were", 1.0),
    "contrast": ("The spread of intensities is as it was", 0.35),
    "labelled_volume": ("Structures are as large as they were", 0.5),
    "text_length": ("Descriptions are as long as they were", 0.5),
    "tasks": ("The mix of tasks is as it was", 0.2),
}
"""Quantity -> (statement, how far it may be from the last accepted version of the data). Mixes: total variation distance; numbers:
absolute logarithm of the ratio of geometric means; volumes: share lost. Two standard errors are allowed on top."""


def _drift() -> list[Rule]:
    return [
        Rule("drift", f"{name}_as_before", f"{statement}, within {limit:g}.", _between(name, None, limit))
        for name, (statement, limit) in DRIFTS.items()
    ]


TABLES = ("volumes", "descriptions", "instructions", "splits", "cards", "drift")


def rules() -> dict[str, list[Rule]]:
    """Table -> its rules, the one about its being filled first (but for drift, which needs a version before)."""
    made = {
        "volumes": _volumes(),
        "descriptions": _descriptions(),
        "instructions": _instructions(),
        "splits": _splits(),
        "cards": _cards(),
        "drift": _drift(),
    }
    return {table: found if table == "drift" else [_filled(table), *found] for table, found in made.items()}
