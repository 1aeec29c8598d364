"""De-identification of headers: DICOM PS3.15 Annex E basic profile with the options "modified dates" and "patient characteristics"
(sex, and age up to 90, are kept: the descriptions need them). NIfTI and HDF5 keep only what is listed here.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from pydicom import Dataset
from pydicom.tag import Tag

from components.ingestion.keys import Pseudonyms

OLDEST = 90
SIDECAR_FIELDS = ("Modality", "MagneticFieldStrength", "Manufacturer", "ManufacturersModelName", "RepetitionTime", "EchoTime",
                  "InversionTime", "FlipAngle", "BodyPartExamined", "PatientSex", "PatientAge", "Sequence")  # fmt: skip
"""What a NIfTI's sidecar may say. Free text (series description, comments) is not among it."""
_KEPT = ("PatientSex", "PatientAge")
_DATES = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "InstanceCreationDate")
Rules = dict[tuple[int, ...], Callable[[Dataset, Any], None]]


@cache
def _profile() -> tuple[Rules, frozenset[tuple[int, ...]]]:
    """The basic profile's action for every tag (edition 2026c), and the tags whose UIDs are replaced."""
    from dicomanonymizer import simpledicomanonymizer as library
    from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector

    edition = "dicomfields_2026c"
    uids = dicom_anonymization_database_selector(edition)["U_TAGS"]
    return library.initialize_actions(edition), frozenset(tuple(tag) for tag in uids)


def deidentify_dicom(dataset: Dataset, pseudonyms: Pseudonyms) -> None:
    """De-identify a dataset and everything nested in it, in place."""
    patient = str(dataset.get("PatientID", ""))
    shift = datetime.timedelta(days=pseudonyms.shift_days(patient))
    _apply(dataset, pseudonyms, shift)
    dataset.PatientID = dataset.PatientName = pseudonyms.patient(patient)
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "PS3.15 E basic profile, modified dates, patient characteristics"
    if age := age_years(dataset.get("PatientAge")):
        dataset.PatientAge = f"{min(int(age), OLDEST):03d}Y"
    elif "PatientAge" in dataset:
        del dataset.PatientAge
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.preamble = b"\0" * 128


def _apply(dataset: Dataset, pseudonyms: Pseudonyms, shift: datetime.timedelta) -> None:
    from dicomanonymizer import anonymize_dataset

    actions, uids = _profile()

    def replace_uid(within: Dataset, tag: tuple[int, int]) -> None:
        element = within.get(tag)
        if element is not None and element.value:
            values = [element.value] if isinstance(element.value, str) else list(element.value)
            replaced = [pseudonyms.uid(str(value)) for value in values]
            element.value = replaced if len(replaced) > 1 else replaced[0]

    def shift_date(within: Dataset, tag: tuple[int, int]) -> None:
        element = within.get(tag)
        if element is not None:
            element.value = _shifted(str(element.value or ""), shift)

    def keep(within: Dataset, tag: tuple[int, int]) -> None:
        pass

    own: Rules = dict.fromkeys(uids, replace_uid)
    own.update({(Tag(name).group, Tag(name).element): shift_date for name in _DATES})
    own.update({(Tag(name).group, Tag(name).element): keep for name in _KEPT})
    for element in [found for found in dataset if found.VR == "SQ"]:
        for item in element.value:
            _apply(item, pseudonyms, shift)
    anonymize_dataset(dataset, extra_anonymization_rules=own, delete_private_tags=True, base_rules_gen=lambda: dict(actions))


def _shifted(date: str, shift: datetime.timedelta) -> str:
    """A DICOM date moved into the past; empty where it is none."""
    try:
        return (datetime.datetime.strptime(date[:8], "%Y%m%d") - shift).strftime("%Y%m%d")
    except (ValueError, OverflowError):
        return ""


def age_years(value: Any) -> float | None:
    """Years of a DICOM age string (``"045Y"``, ``"018M"``) or a number, 90 and over as 90; None where it is neither."""
    if isinstance(value, int | float):
        return float(min(value, OLDEST))
    match = re.fullmatch(r"(\d{3})([DWMY])", str(value or "").strip())
    if not match:
        return None
    years = int(match[1]) / {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}[match[2]]
    return float(min(years, OLDEST))


def clean_sidecar(sidecar: dict[str, Any]) -> dict[str, Any]:
    """The allowed fields of a JSON sidecar; ages over 90 as 90."""
    kept = {name: sidecar[name] for name in SIDECAR_FIELDS if isinstance(sidecar.get(name), str | int | float)}
    if "PatientAge" in kept:
        kept["PatientAge"] = age_years(kept["PatientAge"])
    return {name: value for name, value in kept.items() if value is not None}
