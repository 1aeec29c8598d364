"""The curated tables as data frames, with the columns that rules need and no table has: what holds *between* tables, cards, store
and text is computed here, so that each rule stays one plain statement about one column.

Text that could name somebody does not get further than this module: Great Expectations sees whether it does, not what it says.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.curation.corpus import Corpus
from components.curation.table_rows import DescriptionRecord, InstructionRecord, MeasureRecord, VolumeRecord
from components.curation.text.controlled_vocabulary import SIDES
from components.curation.text.instructions import IMAGE_RESPONSE, MASK_RESPONSE
from components.curation.text.phrasings import OPEN_DIAGNOSIS, PHRASINGS, scan_name
from components.curation.text.structure_names import is_lesion, lesion_values
from components.curation.text.template import FIELD_NAMES, PROVENANCES, paragraph
from components.errors import OmniMRIError
from components.ingestion.acquisition_headers import plane_of, sequence_kind
from components.ingestion.sequence_classification import canonical_sequence
from components.phi_patterns import IDENTIFYING_NAME, identifies
from components.provenance import digest
from model_core.boxes import GRID, TextBox, parse_boxes

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
_NAME = re.compile(IDENTIFYING_NAME)
_MASSES = "pathological_findings.masses_or_suspicious_lesions"
_OPPOSED = {
    frozenset({"T1-weighted", "T2-weighted"}),
    frozenset({"T1-weighted", "T2-FLAIR"}),
    frozenset({"PD-weighted", "T2-weighted"}),
}
"""Names and timings that exclude each other; other differences are a matter of names."""


def build_dataframes(corpus: Corpus) -> dict[str, pd.DataFrame]:
    """Table name -> frame; ``drift`` is made elsewhere, from two of these."""
    import pandas as pd

    sides = _sides_by_patient(corpus)
    shares = _shares_of_yes(corpus)
    rows: dict[str, list[dict[str, Any]]] = {
        "volumes": [_volume_row(corpus, volume, sides) for volume in corpus.volumes.values()],
        "descriptions": [_description_row(corpus, one) for one in corpus.descriptions.values()],
        "instructions": [_instruction_row(corpus, one, shares) for one in corpus.instructions],
        "splits": _split_rows(corpus),
        "cards": _card_rows(corpus),
    }
    return {name: pd.DataFrame(found) for name, found in rows.items()}


def _joined(texts: Iterable[str | None]) -> str:
    return "\n".join(text for text in texts if text)


def _lesions(corpus: Corpus, volume_id: str) -> list[MeasureRecord]:
    described = corpus.descriptions.get(volume_id)
    return [one for one in described.measures if one.lesion] if described else []


def _sides_by_patient(corpus: Corpus) -> dict[tuple[str, str], set[str]]:
    """(Dataset, patient) -> the left or right sides that a single lesion is measured on, over the patient's volumes."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for volume in corpus.volumes.values():
        sides = {one.side for one in _lesions(corpus, volume.volume_id) if one.side in ("left", "right") and one.count == 1}
        found[volume.dataset_id, volume.patient_id] |= {side for side in sides if side}
    return found


