"""UIDs that occur in several studies of a patient, though each is to name one object in the world (PS3.5 section 9).

Anonymizers that number UIDs anew for each study give one Series Instance UID (0020,000E) to series of two visits. Such UIDs are
qualified by their Study Instance UID (0020,000D), so that no volume, copy or label is matched across visits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from components.ingestion.formats.dicom.object_headers import DicomHeader
from components.ingestion.formats.dicom.series_splitting import has_stack
from components.ingestion.quarantine import Rejection
from components.ingestion.source_folder import Plan

_STUDY_OF_EACH_SLICE = Rejection(
    "geometry",
    "one Series Instance UID (0020,000E) of a stack whose images all have different Study Instance UIDs (0020,000D)",
    "export or anonymize the series again, so that its images have one Study Instance UID",
)
_PatientUid = tuple[str, str]
"""Patient and UID."""


def qualify_shared_uids(headers: Sequence[DicomHeader], plan: Plan) -> list[DicomHeader]:
    """Return headers in which no UID of a patient's series, images or frames of reference is shared by studies.

    UIDs of one study remain as they are; so does an empty Study Instance UID, which contradicts no other. A series whose images are
    all of different studies is rejected if they are one stack, which may be of one visit. Elsewhere they are slices of several.
    """
    studies: dict[_PatientUid, set[str]] = defaultdict(set)
    for header in headers:
        for uid in {header.series, header.instance, header.frame_of_reference}:
            if uid and header.study:
                studies[header.patient, uid].add(header.study)
    several = {key for key, found in studies.items() if len(found) > 1}
    shared = [one for one in headers if {(one.patient, one.series), (one.patient, one.instance)} & several]
    # A frame of reference alone may be common to two studies: an examination that was registered as two.
    ambiguous = {(one.patient, uid) for one in shared for uid in (one.series, one.instance, one.frame_of_reference)} & several
    scattered = _scattered_series(shared)
    for key in scattered:
        plan.reject([one.path for one in shared if (one.patient, one.series) == key], _STUDY_OF_EACH_SLICE)
    told = [one.path for one in shared if (one.patient, one.series) in ambiguous - scattered]
    if told:
        plan.notice(told, "one Series Instance UID in several studies: the images of each study are a series of their own")
    return [_qualify(one, ambiguous) for one in headers if (one.patient, one.series) not in scattered]


def _scattered_series(headers: Sequence[DicomHeader]) -> set[_PatientUid]:
    """Return the series of single-frame images no two of which are of one study, though they form a stack."""
    images: dict[_PatientUid, list[DicomHeader]] = defaultdict(list)
    for header in headers:
        if header.kind == "classic":
            images[header.patient, header.series].append(header)
    return {
        series
        for series, found in images.items()
        if len({one.study for one in found}) == len(found) and has_stack([frame for one in found for frame in one.frames])
    }


def _qualify(header: DicomHeader, ambiguous: set[_PatientUid]) -> DicomHeader:
    """Return a header whose ambiguous UIDs are preceded by that of its study."""

    def qualified(uid: str) -> str:
        return f"{header.study}\0{uid}" if (header.patient, uid) in ambiguous else uid

    return replace(
        header,
        series=qualified(header.series),
        instance=qualified(header.instance),
        frame_of_reference=qualified(header.frame_of_reference),
        referenced_series=frozenset(map(qualified, header.referenced_series)),
    )
