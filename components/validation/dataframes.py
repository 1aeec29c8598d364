"""Convert the curated tables to data frames, with derived columns that rules need.

Relations *between* tables, cards, store and text are computed here, so that each rule remains one plain statement about one column.

Text that could identify a person does not leave this module: Great Expectations receives only whether it does.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.curation.corpus import Corpus
from components.curation.studies import group_studies
from components.curation.table_rows import (
    DescriptionRecord,
    InstructionRecord,
    MeasureRecord,
    VolumeBoxRecord,
    VolumeInstructionRecord,
    VolumeRecord,
)
from components.curation.text.controlled_vocabulary import SIDES
from components.curation.text.phrasings import scan_name
from components.curation.text.structure_names import DIFFUSE_WORDS, is_lesion, lesion_values
from components.curation.text.template import FIELD_NAMES, PROVENANCES, format_paragraph
from components.curation.text.volume_instructions import MOST_SERIES, STUDY
from components.errors import OmniMRIError
from components.ingestion import body_parts
from components.ingestion.acquisition_headers import classify_timing, slice_plane
from components.ingestion.sequence_classification import canonical_sequence
from components.phi_patterns import PHI_NAME_PATTERN, contains_phi
from components.provenance import digest
from components.registries import TASKS
from components.tasks.base import AnyInstruction, has_finding
from model_core.boxes import GRID

if TYPE_CHECKING:
    import pandas as pd

HEADER_NUMBERS = (
    "repetition_time_ms",
    "echo_time_ms",
    "inversion_time_ms",
    "flip_angle_deg",
    "field_strength_t",
    "age_years",
)
STATISTICS = ("intensity_scale", "voxel_minimum", "voxel_maximum", "voxel_deviation")
_PSEUDONYM = re.compile(r"^p[0-9a-f]{12}$")
_NAME = re.compile(PHI_NAME_PATTERN)
_MASSES = "pathological_findings.masses_or_suspicious_lesions"
_CONTRADICTIONS = {
    frozenset({"T1-weighted", "T2-weighted"}),
    frozenset({"T1-weighted", "T2-FLAIR"}),
    frozenset({"PD-weighted", "T2-weighted"}),
}
"""Sequence names and timings that exclude each other; other differences are a matter of naming."""
_PLACEHOLDER = re.compile(r"[{}]")

SidesByPatient = dict[tuple[str, str], set[str]]
"""(Dataset, patient) -> sides of lesions."""


def build_dataframes(corpus: Corpus) -> dict[str, pd.DataFrame]:
    """Return table name -> data frame, of every table but ``drift``, which is computed from two profiles."""
    import pandas as pd

    sides = _sides_by_patient(corpus)
    positive_shares = _positive_shares(corpus, corpus.instructions)
    studies = group_studies(corpus.volumes.values())
    rows: dict[str, list[dict[str, Any]]] = {
        "volumes": [_volume_row(corpus, volume, sides) for volume in corpus.volumes.values()],
        "descriptions": [_description_row(corpus, description) for description in corpus.descriptions.values()],
        "instructions": [_instruction_row(corpus, instruction, positive_shares) for instruction in corpus.instructions],
        "volume_instructions": _volume_instruction_rows(corpus, studies),
        "splits": _split_rows(corpus),
        "cards": _card_rows(corpus),
    }
    return {name: pd.DataFrame(table_rows) for name, table_rows in rows.items()}


def _join_texts(texts: Iterable[str | None]) -> str:
    return "\n".join(text for text in texts if text)


def _measured_lesions(corpus: Corpus, volume_id: str) -> list[MeasureRecord]:
    description = corpus.descriptions.get(volume_id)
    return [measure for measure in description.measures if measure.lesion] if description else []


def _sides_by_patient(corpus: Corpus) -> SidesByPatient:
    """Return (dataset, patient) -> the sides, left or right, of single lesions in the patient's volumes."""
    sides: SidesByPatient = defaultdict(set)
    for volume in corpus.volumes.values():
        for lesion in _measured_lesions(corpus, volume.volume_id):
            if lesion.count == 1 and lesion.side in ("left", "right"):
                sides[volume.dataset_id, volume.patient_id].add(lesion.side)
    return sides


