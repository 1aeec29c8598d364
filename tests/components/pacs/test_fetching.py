"""Fetching from a real Orthanc behind a faulty network: broken, slow and wrong answers."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from components.errors import BadInput, JobFailed
from components.pacs.address import find_server
from components.pacs.archive import RemoteSeries, ServerFault, open_archive
from components.pacs.credentials import credentials_from_environment
from components.pacs.fetching import FetchedStudy, Fetcher
from components.settings import PacsSettings, ServerSettings
from tests.doubles.authority import Authority
from tests.helpers.faulty_proxy import Answer, FaultyProxy, faulty_proxy
from tests.helpers.orthanc import MISSING, Orthanc, running_orthanc
from tests.helpers.studies import IDENTIFYING, series_uid, study_uid, write_mr_series, write_study

PACS = PacsSettings(patience_s=5, timeout_s=2)
SERIES = RemoteSeries(study_uid(1), series_uid(1, "t1"), "MR", 3)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Return a server with two series of patient 1 and one of patient 2."""
    if MISSING is not None:
        pytest.skip(MISSING)
    folder = tmp_path_factory.mktemp("shared")
    with running_orthanc(folder / "orthanc") as server:
        server.add(write_study(folder / "source", 1), *write_mr_series(folder / "source", 2))
        yield server


def fetcher(proxy: FaultyProxy, pacs: PacsSettings = PACS) -> Fetcher:
    return Fetcher(open_archive(find_server(proxy.url, pacs), credentials_from_environment), pacs.patience_s)


def fetch(proxy: FaultyProxy, folder: Path, pacs: PacsSettings = PACS) -> FetchedStudy:
    return fetcher(proxy, pacs).fetch_study(SERIES.study, [SERIES], folder)


