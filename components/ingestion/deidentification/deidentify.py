"""De-identification of headers.

DICOM: the basic profile of PS3.15 Annex E, by the standard's own table, with the options "modified dates" and "patient
characteristics" (sex, and age up to 90, are kept: the descriptions need them). The table alone lets attributes pass that it does
not name, and any text may name a patient; so of what it leaves, numbers stay, and text only where it is a published term
(:mod:`vocabulary`). The rule is the same for other formats: numbers and published words.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.datadict import dictionary_has_tag, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import ExplicitVRLittleEndian, UID_dictionary

from components.ingestion.deidentification import allowlists
from components.ingestion.deidentification.pseudonyms import Pseudonyms

EDITION = "dicomfields_2026c"
"""Edition of the standard's table (PS3.15, Table E.1-1)."""
OLDEST = 90
SIDECAR_NUMBERS = ("MagneticFieldStrength", "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle")
_DATES = frozenset({"StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "InstanceCreationDate"})
_NUMBERS = frozenset({"AT", "DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})
_TYPE_2 = frozenset({"PositionReferenceIndicator", "Laterality", "ContentCreatorName"})
"""Attributes that must be there, empty or not, in the objects that are kept."""
_DUMMIES = {"TM": "000000", "DT": "00010101000000", "DA": "00010101", "AS": "000Y", "UR": "http://anonymized.invalid"}
_UNKNOWN_TISSUE = ("85756007", "SCT", "Tissue")


@dataclass(frozen=True)
class _Rules:
    """What one file's elements are cleaned with."""

    pseudonyms: Pseudonyms
    shift: datetime.timedelta
    labels: frozenset[str]


@cache
def profile() -> dict[int, str]:
    """The basic profile's action (``X``, ``Z``, ``D``, ``U`` or alternatives such as ``X/Z/D``) for every tag of the table."""
    from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector

    tables = dicom_anonymization_database_selector(EDITION)
    names = {
        "D_TAGS": "D",
        "Z_TAGS": "Z",
        "X_TAGS": "X",
        "U_TAGS": "U",
        "Z_D_TAGS": "Z/D",
        "X_Z_TAGS": "X/Z",
        "X_D_TAGS": "X/D",
        "X_Z_D_TAGS": "X/Z/D",
        "X_Z_U_STAR_TAGS": "X/Z/U*",
    }
    return {Tag(*tag): action for name, action in names.items() for tag in tables[name] if len(tag) == 2}


def deidentify_dicom(
    dataset: Dataset, pixels: bytes | None, pseudonyms: Pseudonyms, labels: frozenset[str] = frozenset()
) -> Dataset:
    """A new, de-identified dataset in explicit little endian.

    Args:
        pixels: the decoded pixel data; what is hidden in compressed frames or behind the pixels does not come along. None for an
            object without any.
        labels: names of segments and structures that may be kept, lower case.
    """
    patient = str(dataset.get("PatientID", "") or "")
    rules = _Rules(pseudonyms, datetime.timedelta(days=pseudonyms.shift_days(patient)), labels)
    clean = _cleaned(dataset, rules)
    clean.PatientID = clean.PatientName = pseudonyms.patient(patient)
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = "PS3.15 E basic profile, modified dates, patient characteristics"
    clean.LongitudinalTemporalInformationModified = "MODIFIED"
    if (age := age_years(dataset.get("PatientAge"))) is not None:
        clean.PatientAge = f"{min(int(age), OLDEST):03d}Y"
    if pixels is not None:
        clean.add(DataElement(0x7FE00010, "OW" if int(dataset.BitsAllocated) > 8 else "OB", pixels + b"\0" * (len(pixels) % 2)))
    clean.file_meta = FileMetaDataset()
    clean.file_meta.MediaStorageSOPClassUID = clean.get("SOPClassUID", "1.2.840.10008.5.1.4.1.1.4")
    clean.file_meta.MediaStorageSOPInstanceUID = clean.SOPInstanceUID
    clean.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return clean


def _cleaned(dataset: Dataset, rules: _Rules) -> Dataset:
    clean = Dataset()
    for tag in sorted(dataset.keys()):
        if tag.is_private or tag.element == 0 or not dictionary_has_tag(tag) or tag.group in (0x7FE0, 0xFFFC):
            continue
        raw = dataset.get_item(tag)
        if isinstance(raw, RawDataElement) and _is_plain_number(raw, tag):
            clean[tag] = raw  # as it is stored: to read it and write it again would cost as much as all the rest
            continue
        try:
            kept = _cleaned_element(dataset[tag], tag, rules)
        except Exception:  # noqa: S112 (a value that is not what its type says is text that nobody can vouch for)
            continue
        if kept is not None:
            clean.add(kept)
    if "CodeValue" in dataset:
        _clean_code(dataset, clean)
    return clean


_DIGITS = re.compile(rb"[0-9eE+\-.\\ \0]*")


def _is_plain_number(raw: RawDataElement, tag: BaseTag) -> bool:
    """Whether an element that was not looked into yet is a number that neither the table nor this module says anything about."""
    if not raw.is_little_endian or raw.VR not in _NUMBERS or tag in profile() or raw.value is None:
        return False
    written = raw.VR in ("DS", "IS")
    return (bool(_DIGITS.fullmatch(raw.value)) if written else True) and keyword_for_tag(tag) not in _CHECKED


def _cleaned_element(element: DataElement, tag: BaseTag, rules: _Rules) -> DataElement | None:
    """The element as it may stay, or None."""
    keyword, action, kind = keyword_for_tag(tag), profile().get(tag, ""), str(element.VR)
    if keyword in _CHECKED:
        value = _CHECKED[keyword](element.value, rules)
        return None if value is None else DataElement(tag, kind, value)
    if kind == "SQ":
        items = [_cleaned(item, rules) for item in element.value] if action in ("", "D", "Z", "Z/D", "X/Z/U*", "U") else []
        return DataElement(tag, kind, [item for item in items if len(item)]) if any(len(item) for item in items) else None
    if kind == "UI":
        return DataElement(tag, kind, _replaced_uids(element.value, rules)) if action in ("", "U", "X/Z/U*") else None
    if keyword in _DATES:
        return DataElement(tag, kind, _shifted(str(element.value or ""), rules.shift))
    if action in ("Z", "X/Z") or keyword in _TYPE_2:
        return None if kind in _NUMBERS else DataElement(tag, kind, "")
    if "D" in action:
        return (
            None
            if kind in _NUMBERS or kind[:1] == "O" or kind == "UN"
            else DataElement(tag, kind, _DUMMIES.get(kind, "ANONYMIZED"))
        )
    if action or kind not in _NUMBERS:
        return None
    value = element.value
    return DataElement(tag, kind, list(value) if isinstance(value, list | tuple) or hasattr(value, "append") else value)


def _terms(keyword: str) -> Callable[[Any, _Rules], Any]:
    def check(value: Any, _: _Rules) -> Any:
        values = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
        return allowlists.known_terms(keyword, values) or ""

    return check


def _known_label(value: Any, rules: _Rules) -> Any:
    return value if str(value).strip().lower() in rules.labels else "ANONYMIZED"


_CHECKED: dict[str, Callable[[Any, _Rules], Any]] = {
    **{keyword: _terms(keyword) for keyword in allowlists.TERMS},
    "PatientAge": lambda value, _: None,  # set last, for the whole dataset
    "Manufacturer": lambda value, _: allowlists.vendor(value) or "",
    "ManufacturerModelName": lambda value, _: allowlists.scanner(value) or "",
    "BodyPartExamined": lambda value, _: (allowlists.body_part(value) or "").upper(),
    "StackID": lambda value, _: value if re.fullmatch(r"\d{1,3}", str(value)) else "1",
    **dict.fromkeys(("SegmentLabel", "ROIName"), _known_label),
    "SegmentAlgorithmName": lambda value, _: "ANONYMIZED",
    "ContentLabel": lambda value, _: "SEGMENTATION",
}
"""Attributes whose text is kept where it is published."""


def _replaced_uids(value: Any, rules: _Rules) -> Any:
    """UIDs of the standard stay, others get a keyed one."""
    values = [value] if isinstance(value, str) else list(value or ())
    replaced = [str(uid) if str(uid) in UID_dictionary else rules.pseudonyms.uid(str(uid)) for uid in values if str(uid)]
    return replaced if len(replaced) > 1 else "".join(replaced)


@cache
def _code_meanings() -> dict[tuple[str, str], str]:
    """(scheme, code) -> meaning of every concept that pydicom knows (PS3.16)."""
    from pydicom.sr import _concepts_dict
    from pydicom.sr._snomed_dict import mapping

    concepts: Any = _concepts_dict.concepts
    known: dict[tuple[str, str], str] = {
        (scheme, code): meaning
        for scheme, names in concepts.items()
        for codes in names.values()
        for code, (meaning, _) in codes.items()
    }
    old = {("SRT", code): known[("SCT", new)] for code, new in mapping["SRT"].items() if ("SCT", new) in known}
    return {**known, **old}


def _clean_code(dataset: Dataset, clean: Dataset) -> None:
    """Write a coded concept with its published meaning; what is not published reads "tissue"."""
    scheme, code = str(dataset.get("CodingSchemeDesignator", "")), str(dataset.CodeValue)
    meaning = _code_meanings().get((scheme, code))
    clean.CodeValue, clean.CodingSchemeDesignator, clean.CodeMeaning = (code, scheme, meaning) if meaning else _UNKNOWN_TISSUE


def _shifted(date: str, shift: datetime.timedelta) -> str:
    """A DICOM date moved into the past; empty where it is none."""
    try:
        return (datetime.datetime.strptime(date[:8], "%Y%m%d") - shift).strftime("%Y%m%d")
    except (ValueError, OverflowError):
        return ""


def age_years(value: Any) -> float | None:
    """Years of a DICOM age string (``"045Y"``, ``"018M"``) or a number, 90 and over as 90; None where it is neither."""
    if isinstance(value, int | float):
        return float(min(value, OLDEST)) if np.isfinite(value) and value >= 0 else None
    match = re.fullmatch(r"(\d{3})([DWMY])", str(value or "").strip())
    if not match:
        return None
    years = int(match[1]) / {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}[match[2]]
    return float(min(years, OLDEST))


def sex(value: Any) -> str | None:
    """``"F"``, ``"M"`` or ``"O"``, also of words; None for anything else."""
    text = str(value or "").strip().upper()
    return text[0] if text in {"F", "M", "O", "FEMALE", "MALE", "OTHER"} else None


def clean_sidecar(sidecar: dict[str, Any], sequence: str = "") -> dict[str, Any]:
    """What a JSON sidecar may say: a few numbers, and words that are published. Free text (descriptions, comments) is not among it.

    Args:
        sequence: what the card says that the image is.
    """
    numbers = {name: sidecar[name] for name in SIDECAR_NUMBERS if _is_number(sidecar.get(name))}
    part = allowlists.body_part(sidecar.get("BodyPartExamined"))
    words = {
        "Modality": "MR" if sidecar.get("Modality") == "MR" else None,
        "Manufacturer": allowlists.vendor(sidecar.get("Manufacturer")),
        "ManufacturersModelName": allowlists.scanner(sidecar.get("ManufacturersModelName")),
        "BodyPartExamined": part.upper() if part else None,
        "PatientSex": sex(sidecar.get("PatientSex") or sidecar.get("sex")),
        "PatientAge": age_years(sidecar.get("PatientAge")),
        "Sequence": sequence or None,
    }
    return {**numbers, **{name: word for name, word in words.items() if word is not None}}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
