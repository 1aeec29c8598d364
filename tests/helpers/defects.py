"""Defects of a corpus that validation must detect, each planted in a valid corpus.

Each defect changes the rows of one target (a volume with its description and instructions, or one instruction), so that all can be
planted in one corpus: the named rule must report the target, whatever the other defects are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curation.table_rows import (
    DescriptionRecord,
    InstructionRecord,
    SplitRecord,
    VolumeInstructionRecord,
    VolumeRecord,
)
from components.curation.text.template import format_paragraph
from components.ingestion.volume import Volume
from components.validation.rules import rules

Array = NDArray[Any]
MASSES = "pathological_findings.masses_or_suspicious_lesions"


@dataclass
class Tables:
    """The rows of a corpus that defects change, and the volume ids whose arrays are removed from the store."""

    volumes: list[VolumeRecord]
    descriptions: list[DescriptionRecord]
    instructions: list[InstructionRecord]
    volume_instructions: list[VolumeInstructionRecord]
    splits: list[SplitRecord]
    missing_arrays: list[str]


@dataclass(frozen=True)
class Target:
    """Positions of the rows that one defect may change: a volume, its description, a question about a slice, or a volume."""

    volume: int
    description: int
    instruction: int
    volume_instruction: int


@dataclass(frozen=True)
class Defect:
    """A fault in the tables.

    Attributes:
        kind: group in the table of the documentation.
        name: the fault in words.
        rule: the rule that must report it.
        plant: changes the target.
        task: task of the instruction that is changed.
        lesion: the volume must have a lesion.
        scope: of the instruction about volumes that is changed.
    """

    kind: str
    name: str
    rule: str
    plant: Callable[[Tables, Target], None]
    task: str = "segmentation"
    lesion: bool = True
    scope: str = "volume"


def _volume(**changes: Any) -> Callable[[Tables, Target], None]:
    def plant(tables: Tables, target: Target) -> None:
        tables.volumes[target.volume] = tables.volumes[target.volume].model_copy(update=changes)

    return plant


def _change_volume(change: Callable[[VolumeRecord], dict[str, Any]]) -> Callable[[Tables, Target], None]:
    def plant(tables: Tables, target: Target) -> None:
        volume = tables.volumes[target.volume]
        tables.volumes[target.volume] = volume.model_copy(update=change(volume))

    return plant


def _change_description(change: Callable[[DescriptionRecord], dict[str, Any]]) -> Callable[[Tables, Target], None]:
    def plant(tables: Tables, target: Target) -> None:
        description = tables.descriptions[target.description]
        tables.descriptions[target.description] = description.model_copy(update=change(description))

    return plant


def _field(name: str, change: Callable[[str], str], provenance: str | None = None) -> Callable[[Tables, Target], None]:
    """Change the text of one field, in the paragraph, too."""

    def change_field(description: DescriptionRecord) -> dict[str, Any]:
        fields = {**description.fields, name: change(description.fields[name])}
        sources = {**description.provenance, name: provenance or description.provenance[name]}
        return {"fields": fields, "text": format_paragraph(fields), "provenance": sources}

    return _change_description(change_field)


def _measure(change: Callable[[Any], dict[str, Any]]) -> Callable[[Tables, Target], None]:
    return _change_description(lambda row: {"measures": [measure.model_copy(update=change(measure)) for measure in row.measures]})


def _instruction(**changes: Any) -> Callable[[Tables, Target], None]:
    return _change_instruction(lambda _: changes)


def _change_instruction(change: Callable[[InstructionRecord], dict[str, Any]]) -> Callable[[Tables, Target], None]:
    def plant(tables: Tables, target: Target) -> None:
        instruction = tables.instructions[target.instruction]
        tables.instructions[target.instruction] = instruction.model_copy(update=change(instruction))

    return plant


def _about_volume(**changes: Any) -> Callable[[Tables, Target], None]:
    return _change_about_volume(lambda _: changes)


def _change_about_volume(change: Callable[[VolumeInstructionRecord], dict[str, Any]]) -> Callable[[Tables, Target], None]:
    def plant(tables: Tables, target: Target) -> None:
        row = tables.volume_instructions[target.volume_instruction]
        tables.volume_instructions[target.volume_instruction] = row.model_copy(update=change(row))

    return plant


def _volume_box(**edges: int) -> Callable[[Tables, Target], None]:
    return _change_about_volume(lambda row: {"boxes": [box.model_copy(update=edges) for box in row.boxes]})


def _series_of_another_patient(tables: Tables, target: Target) -> None:
    """Add a volume of another patient to a study."""
    row = tables.volume_instructions[target.volume_instruction]
    other = next(volume.volume_id for volume in tables.volumes if volume.patient_id != row.patient_id)
    tables.volume_instructions[target.volume_instruction] = row.model_copy(update={"series": [*row.series, other]})


def _repeat_volume_question(tables: Tables, target: Target) -> None:
    row = tables.volume_instructions[target.volume_instruction]
    tables.volume_instructions.append(row.model_copy(update={"sample_id": "f" * 31 + "2"}))


def _box(**edges: int) -> Callable[[Tables, Target], None]:
    return _change_instruction(lambda row: {"boxes": [box.model_copy(update=edges) for box in row.boxes]})


def _mirror_affine(volume: VolumeRecord) -> dict[str, Any]:
    """Swap left and right in the geometry, as when LPS and RAS are confused on one axis."""
    return {"affine": [-value if number < 4 else value for number, value in enumerate(volume.affine)]}


def _rotate_affine(volume: VolumeRecord) -> dict[str, Any]:
    """Orient the slices along another axis than the plane of the header: swap x and z of the affine, and flip one axis."""
    a = volume.affine
    return {"affine": [*a[8:12], *[-v for v in a[4:8]], *a[0:4], *a[12:16]]}


def _copy_content(tables: Tables, target: Target) -> None:
    other = (target.volume + 1) % len(tables.volumes)
    tables.volumes[target.volume] = tables.volumes[target.volume].model_copy(
        update={"content_md5": tables.volumes[other].content_md5}
    )


def _swap_sides(text: str) -> str:
    return text.replace("left", "RIGHT").replace("right", "left").replace("midline", "left").replace("RIGHT", "right")


def _repeat_question(tables: Tables, target: Target) -> None:
    instruction = tables.instructions[target.instruction]
    tables.instructions.append(instruction.model_copy(update={"sample_id": "f" * 31 + "1"}))


def _remove_arrays(tables: Tables, target: Target) -> None:
    tables.missing_arrays.append(tables.volumes[target.volume].volume_id)


def _add_withdrawn_patient(tables: Tables, target: Target) -> None:
    """Add a patient to the splits who has no volume."""
    tables.splits.append(SplitRecord(patient_id="p" + "e" * 12, split="test"))


def _remove_description(tables: Tables, target: Target) -> None:
    description = tables.descriptions[target.description]
    tables.descriptions[target.description] = description.model_copy(update={"volume_id": "d" * 32})


U, P, G, L, B, K, C, T, S, V = (
    "units and ranges",
    "identity",
    "geometry and flips",
    "labels",
    "boxes",
    "leakage",
    "duplicates and references",
    "text",
    "signal",
    "volumes and studies",
)

DEFECTS: tuple[Defect, ...] = (
    Defect(U, "repetition time in seconds", "volumes.repetition_time_in_ms", _volume(repetition_time_ms=0.6, echo_time_ms=0.5)),
    Defect(U, "echo time in seconds", "volumes.echo_time_in_ms", _volume(echo_time_ms=0.09)),
    Defect(U, "echo time in microseconds", "volumes.echo_time_in_ms", _volume(echo_time_ms=12_000.0, repetition_time_ms=13_000.0)),
    Defect(U, "inversion time in seconds", "volumes.inversion_time_in_ms", _volume(inversion_time_ms=0.9)),
    Defect(U, "flip angle in radians", "volumes.flip_angle_in_degrees", _volume(flip_angle_deg=1.57)),
    Defect(U, "field strength in gauss", "volumes.field_strength_in_tesla", _volume(field_strength_t=15_000.0)),
    Defect(U, "field strength as a frequency in MHz", "volumes.field_strength_in_tesla", _volume(field_strength_t=123.2)),
    Defect(U, "age in months", "volumes.age_in_years", _volume(age_years=540.0)),
    Defect(U, "echo after the repetition", "volumes.echo_before_repetition", _volume(repetition_time_ms=20.0, echo_time_ms=80.0)),
    Defect(U, "a header value that is not a number", "volumes.header_numbers_are_finite", _volume(echo_time_ms=float("nan"))),
    Defect(U, "voxel size in meters", "volumes.spacing_in_mm", _change_volume(lambda v: {"affine": [x / 1000 for x in v.affine]})),
    Defect(
        U,
        "lesion volume in cubic millimeters",
        "descriptions.measures_are_plausible",
        _measure(lambda m: {"volume_ml": m.volume_ml * 1000}),
    ),
    Defect(U, "lesion size in centimeters", "descriptions.measures_are_plausible", _measure(lambda m: {"size_mm": m.size_mm / 10})),
    Defect(
        U,
        "acceleration as a percentage",
        "instructions.acceleration_is_usual",
        _instruction(acceleration=400),
        "reconstruction",
        False,
    ),
    Defect(
        U,
        "center fraction in lines",
        "instructions.centre_fraction_is_a_share",
        _instruction(centre_fraction=24.0),
        "reconstruction",
        False,
    ),
    Defect(G, "left and right swapped in the geometry", "volumes.right_way_up", _change_volume(_mirror_affine)),
    Defect(
        G, "slices along another axis than the plane in the header", "volumes.plane_as_geometry", _change_volume(_rotate_affine)
    ),
    Defect(
        G,
        "an affine with an axis of length zero",
        "volumes.right_way_up",
        _change_volume(lambda v: {"affine": [0.0] * 4 + v.affine[4:]}),
    ),
    Defect(G, "left instead of right in a description", "descriptions.side_as_measured", _field(MASSES, _swap_sides)),
    Defect(G, "a mask flipped off the tissue", "volumes.annotation_lies_on_tissue", _volume(annotated_on_tissue=0.04)),
    Defect(
        G,
        "a lesion that changes sides between sequences",
        "volumes.same_side_in_all_sequences",
        _measure(lambda m: {"side": {"left": "right", "right": "left"}.get(m.side, m.side)}),
    ),
    Defect(
        L,
        "a label value that the card does not have",
        "volumes.labels_are_on_card",
        _change_volume(lambda v: {"label_values": [*v.label_values, 9]}),
    ),
    Defect(L, "a lesion label in a volume recorded as free of lesions", "volumes.lesion_as_labelled", _volume(lesion=False)),
    Defect(L, "a mask of another shape than its image", "volumes.arrays_as_recorded", _volume(rows=30)),
    Defect(
        L,
        "a structure with the name of another",
        "instructions.structure_as_on_card",
        _instruction(structure="white matter", label_value=1),
    ),
    Defect(L, "a question about an absent structure", "instructions.has_what_its_task_needs", _instruction(label_value=7)),
    Defect(L, "a healthy volume with a box", "instructions.answer_as_known", _volume(lesion=False), "detection"),
    Defect(
        L, "no lesion in the text although one is labeled", "descriptions.lesion_as_known", _field(MASSES, lambda _: "no lesion")
    ),
    Defect(B, "a box that exceeds the image", "instructions.boxes_are_inside", _box(col1=1040), "detection"),
    Defect(B, "a box with swapped corners", "instructions.boxes_are_inside", _box(row0=700, row1=200), "detection"),
    Defect(B, "a box with a negative coordinate", "instructions.boxes_are_inside", _box(col0=-3), "detection"),
    Defect(
        B,
        "a box as large as the image",
        "instructions.boxes_are_not_the_image",
        _box(row0=0, col0=0, row1=255, col1=255),
        "detection",
    ),
    Defect(B, "a box that is not in the response", "instructions.response_is_of_its_task", _box(row0=1), "detection"),
    Defect(B, "a slice index beyond the last slice", "instructions.slice_is_inside", _instruction(slice_index=99)),
    Defect(
        K,
        "a volume in another split than its patient",
        "volumes.split_is_its_patients",
        _change_volume(lambda v: {"split": "test" if v.split != "test" else "train"}),
    ),
    Defect(
        K,
        "an instruction in another split than its volume",
        "instructions.split_is_the_volumes",
        _change_instruction(lambda row: {"split": "test" if row.split != "test" else "train"}),
    ),
    Defect(
        K, "an instruction of another patient", "instructions.patient_is_the_volumes", _instruction(patient_id="p" + "0" * 11 + "1")
    ),
    Defect(
        K,
        "a held-out phrasing in the training split",
        "instructions.kept_phrasings_are_not_trained",
        _instruction(held_out_phrasing=True, split="train"),
    ),
    Defect(
        K,
        "a held-out phrasing that is not marked",
        "instructions.phrasing_is_as_marked",
        _instruction(instruction="Give a mask of the white matter.", held_out_phrasing=False),
    ),
    Defect(K, "a split that does not exist", "volumes.split_is_known", _volume(split="holdout")),
    Defect(K, "a generated image recorded as a scan", "volumes.synthetic_as_on_card", _volume(synthetic=False)),
    Defect(P, "a person's name instead of a pseudonym", "volumes.patient_is_a_pseudonym", _volume(patient_id="Doe^Jane")),
    Defect(P, "a person's name in the scanner model", "volumes.header_names_nobody", _volume(scanner="Skyra of Doe^Jane")),
    Defect(
        P, "a birth date in a file name", "volumes.files_name_nobody", _volume(source_files=["tiny-brain/scan_03.02.1970.nii.gz"])
    ),
    Defect(
        P, "a birth date in an answer", "instructions.names_nobody", _instruction(response="Patient born 03.02.1970. No lesion.")
    ),
    Defect(
        P,
        "a record number in a description",
        "descriptions.names_nobody",
        _field("diagnostic_impression.recommendation", lambda _: "see MRN 0012345678", "report"),
    ),
    Defect(
        P,
        "an e-mail address in a description",
        "descriptions.names_nobody",
        _field("diagnostic_impression.recommendation", lambda _: "ask jane.doe@example.org", "report"),
    ),
    Defect(
        P,
        "a physician's name in a description",
        "descriptions.names_nobody",
        _field("diagnostic_impression.recommendation", lambda _: "discussed with Dr. Miller", "report"),
    ),
    Defect(C, "the same image twice", "volumes.content_is_not_repeated", _copy_content),
    Defect(C, "the same question twice", "instructions.is_not_asked_twice", _repeat_question),
    Defect(C, "a volume without a description", "volumes.is_described", _remove_description),
    Defect(C, "a volume whose arrays are not in the store", "volumes.arrays_as_recorded", _remove_arrays),
    Defect(C, "an instruction about a removed volume", "instructions.volume_is_known", _instruction(volume_id="c" * 32)),
    Defect(C, "a withdrawn patient who is still in a split", "splits.patient_has_a_volume", _add_withdrawn_patient),
    Defect(C, "a dataset without a card", "volumes.dataset_has_a_card", _volume(dataset_id="elsewhere")),
    Defect(S, "voxels that are not finite", "volumes.voxels_are_numbers", _volume(finite=False)),
    Defect(S, "a constant image", "volumes.image_is_not_constant", _volume(voxel_deviation=0.0)),
    Defect(S, "an image whose maximum is far below the scale", "volumes.signal_reaches_the_scale", _volume(voxel_maximum=0.01)),
    Defect(S, "large negative magnitudes (a signedness error)", "volumes.no_large_negative_signal", _volume(voxel_minimum=-300.0)),
    Defect(S, "missing intensity statistics", "volumes.statistics_are_there", _volume(intensity_scale=float("nan"))),
    Defect(S, "a CT among the MR images", "volumes.modality_is_mr", _volume(modality="CT")),
    Defect(
        S,
        "a T1-weighted volume with T2-weighted timing",
        "volumes.sequence_as_timing",
        _volume(sequence="T1-weighted", repetition_time_ms=4000.0, echo_time_ms=90.0),
    ),
    Defect(S, "an unknown sequence name", "volumes.sequence_in_vocabulary", _volume(sequence="seq 7 new")),
    Defect(S, "a knee in a brain dataset", "volumes.anatomy_as_on_card", _volume(anatomy="knee")),
    Defect(T, "an empty response", "instructions.response_is_not_empty", _instruction(response="")),
    Defect(
        T,
        "an unfilled placeholder in a question",
        "instructions.no_placeholder_is_left",
        _instruction(instruction="Segment the {structure}."),
    ),
    Defect(T, "a response of another task", "instructions.response_is_of_its_task", _instruction(response="<image>")),
    Defect(
        T,
        "a yes that is marked as no",
        "instructions.response_is_of_its_task",
        _change_instruction(lambda row: {"positive": not row.positive}),
        "diagnosis",
    ),
    Defect(T, "a task that does not exist", "instructions.task_is_known", _instruction(task="translation")),
    Defect(
        T,
        "a paragraph that differs from its fields",
        "descriptions.text_is_its_fields",
        _change_description(lambda _: {"text": "Modality: MRI."}),
    ),
    Defect(
        T,
        "a plane outside the vocabulary",
        "descriptions.words_in_vocabulary",
        _field("image_modality_sequence.plane", lambda _: "transverse", "report"),
    ),
    Defect(
        T,
        "a grading that is not on its scale",
        "descriptions.words_in_vocabulary",
        _field("diagnostic_impression.severity_or_grading", lambda _: "PI-RADS 9", "report"),
    ),
    Defect(
        T,
        "a sequence that contradicts the header",
        "descriptions.header_fields_as_header",
        _field("image_modality_sequence.sequence", lambda _: "DWI"),
    ),
    Defect(
        T,
        "a text without a source",
        "descriptions.has_every_source",
        _field("diagnostic_impression.recommendation", lambda _: "biopsy", "none"),
    ),
    Defect(
        T,
        "an unknown source",
        "descriptions.sources_are_known",
        _field("diagnostic_impression.recommendation", lambda _: "biopsy", "web"),
    ),
    Defect(
        T,
        "a field that Fig. 2 does not have",
        "descriptions.has_all_fields",
        _change_description(lambda row: {"fields": {**row.fields, "diagnostic_impression.prognosis": ""}}),
    ),
    Defect(
        T,
        "an answer of a model that is not named",
        "descriptions.model_is_named",
        _field("visible_anatomical_structures.bony_structures", lambda _: "skull", "vlm"),
    ),
    Defect(V, "a box behind the last slice", "volume_instructions.boxes_are_inside", _volume_box(slice1=300), "detection"),
    Defect(
        V, "a box whose slices are swapped", "volume_instructions.boxes_are_inside", _volume_box(slice0=200, slice1=9), "detection"
    ),
    Defect(
        V,
        "a box as large as the volume",
        "volume_instructions.boxes_are_not_the_volume",
        _volume_box(row0=0, col0=0, slice0=0, row1=255, col1=255, slice1=255),
        "detection",
    ),
    Defect(
        V,
        "a box of a volume that is not in the response",
        "volume_instructions.response_is_of_its_task",
        _volume_box(row0=1),
        "detection",
    ),
    Defect(V, "a scope that does not exist", "volume_instructions.scope_is_known", _about_volume(scope="visit")),
    Defect(V, "a question about a removed series", "volume_instructions.volumes_are_known", _about_volume(series=["c" * 32])),
    Defect(V, "a question about a volume that is not shown", "volume_instructions.is_about_its_images", _about_volume(series=[])),
    Defect(
        V,
        "a study without one of its series",
        "volume_instructions.images_are_those_of_the_scope",
        _change_about_volume(lambda row: {"series": [row.volume_id]}),
        scope="study",
    ),
    Defect(
        V,
        "a study with its series in another order",
        "volume_instructions.images_are_those_of_the_scope",
        _change_about_volume(lambda row: {"series": row.series[::-1]}),
        scope="study",
    ),
    Defect(
        V,
        "a study with a series of another patient",
        "volume_instructions.patient_is_the_volumes",
        _series_of_another_patient,
        scope="study",
    ),
    Defect(
        V,
        "a study in another split than its series",
        "volume_instructions.split_is_the_volumes",
        _change_about_volume(lambda row: {"split": "test" if row.split != "test" else "train"}),
        scope="study",
    ),
    Defect(
        V,
        "a volume's question of another patient",
        "volume_instructions.split_is_the_patients",
        _about_volume(patient_id="p" + "0" * 11 + "1"),
    ),
    Defect(V, "the same question about a volume twice", "volume_instructions.is_not_asked_twice", _repeat_volume_question),
    Defect(
        V,
        "a question that names another structure",
        "volume_instructions.names_what_is_asked",
        _about_volume(instruction="Show the spleen."),
    ),
    Defect(
        V,
        "a volume's structure with the name of another",
        "volume_instructions.structure_as_on_card",
        _about_volume(structure="white matter", label_value=1),
    ),
    Defect(V, "a structure that the volume lacks", "volume_instructions.has_what_its_task_needs", _about_volume(label_value=7)),
    Defect(
        V,
        "a yes about a volume that is marked as no",
        "volume_instructions.response_is_of_its_task",
        _change_about_volume(lambda row: {"positive": not row.positive}),
        "diagnosis",
    ),
    Defect(
        V,
        "a yes about a healthy volume",
        "volume_instructions.answer_as_known",
        _volume(lesion=False),
        "diagnosis",
        lesion=True,
    ),
    Defect(
        V,
        "a held-out phrasing about a trained study",
        "volume_instructions.kept_phrasings_are_not_trained",
        _about_volume(held_out_phrasing=True, split="train"),
        scope="study",
    ),
    Defect(
        V,
        "a held-out phrasing about a volume that is not marked",
        "volume_instructions.phrasing_is_as_marked",
        _about_volume(instruction="Give a mask of the white matter.", held_out_phrasing=False),
    ),
    Defect(
        V,
        "a birth date in a report of a study",
        "volume_instructions.names_nobody",
        _about_volume(response="Born 03.02.1970."),
        "report",
    ),
    Defect(V, "an empty response about a volume", "volume_instructions.response_is_not_empty", _about_volume(response="")),
    Defect(
        V,
        "an unfilled placeholder about a volume",
        "volume_instructions.no_placeholder_is_left",
        _about_volume(instruction="Segment the {structure}."),
    ),
    Defect(V, "a task about a volume that does not exist", "volume_instructions.task_is_known", _about_volume(task="translation")),
)


DRIFTED: dict[str, str] = {
    "half of the volumes lost": "drift.volumes_as_before",
    "all T2-weighted images lost": "drift.sequences_as_before",
    "another scanner's field strength": "drift.field_strengths_as_before",
    "patients moved from training to test": "drift.splits_as_before",
    "lesions vanished": "drift.lesions_as_before",
    "repetition times doubled": "drift.repetition_time_as_before",
    "echo times in another unit": "drift.echo_time_as_before",
    "a much older cohort": "drift.age_as_before",
    "intensities a thousand times larger": "drift.intensity_scale_as_before",
    "images with half the contrast": "drift.contrast_as_before",
    "masks twice as large": "drift.labelled_volume_as_before",
    "descriptions cut short": "drift.text_length_as_before",
    "no instructions of one kind": "drift.tasks_as_before",
}
"""Change since the last accepted version -> the rule that must report it."""


@dataclass(frozen=True)
class PixelDefect:
    """A fault in the arrays of the source; ``plant`` returns the changed volume."""

    name: str
    rule: str
    plant: Callable[[Volume], Volume]


def _pixels(change: Callable[[Array], Array]) -> Callable[[Volume], Volume]:
    return lambda volume: replace(volume, voxels=np.ascontiguousarray(change(volume.voxels.copy()), np.float32))


def _mask(change: Callable[[Array], Array]) -> Callable[[Volume], Volume]:
    return lambda volume: replace(volume, labels=np.ascontiguousarray(change(_labels(volume)), np.uint8))


def _labels(volume: Volume) -> Array:
    assert volume.labels is not None
    return volume.labels.copy()


def _set(array: Array, index: Any, value: float) -> Array:
    array[index] = value
    return array


def _noise(voxels: Array) -> Array:
    """Return Rician noise with the mean of the image, like the signal without a patient."""
    rng = np.random.default_rng(0)
    return np.hypot(rng.normal(0, voxels.mean(), voxels.shape), rng.normal(0, voxels.mean(), voxels.shape))


def _scramble(voxels: Array) -> Array:
    return np.random.default_rng(0).permutation(voxels.ravel()).reshape(voxels.shape)


def _flip_image_against_labels(volume: Volume) -> Volume:
    """Show tissue in one half and labels in the other, as when the rows of an annotation are counted from the other end."""
    rows = volume.voxels.shape[1]
    shifted = np.roll(volume.voxels, rows // 2, axis=1)
    shifted[:, : rows // 2] = 0
    labels = np.where(np.arange(rows)[:, None] < rows // 2, _labels(volume), 0).astype(np.uint8)
    return replace(volume, voxels=shifted, labels=labels)


def _mirror_sequence(volume: Volume) -> Volume:
    return replace(volume, voxels=volume.voxels[..., ::-1].copy(), labels=_labels(volume)[..., ::-1].copy())


PIXEL_DEFECTS: tuple[PixelDefect, ...] = (
    PixelDefect("pixels with a single value", "volumes.image_is_not_constant", _pixels(lambda v: np.full_like(v, 300.0))),
    PixelDefect("pixels all zero", "volumes.image_is_not_constant", _pixels(np.zeros_like)),
    PixelDefect("noise instead of the image", "volumes.neighbours_agree", _pixels(_noise)),
    PixelDefect("pixels in scrambled order", "volumes.neighbours_agree", _pixels(_scramble)),
    PixelDefect("a slice with voxels that are not finite", "volumes.voxels_are_numbers", _pixels(lambda v: _set(v, 2, np.nan))),
    PixelDefect(
        "bright unsigned numbers read as signed",
        "volumes.signal_reaches_the_scale",
        _pixels(lambda v: np.where(v > 850, v - 65_536, v)),
    ),
    PixelDefect(
        "padding of -32768 read as signal", "volumes.no_large_negative_signal", _pixels(lambda v: _set(v, (2, 0), -32_768))
    ),
    PixelDefect(
        "one pixel ten thousand times too bright", "volumes.signal_reaches_the_scale", _pixels(lambda v: _set(v, (2, 5, 5), 9e6))
    ),
    PixelDefect("image and labels flipped against each other", "volumes.annotation_lies_on_tissue", _flip_image_against_labels),
    PixelDefect("left and right swapped in the pixels of one sequence", "volumes.same_side_in_all_sequences", _mirror_sequence),
    PixelDefect(
        "a mask with a value that is not on the card",
        "volumes.labels_are_on_card",
        _mask(lambda m: _set(m, (slice(3, 5), slice(14, 18), slice(14, 18)), 9)),
    ),
)


def as_markdown() -> str:
    """Return the table of defects of the documentation: kind, defect, rule."""
    rows = [(defect.kind, defect.name, defect.rule) for defect in DEFECTS]
    rows += [("pixels and masks", defect.name, defect.rule) for defect in PIXEL_DEFECTS]
    rows += [("drift", name, rule) for name, rule in DRIFTED.items()]
    return "\n".join(
        ["| kind | planted | reported by |", "|---|---|---|", *(f"| {kind} | {name} | `{rule}` |" for kind, name, rule in rows)]
    )


def rules_as_markdown() -> str:
    """Return the table of rules of the documentation."""
    lines = (
        f"| `{rule.title}` | {rule.statement} | {f'{rule.tolerance:.0%}' if rule.tolerance else '0'} |"
        for table_rules in rules().values()
        for rule in table_rules
    )
    return "\n".join(["| rule | statement | may fail |", "|---|---|---|", *lines])


if __name__ == "__main__":
    print(rules_as_markdown(), as_markdown(), sep="\n\n")
