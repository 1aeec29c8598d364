"""How the five tasks of Table 1 are asked (phrasings that are trained on, and others that are kept for evaluation), and how a
description is told in words.

Placeholders: ``{scan}`` is what the header says of the image ("axial T1-weighted brain MRI"), ``{structure}`` the structure to
segment, ``{finding}`` the abnormality asked about, ``{acceleration}`` the undersampling factor.
"""

from __future__ import annotations

from dataclasses import dataclass

from components.settings import TaskName


@dataclass(frozen=True)
class Phrasings:
    """One task's questions.

    Attributes:
        trained: used in every split.
        held_out: used in validation and test only.
    """

    trained: tuple[str, ...]
    held_out: tuple[str, ...]


OPEN_DIAGNOSIS = Phrasings(
    trained=(
        "Does this image suggest a {finding}? Give the differential diagnosis.",
        "Is there a {finding} in this {scan}, and what else could it be?",
        "Provide your diagnosis of this MRI volume: is there a {finding}?",
        "Provide your diagnosis of this {scan}: does it show a {finding}?",
        "Do you see a {finding} in this {scan}? Name the differential considerations.",
        "Would you diagnose a {finding}, and what would you consider besides?",
    ),
    held_out=(
        "Is a {finding} present in this {scan}? Give the differential considerations.",
        "Provide your diagnosis: does this image suggest a {finding}, and what else could it be?",
    ),
)
"""Diagnosis with a differential, as in section 5 of the paper; the answer still begins with yes or no."""

PHRASINGS: dict[TaskName, Phrasings] = {
    "reconstruction": Phrasings(
        trained=(
            "Reconstruct the image from this under-sampled MRI data.",
            "This is a {scan} with {acceleration}x acceleration. Reconstruct the image from the under-sampled data.",
            "Reconstruct this {acceleration}x under-sampled {scan}.",
            "Recover the image of this under-sampled {scan}.",
            "Recover the fully sampled image.",
            "Remove the artifacts of {acceleration}x acceleration.",
            "Remove the under-sampling artifacts and give the image.",
            "Give the fully sampled image of this {scan}, acquired with acceleration.",
        ),
        held_out=(
            "Recover the fully sampled image of this {scan}, acquired with {acceleration}x acceleration.",
            "Remove the under-sampling artifacts from this {scan}.",
        ),
    ),
    "segmentation": Phrasings(
        trained=(
            "Segment the {structure} in this {scan}.",
            "Segment the {structure}.",
            "Show the {structure} in this image.",
            "Outline the {structure}.",
            "Give the mask of the {structure} in this {scan}.",
            "Mark the {structure} in this {scan}.",
            "Delineate the {structure}.",
            "Make a mask that shows the {structure}.",
        ),
        held_out=(
            "Outline the {structure} in this {scan}.",
            "Give a mask of the {structure}.",
        ),
    ),
    "detection": Phrasings(
        trained=(
            "Identify and localize any {finding} in this image.",
            "Detect any {finding} in this {scan}.",
            "Where is a {finding} in this image?",
            "Find any {finding} and give its box.",
            "Localize every {finding} in this {scan}.",
            "Detect and localize any {finding}.",
            "Give the box of every {finding} in this image.",
            "Find every {finding} in this image.",
        ),
        held_out=(
            "Find every {finding} in this {scan} and give its box.",
            "Localize any {finding}.",
        ),
    ),
    "diagnosis": Phrasings(
        trained=(
            "Does this image suggest a {finding}?",
            "Is there a {finding} in this {scan}?",
            "Does this {scan} show a {finding}?",
            "Would you diagnose a {finding}?",
            "Is a {finding} present in this {scan}?",
            "Is a {finding} to be seen?",
            "Do you see a {finding} in this {scan}?",
            "Would you suspect a {finding} from this image?",
        ),
        held_out=(
            "Would you diagnose a {finding} from this {scan}?",
            "Is a {finding} present?",
        ),
    ),
    "report": Phrasings(
        trained=(
            "Generate a diagnostic report based on this MRI scan.",
            "Generate a diagnostic report of this {scan}.",
            "Write a report of this image.",
            "Report this image.",
            "Generate a diagnostic impression.",
            "Write a diagnostic report based on this {scan}.",
            "Generate an impression of this {scan}.",
            "Report what this {scan} shows.",
        ),
        held_out=(
            "Generate a diagnostic impression based on this {scan}.",
            "Report this {scan}.",
        ),
    ),
}
"""What is held out is a way of asking, not a word: a small model trained from nothing knows no word that it has not seen."""


def scan_name(sequence: str | None, plane: str | None, anatomy: str | None) -> str:
    """What the header says of an image, in words: ``axial T1-weighted brain MRI``; parts that are unknown are left out."""
    return " ".join(part for part in (plane, sequence, anatomy, "MRI") if part)


def describe_in_words(fields: dict[str, str]) -> list[str]:
    """The known fields of a description (``"section.field"`` -> text) told in three ways: prose, a report, a caption."""
    by_section: dict[str, list[str]] = {}
    for name, text in fields.items():
        if text:
            by_section.setdefault(name.partition(".")[0], []).append(text)
    acquired = fields.get("image_modality_sequence.modality", "")
    scan = " ".join(part for part in (fields.get(f"image_modality_sequence.{name}") for name in ("plane", "sequence")) if part)
    scan = " ".join(part for part in (scan, acquired) if part) or "image"
    seen, signal, wrong, means = (
        "; ".join(by_section.get(section, ()))
        for section in (
            "visible_anatomical_structures",
            "tissue_signal_characteristics",
            "pathological_findings",
            "diagnostic_impression",
        )
    )
    quality = fields.get("image_modality_sequence.acquisition_quality_or_artifacts", "")
    prose = [
        f"{scan[0].upper()}{scan[1:]}.",
        quality and f"Image quality: {quality}.",
        seen and f"It shows {seen}.",
        signal and f"The signal is: {signal}.",
        wrong and f"There is {wrong}.",
        means and f"Impression: {means}.",
    ]
    report = [
        f"TECHNIQUE: {scan}.",
        quality and f"QUALITY: {quality}.",
        (seen or signal or wrong) and "FINDINGS:",
        seen and f"Visible: {seen}.",
        signal and f"Signal: {signal}.",
        wrong and f"Abnormal: {wrong}.",
        means and f"IMPRESSION: {means}.",
    ]
    caption = [
        scan,
        quality and f"({quality})",
        seen and f"of {seen}",
        wrong and f"with {wrong}",
        signal and f"({signal})",
        means and f"- {means}",
    ]
    return [" ".join(part for part in parts if part) for parts in (prose, report, caption)]
