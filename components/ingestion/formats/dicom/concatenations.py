"""Concatenations: multi-frame images that were split into several SOP Instances (PS3.3 C.7.6.16.1.2).

Scanners and archives split a large enhanced image. Its parts have one Concatenation UID (0020,9161), and each has its
In-concatenation Number (0020,9162), from 1; the In-concatenation Total Number (0020,9163) is optional.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydicom import Dataset

from components.ingestion.formats.dicom import fast_elements
from components.ingestion.formats.dicom.frames import Frame
from components.ingestion.quarantine import Rejection

TOTAL_UNKNOWN = (
    "a concatenated image whose header does not state its number of parts (0020,9163): the parts that are here are taken for all"
)
_EXPORT_ALL = "export the whole series again, with all parts of the image"


@dataclass(frozen=True)
class Part:
    """Place of a SOP Instance within its concatenation.

    Attributes:
        uid: Concatenation UID.
        number: In-concatenation Number, from 1; None where the header states none.
        total: In-concatenation Total Number; None where the header states none.
    """

    uid: str
    number: int | None
    total: int | None


def part_of(header: Dataset) -> Part | None:
    """Return the place of an image within its concatenation; None for a whole image."""
    uid = fast_elements.text(header, "ConcatenationUID")
    if not uid:
        return None
    number, total = (fast_elements.short(header, f"InConcatenation{noun}") for noun in ("Number", "TotalNumber"))
    return Part(uid, number or None, total or None)


def find_fault(parts: Sequence[Part]) -> Rejection | None:
    """Return why parts are no complete image; None if they are, or if nothing states that one is missing."""
    numbers = sorted(part.number for part in parts if part.number is not None)
    totals = sorted({part.total for part in parts if part.total is not None})
    if len(parts) == 1 and not numbers and totals in ([], [1]):
        return None
    if len(numbers) < len(parts):
        return Rejection("geometry", "a part of a concatenated image without In-concatenation Number (0020,9162)", _EXPORT_ALL)
    if len(set(numbers)) < len(numbers):
        return Rejection("geometry", "parts of a concatenated image with one In-concatenation Number (0020,9162)", _EXPORT_ALL)
    if len(totals) > 1 or (totals and numbers[-1] > totals[0]):
        fault = "parts of a concatenated image that contradict its In-concatenation Total Number (0020,9163)"
        return Rejection("geometry", fault, _EXPORT_ALL)
    total = totals[0] if totals else numbers[-1]
    missing = total - len(numbers)
    if missing:
        present = set(numbers)
        first = next(number for number in range(1, total + 1) if number not in present)
        fault = (
            f"parts of a concatenated image missing: {missing} of {total}, the first In-concatenation Number (0020,9162) {first}"
        )
        return Rejection("geometry", fault, _EXPORT_ALL)
    return None


def join_frames(parts: Sequence[Sequence[Frame]]) -> list[Frame]:
    """Return the frames of all parts, given in their order, numbered through as in the image that was split."""
    return [replace(frame, number=number) for number, frame in enumerate(frame for frames in parts for frame in frames)]
