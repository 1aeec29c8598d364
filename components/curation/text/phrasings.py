"""Wordings: the phrasings of an instruction, and descriptions in natural words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrasings:
    """Wordings of one question.

    A held-out phrasing is another combination of known words: a small model trained from scratch knows no word that
    it has not seen.

    Placeholders: ``{scan}`` describes the image as the header does ("axial T1-weighted brain MRI"); a task may have others, such as
    ``{structure}`` (to segment), ``{finding}`` (the abnormality in question) and ``{acceleration}`` (the undersampling factor).

    Attributes:
        trained: used in every split.
        held_out: used in validation and test only.
        key: distinguishes the instructions of a second set of phrasings of the same task; it is part of their ids.
    """

    trained: tuple[str, ...]
    held_out: tuple[str, ...]
    key: str = ""


def scan_name(sequence: str | None, plane: str | None, anatomy: str | None) -> str:
    """Describe an image as its header does, e.g. ``axial T1-weighted brain MRI``; unknown parts are omitted."""
    return " ".join(part for part in (plane, sequence, anatomy, "MRI") if part)


def describe_in_words(fields: dict[str, str]) -> list[str]:
    """Word the known fields of a description (``"section.field"`` -> text) in three ways: prose, a report, a caption."""
    by_section: dict[str, list[str]] = {}
    for name, text in fields.items():
        if text:
            by_section.setdefault(name.partition(".")[0], []).append(text)
    modality = fields.get("image_modality_sequence.modality", "")
    scan = " ".join(part for part in (fields.get(f"image_modality_sequence.{name}") for name in ("plane", "sequence")) if part)
    scan = " ".join(part for part in (scan, modality) if part) or "image"
    visible, signal, abnormal, impression = (
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
        visible and f"It shows {visible}.",
        signal and f"The signal is: {signal}.",
        abnormal and f"There is {abnormal}.",
        impression and f"Impression: {impression}.",
    ]
    report = [
        f"TECHNIQUE: {scan}.",
        quality and f"QUALITY: {quality}.",
        (visible or signal or abnormal) and "FINDINGS:",
        visible and f"Visible: {visible}.",
        signal and f"Signal: {signal}.",
        abnormal and f"Abnormal: {abnormal}.",
        impression and f"IMPRESSION: {impression}.",
    ]
    caption = [
        scan,
        quality and f"({quality})",
        visible and f"of {visible}",
        abnormal and f"with {abnormal}",
        signal and f"({signal})",
        impression and f"- {impression}",
    ]
    return [" ".join(text for text in texts if text) for texts in (prose, report, caption)]
