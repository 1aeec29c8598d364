"""Patients of DICOM files whose Patient ID names nobody: empty, or one word for everybody.

Releases that strip Patient ID leave it empty or write one word into it, so that all people of a dataset would count as one, or as
one in all splits. The card's expression (``layout.patient``) then names the patient by the path; without one, each study counts as
a patient of its own. Either is told to the user.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from components.ingestion.formats.dicom.object_headers import DicomHeader
from components.ingestion.source_folder import Plan, SourceFolder, match_group


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PLACEHOLDERS = _words(
    """
    ANON ANONYM ANONYMOUS ANONYMIZED ANONYMISED ANONYMOUSPATIENT DEIDENTIFIED DELETED EMPTY HIDDEN MASKED NA NAN NONAME NONE NULL
    PATIENT PATIENTID PATID PHANTOM PRIVATE REDACTED REMOVED SUBJECT TEST UNDEFINED UNKNOWN UNNAMED
    """
)
"""Words, upper case and without punctuation, that stand for a removed Patient ID."""
_STUDY_KEY = "\0study\0"
"""Prefix of the name of a patient who is known by the study: no Patient ID contains it."""


def is_placeholder(patient_id: str) -> bool:
    """Return whether a Patient ID names nobody: empty, punctuation, zeros or X alone, or a word for everybody."""
    word = re.sub(r"[\W_]", "", patient_id).upper()
    return not word.strip("0X") or word in _PLACEHOLDERS


def identify_patients(headers: Sequence[DicomHeader], folder: SourceFolder, plan: Plan) -> list[DicomHeader]:
    """Return headers in which everybody has a name, and notices for those who got one from the card or from their study."""
    ids = {header.patient for header in headers}
    matched = {header.path: match_group(folder.layout.patient, folder.relative(header.path)) for header in headers}
    studies = {header.study for header in headers if header.study}
    is_one_for_all = len(ids) == 1 and len(studies) > 1
    trust_card = is_one_for_all and len(set(matched.values()) - {None}) > 1
    groups: dict[str, list[DicomHeader]] = defaultdict(list)
    identified: list[DicomHeader] = []
    study_of = _study_finder(headers)
    for header in headers:
        if not trust_card and not is_placeholder(header.patient):
            identified.append(header)
            groups["one ID" if is_one_for_all else ""].append(header)
            continue
        name = matched[header.path]
        identified.append(replace(header, patient=name if name is not None else f"{_STUDY_KEY}{study_of(header)}"))
        groups["study" if name is None else "card"].append(header)
    for source, members in groups.items():
        if source:
            plan.notice([header.path for header in members], _notice_text(source, len(studies)))
    return identified


def _notice_text(source: str, studies: int) -> str:
    if source == "card":
        return "no Patient ID, or one for everybody: patients are told apart by the card's layout.patient"
    if source == "study":
        return "no Patient ID: each study counts as a patient; name the patients by layout.patient in the card"
    return f"one Patient ID in {studies} studies: all count as one patient, so that no split can be made; see layout.patient"


def _study_finder(headers: Sequence[DicomHeader]) -> Callable[[DicomHeader], str]:
    """Return a function from a header to its study: for labels, that of the image in their frame of reference."""
    study_of_frame: dict[str, str] = {}
    for header in headers:
        if header.kind not in ("segmentation", "structures") and header.frame_of_reference:
            study_of_frame.setdefault(header.frame_of_reference, header.study or header.series)

    def find(header: DicomHeader) -> str:
        own = header.study or header.series
        is_label = header.kind in ("segmentation", "structures")
        return study_of_frame.get(header.frame_of_reference, own) if is_label else own

    return find


def table_key(patient: str) -> str:
    """Return the key of a patient in the card's tables; "" for one who is known by the study alone."""
    return "" if patient.startswith(_STUDY_KEY) else patient