def _volume_row(corpus: Corpus, volume: VolumeRecord, sides: SidesByPatient) -> dict[str, Any]:
    row = volume.model_dump(
        exclude={"source_files", "label_values", "vendor", "scanner", "anatomy", "sequence", "series_id", "patient_id"}
    )
    card = corpus.summary["datasets"].get(volume.dataset_id)
    label_map = corpus.label_map(volume.dataset_id) if card else {}
    header_numbers = (value for name in HEADER_NUMBERS if (value := row[name]) is not None)
    header_texts = _join_texts([volume.sequence, volume.plane, volume.anatomy, volume.vendor, volume.scanner])
    source_names = _join_texts([volume.dataset_id, volume.series_id, *volume.source_files])
    affine = np.asarray(volume.affine, dtype=np.float64).reshape(4, 4)
    spacing_mm = volume.spacing_mm
    lesion_is_labeled = bool(set(lesion_values(label_map)) & set(volume.label_values))
    row |= {
        "affine": _orient_single_slice(affine, volume.slices),
        # Great Expectations treats NaN as missing and would skip it.
        "header_numbers_finite": all(math.isfinite(value) for value in header_numbers),
        "statistics_known": all(isinstance(row[name], float) and not math.isnan(row[name]) for name in STATISTICS),
        "dataset_known": card is not None,
        "synthetic_as_card": card is not None and volume.synthetic == card["synthetic"],
        "anatomy_as_card": body_parts.agree(volume.anatomy, card["anatomy"] if card else None),
        "unknown_label_values": len(set(volume.label_values) - set(label_map)),
        "lesion_as_labels": not lesion_is_labeled or volume.lesion is True,
        "patient_is_pseudonym": _PSEUDONYM.match(volume.patient_id) is not None,
        "header_names_nobody": not contains_phi(header_texts),
        "files_name_nobody": _NAME.search(source_names) is None,
        "sequence_known": volume.sequence is None or canonical_sequence(volume.sequence) is not None,
        "sequence_as_timing": _timing_agrees(volume),
        "plane_of_affine": slice_plane(affine) if volume.plane else None,
        "spacing_plausible": all(0.05 <= step <= 50 for step in spacing_mm),
        "split_of_patient": corpus.splits.get(volume.patient_id, "none"),
        "shape_in_store": _shapes_agree(corpus, volume),
        "described": volume.volume_id in corpus.descriptions,
        "side_agrees": len(sides[volume.dataset_id, volume.patient_id]) <= 1,
    }
    return row


def _orient_single_slice(affine: NDArray[np.float64], slices: int) -> list[float]:
    """Return the affine as 16 numbers; the direction of the slice axis, which is arbitrary for a single slice, is normalized."""
    oriented = affine.copy()
    if slices == 1 and np.linalg.det(affine[:3, :3]) > 0:
        oriented[:3, 0] *= -1
    return [float(value) for value in oriented.ravel()]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def _timing_agrees(volume: VolumeRecord) -> bool:
    """Return whether the timing of a volume does not contradict the name of its sequence."""
    name = canonical_sequence(volume.sequence)
    from_timing = classify_timing(volume.repetition_time_ms, volume.echo_time_ms, volume.inversion_time_ms, "")
    return name is None or from_timing is None or frozenset({name, from_timing}) not in _CONTRADICTIONS


def _shapes_agree(corpus: Corpus, volume: VolumeRecord) -> bool:
    """Return whether all arrays of the volume are in the store with the recorded shape; only headers are read."""
    recorded = (volume.slices, volume.rows, volume.columns)
    names = ["voxels", *(["labels"] if volume.has_labels else []), *_kspace_arrays(volume)]
    try:
        shapes = [corpus.store.shape(volume.volume_id, name) for name in names]  # type: ignore[arg-type]
    except OmniMRIError:
        return False
    return all((shape[0], *shape[-2:]) == recorded for shape in shapes)  # k-space of several coils has an additional axis


def _kspace_arrays(volume: VolumeRecord) -> tuple[str, ...]:
    if not volume.has_kspace:
        return ()
    return ("kspace",) if volume.coils == 1 else ("coils", "sensitivities")


