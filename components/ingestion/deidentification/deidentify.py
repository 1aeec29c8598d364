"""De-identify headers.

DICOM headers follow the basic profile of PS3.15 Annex E, by the table of the standard, with the options "modified dates" and
"patient characteristics" (sex, and age up to 90, are kept because the descriptions need them). The table passes attributes that it
does not list, and any text may name a patient. Of the remaining attributes, therefore, only numbers are kept, and text only if it
is a published term (:mod:`components.ingestion.deidentification.allowlists`). The same rule applies to other formats: numbers and
published terms.
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

PROFILE_EDITION = "dicomfields_2026c"
"""Edition of the table of the standard (PS3.15, Table E.1-1)."""
MAX_AGE_YEARS = 90
"""Higher ages are replaced by this one."""
_OLDEST_YEARS = 130
"""A larger number is no age in years."""
_FIRST_GROUP = 0x0008
"""Lower groups belong to commands, the file meta information and directories; in a data set, they come from a damaged tag."""
SIDECAR_NUMBERS = ("MagneticFieldStrength", "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle")
_DATES = frozenset({"StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "InstanceCreationDate"})
_NUMBER_VRS = frozenset({"AT", "DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})
_TYPE_2 = frozenset({"PositionReferenceIndicator", "Laterality", "ContentCreatorName"})
"""Attributes that the written objects must contain, empty or not."""
_DUMMIES = {"TM": "000000", "DT": "00010101000000", "DA": "00010101", "AS": "000Y", "UR": "http://anonymized.invalid"}
_NEWER_UIDS = frozenset({"1.2.840.10008.5.1.4.1.1.66.7"})
"""UIDs of the standard that pydicom's dictionary lacks: Label Map Segmentation Storage."""
_UNKNOWN_TISSUE = ("85756007", "SCT", "Tissue")


@dataclass(frozen=True)
class _CleaningContext:
    """Parameters for cleaning the elements of one file."""

    pseudonyms: Pseudonyms
    date_shift: datetime.timedelta
    labels: frozenset[str]


