"""Fetch studies from an archive: each series whole or not at all, with patience for a server that restarts.

Files that arrived before a fault are kept while the process lives: only what is missing is asked for again. A study is listed again
after it was fetched, so that a series that grows in the meantime is completed, or left for the next time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydicom import dcmread

from components.machine_faults import raise_machine_fault
from components.pacs.archive import Archive, RemoteSeries, ServerFault, no_answer
from components.provenance import digest

ATTEMPTS = 3
"""Attempts without any progress at a series of a server that answers other questions."""
FIRST_WAIT_S = 0.5
"""Wait before the second attempt; doubled each time."""
_ROUNDS = 3
"""Times that a series which grows is completed before it is left for the next time."""
_MAX_WAIT_S = 30.0
_UID_TAGS = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class FetchedSeries:
    """A series that has arrived whole.

    Attributes:
        files: SOP Instance UID -> file.
    """

    series: RemoteSeries
    files: dict[str, Path]


@dataclass
class FetchedStudy:
    """Result of fetching a study.

    Attributes:
        whole: series that have arrived.
        left_out: the reason for each series that has not.
    """

    whole: list[FetchedSeries] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


class _SeriesFault(Exception):
    """A series cannot be fetched, though the server answers other questions."""


@dataclass
class Fetcher:
    """Fetches from one archive.

    Attributes:
        patience_s: time to wait for a server that does not answer, seconds.
    """

    archive: Archive
    patience_s: float

    def ask(self, question: Callable[[], Result]) -> Result:
        """Return the answer to a question, asked again until the server answers.

        Raises:
            JobFailed: it does not.
        """
        started, attempt = time.monotonic(), 0
        while True:
            try:
                return question()
            except ServerFault as fault:
                if time.monotonic() - started >= self.patience_s:
                    raise no_answer(self.archive.server, str(fault)) from None
                self.wait(attempt, started)
                attempt += 1

    def fetch_study(self, study: str, wanted: Sequence[RemoteSeries], folder: Path) -> FetchedStudy:
        """Fetch series of a study into folders of a folder.

        Raises:
            JobFailed: the server does not answer any more.
            BadInput: it refuses access.
        """
        result, files = FetchedStudy(), dict[str, dict[str, Path]]()
        listed = self.ask(lambda: self._list_study(study, wanted))
        for number, series in enumerate(wanted):
            target = folder / f"{number:04d}"
            target.mkdir(parents=True)
            try:
                files[series.series] = self._fetch_series(series, listed.get(series.series, frozenset()), target)
            except _SeriesFault as fault:
                result.left_out.append(str(fault))
                _discard(target)
        listed = self.ask(lambda: self.archive.list_instances(study))
        for number, series in enumerate(wanted):
            if (arrived := files.get(series.series)) is None:
                continue
            target = folder / f"{number:04d}"
            if self._complete(series, arrived, listed, target):
                result.whole.append(FetchedSeries(series, arrived))
            else:
                result.left_out.append("it changes while it is read")
                _discard(target)
        return result

    def _list_study(self, study: str, wanted: Sequence[RemoteSeries]) -> dict[str, frozenset[str]]:
        """Return the instances of a study. An empty answer about a study that has some counts as a fault."""
        listed = self.archive.list_instances(study)
        if not listed and any(one.instances for one in wanted):
            raise ServerFault("an empty answer about a study that is not empty")
        return listed

    def _complete(self, series: RemoteSeries, arrived: dict[str, Path], listed: dict[str, frozenset[str]], folder: Path) -> bool:
        """Fetch what a series has got in the meantime, remove what it lost; return whether it then stays as it is."""
        for _ in range(_ROUNDS):
            present = listed.get(series.series, frozenset())
            if not present:
                return False
            if present == arrived.keys():
                return True
            for instance in arrived.keys() - present:
                arrived.pop(instance).unlink()
            try:
                arrived.update(self._fetch_series(series, present, folder, arrived))
            except _SeriesFault:
                return False
            listed = self.ask(lambda: self.archive.list_instances(series.study))
        return listed.get(series.series, frozenset()) == arrived.keys()

    def _fetch_series(
        self, series: RemoteSeries, expected: frozenset[str], folder: Path, present: dict[str, Path] | None = None
    ) -> dict[str, Path]:
        """Return SOP Instance UID -> file of a series, with at least the expected instances."""
        arrived = dict(present or {})
        started, attempt = time.monotonic(), 0
        if not expected:
            raise _SeriesFault("it has no instances, or is gone")
        while missing := expected - arrived.keys():
            before, fault = len(arrived), "the server lists instances that it does not deliver"
            try:
                for path in self.archive.fetch(series, missing if arrived else None, folder):
                    instance = _check_object(path, series)
                    arrived[instance] = path.rename(folder / f"{digest(instance)[:24]}.dcm")
            except ServerFault as error:
                fault = str(error)
            for rest in folder.glob("*.part"):
                rest.unlink()
            if len(arrived) > before:
                started, attempt = time.monotonic(), 0
                continue
            attempt += 1
            alive = attempt >= ATTEMPTS and self._answers(series.study)
            if alive:
                raise _SeriesFault(fault)
            if time.monotonic() - started >= self.patience_s:
                raise no_answer(self.archive.server, fault)
            self.wait(attempt, started)
        return arrived

    def _answers(self, study: str) -> bool:
        """Return whether the server answers at all."""
        try:
            self.archive.list_instances(study)
        except ServerFault:
            return False
        return True

    def wait(self, attempt: int, started: float) -> None:
        """Wait before another attempt, no longer than the patience lasts."""
        left = max(0.0, self.patience_s - (time.monotonic() - started))
        time.sleep(min(FIRST_WAIT_S * 2**attempt, _MAX_WAIT_S, left + 0.01))


def _check_object(path: Path, series: RemoteSeries) -> str:
    """Return the SOP Instance UID of a file that arrived.

    Raises:
        ServerFault: it is no DICOM file, or not of the series that was asked for. The file is removed.
    """
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=_UID_TAGS)
        study, name, instance = (str(header.get(tag) or "") for tag in _UID_TAGS)
    except Exception as error:
        path.unlink(missing_ok=True)
        raise_machine_fault(error)
        raise ServerFault("an object that is no DICOM file") from None
    if (study, name) != (series.study, series.series) or not instance:
        path.unlink(missing_ok=True)
        raise ServerFault("an object that was not asked for")
    return instance


def _discard(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
