"""Store results (Segmentations, Structured Reports) in an archive, each once.

The SOP Instance UID of a result is derived from the images, the instruction and the answer, so that a repeated prediction has the
same one: an object that the archive has already is not sent again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread

from components.errors import JobFailed
from components.home import Home
from components.pacs.archive import Archive, ServerFault, no_answer
from components.pacs.fetching import Fetcher
from components.pacs.ledger import Ledger


@dataclass(frozen=True)
class Stored:
    """Result of storing.

    Attributes:
        sent: number of objects sent.
        present: number of objects that the archive had already.
    """

    sent: int
    present: int


def store_results(files: Sequence[Path], archive: Archive, home: Home, patience_s: float) -> Stored:
    """Store DICOM files, study by study; nothing that the archive has, or that was sent to it before.

    After an answer that got lost, the archive is asked what it has before anything is sent again; if it cannot be asked, none is.

    Raises:
        BadInput: the server refuses access.
        JobFailed: it refuses an object, does not answer, or nobody knows whether it has stored one.
    """
    studies: dict[str, dict[str, Path]] = {}
    for file in files:
        header = dcmread(file, stop_before_pixels=True, specific_tags=["StudyInstanceUID", "SOPInstanceUID"])
        studies.setdefault(str(header.StudyInstanceUID), {})[str(header.SOPInstanceUID)] = file
    sent = sum(_store_study(study, objects, archive, home, patience_s) for study, objects in studies.items())
    return Stored(sent, sum(map(len, studies.values())) - sent)


def _store_study(study: str, objects: dict[str, Path], archive: Archive, home: Home, patience_s: float) -> int:
    """Store the objects of a study; return how many were sent."""
    ledger, label = Ledger(home), archive.server.url
    fetcher, started = Fetcher(archive, patience_s), time.monotonic()
    sent = 0
    while True:
        present = fetcher.ask(lambda: archive.find_instances(study, objects))
        known = ledger.sent_to(label) & objects.keys() if present is None else present
        missing = {name: file for name, file in objects.items() if name not in known}
        if not missing:
            return sent
        try:
            archive.store(list(missing.values()))
        except ServerFault as fault:
            if present is None:
                remedy = "look there, and send the file by hand if it is missing"
                what = f"it is unknown whether the server stored it: {fault}"
                raise JobFailed(what, where=archive.server.label, remedy=remedy) from None
            if time.monotonic() - started >= patience_s:
                raise no_answer(archive.server, str(fault)) from None
            fetcher.wait(0, started)
            continue
        ledger.record_sent(label, missing)
        return sent + len(missing)