@cache
def basic_profile() -> dict[int, str]:
    """Return tag -> action of the basic profile (``X``, ``Z``, ``D``, ``U`` or alternatives such as ``X/Z/D``)."""
    from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector

    tables = dicom_anonymization_database_selector(PROFILE_EDITION)
    actions = {
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
    return {Tag(*tag): action for name, action in actions.items() for tag in tables[name] if len(tag) == 2}


def deidentify_dicom(
    dataset: Dataset, pixels: bytes | None, patient: str, pseudonyms: Pseudonyms, labels: frozenset[str] = frozenset()
) -> Dataset:
    """Return a new, de-identified dataset in explicit VR little endian.

    Args:
        patient: patient before the name becomes a pseudonym: the Patient ID, or what stands for it where there is none.
        pixels: decoded pixel data, so that nothing hidden in compressed frames or behind the pixels is copied; None for an object
            without pixels.
        labels: names of segments and structures that may be kept, lower case.
    """
    context = _CleaningContext(pseudonyms, datetime.timedelta(days=pseudonyms.shift_days(patient)), labels)
    clean = _clean_dataset(dataset, context)
    clean.PatientID = clean.PatientName = pseudonyms.patient(patient)
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = "PS3.15 E basic profile, modified dates, patient characteristics"
    clean.LongitudinalTemporalInformationModified = "MODIFIED"
    if (age := parse_age_years(dataset.get("PatientAge"))) is not None:
        clean.PatientAge = f"{min(int(age), MAX_AGE_YEARS):03d}Y"
    if pixels is not None:
        vr = "OW" if int(dataset.BitsAllocated) > 8 else "OB"
        clean.add(DataElement(0x7FE00010, vr, pixels + b"\0" * (len(pixels) % 2)))
    clean.file_meta = FileMetaDataset()
    clean.file_meta.MediaStorageSOPClassUID = clean.get("SOPClassUID", "1.2.840.10008.5.1.4.1.1.4")
    clean.file_meta.MediaStorageSOPInstanceUID = clean.SOPInstanceUID
    clean.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return clean


def _clean_dataset(dataset: Dataset, context: _CleaningContext) -> Dataset:
    """Return the elements that may be kept, without private and unknown tags, group lengths and pixel data."""
    clean = Dataset()
    for tag in sorted(dataset.keys()):
        if tag.group < _FIRST_GROUP or tag.is_private or tag.element == 0 or not dictionary_has_tag(tag):
            continue
        if tag.group in (0x7FE0, 0xFFFC):
            continue
        raw = dataset.get_item(tag)
        if isinstance(raw, RawDataElement) and _is_plain_number(raw, tag):
            clean[tag] = raw  # copied undecoded: decoding and encoding would cost as much as everything else
            continue
        try:
            element = _clean_element(dataset[tag], tag, context)
        except Exception:  # noqa: S112 (a value that does not match its VR is arbitrary text)
            continue
        if element is not None:
            clean.add(element)
    if "CodeValue" in dataset:
        _clean_code(dataset, clean)
    return clean


_NUMBER_TEXT = re.compile(rb"[0-9eE+\-.\\ \0]*")
_LONG_NUMBER = re.compile(rb"\d{7}")
"""Digits of an integer string that may be a record or telephone number: series and images are not counted so far."""
_LONG_INTEGER = re.compile(rb"(?<![\d.])\d{7}")
"""The same in a decimal string, whose digits behind the point identify nobody."""
_DECIMALS_OF_READERS = frozenset(
    ("RescaleSlope", "RescaleIntercept", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ContourData")
)
"""Decimal strings that decide values or positions: they are kept, whatever their size."""
_ROI_NUMBERS = ("ROINumber", "ReferencedROINumber")
"""Integer strings that link the parts of a structure set."""


def _is_plain_number(raw: RawDataElement, tag: BaseTag) -> bool:
    """Return whether an undecoded element is a number for which neither the profile nor this module has a rule."""
    if not raw.is_little_endian or raw.VR not in _NUMBER_VRS or tag in basic_profile() or raw.value is None:
        return False
    if raw.VR in ("DS", "IS") and not _NUMBER_TEXT.fullmatch(raw.value):
        return False
    if raw.VR == "IS" and _LONG_NUMBER.search(raw.value):
        return False
    if raw.VR == "DS" and _LONG_INTEGER.search(raw.value):
        return False
    return keyword_for_tag(tag) not in _CLEANERS


def _clean_element(element: DataElement, tag: BaseTag, context: _CleaningContext) -> DataElement | None:
    """Return the element as it may be kept, or None."""
    keyword, action, vr = keyword_for_tag(tag), basic_profile().get(tag, ""), str(element.VR)
    if keyword in _CLEANERS:
        value = _CLEANERS[keyword](element.value, context)
        return None if value is None else DataElement(tag, vr, value)
    if vr == "SQ":
        items = [_clean_dataset(item, context) for item in element.value] if action in ("", "D", "Z", "Z/D", "X/Z/U*", "U") else []
        items = [item for item in items if len(item)]
        return DataElement(tag, vr, items) if items else None
    if vr == "UI":
        return DataElement(tag, vr, _replace_uids(element.value, context)) if action in ("", "U", "X/Z/U*") else None
    if keyword in _DATES:
        return DataElement(tag, vr, _shift_date(str(element.value or ""), context.date_shift))
    if action in ("Z", "X/Z") or keyword in _TYPE_2:
        return None if vr in _NUMBER_VRS else DataElement(tag, vr, "")
    if "D" in action:
        has_no_dummy = vr in _NUMBER_VRS or vr[:1] == "O" or vr == "UN"
        return None if has_no_dummy else DataElement(tag, vr, _DUMMIES.get(vr, "ANONYMIZED"))
    if action or vr not in _NUMBER_VRS:
        return None
    value = element.value
    if vr == "IS" and keyword not in _ROI_NUMBERS and _LONG_NUMBER.search(str(value).encode()):
        return DataElement(tag, vr, "")
    if vr == "DS" and keyword not in _DECIMALS_OF_READERS and _LONG_INTEGER.search(str(value).encode()):
        return DataElement(tag, vr, "")
    return DataElement(tag, vr, list(value) if isinstance(value, list | tuple) or hasattr(value, "append") else value)


def _make_term_cleaner(keyword: str) -> Callable[[Any, _CleaningContext], Any]:
    def clean(value: Any, _: _CleaningContext) -> Any:
        values = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
        return allowlists.filter_terms(keyword, values) or ""

    return clean


def _clean_label(value: Any, context: _CleaningContext) -> Any:
    return value if str(value).strip().lower() in context.labels else "ANONYMIZED"


_CLEANERS: dict[str, Callable[[Any, _CleaningContext], Any]] = {
    **{keyword: _make_term_cleaner(keyword) for keyword in allowlists.DEFINED_TERMS},
    "PatientAge": lambda value, _: None,  # set at the end, for the whole dataset
    "Manufacturer": lambda value, _: allowlists.allowed_vendor(value) or "",
    "ManufacturerModelName": lambda value, _: allowlists.allowed_scanner(value) or "",
    "BodyPartExamined": lambda value, _: (allowlists.allowed_body_part(value) or "").upper(),
    "StackID": lambda value, _: value if re.fullmatch(r"\d{1,3}", str(value)) else "1",
    **dict.fromkeys(("SegmentLabel", "ROIName"), _clean_label),
    "SegmentAlgorithmName": lambda value, _: "ANONYMIZED",
    "ContentLabel": lambda value, _: "SEGMENTATION",
}
"""DICOM keyword -> function that returns the value to keep; None removes the element."""


def _replace_uids(value: Any, context: _CleaningContext) -> Any:
    """Keep the UIDs of the standard and replace all others by keyed ones."""
    values = [value] if isinstance(value, str) else list(value or ())
    uids = [
        str(uid) if str(uid) in UID_dictionary or str(uid) in _NEWER_UIDS else context.pseudonyms.uid(str(uid))
        for uid in values
        if str(uid)
    ]
    return uids if len(uids) > 1 else "".join(uids)


@cache
def _code_meanings() -> dict[tuple[str, str], str]:
    """Return (scheme, code) -> meaning of every concept that pydicom contains (PS3.16)."""
    from pydicom.sr import _concepts_dict
    from pydicom.sr._snomed_dict import mapping

    concepts: Any = _concepts_dict.concepts
    meanings: dict[tuple[str, str], str] = {
        (scheme, code): meaning
        for scheme, names in concepts.items()
        for codes in names.values()
        for code, (meaning, _) in codes.items()
    }
    snomed_rt = {("SRT", code): meanings[("SCT", new)] for code, new in mapping["SRT"].items() if ("SCT", new) in meanings}
    return {**meanings, **snomed_rt}


def _clean_code(dataset: Dataset, clean: Dataset) -> None:
    """Write a coded concept with its published meaning; replace an unpublished one by "Tissue"."""
    scheme, code = str(dataset.get("CodingSchemeDesignator", "")), str(dataset.CodeValue)
    meaning = _code_meanings().get((scheme, code))
    clean.CodeValue, clean.CodingSchemeDesignator, clean.CodeMeaning = (code, scheme, meaning) if meaning else _UNKNOWN_TISSUE


def _shift_date(date: str, shift: datetime.timedelta) -> str:
    """Return a DICOM date moved into the past; empty for an invalid date."""
    try:
        return (datetime.datetime.strptime(date[:8], "%Y%m%d") - shift).strftime("%Y%m%d")
    except (ValueError, OverflowError):
        return ""


def parse_age_years(value: Any) -> float | None:
    """Return the years of a DICOM age string (``"045Y"``, ``"018M"``) or a number, at most 90; None for anything else."""
    if isinstance(value, int | float):
        return float(min(value, MAX_AGE_YEARS)) if np.isfinite(value) and 0 <= value <= _OLDEST_YEARS else None
    match = re.fullmatch(r"(\d{3})([DWMY])", str(value or "").strip())
    if not match:
        return None
    years = int(match[1]) / {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}[match[2]]
    return float(min(years, MAX_AGE_YEARS))


def parse_sex(value: Any) -> str | None:
    """Return ``"F"``, ``"M"`` or ``"O"`` from a letter or word; None for anything else."""
    text = str(value or "").strip().upper()
    return text[0] if text in {"F", "M", "O", "FEMALE", "MALE", "OTHER"} else None


def clean_sidecar(sidecar: dict[str, Any], sequence: str = "") -> dict[str, Any]:
    """Return the fields of a JSON sidecar that may be kept: a few numbers and published terms, no free text.

    Args:
        sequence: sequence that the card gives for the image.
    """
    numbers = {name: sidecar[name] for name in SIDECAR_NUMBERS if _is_number(sidecar.get(name))}
    body_part = allowlists.allowed_body_part(sidecar.get("BodyPartExamined"))
    terms = {
        "Modality": "MR" if sidecar.get("Modality") == "MR" else None,
        "Manufacturer": allowlists.allowed_vendor(sidecar.get("Manufacturer")),
        "ManufacturersModelName": allowlists.allowed_scanner(sidecar.get("ManufacturersModelName")),
        "BodyPartExamined": body_part.upper() if body_part else None,
        "PatientSex": parse_sex(sidecar.get("PatientSex") or sidecar.get("sex")),
        "PatientAge": parse_age_years(sidecar.get("PatientAge")),
        "Sequence": sequence or None,
    }
    return {**numbers, **{name: term for name, term in terms.items() if term is not None}}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
