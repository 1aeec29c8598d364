"""DIMSE over TLS with a real Orthanc: the server is verified, and asks for the certificate of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.pacs.address import find_server
from components.pacs.archive import Archive, ServerFault, open_archive
from components.pacs.credentials import credentials_from_environment
from components.settings import PacsSettings
from tests.doubles.authority import Authority
from tests.helpers.orthanc import MISSING, Orthanc, running_orthanc
from tests.helpers.studies import write_study


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def encrypted(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if MISSING is not None:
        pytest.skip(MISSING)
    with running_orthanc(tmp_path_factory.mktemp("encrypted") / "orthanc", authority=authority) as server:
        server.add(write_study(tmp_path_factory.mktemp("study"), 1))
        yield server


def archive(orthanc: Orthanc, **settings: Any) -> Archive:
    settings = {"url": orthanc.dimse, **settings}
    pacs = PacsSettings(servers={"hospital": settings}, timeout_s=5, patience_s=2)
    return open_archive(find_server("hospital", pacs), credentials_from_environment)


def certificates(authority: Authority) -> dict[str, Path]:
    return {"ca": authority.certificate, "certificate": authority.server_certificate, "certificate_key": authority.server_key}


def test_series_are_listed_and_fetched(encrypted: Orthanc, authority: Authority, tmp_path: Path) -> None:
    opened = archive(encrypted, **certificates(authority))
    series = opened.list_series({"Modality": "MR"})
    assert len(series) == 2
    assert len(list(opened.fetch(series[0], None, tmp_path))) == 3


def test_a_server_of_an_unknown_authority_is_refused(encrypted: Orthanc, authority: Authority) -> None:
    known = certificates(authority)
    del known["ca"]
    with pytest.raises(ServerFault):
        archive(encrypted, **known).list_series({})


def test_a_client_without_a_certificate_is_refused(encrypted: Orthanc, authority: Authority) -> None:
    with pytest.raises(ServerFault):
        archive(encrypted, ca=authority.certificate).list_series({})