def _description_row(corpus: Corpus, description: DescriptionRecord) -> dict[str, Any]:
    volume = corpus.volumes.get(description.volume_id)
    fields, provenance = dict(description.fields), description.provenance
    sources = set(provenance.values())
    return {
        "volume_id": description.volume_id,
        "volume_known": volume is not None,
        "text_length": len(description.text),
        "names_nobody": not contains_phi(_join_texts([description.text, *fields.values(), *description.phrasings])),
        "fields_complete": set(fields) == set(FIELD_NAMES) == set(provenance),
        "provenance_complete": all((provenance.get(name, "none") != "none") == bool(text) for name, text in fields.items()),
        "provenance_known": sources <= set(PROVENANCES),
        "fields": fields,
        "text_is_fields": description.text == format_paragraph(fields),
        "fields_as_header": volume is None or _fields_match_header(fields, provenance, volume),
        "side_as_measured": _sides_match_measures(description),
        "lesion_as_known": volume is None or _lesion_text_matches(description, volume),
        "measures": [measure.model_dump() for measure in description.measures],
        "model_named": ("vlm" in sources) <= (description.vlm is not None),
    }


def _fields_match_header(fields: dict[str, str], provenance: dict[str, str], volume: VolumeRecord) -> bool:
    """Return whether sequence and plane, where their source is the header, are those of the volume table."""
    expected = {
        "image_modality_sequence.sequence": canonical_sequence(volume.sequence) or "",
        "image_modality_sequence.plane": volume.plane or "",
    }
    return all(provenance.get(name) != "header" or fields.get(name) == text for name, text in expected.items())


def _sides_match_measures(description: DescriptionRecord) -> bool:
    """Return whether every side that a text from labels names was measured."""
    if description.provenance.get(_MASSES) != "label":
        return True
    named_sides = _words(description.fields.get(_MASSES, "")) & set(SIDES)
    return named_sides <= {measure.side for measure in description.measures if measure.lesion}


def _lesion_text_matches(description: DescriptionRecord, volume: VolumeRecord) -> bool:
    """Return whether a text from labels names a lesion exactly if the volume has one."""
    text = description.fields.get(_MASSES, "")
    if volume.lesion is None or not text or description.provenance.get(_MASSES) != "label":
        return True
    return text.startswith("no ") != volume.lesion


def _positive_shares(corpus: Corpus, rows: Iterable[AnyInstruction]) -> dict[tuple[str, str], float]:
    """Return (dataset, split) -> share of diagnostic answers that are yes."""
    answers: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for instruction in rows:
        if _answers_yes_or_no(instruction) and instruction.volume_id in corpus.volumes:
            dataset_id = corpus.volumes[instruction.volume_id].dataset_id
            answers[dataset_id, instruction.split].append(bool(instruction.positive))
    return {key: sum(positive) / len(positive) for key, positive in answers.items()}


def _instruction_row(
    corpus: Corpus, instruction: InstructionRecord, positive_shares: dict[tuple[str, str], float]
) -> dict[str, Any]:
    volume = corpus.volumes.get(instruction.volume_id)
    labels = [instruction.structure, *(box.label for box in instruction.boxes), *instruction.differential]
    areas = [(box.row1 - box.row0) * (box.col1 - box.col0) / (GRID - 1) ** 2 for box in instruction.boxes]
    diagnosed = volume is not None and _answers_yes_or_no(instruction)
    return {
        "sample_id": instruction.sample_id,
        "question": _question_key(instruction),
        "task": instruction.task,
        "split": instruction.split,
        "volume_known": volume is not None,
        "patient_as_volume": volume is None or instruction.patient_id == volume.patient_id,
        "split_of_volume": volume.split if volume else "none",
        "split_of_patient": corpus.splits.get(instruction.patient_id, "none"),
        "slice_inside": volume is not None and 0 <= instruction.slice_index < volume.slices,
        "instruction_length": len(instruction.instruction),
        "response_length": len(instruction.response),
        "no_placeholder": not _PLACEHOLDER.search(instruction.instruction),
        "names_nobody": not contains_phi(_join_texts([instruction.instruction, instruction.response, *labels])),
        "structure_as_card": _structure_matches_card(corpus, instruction, volume),
        "boxes": [box.model_dump(exclude={"label"}) for box in instruction.boxes],
        "largest_box_share": max(areas, default=None),
        "acceleration": instruction.acceleration,
        "centre_fraction": instruction.centre_fraction,
        "complete": _is_complete(instruction, volume),
        "response_of_task": _response_matches_task(instruction),
        "answer_as_known": volume is None or _answer_matches_lesion(instruction, volume),
        "held_out_but_trained": instruction.held_out_phrasing and instruction.split == "train",
        "phrasing_as_marked": volume is None or _phrasing_matches_mark(instruction, volume),
        "share_of_yes": positive_shares.get((volume.dataset_id, instruction.split)) if volume and diagnosed else None,
    }


