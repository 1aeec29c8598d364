"""Instruction-response pairs of the five tasks (Table 1), from records and slice facts alone: no voxel is read.

Slices are spread evenly over those that show what is asked about. Detection and diagnosis are balanced: per dataset and split,
as many slices without a lesion as with one (or the other way round), chosen by a keyed order, never by position.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.curation.curate_volume import CardFacts, CuratedVolume
from components.curation.table_rows import DescriptionRecord, InstructionRecord
from components.curation.text.descriptions import level
from components.curation.text.differentials import differential
from components.curation.text.phrasings import OPEN_DIAGNOSIS, PHRASINGS, Phrasings, scan_name
from components.curation.text.structure_names import knee_organ
from components.curation.text.template import KNEE_ORGANS, paragraph
from components.curation.undersampling import centre_fraction_of
from components.provenance import digest
from components.settings import CurationSettings, TaskName
from model_core.boxes import TextBox, format_boxes

IMAGE_RESPONSE, MASK_RESPONSE = "<image>", "<seg>"
PAIRED: tuple[TaskName, ...] = ("detection", "diagnosis")
"""Tasks with a yes and a no, which are balanced."""
_LARGEST_SEED = 2**31


def spread(indices: list[int], count: int) -> list[int]:
    """At most ``count`` of ``indices``, evenly spaced; all of them where there are no more."""
    if len(indices) <= count:
        return list(indices)
    places = np.linspace(0, len(indices) - 1, count + 2)[1:-1] if count > 1 else [(len(indices) - 1) / 2]
    return [indices[place] for place in dict.fromkeys(round(float(place)) for place in places)]


def _ask(
    curated: CuratedVolume,
    task: TaskName,
    slice_index: int,
    response: str,
    words: dict[str, str],
    phrasings: Phrasings | None = None,
    **more: Any,
) -> InstructionRecord:
    """One record; phrasing and id follow from what is asked about which slice, so they are the same at every curation."""
    record = curated.record
    about = digest(record.dataset_id, record.series_id, slice_index, task, sorted(words.items()), *(["open"] if phrasings else []))
    phrasings = phrasings or PHRASINGS[task]
    open_to = phrasings.trained if record.split == "train" else phrasings.trained + phrasings.held_out
    phrasing = open_to[int(about[:8], 16) % len(open_to)]
    scan = scan_name(record.sequence, record.plane, record.anatomy)
    return InstructionRecord(
        sample_id=about[:32],  # not of the volume id, which changes with the code: evaluations compare the same questions
        volume_id=record.volume_id,
        patient_id=record.patient_id,
        split=record.split,
        task=task,
        slice_index=slice_index,
        instruction=phrasing.format(scan=scan, **words),
        response=response,
        held_out_phrasing=phrasing in phrasings.held_out,
        **more,
    )


def _reconstruction(curated: CuratedVolume, settings: CurationSettings) -> Iterator[InstructionRecord]:
    """Only where the store has real k-space."""
    if not curated.record.has_kspace:
        return
    for slice_index in spread(curated.facts.content_slices, settings.slices_per_volume):
        for acceleration in settings.accelerations:
            seed = int(digest(curated.record.dataset_id, curated.record.series_id, slice_index, acceleration)[:15], 16)
            yield _ask(
                curated,
                "reconstruction",
                slice_index,
                IMAGE_RESPONSE,
                {"acceleration": str(acceleration)},
                acceleration=acceleration,
                centre_fraction=centre_fraction_of(acceleration),
                mask_seed=seed % _LARGEST_SEED,
            )


def _segmentation(curated: CuratedVolume, card: CardFacts, settings: CurationSettings) -> Iterator[InstructionRecord]:
    for value, slices in sorted(curated.facts.structure_slices.items()):
        structure = card.label_map[value].lower()
        for slice_index in spread(slices, settings.slices_per_volume):
            yield _ask(
                curated,
                "segmentation",
                slice_index,
                MASK_RESPONSE,
                {"structure": structure},
                structure=structure,
                label_value=value,
            )


def _detection(curated: CuratedVolume, settings: CurationSettings) -> Iterator[tuple[bool, InstructionRecord]]:
    facts = curated.facts
    for slice_index in spread(facts.lesion_slices, settings.slices_per_volume):
        boxes = facts.boxes[slice_index]
        text = format_boxes(TextBox(box.label, box.row0, box.col0, box.row1, box.col1) for box in boxes)
        yield True, _ask(curated, "detection", slice_index, text, {"finding": facts.lesion}, boxes=boxes)
    for slice_index in spread(facts.lesion_free_slices, settings.slices_per_volume):
        yield False, _ask(curated, "detection", slice_index, format_boxes([]), {"finding": facts.lesion})


def _diagnosis(curated: CuratedVolume, settings: CurationSettings) -> Iterator[tuple[bool, InstructionRecord]]:
    facts = curated.facts
    asked = [(i, facts.lesion, True) for i in spread(facts.lesion_slices, settings.slices_per_volume)]
    asked += [(i, facts.lesion, False) for i in spread(facts.lesion_free_slices, settings.slices_per_volume)]
    for finding in facts.findings:
        if finding.name != facts.lesion or not (facts.lesion_slices or facts.lesion_free_slices):
            asked += [(i, finding.name, finding.present) for i in spread(facts.content_slices, 1)]
    for slice_index, name, positive in asked:
        response = f"yes, {name}" if positive else f"no, no {name}"
        yield positive, _ask(curated, "diagnosis", slice_index, response, {"finding": name}, positive=positive)
        yield from _open_diagnosis(curated, slice_index, name, positive)


def _open_diagnosis(
    curated: CuratedVolume, slice_index: int, name: str, positive: bool
) -> Iterator[tuple[bool, InstructionRecord]]:
    """The same question with its differential (section 5), where there is one; the finding of the dataset is called most likely."""
    considered = differential(name, curated.record.anatomy)
    if not considered:
        return
    seen = [
        ", ".join(part for part in (one.side, one.inside and f"in {one.inside}", one.signal and level(one.signal)) if part)
        for one in curated.facts.measures
        if one.lesion and one.name == name
    ]
    where = f", {seen[0]}" if seen and seen[0] else ""
    response = f"yes{where}. Differential: {', '.join(considered)}. Most likely: {name}." if positive else f"no, no {name}"
    yield (
        positive,
        _ask(
            curated,
            "diagnosis",
            slice_index,
            response,
            {"finding": name},
            OPEN_DIAGNOSIS,
            positive=positive,
            differential=considered if positive else [],
        ),
    )


def report_text(description: DescriptionRecord, anatomy: str | None) -> str:
    """The report of a volume: the paragraph of its description, for knees in the organ-wise order of the paper's section 5.

    A knee report names what is known of joint space, menisci, cartilage, bone and soft tissues, in this order, then impression,
    grading and recommendation. What no source says of an organ is left out, not called normal.
    """
    if "knee" not in (anatomy or "").lower():
        return description.text
    organs: dict[str, list[str]] = {organ: [] for organ in KNEE_ORGANS}
    for section in ("visible_anatomical_structures", "pathological_findings"):
        for name, text in description.fields.items():
            if name.startswith(section):
                for part in text.split("; " if section.startswith("path") else ", "):
                    if part and (organ := knee_organ(part)) and part not in organs[organ]:
                        organs[organ].append(part)
    header = {name: text for name, text in description.fields.items() if name.startswith("image_modality_sequence.")}
    conclusion = {name: text for name, text in description.fields.items() if name.startswith("diagnostic_impression.")}
    by_organ = [f"{organ.replace('_', ' ').capitalize()}: {'; '.join(found)}." for organ, found in organs.items() if found]
    return " ".join(part for part in (paragraph(header), *by_organ, paragraph(conclusion)) if part)


def _report(curated: CuratedVolume, settings: CurationSettings) -> Iterator[InstructionRecord]:
    """Where labels, boxes or diagnoses say whether something is wrong; on slices that show it if there is."""
    if curated.record.lesion is None:
        return
    for slice_index in spread(curated.facts.lesion_slices or curated.facts.content_slices, settings.slices_per_volume):
        yield _ask(curated, "report", slice_index, report_text(curated.description, curated.record.anatomy), {})


def candidates(curated: CuratedVolume, card: CardFacts, settings: CurationSettings) -> list[InstructionRecord]:
    """Everything that can be asked about one volume whose record carries its split; a corpus takes a balanced part of it."""
    pairs = (*_detection(curated, settings), *_diagnosis(curated, settings))
    return [
        *_reconstruction(curated, settings),
        *_segmentation(curated, card, settings),
        *_report(curated, settings),
        *(record for _, record in pairs),
    ]


def balanced(candidates: pa.Table, datasets: dict[str, str]) -> NDArray[np.bool_]:
    """Which candidates a corpus takes: all, but of detection and diagnosis as many with the finding as without.

    By dataset and split; the surplus is left out in the order of the ids, which is a keyed order, never one by position.

    Args:
        candidates: rows of the instructions' form.
        datasets: volume_id -> dataset_id.
    """
    task = candidates.column("task").to_numpy(zero_copy_only=False)
    paired = np.flatnonzero(np.isin(task, PAIRED))
    taken = np.ones(len(task), np.bool_)
    taken[paired] = False
    rows = candidates.select(["sample_id", "volume_id", "split", "task", "boxes", "positive"]).take(paired)
    found = np.where(
        rows.column("task").to_numpy(zero_copy_only=False) == "detection",
        pc.list_value_length(rows.column("boxes")).to_numpy() > 0,
        pc.fill_null(rows.column("positive"), False).to_numpy(zero_copy_only=False),
    )
    groups: dict[tuple[str, str, str], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    names = (rows.column(name).to_pylist() for name in ("volume_id", "split", "task"))
    in_order = pc.sort_indices(rows.column("sample_id")).to_pylist()
    keys = [(datasets[volume], split, kind) for volume, split, kind in zip(*names, strict=True)]
    for row in in_order:
        groups[keys[row]][bool(found[row])].append(row)
    for without, with_finding in groups.values():
        count = min(len(without), len(with_finding))
        taken[paired[without[:count] + with_finding[:count]]] = True
    return taken