def _volume_row(corpus: Corpus, volume: VolumeRecord, sides: dict[tuple[str, str], set[str]]) -> dict[str, Any]:
    row = volume.model_dump(
        exclude={"source_files", "label_values", "vendor", "scanner", "anatomy", "sequence", "series_id", "patient_id"}
    )
    facts = corpus.summary["datasets"].get(volume.dataset_id)
    label_map = corpus.label_map(volume.dataset_id) if facts else {}
    header = (value for name in HEADER_NUMBERS if (value := row[name]) is not None)
    affine = np.asarray(volume.affine, dtype=np.float64).reshape(4, 4)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    labelled = bool(set(lesion_values(label_map)) & set(volume.label_values))
    names = [volume.dataset_id, volume.series_id, *volume.source_files]
    row |= {
        "affine": _oriented(affine, volume.slices),
        "header_numbers_finite": all(math.isfinite(value) for value in header),  # expectations take NaN for missing: passed over
        "statistics_known": all(isinstance(row[name], float) and not math.isnan(row[name]) for name in STATISTICS),
        "dataset_known": facts is not None,
        "synthetic_as_card": facts is not None and volume.synthetic == facts["synthetic"],
        "anatomy_as_card": _anatomy_agrees(volume.anatomy, facts["anatomy"] if facts else None),
        "unknown_label_values": len(set(volume.label_values) - set(label_map)),
        "lesion_as_labels": not labelled or volume.lesion is True,
        "patient_is_pseudonym": _PSEUDONYM.match(volume.patient_id) is not None,
        "header_names_nobody": not identifies(
            _joined([volume.sequence, volume.plane, volume.anatomy, volume.vendor, volume.scanner])
        ),
        "files_name_nobody": _NAME.search(_joined(names)) is None,
        "sequence_known": volume.sequence is None or canonical_sequence(volume.sequence) is not None,
        "sequence_as_timing": _timing_agrees(volume),
        "plane_of_affine": plane_of(affine) if volume.plane else None,
        "spacing_plausible": bool(((spacing >= 0.05) & (spacing <= 50)).all()),
        "split_of_patient": corpus.splits.get(volume.patient_id, "none"),
        "shape_in_store": _shapes_agree(corpus, volume),
        "described": volume.volume_id in corpus.descriptions,
        "side_agrees": len(sides[volume.dataset_id, volume.patient_id]) <= 1,
    }
    return row


def _oriented(affine: NDArray[np.float64], slices: int) -> list[float]:
    """The affine in 16 numbers; of a single slice, which leads nowhere, the slice axis is turned to where it belongs."""
    turned = affine.copy()
    if slices == 1 and np.linalg.det(affine[:3, :3]) > 0:
        turned[:3, 0] *= -1
    return [float(value) for value in turned.ravel()]


def _anatomy_agrees(found: str | None, card: str | None) -> bool:
    """Unless both are known and share no word."""
    if not found or not card:
        return True
    return bool(_words(found) & _words(card)) or found in card or card in found


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def _timing_agrees(volume: VolumeRecord) -> bool:
    name = canonical_sequence(volume.sequence)
    timed = sequence_kind(volume.repetition_time_ms, volume.echo_time_ms, volume.inversion_time_ms, "")
    return name is None or timed is None or frozenset({name, timed}) not in _OPPOSED


def _shapes_agree(corpus: Corpus, volume: VolumeRecord) -> bool:
    """All arrays of the volume are in the store, in the recorded shape; reads headers only."""
    wanted = (volume.slices, volume.rows, volume.columns)
    names = ["voxels", *(["labels"] if volume.has_labels else []), *(["kspace"] if volume.has_kspace else [])]
    try:
        shapes = [corpus.store.shape(volume.volume_id, name) for name in names]  # type: ignore[arg-type]
    except OmniMRIError:
        return False
    return all((shape[0], *shape[-2:]) == wanted for shape in shapes)  # k-space of several coils has an axis more


def _description_row(corpus: Corpus, one: DescriptionRecord) -> dict[str, Any]:
    volume = corpus.volumes.get(one.volume_id)
    sources = set(one.provenance.values())
    fields = dict(one.fields)
    return {
        "volume_id": one.volume_id,
        "volume_known": volume is not None,
        "text_length": len(one.text),
        "names_nobody": not identifies(_joined([one.text, *fields.values(), *one.phrasings])),
        "fields_complete": set(fields) == set(FIELD_NAMES) == set(one.provenance),
        "provenance_complete": all((one.provenance.get(name, "none") != "none") == bool(text) for name, text in fields.items()),
        "provenance_known": sources <= set(PROVENANCES),
        "fields": fields,
        "text_is_fields": one.text == paragraph(fields),
        "fields_as_header": volume is None or _fields_as_header(fields, one.provenance, volume),
        "side_as_measured": _side_as_measured(one),
        "lesion_as_known": volume is None or _lesion_as_known(one, volume),
        "measures": [measure.model_dump() for measure in one.measures],
        "model_named": ("vlm" in sources) <= (one.vlm is not None),
    }


