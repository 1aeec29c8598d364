"""Text of reports, and their measured fields: signals and findings by the masks of the whole volume, in the words of curation.

As the header's facts, they are not guessed in an answer but copied: a single slice does not show number, side and size of findings,
and a report must not contradict the boxes. The network decides which sections a report has, and writes the others.

Shape letters: S structures, D slices, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from components.curation.measure.volume_facts import compute_slice_facts
from components.curation.table_rows import DescriptionRecord
from components.curation.text.descriptions import describe
from components.curation.text.structure_names import is_diffuse, is_lesion, knee_organ
from components.curation.text.template import KNEE_ORGANS, format_paragraph, parse_paragraph
from components.ingestion.volume import Volume
from components.tasks.findings import ANY, MINIMUM_PIXELS, asked_kinds, find_volume_parts, sum_kinds
from components.tasks.known_structures import Shown

_SIGNALS, _PATHOLOGY = "tissue_signal_characteristics", "pathological_findings"
_STRUCTURAL = f"{_PATHOLOGY}.structural_abnormalities"
_VISIBLE, _IMPRESSION = "visible_anatomical_structures", "diagnostic_impression.suggestive_of"
_FOCAL = (f"{_PATHOLOGY}.signal_abnormalities_or_fluid_collections", f"{_PATHOLOGY}.masses_or_suspicious_lesions")


def format_report(fields: Mapping[str, str], anatomy: str | None) -> str:
    """Return the report of ``"section.field"`` -> text: a paragraph; for knees in the organ-wise order of the paper's section 5.

    A knee report states what is known about joint space, menisci, cartilage, bone and soft tissues, in this order, then impression,
    grading and recommendation. An organ that no source describes is omitted, not called normal.
    """
    if "knee" not in (anatomy or "").lower():
        return format_paragraph(dict(fields))
    by_organ: dict[str, list[str]] = {organ: [] for organ in KNEE_ORGANS}
    for section in (_VISIBLE, _PATHOLOGY):
        separator = "; " if section == _PATHOLOGY else ", "
        for name, text in fields.items():
            if name.startswith(section):
                for statement in text.split(separator):
                    organ = knee_organ(statement) if statement else None
                    if organ and statement not in by_organ[organ]:
                        by_organ[organ].append(statement)
    header = {name: text for name, text in fields.items() if name.startswith("image_modality_sequence.")}
    conclusion = {name: text for name, text in fields.items() if name.startswith("diagnostic_impression.")}
    organs = [
        f"{organ.replace('_', ' ').capitalize()}: {'; '.join(statements)}." for organ, statements in by_organ.items() if statements
    ]
    return " ".join(text for text in (format_paragraph(header), *organs, format_paragraph(conclusion)) if text)


def label_volume(shown: Shown, spacing_mm: Sequence[float], pixel_area: float) -> NDArray[np.uint8]:
    """Return the structure of every voxel, (D, H, W): n = the n-th name, 0 = none.

    The voxels of a finding that has a box (:func:`components.tasks.findings.find_volume_parts`) are the most probable structure of
    its kind; all others are the most probable one that is no finding. A structure of fewer than
    :data:`components.tasks.findings.MINIMUM_PIXELS` of the network's grid in a finding is not one of its own.
    """
    names = tuple(shown.structures)
    stacked_SDHW = np.stack([np.zeros_like(values) if is_lesion(name) else values for name, values in shown.structures.items()])
    none = np.clip(1 - stacked_SDHW.sum(0), 0, 1)
    labels = np.asarray(np.concatenate([none[None], stacked_SDHW]).argmax(0), np.uint8)
    kinds = asked_kinds(ANY, names)
    if not kinds:
        return labels
    for outline, voxels in find_volume_parts(shown.mask, sum_kinds(shown.structures, kinds), spacing_mm, pixel_area):
        members = kinds[outline.kind]
        probability = np.stack([shown.structures[name][voxels] for name in members])
        sizes = np.bincount(probability.argmax(0), minlength=len(members))
        probability[sizes < min(MINIMUM_PIXELS * pixel_area, sizes.max())] = -1
        labels[voxels] = np.array([names.index(name) + 1 for name in members], np.uint8)[probability.argmax(0)]
    return labels


def measure_fields(volume: Volume, shown: Shown, pixel_area: float) -> DescriptionRecord:
    """Describe a volume by what the network shows of it, as curation describes one by its label map.

    Args:
        volume: voxels (D, H, W) on the grid of the structures.
        shown: of the volume.
        pixel_area: pixels of a slice for each pixel of the network's grid.
    """
    labels = label_volume(shown, volume.spacing_mm, pixel_area)
    names = dict(enumerate(shown.structures, start=1))
    facts = compute_slice_facts(volume, volume.voxels, labels, {}, names, volume.affine)
    has_finding = bool(np.isin(labels, [value for value, name in names.items() if is_lesion(name)]).any())
    return describe("", volume.acquisition, None, "", facts, has_finding if any(map(is_lesion, shown.structures)) else None)


def with_measurements(text: str, measured: DescriptionRecord, organ_findings: Mapping[str, bool], anatomy: str | None) -> str:
    """Return a report with measured signals and findings in place of those that the network wrote.

    Signals are stated if the network states any. Findings of a whole organ that volumetry does not predict stay as the network
    wrote them. A text that is not in the form of the template is returned unchanged.

    Args:
        organ_findings: finding of a whole organ -> whether it is present, by volumetry.
    """
    stated = parse_paragraph(text)
    if not stated:
        return text
    fields = dict(stated)
    if any(name.startswith(_SIGNALS) for name in stated):
        fields |= {name: value for name, value in measured.fields.items() if name.startswith(_SIGNALS)}
    impression = [item for item in stated.get(_IMPRESSION, "").split(", ") if item]
    diffuse = [item for item in impression if is_diffuse(item)]
    if organ_findings:
        diffuse = [name if present else f"no {name}" for name, present in organ_findings.items()]
        fields[_STRUCTURAL] = ", ".join(name for name, present in organ_findings.items() if present)
    focal = [item for item in impression if not is_diffuse(item)]
    if measured.fields[_IMPRESSION]:
        fields |= {name: measured.fields[name] for name in _FOCAL}
        focal = [measured.fields[_IMPRESSION]]
    fields[_IMPRESSION] = ", ".join([*focal, *diffuse])
    if any(name.startswith("knee.") for name in stated):
        fields = {**measured.fields, **fields}
    return format_report(fields, anatomy)
