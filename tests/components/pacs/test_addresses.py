"""Addresses, queries and credentials: what may be contacted, and what never appears in a message."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.catalog import DatasetCard
from components.catalog.cards import ServerSource
from components.errors import BadInput
from components.pacs.address import find_server
from components.pacs.credentials import Credentials, credentials_from_environment, parse_credentials
from components.pacs.query import parse_query
from components.pacs.source import find_source
from components.pacs.study_address import StudyAddress
from components.settings import DatasetSettings, PacsSettings, ServerSettings

ALLOWED = PacsSettings(allow_hosts=("pacs.example",))


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:8042/dicom-web",
        "http://localhost/dicom-web/",
        "http://orthanc.pacs.svc.cluster.local:8042/dicom-web",
        "https://orthanc.pacs.svc/dicom-web",
        "dicom://ORTHANC@127.0.0.1:4242",
    ],
)
def test_this_machine_and_its_cluster_may_be_contacted(address: str) -> None:
    assert find_server(address, PacsSettings()).url == address.rstrip("/")


@pytest.mark.parametrize(
    "address",
    [
        "https://pacs.example/dicom-web",
        "dicom://PACS@pacs.example:104",
        "https://localhost.pacs.example/dicom-web",
        "https://127.0.0.1.pacs.example/dicom-web",
        "https://svc/dicom-web",
        "http://0.0.0.0/dicom-web",
        "https://2130706433/dicom-web",
    ],
)
def test_any_other_host_needs_the_users_word(address: str) -> None:
    with pytest.raises(BadInput, match=r"outside of this machine.*pacs.allow_hosts"):
        find_server(address, PacsSettings())


def test_an_allowed_host_is_contacted_with_encryption_only() -> None:
    assert find_server("https://PACS.example/dicom-web", ALLOWED).is_encrypted
    with pytest.raises(BadInput, match="plain text"):
        find_server("http://pacs.example/dicom-web", ALLOWED)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "https://",
            "https:///dicom-web",
            "http://127.0.0.1:0/",
            "http://127.0.0.1:port/",
            "http://[::1/",
            "http://127.0.0.1/?x=1",
        ),
        *(
            "dicom://127.0.0.1:104",
            "dicom://ORTHANC@127.0.0.1",
            "dicom://A_TITLE_OF_TOO_MANY@127.0.0.1:104",
            "dicom://A:b@127.0.0.1:104",
        ),
        *("http://[::1]:8042/dicom-web", "ftp://127.0.0.1/", "nobody"),
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(BadInput):
        find_server(address, PacsSettings())


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(BadInput) as refused:
        find_server("https://reader:hunter2@127.0.0.1/dicom-web", PacsSettings())
    assert "hunter2" not in str(refused.value)


def test_a_named_server_and_its_url_are_the_same(tmp_path: Path) -> None:
    pacs = PacsSettings(servers={"mri": ServerSettings(url="https://127.0.0.1:1/dicom-web", ca=tmp_path / "ca.pem")})
    with pytest.raises(BadInput, match=r"pacs.servers.mri.ca"):
        find_server("mri", pacs)
    (tmp_path / "ca.pem").touch()
    assert find_server("mri", pacs) == find_server("https://127.0.0.1:1/dicom-web/", pacs)


def test_queries_take_keywords_and_tags() -> None:
    assert parse_query("Modality=MR&00180015=BRAIN&StudyDate=20260101-") == {
        "Modality": "MR",
        "BodyPartExamined": "BRAIN",
        "StudyDate": "20260101-",
    }
    since = f"{date.today() - timedelta(days=30):%Y%m%d}-"
    assert parse_query("Modality=MR", recent_days=30) == {"Modality": "MR", "StudyDate": since}


@pytest.mark.parametrize(
    "query", ["Modality", "Modalty=MR", "Modality=", "Modality=MR&Modality=CT", "limit=5", "=MR", "Modality=MR&"]
)
def test_a_faulty_query_is_refused(query: str) -> None:
    with pytest.raises(BadInput):
        parse_query(query)


@settings(max_examples=20)
@given(st.text(alphabet=st.characters(exclude_characters="&=%+"), min_size=1))
def test_a_refused_value_is_never_quoted(value: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_query(f"PatientName=Zwetschge%5EAnna{value}&NoSuchKey=1")
    assert "Zwetschge" not in str(refused.value)


def test_a_card_or_the_profile_names_the_server() -> None:
    card = DatasetCard(
        id="x", name="X", rights="r", formats=("DICOM",), synthetic=False, pacs=ServerSource(server="http://127.0.0.1:1/dicom-web")
    )
    by_card = find_source(DatasetSettings(card="x"), card, PacsSettings())
    by_profile = find_source(DatasetSettings(card="x", server="dicom://A@127.0.0.1:2", query="Modality=MR"), card, PacsSettings())
    assert by_card is not None and by_card.server.protocol == "web" and by_card.filters == {"Modality": "MR"}
    assert by_profile is not None and by_profile.server.protocol == "dimse"
    assert find_source(DatasetSettings(card="x", path=Path("/data")), card, PacsSettings()) is None


def test_credentials_come_from_the_environment_by_the_name_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIMRI_PACS_MRI_NORTH_USER", "reader")
    with pytest.raises(BadInput, match="incomplete"):
        credentials_from_environment("mri-north")
    monkeypatch.setenv("OMNIMRI_PACS_MRI_NORTH_PASSWORD", "hunter2")
    credentials = credentials_from_environment("mri-north")
    assert credentials == Credentials("reader", "hunter2") and "hunter2" not in repr(credentials)
    assert not credentials_from_environment("").exist


def test_a_secret_contains_a_token_or_json() -> None:
    assert parse_credentials("abc\n", "here") == Credentials(token="abc")
    assert parse_credentials('{"user": "a", "password": "b"}', "here") == Credentials("a", "b")
    with pytest.raises(BadInput) as refused:
        parse_credentials('{"user": "a", "pass": "hunter2"}', "here")
    assert "hunter2" not in str(refused.value)


def test_a_study_is_named_by_server_and_uid() -> None:
    assert StudyAddress.parse("dicomweb://mri/studies/1.2.3") == StudyAddress("mri", "1.2.3")
    assert StudyAddress.parse("dicomweb://mri/studies/1.2.3/series/1.2.4").series == "1.2.4"
    for text in (
        "dicomweb:/mri/studies/1",
        "dicomweb://mri/studies/..",
        "dicomweb://MRI/studies/1",
        "dicomweb://mri/studies/1/../2",
    ):
        with pytest.raises(BadInput):
            StudyAddress.parse(text)