def _fields_as_header(fields: dict[str, str], provenance: dict[str, str], volume: VolumeRecord) -> bool:
    wanted = {"sequence": canonical_sequence(volume.sequence) or "", "plane": volume.plane or ""}
    names = {leaf: f"image_modality_sequence.{leaf}" for leaf in wanted}
    return all(provenance.get(name) != "header" or fields.get(name) == wanted[leaf] for leaf, name in names.items())


def _side_as_measured(one: DescriptionRecord) -> bool:
    """Sides that a text from labels names are sides that were measured."""
    if one.provenance.get(_MASSES) != "label":
        return True
    said = _words(one.fields.get(_MASSES, "")) & set(SIDES)
    return said <= {measure.side for measure in one.measures if measure.lesion}


def _lesion_as_known(one: DescriptionRecord, volume: VolumeRecord) -> bool:
    text = one.fields.get(_MASSES, "")
    if volume.lesion is None or not text or one.provenance.get(_MASSES) != "label":
        return True
    return text.startswith("no ") != volume.lesion


def _shares_of_yes(corpus: Corpus) -> dict[tuple[str, str], float]:
    """(Dataset, split) -> share of diagnostic answers that are yes."""
    found: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for one in corpus.instructions:
        if one.task == "diagnosis" and one.volume_id in corpus.volumes:
            found[corpus.volumes[one.volume_id].dataset_id, one.split].append(bool(one.positive))
    return {key: sum(answers) / len(answers) for key, answers in found.items()}


def _instruction_row(corpus: Corpus, one: InstructionRecord, shares: dict[tuple[str, str], float]) -> dict[str, Any]:
    volume = corpus.volumes.get(one.volume_id)
    labels = [one.structure, *(box.label for box in one.boxes), *one.differential]
    areas = [(box.row1 - box.row0) * (box.col1 - box.col0) / (GRID - 1) ** 2 for box in one.boxes]
    return {
        "sample_id": one.sample_id,
        # One slice is shown at several accelerations: another image, so another question in the same words.
        "question": f"{one.volume_id}/{one.slice_index}/{one.task}/{one.acceleration}/{digest(one.instruction)[:12]}",
        "task": one.task,
        "split": one.split,
        "volume_known": volume is not None,
        "patient_as_volume": volume is None or one.patient_id == volume.patient_id,
        "split_of_volume": volume.split if volume else "none",
        "split_of_patient": corpus.splits.get(one.patient_id, "none"),
        "slice_inside": volume is not None and 0 <= one.slice_index < volume.slices,
        "instruction_length": len(one.instruction),
        "response_length": len(one.response),
        "no_placeholder": not re.search(r"[{}]", one.instruction),
        "names_nobody": not identifies(_joined([one.instruction, one.response, *labels])),
        "structure_as_card": _structure_as_card(corpus, one, volume),
        "boxes": [box.model_dump(exclude={"label"}) for box in one.boxes],
        "largest_box_share": max(areas, default=None),
        "acceleration": one.acceleration,
        "centre_fraction": one.centre_fraction,
        "complete": _complete(one, volume),
        "response_of_task": _response_of_task(one),
        "answer_as_known": volume is None or _answer_as_known(one, volume),
        "held_out_but_trained": one.held_out_phrasing and one.split == "train",
        "phrasing_as_marked": volume is None or _phrasing_as_marked(one, volume),
        "share_of_yes": shares.get((volume.dataset_id, one.split)) if volume and one.task == "diagnosis" else None,
    }


def _structure_as_card(corpus: Corpus, one: InstructionRecord, volume: VolumeRecord | None) -> bool:
    """The structure asked for is what the card calls this label value."""
    if one.label_value is None or volume is None or volume.dataset_id not in corpus.summary["datasets"]:
        return one.label_value is None
    return one.structure == corpus.label_map(volume.dataset_id).get(one.label_value, "").lower()


