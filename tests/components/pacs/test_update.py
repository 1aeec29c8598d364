"""Datasets from a real Orthanc by DICOMweb: whole series, only what is new, no originals left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from pydicom import dcmread
from urllib3.connection import HTTPConnection

from components.catalog.cards import DatasetCard
from components.errors import BadInput, JobFailed
from components.home import Home
from components.ingestion import ingest, list_series
from components.ingestion.withdrawal import withdraw
from components.pacs.address import find_server
from components.pacs.archive import Archive, RemoteSeries, open_archive
from components.pacs.credentials import credentials_from_environment
from components.pacs.source import PacsSource
from components.pacs.update import DatasetUpdate, update_from_archive
from components.settings import PacsSettings
from tests.helpers.datasets import KEY, tree
from tests.helpers.faulty_proxy import Answer, faulty_proxy
from tests.helpers.orthanc import Orthanc, running_orthanc
from tests.helpers.studies import IDENTIFYING, series_uid, study_uid, write_mr_series, write_study

PACS = PacsSettings(patience_s=10, timeout_s=2)
CARD = DatasetCard(id="pacs", name="Archive", rights="tests", formats=("DICOM",), anatomy="brain", synthetic=False)


class CountingArchive:
    """An archive that notes which series are fetched, and lets a test act while one arrives."""

    def __init__(self, url: str, pacs: PacsSettings = PACS) -> None:
        self._archive: Archive = open_archive(find_server(url, pacs), credentials_from_environment)
        self.server = self._archive.server
        self.fetched: list[tuple[str, int | None]] = []
        self.after_file = lambda number: None

    def list_series(self, filters):
        return self._archive.list_series(filters)

    def list_instances(self, study: str):
        return self._archive.list_instances(study)

    def fetch(self, series: RemoteSeries, instances, folder: Path) -> Iterator[Path]:
        self.fetched.append((series.series, None if instances is None else len(instances)))
        for number, path in enumerate(self._archive.fetch(series, instances, folder)):
            yield path
            self.after_file(number)


def fetch(home: Home, archive: CountingArchive, pacs: PacsSettings = PACS, **filters: str):
    """Bring the dataset up to date."""
    update = DatasetUpdate(CARD, home, KEY, 1, nullcontext)
    return update_from_archive(update, PacsSource(archive.server, filters), archive, pacs)


def originals(home: Home) -> list[Path]:
    return [path for path in (home.root / "pacs").rglob("*") if "ledger" not in path.name]


def test_studies_of_an_archive_equal_their_folder_byte_for_byte(orthanc: Orthanc, home: Home, tmp_path: Path) -> None:
    for patient in (1, 2, 3):
        write_study(tmp_path / "source", patient)
    orthanc.add(tmp_path / "source")
    report = fetch(home, CountingArchive(orthanc.url), Modality="MR")
    ingest(CARD, tmp_path / "source", tmp_path / "other" / "data", KEY)
    assert (report.series, report.patients, report.unfetched) == (6, 3, 0)
    assert tree(home.data) == tree(tmp_path / "other" / "data")


def test_only_new_series_are_fetched_and_the_others_stay(orthanc: Orthanc, home: Home, tmp_path: Path) -> None:
    orthanc.add(write_study(tmp_path / "source", 1))
    archive = CountingArchive(orthanc.url)
    fetch(home, archive)
    archive.fetched.clear()
    assert fetch(home, archive).files_new == 0 and archive.fetched == []
    write_mr_series(tmp_path / "source", 1, "flair")
    orthanc.add(write_study(tmp_path / "source", 2, "t1"))
    assert fetch(home, archive).series == 4
    assert sorted(archive.fetched) == sorted([(series_uid(1, "flair"), None), (series_uid(2, "t1"), None)])
    ingest(CARD, tmp_path / "source", tmp_path / "other" / "data", KEY)
    assert tree(home.data) == tree(tmp_path / "other" / "data")


def test_a_query_selects_series(orthanc: Orthanc, home: Home, tmp_path: Path) -> None:
    orthanc.add(write_study(tmp_path / "source", 1), write_study(tmp_path / "source", 2))
    report = fetch(home, CountingArchive(orthanc.url), Modality="MR", PatientID="MRN-00002", SeriesDescription="t2")
    assert (report.series, report.patients) == (1, 1)


def test_a_series_that_grew_replaces_the_shorter_one(orthanc: Orthanc, home: Home, tmp_path: Path) -> None:
    archive = CountingArchive(orthanc.url)
    orthanc.add(*write_mr_series(tmp_path / "source", 1, slices=3))
    fetch(home, archive)
    orthanc.add(*write_mr_series(tmp_path / "source", 1, first=3, slices=2))
    report = fetch(home, archive)
    (series,) = list_series(home.data, CARD.id)
    assert (len(series.files), report.series) == (5, 1)


def test_series_that_the_archive_moved_away_stay(orthanc: Orthanc, home: Home, tmp_path: Path) -> None:
    orthanc.add(write_study(tmp_path / "source", 1), write_study(tmp_path / "source", 2))
    archive = CountingArchive(orthanc.url)
    fetch(home, archive)
    (gone,) = orthanc.request("POST", "/tools/find", json={"Level": "Patient", "Query": {"PatientID": "MRN-00001"}})
    orthanc.request("DELETE", f"/patients/{gone}")
    assert fetch(home, archive).series == 4


def test_a_withdrawn_patient_is_fetched_once_and_never_ingested(orthanc: Orthanc, home: Home, tmp_path: Path) -> None:
    orthanc.add(write_study(tmp_path / "source", 1), write_study(tmp_path / "source", 2))
    archive = CountingArchive(orthanc.url)
    fetch(home, archive)
    patient = list_series(home.data, CARD.id)[0].patient_id
    withdraw(home.data, {CARD.id: frozenset({patient})})
    archive.fetched.clear()
    assert fetch(home, archive).patients == 1 and archive.fetched == []


def test_data_that_went_missing_is_fetched_again(orthanc: Orthanc, home: Home, tmp_path: Path) -> None:
    orthanc.add(write_study(tmp_path / "source", 1))
    archive = CountingArchive(orthanc.url)
    fetch(home, archive)
    shutil.rmtree(home.data)
    assert fetch(home, archive).files_new == 6


def test_a_copy_of_known_voxels_is_a_duplicate(orthanc: Orthanc, home: Home, tmp_path: Path) -> None:
    files = write_mr_series(tmp_path / "source", 1)
    orthanc.add(*files)
    archive = CountingArchive(orthanc.url)
    fetch(home, archive)
    for number, path in enumerate(files):
        image = dcmread(path)
        image.StudyInstanceUID, image.SeriesInstanceUID, image.PatientID = study_uid(9), series_uid(9, "t1"), "MRN-00009"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{image.SOPInstanceUID[:50]}.{number}"
        image.save_as(tmp_path / "copy.dcm")
        orthanc.add(tmp_path / "copy.dcm")
    report = fetch(home, archive)
    assert report.patients == 1 and {entry.kind for entry in report.quarantined} == {"duplicate"}


def test_nothing_that_is_kept_or_said_identifies_a_patient(
    orthanc: Orthanc, home: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    orthanc.add(write_study(tmp_path / "source", 1))
    write_mr_series(tmp_path / "source", 2)[0].write_bytes(b"")
    report = fetch(home, CountingArchive(orthanc.url))
    written = b"".join(tree(home.root).values()) + b"".join(tree(home.data).values())
    for text in (written, caplog.text.encode(), str(report).encode()):
        assert not [value for value in IDENTIFYING if value in text]


def test_batches_give_the_same_data_as_one(orthanc: Orthanc, home: Home, tmp_path: Path) -> None:
    for patient in (1, 2, 3):
        write_study(tmp_path / "source", patient)
    orthanc.add(tmp_path / "source")
    report = fetch(home, CountingArchive(orthanc.url), PACS.model_copy(update={"batch_gb": 1e-9}))
    ingest(CARD, tmp_path / "source", tmp_path / "other" / "data", KEY)
    assert (report.series, report.files_new) == (6, 18)
    assert tree(home.data) == tree(tmp_path / "other" / "data")


def test_a_server_killed_in_the_middle_and_restarted_delivers_the_rest(
    orthanc: Orthanc, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's buffer is small: on a busy machine the whole series could wait in it when the server is killed."""
    small = (socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    monkeypatch.setattr(HTTPConnection, "default_socket_options", [*HTTPConnection.default_socket_options, small])
    orthanc.add(*write_mr_series(tmp_path / "source", 1, slices=32, pixels=384))
    archive = CountingArchive(orthanc.url)
    restarts: list[threading.Thread] = []

    def kill(number: int) -> None:
        if number == 2 and not restarts:
            orthanc.stop(kill=True)
            restarts.append(threading.Thread(target=lambda: (time.sleep(0.7), orthanc.start())))
            restarts[0].start()

    archive.after_file = kill
    report = fetch(home, archive)
    restarts[0].join()
    assert (report.series, report.files_new, report.unfetched) == (1, 32, 0)
    assert archive.fetched[0][1] is None and 0 < (archive.fetched[-1][1] or 0) < 32  # the second request is for the rest


def test_a_server_that_stays_away_leaves_whole_series_and_no_originals(orthanc: Orthanc, home: Home, tmp_path: Path) -> None:
    orthanc.add(write_study(tmp_path / "source", 1), write_study(tmp_path / "source", 2))
    archive = CountingArchive(orthanc.url)
    archive.after_file = lambda number: len(archive.fetched) == 3 and orthanc.stop(kill=True)
    with pytest.raises(JobFailed, match="no usable answer"):
        fetch(home, archive, PACS.model_copy(update={"patience_s": 0.3}))
    assert len(list_series(home.data, CARD.id)) == 2 and originals(home) == []
    orthanc.start()
    archive.fetched.clear()
    assert fetch(home, archive).series == 4 and len(archive.fetched) == 2


def test_a_study_that_grows_while_it_is_read_is_completed(orthanc: Orthanc, home: Home, tmp_path: Path) -> None:
    orthanc.add(*write_mr_series(tmp_path / "source", 1))
    late = write_mr_series(tmp_path / "late", 1, first=3, slices=2)
    archive = CountingArchive(orthanc.url)
    archive.after_file = lambda number: late and orthanc.add(late.pop())
    assert fetch(home, archive).files_new == 5 and archive.fetched[1:] == [(series_uid(1, "t1"), 2)]


def test_a_series_that_never_stops_growing_waits_for_the_next_time(orthanc: Orthanc, home: Home, tmp_path: Path) -> None:
    orthanc.add(*write_mr_series(tmp_path / "source", 1), *write_mr_series(tmp_path / "source", 2))
    late = write_mr_series(tmp_path / "late", 1, first=3, slices=20)
    archive = CountingArchive(orthanc.url)
    archive.after_file = lambda number: archive.fetched[-1][0] == series_uid(1, "t1") and late and orthanc.add(late.pop(0))
    report = fetch(home, archive)
    assert (report.series, report.unfetched) == (1, 1) and "changes while it is read" in str(report.notices)
    late.clear()
    report = fetch(home, archive)
    assert (report.series, report.unfetched) == (2, 0)


def test_an_archive_without_a_password_is_refused_with_the_names_of_the_variables(home: Home, tmp_path: Path) -> None:
    with running_orthanc(tmp_path / "locked", users={"reader": "s3cret-word"}) as orthanc:
        orthanc.add(*write_mr_series(tmp_path / "source", 1))
        with pytest.raises(BadInput, match=r"refuses access \(status 401\).*OMNIMRI_PACS_USER") as refused:
            fetch(home, CountingArchive(orthanc.url))
        assert originals(home) == []
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMNIMRI_PACS_USER", "reader")
            patch.setenv("OMNIMRI_PACS_PASSWORD", "wrong-word")
            with pytest.raises(BadInput) as refused:
                fetch(home, CountingArchive(orthanc.url))
            assert "wrong-word" not in str(refused.value)
            patch.setenv("OMNIMRI_PACS_PASSWORD", "s3cret-word")
            assert fetch(home, CountingArchive(orthanc.url)).series == 1


def test_one_series_that_cannot_be_read_does_not_stop_the_others(orthanc: Orthanc, home: Home, tmp_path: Path) -> None:
    orthanc.add(write_study(tmp_path / "source", 1), write_study(tmp_path / "source", 2))

    def fault(path: str, answer: Answer) -> Answer:
        return Answer(500, {}, b"Secret^Person1") if f"series/{series_uid(1, 't1')}" in path else answer

    with faulty_proxy(orthanc.root, fault) as proxy:
        report = fetch(home, CountingArchive(proxy.url))
        assert (report.series, report.unfetched) == (3, 1) and "status 500" in str(report.notices)
        proxy.fault = lambda path, answer: answer
        proxy.requests.clear()
        assert fetch(home, CountingArchive(proxy.url)).series == 4
        assert sum("/series/" in path for path in proxy.requests) == 1
    assert not [value for value in IDENTIFYING if value in str(report).encode()]


def test_a_server_of_which_no_series_can_be_read_is_no_empty_dataset(orthanc: Orthanc, home: Home, tmp_path: Path) -> None:
    orthanc.add(write_study(tmp_path / "source", 1, "t1"))

    def fault(path: str, answer: Answer) -> Answer:
        return Answer(500, {}, b"") if "/series/" in path else answer

    fails = pytest.raises(JobFailed, match="1 of 1 series could not be fetched: status 500")
    with faulty_proxy(orthanc.root, fault) as proxy, fails:
        fetch(home, CountingArchive(proxy.url))
    assert originals(home) == [] and list_series(home.data, CARD.id) == []


KILLED = """
import sys, time
from pathlib import Path
from components.home import Home
from components.pacs.originals import originals_folder
with originals_folder(Home(Path(sys.argv[1]), Path(sys.argv[1]) / "data")) as folder:
    (folder / "original.dcm").write_bytes(b"Secret")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_originals_are_removed_when_the_process_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        (folder,) = (tmp_path / "pacs").glob("originals-*")
        assert folder.stat().st_mode & 0o777 == 0o700
        os.kill(process.pid, number)
    for _ in range(500):
        if not folder.exists():
            break
        time.sleep(0.02)
    assert not folder.exists()