def _cut(answer: Answer) -> Answer:
    return Answer(answer.status, answer.headers, answer.body, cut_after=len(answer.body) // 2)


def _without_end(answer: Answer) -> Answer:
    return Answer(answer.status, answer.headers, answer.body[: len(answer.body) * 2 // 3])


FAULTS: dict[str, Callable[[Answer], Answer]] = {
    "status 503": lambda answer: Answer(503, {}, b"busy"),
    "status 500": lambda answer: Answer(500, {}, b"Secret^Person1"),
    "a page of a login": lambda answer: Answer(200, {"Content-Type": "text/html"}, b"<html>Secret</html>"),
    "a cut connection": _cut,
    "a shorter answer that claims to be whole": _without_end,
    "nothing": lambda answer: Answer(200, {}, b""),
    "bytes that are no DICOM": lambda answer: Answer(200, answer.headers, answer.body.replace(b"DICM", b"XXXX")),
    "no content": lambda answer: Answer(204, {}, b""),
}
EMPTY = ("nothing", "no content")
"""Answers of an archive that has no such series."""


@pytest.mark.parametrize("kind", ["/series?", "/instances?", "/series/"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_answer_is_asked_for_again(shared: Orthanc, tmp_path: Path, name: str, kind: str) -> None:
    broken: list[str] = []

    def once(path: str, answer: Answer) -> Answer:
        if broken or kind not in path or ("?" in path) != ("?" in kind):
            return answer
        broken.append(path)
        return FAULTS[name](answer)

    with faulty_proxy(shared.root, once) as proxy:
        if kind == "/series?":
            listing = fetcher(proxy).ask(lambda: fetcher(proxy).archive.list_series({"PatientID": "MRN-00001"}))
            assert len(listing) == (0 if name in EMPTY else 2)
        else:
            (arrived,) = fetch(proxy, tmp_path).whole
            assert len(arrived.files) == 3 and {path for path in tmp_path.rglob("*") if path.is_file()} == {*arrived.files.values()}
    assert broken


@pytest.mark.parametrize("name", FAULTS)
def test_a_series_that_cannot_be_read_is_left_out_with_the_reason(shared: Orthanc, tmp_path: Path, name: str) -> None:
    def fault(path: str, answer: Answer) -> Answer:
        return FAULTS[name](answer) if "/series/" in path and "?" not in path else answer

    with faulty_proxy(shared.root, fault) as proxy:
        fetched = fetch(proxy, tmp_path)
    (reason,) = fetched.left_out
    assert fetched.whole == [] and not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [value for value in IDENTIFYING if value in reason.encode()]


@pytest.mark.parametrize("pause_s", [0.01, 5.0])
def test_answers_that_trickle_or_never_come_end(shared: Orthanc, tmp_path: Path, pause_s: float) -> None:
    def slow(path: str, answer: Answer) -> Answer:
        return Answer(answer.status, answer.headers, answer.body, pause_s=pause_s)

    pacs = PacsSettings(patience_s=0.1, timeout_s=0.2)
    with faulty_proxy(shared.root, slow) as proxy, pytest.raises(JobFailed, match="no usable answer"):
        fetch(proxy, tmp_path, pacs)


def test_objects_of_another_patient_are_not_taken(shared: Orthanc, tmp_path: Path) -> None:
    with faulty_proxy(shared.root) as proxy:
        accept = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
        other = proxy.forward(f"/dicom-web/studies/{study_uid(2)}/series/{series_uid(2, 't1')}", accept)
        proxy.fault = lambda path, answer: other if f"/series/{series_uid(1, 't1')}" in path else answer
        assert fetch(proxy, tmp_path).left_out == ["an object that was not asked for"]


@pytest.mark.parametrize(
    "page",
    [
        lambda found: found,
        lambda found: [{"0020000D": {"vr": "UI", "Value": ["../../etc"]}, "0020000E": {"vr": "UI", "Value": ["1/../2"]}}, *found],
        lambda found: [{}, {"0020000E": None}, {"0020000E": {"Value": [{}]}}, *found],
    ],
)
def test_a_server_that_ignores_pages_or_invents_uids_lists_the_valid_series_once(shared: Orthanc, page: Callable) -> None:
    with faulty_proxy(shared.root) as proxy:
        found = json.loads(proxy.forward("/dicom-web/series?includefield=00201209", {"Accept": "application/dicom+json"}).body)
        proxy.fault = lambda path, answer: Answer(200, answer.headers, json.dumps(page(found)).encode())
        listing = fetcher(proxy).archive.list_series({})
    assert [(one.modality, one.instances) for one in listing] == [("MR", 3)] * 3


def test_a_redirect_is_not_followed(shared: Orthanc, tmp_path: Path) -> None:
    answer = Answer(302, {"Location": "http://127.0.0.1:9/"}, b"")
    with faulty_proxy(shared.root, lambda *_: answer) as proxy, pytest.raises(BadInput, match="redirects"):
        fetch(proxy, tmp_path)


def test_the_servers_certificate_is_verified_and_ours_presented(shared: Orthanc, tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "pki")
    authority.server.load_verify_locations(authority.certificate)
    authority.server.verify_mode = ssl.CERT_REQUIRED
    own = {"certificate": tmp_path / "pki" / "server.crt", "certificate_key": tmp_path / "pki" / "server.key"}
    with faulty_proxy(shared.root, tls=authority.server) as proxy:
        for files, is_trusted in (
            ({}, False),
            ({"ca": authority.certificate}, False),
            ({"ca": authority.certificate, **own}, True),
        ):
            pacs = PacsSettings(servers={"x": ServerSettings(url=proxy.url, **files)}, timeout_s=2)
            archive = open_archive(find_server("x", pacs), credentials_from_environment)
            if is_trusted:
                assert len(archive.list_series({})) == 3
            else:
                with pytest.raises((BadInput, ServerFault)):
                    archive.list_series({})
    assert proxy.requests and len(proxy.requests) == 2  # those of the trusted client alone