def _question_key(instruction: InstructionRecord) -> str:
    """Return a key that is equal for equal questions about the same image.

    A slice at several accelerations is several images, about which the same question may be asked.
    """
    image = f"{instruction.volume_id}/{instruction.slice_index}/{instruction.task}/{instruction.acceleration}"
    return f"{image}/{digest(instruction.instruction)[:12]}"


def _structure_matches_card(corpus: Corpus, instruction: AnyInstruction, volume: VolumeRecord | None) -> bool:
    """Return whether the structure of a question is the name of its label value on the card."""
    if instruction.label_value is None or volume is None or volume.dataset_id not in corpus.summary["datasets"]:
        return instruction.label_value is None
    return instruction.structure == corpus.label_map(volume.dataset_id).get(instruction.label_value, "").lower()


def _is_complete(instruction: AnyInstruction, volume: VolumeRecord | None) -> bool:
    """Return whether everything that the task needs is present; an unknown task needs nothing."""
    if volume is None:
        return False
    return instruction.task not in TASKS or TASKS[instruction.task].is_complete(instruction, volume)


def _response_matches_task(instruction: AnyInstruction) -> bool:
    """Return whether the response has the form of its task and agrees with the recorded truth."""
    return instruction.task not in TASKS or TASKS[instruction.task].is_response(instruction)


def _answers_yes_or_no(instruction: AnyInstruction) -> bool:
    return instruction.task in TASKS and TASKS[instruction.task].answers_yes_or_no


def _answer_matches_lesion(instruction: AnyInstruction, volume: VolumeRecord) -> bool:
    """Return whether no answer asserts a lesion in a volume that has none; a finding of a whole organ is no lesion."""
    diffuse = not instruction.boxes and any(word in instruction.response.lower() for word in DIFFUSE_WORDS)
    return volume.lesion is not False or not has_finding(instruction) or diffuse


def _phrasing_matches_mark(instruction: AnyInstruction, volume: VolumeRecord) -> bool:
    """Return whether the question is a held-out phrasing exactly if it is marked as one."""
    if instruction.task not in TASKS:
        return True
    held_out = [text for phrasings in TASKS[instruction.task].all_phrasings for text in phrasings.held_out]
    scans = [scan_name(volume.sequence, volume.plane, volume.anatomy), " ".join(filter(None, (volume.anatomy, STUDY)))]
    patterns = [_phrasing_pattern(phrasing, scan) for phrasing in held_out for scan in scans]
    return any(pattern.fullmatch(instruction.instruction) for pattern in patterns) == instruction.held_out_phrasing


def _volume_instruction_rows(corpus: Corpus, studies: Mapping[str, list[VolumeRecord]]) -> list[dict[str, Any]]:
    """Return one row for each question about a volume or a study; the shares of yes are those of its scope."""
    shares = {
        scope: _positive_shares(corpus, [row for row in corpus.volume_instructions if row.scope == scope])
        for scope in ("volume", "study")
    }
    return [_volume_instruction_row(corpus, row, studies, shares.get(row.scope, {})) for row in corpus.volume_instructions]


