"""DIMSE with a real Orthanc and DCMTK's storescu: C-FIND, C-GET, and a receiver."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from components.catalog.cards import DatasetCard
from components.errors import BadInput
from components.home import Home
from components.ingestion import ingest, list_series
from components.pacs.address import find_server
from components.pacs.archive import ServerFault, open_archive
from components.pacs.credentials import credentials_from_environment
from components.pacs.receiver import Inbox, Listener, Receiver, ingest_received
from components.pacs.source import PacsSource
from components.pacs.update import DatasetUpdate, update_from_archive
from components.settings import PacsSettings
from tests.helpers.datasets import KEY, tree
from tests.helpers.orthanc import Orthanc
from tests.helpers.ports import free_port
from tests.helpers.studies import write_mr_series, write_study

CARD = DatasetCard(id="pacs", name="Archive", rights="tests", formats=("DICOM",), anatomy="brain", synthetic=False)
PACS = PacsSettings(timeout_s=5, patience_s=2)
STORESCU = "/usr/bin/storescu"


def test_studies_by_c_find_and_c_get_equal_their_folder_byte_for_byte(orthanc: Orthanc, home: Home, tmp_path: Path) -> None:
    orthanc.add(write_study(tmp_path / "source", 1), write_study(tmp_path / "source", 2))
    server = find_server(orthanc.dimse, PACS)
    update = DatasetUpdate(CARD, home, KEY, 1, nullcontext)
    source = PacsSource(server, {"Modality": "MR", "StudyDate": "20240101-"})
    report = update_from_archive(update, source, open_archive(server, credentials_from_environment), PACS)
    ingest(CARD, tmp_path / "source", tmp_path / "other" / "data", KEY)
    assert (report.series, report.patients) == (4, 2)
    assert without_sources(home.data) == without_sources(tmp_path / "other" / "data")


def without_sources(data: Path) -> dict[str, object]:
    """Return the files of ``data/``, without the sums of the sources: a receiver writes a file meta header of its own."""
    files: dict[str, object] = dict(tree(data))
    manifest = json.loads((data / CARD.id / "manifest.json").read_text())
    return {**files, f"{CARD.id}/manifest.json": {key: value for key, value in manifest.items() if key != "sources"}}


def test_keys_of_series_and_studies_select(orthanc: Orthanc, tmp_path: Path) -> None:
    orthanc.add(write_study(tmp_path / "source", 1), write_study(tmp_path / "source", 2))
    archive = open_archive(find_server(orthanc.dimse, PACS), credentials_from_environment)
    (series,) = archive.list_series({"PatientID": "MRN-00002", "SeriesDescription": "t2"})
    assert (series.modality, series.instances) == ("MR", 3)
    assert len(archive.list_instances(series.study)) == 2


def test_a_server_that_is_not_there_is_a_fault_that_may_pass() -> None:
    archive = open_archive(find_server(f"dicom://NOBODY@127.0.0.1:{free_port()}", PACS), credentials_from_environment)
    with pytest.raises(ServerFault):
        archive.list_series({})


@contextmanager
def listening(home: Home, tmp_path: Path, max_bytes: int = 10**9) -> Iterator[tuple[Inbox, int]]:
    (tmp_path / "inbox").mkdir(exist_ok=True)
    inbox, port = Inbox(tmp_path / "inbox", max_bytes), free_port()
    with Receiver(Listener("127.0.0.1", port, "OMNIMRI", ("SENDER",)), inbox):
        yield inbox, port


def send(port: int, *files: Path, sender: str = "SENDER", called: str = "OMNIMRI") -> int:
    if not Path(STORESCU).exists():
        pytest.skip("no storescu here: apt-get install dcmtk")
    command = [STORESCU, "-aet", sender, "-aec", called, "127.0.0.1", str(port), *map(str, files)]
    return subprocess.run(command, capture_output=True).returncode


def test_a_received_study_equals_its_folder_byte_for_byte(home: Home, tmp_path: Path) -> None:
    write_study(tmp_path / "source", 1)
    with listening(home, tmp_path) as (inbox, port):
        assert send(port, *sorted((tmp_path / "source").rglob("*.dcm"))) == 0
        settled = inbox.settled(0)
    assert settled is not None and inbox.settled(0) is None
    ingest_received(*settled, DatasetUpdate(CARD, home, KEY, 1, nullcontext), print)
    ingest(CARD, tmp_path / "source", tmp_path / "other" / "data", KEY)
    assert [path for path in (tmp_path / "inbox").rglob("*") if path.is_file()] == []
    assert without_sources(home.data) == without_sources(tmp_path / "other" / "data")


def test_a_part_of_a_series_never_replaces_the_whole(home: Home, tmp_path: Path) -> None:
    said: list[str] = []
    files = write_mr_series(tmp_path / "source", 1, slices=4)
    with listening(home, tmp_path) as (inbox, port):
        for sent, expected in ((files[:3], 3), (files[:2], 3), (files, 4)):
            send(port, *sent)
            settled = inbox.settled(0)
            assert settled is not None
            ingest_received(*settled, DatasetUpdate(CARD, home, KEY, 1, nullcontext), said.append)
            shutil.rmtree(settled[1])
            assert len(list_series(home.data, CARD.id)[0].files) == expected
    assert len(said) == 1 and "send the whole series again" in said[0]


def test_strangers_and_floods_are_refused(home: Home, tmp_path: Path) -> None:
    files = write_mr_series(tmp_path / "source", 1)
    with listening(home, tmp_path, max_bytes=5000) as (inbox, port):
        assert send(port, *files, sender="STRANGER") != 0
        assert send(port, *files, called="OTHER") != 0
        assert inbox.settled(0) is None
        send(port, *files)
        settled = inbox.settled(0)
    assert settled is not None and sum(len(one.files) for one in settled[0]) < 3


def test_other_machines_may_send_only_if_they_are_named() -> None:
    with pytest.raises(BadInput, match="--sender"):
        Listener("0.0.0.0", 11112)
    assert Listener("0.0.0.0", 11112, senders=("PACS",)).senders