def _complete(one: InstructionRecord, volume: VolumeRecord | None) -> bool:
    """The fields that the task cannot do without."""
    if volume is None:
        return False
    if one.task == "reconstruction":
        return volume.has_kspace and None not in (one.acceleration, one.centre_fraction, one.mask_seed)
    if one.task == "segmentation":
        return volume.has_labels and one.label_value in volume.label_values
    return one.positive is not None if one.task == "diagnosis" else True


def _response_of_task(one: InstructionRecord) -> bool:
    if one.task == "reconstruction":
        return one.response == IMAGE_RESPONSE
    if one.task == "segmentation":
        return one.response == MASK_RESPONSE
    if one.task == "detection":
        said = {(b.label, b.row0, b.col0, b.row1, b.col1) for b in parse_boxes(one.response)}
        return said == {(b.label, b.row0, b.col0, b.row1, b.col1) for b in map(_text_box, one.boxes)}
    if one.task == "diagnosis":
        return one.response.startswith("yes" if one.positive else "no")
    return len(one.response) > len(MASK_RESPONSE)


def _text_box(box: Any) -> TextBox:
    return TextBox(box.label, box.row0, box.col0, box.row1, box.col1)


def _answer_as_known(one: InstructionRecord, volume: VolumeRecord) -> bool:
    """No lesion is found in a volume that has none."""
    if volume.lesion is not False:
        return True
    asserted = bool(one.boxes) if one.task == "detection" else one.task == "diagnosis" and bool(one.positive)
    return not asserted


def _phrasing_as_marked(one: InstructionRecord, volume: VolumeRecord) -> bool:
    """Whether the question is one of the kept phrasings exactly if it says so."""
    if one.task not in PHRASINGS:
        return True
    kept = PHRASINGS[one.task].held_out + (OPEN_DIAGNOSIS.held_out if one.task == "diagnosis" else ())
    scan = scan_name(volume.sequence, volume.plane, volume.anatomy)
    patterns = [re.escape(text).replace(r"\{scan\}", re.escape(scan)) for text in kept]
    return (
        any(re.fullmatch(re.sub(r"\\\{\w+\\\}", ".+", pattern), one.instruction) for pattern in patterns) == one.held_out_phrasing
    )


def _split_rows(corpus: Corpus) -> list[dict[str, Any]]:
    present = {volume.patient_id for volume in corpus.volumes.values()}
    return [
        {
            "patient_id": patient if _PSEUDONYM.match(patient) else f"row {number}",
            "split": split,
            "has_volume": patient in present,
            "is_pseudonym": _PSEUDONYM.match(patient) is not None,
        }
        for number, (patient, split) in enumerate(corpus.splits.items())
    ]


def _card_rows(corpus: Corpus) -> list[dict[str, Any]]:
    """One row for each dataset of the corpus: what is there, against what its card says."""
    rows = []
    for dataset_id, card in corpus.summary["datasets"].items():
        volumes = [volume for volume in corpus.volumes.values() if volume.dataset_id == dataset_id]
        patients = {volume.patient_id for volume in volumes}
        ids = {volume.volume_id for volume in volumes}
        asked = {one.task for one in corpus.instructions if one.volume_id in ids}
        needs_lesions = {"detection", "diagnosis", "report"}
        promised = (
            set(card["tasks"])
            if any(is_lesion(name) for name in card["label_map"].values())
            else set(card["tasks"]) - needs_lesions
        )
        rows.append(
            {
                "dataset_id": dataset_id,
                "volumes": len(volumes),
                "patients_fit": card["patients"] is None or len(patients) <= card["patients"],
                "volumes_fit": card["volumes"] is None or len(volumes) <= card["volumes"],
                "labels_fit": not card["label_map"] or any(volume.has_labels for volume in volumes),
                "tasks_fit": not volumes or promised <= asked,
            }
        )
    return rows