def _volume_instruction_row(
    corpus: Corpus,
    row: VolumeInstructionRecord,
    studies: Mapping[str, list[VolumeRecord]],
    positive_shares: Mapping[tuple[str, str], float],
) -> dict[str, Any]:
    volume = corpus.volumes.get(row.volume_id)
    series = [record for volume_id in row.series if (record := corpus.volumes.get(volume_id)) is not None]
    named = [row.structure, row.finding, *(box.label for box in row.boxes)]
    shares = [_volume_share(box) for box in row.boxes]
    diagnosed = volume is not None and _answers_yes_or_no(row)
    asked = (row.structure or row.finding or "").lower()
    return {
        "sample_id": row.sample_id,
        "question": f"{'/'.join(row.series)}/{row.volume_id}/{row.task}/{row.acceleration}/{digest(row.instruction)[:12]}",
        "task": row.task,
        "scope": row.scope,
        "split": row.split,
        "volumes_known": volume is not None and len(series) == len(row.series),
        "about_its_images": row.volume_id in row.series,
        "series_of_scope": _series_match_scope(row, studies),
        "patient_as_volumes": all(record.patient_id == row.patient_id for record in series),
        "split_as_volumes": all(record.split == row.split for record in series),
        "split_of_patient": corpus.splits.get(row.patient_id, "none"),
        "instruction_length": len(row.instruction),
        "response_length": len(row.response),
        "no_placeholder": not _PLACEHOLDER.search(row.instruction),
        "names_nobody": not contains_phi(_join_texts([row.instruction, row.response, *named])),
        "names_what_is_asked": asked in row.instruction.lower(),
        "structure_as_card": _structure_matches_card(corpus, row, volume),
        "boxes": [box.model_dump(exclude={"label"}) for box in row.boxes],
        "largest_box_share": max(shares, default=None),
        "acceleration": row.acceleration,
        "centre_fraction": row.centre_fraction,
        "complete": _is_complete(row, volume),
        "response_of_task": _response_matches_task(row),
        "answer_as_known": volume is None or _answer_matches_lesion(row, volume),
        "held_out_but_trained": row.held_out_phrasing and row.split == "train",
        "phrasing_as_marked": volume is None or _phrasing_matches_mark(row, volume),
        "share_of_yes": positive_shares.get((volume.dataset_id, row.split)) if volume and diagnosed else None,
    }


def _volume_share(box: VolumeBoxRecord) -> float:
    """Return the share of a volume that a box covers."""
    sides = (box.row1 - box.row0, box.col1 - box.col0, box.slice1 - box.slice0)
    return math.prod(sides) / (GRID - 1) ** 3


def _series_match_scope(row: VolumeInstructionRecord, studies: Mapping[str, list[VolumeRecord]]) -> bool:
    """Return whether the images are those of the scope: the volume alone, or all series of its patient and visit in their order."""
    if row.scope == "volume":
        return row.series == [row.volume_id]
    study = [record.volume_id for record in studies.get(row.volume_id, [])]
    return row.scope == "study" and row.series == study and 2 <= len(study) <= MOST_SERIES


@cache
def _phrasing_pattern(phrasing: str, scan: str) -> re.Pattern[str]:
    """Return a pattern of a phrasing for one scan name, in which every other placeholder matches any text."""
    pattern = re.escape(phrasing).replace(r"\{scan\}", re.escape(scan))
    return re.compile(re.sub(r"\\\{\w+\\\}", ".+", pattern))


def _split_rows(corpus: Corpus) -> list[dict[str, Any]]:
    """Return one row for each patient; an identifier that is not a pseudonym is replaced with the row number."""
    patients = {volume.patient_id for volume in corpus.volumes.values()}
    return [
        {
            "patient_id": patient if _PSEUDONYM.match(patient) else f"row {number}",
            "split": split,
            "has_volume": patient in patients,
            "is_pseudonym": _PSEUDONYM.match(patient) is not None,
        }
        for number, (patient, split) in enumerate(corpus.splits.items())
    ]


def _card_rows(corpus: Corpus) -> list[dict[str, Any]]:
    """Return one row for each dataset of the corpus, which compares its content with its card."""
    rows = []
    boxed = {instruction.volume_id for instruction in corpus.instructions if instruction.boxes}
    for dataset_id, card in corpus.summary["datasets"].items():
        volumes = [volume for volume in corpus.volumes.values() if volume.dataset_id == dataset_id]
        patients = {volume.patient_id for volume in volumes}
        volume_ids = {volume.volume_id for volume in volumes}
        tasks = {instruction.task for instruction in corpus.instructions if instruction.volume_id in volume_ids}
        expected_tasks = set(card["tasks"])
        if not any(is_lesion(name) for name in card["label_map"].values()):
            expected_tasks -= {name for name, task in TASKS.items() if task.needs_findings}
        rows.append(
            {
                "dataset_id": dataset_id,
                "volumes": len(volumes),
                "patients_fit": card["patients"] is None or len(patients) <= card["patients"],
                "volumes_fit": card["volumes"] is None or len(volumes) <= card["volumes"],
                "labels_fit": not card["label_map"] or any(v.has_labels or v.volume_id in boxed for v in volumes),
                "tasks_fit": not volumes or expected_tasks <= tasks,
            }
        )
    return rows
