"""A real Orthanc on loopback, with its DICOMweb plugin: the archive of the tests."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.doubles.authority import Authority
from tests.helpers.ports import free_port

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
MISSING = None if shutil.which("Orthanc") and PLUGIN.exists() else "no Orthanc here: apt-get install orthanc orthanc-dicomweb"
needs_orthanc = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@dataclass
class Orthanc:
    """One server and its folder.

    Attributes:
        folder: configuration and storage; a server that starts again in it has what it had.
        users: name -> password; with any, requests without them get status 401.
        authority: encrypts DIMSE with its certificate; clients need one that it has signed. (Debian's build ends with HTTPS.)
    """

    folder: Path
    users: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    dicom_port: int = field(default_factory=free_port)
    settings: dict[str, Any] = field(default_factory=dict)
    authority: Authority | None = None
    _process: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Address of DICOMweb."""
        return f"{self.root}/dicom-web"

    @property
    def dimse(self) -> str:
        """Address of DIMSE."""
        return f"{'dicom+tls' if self.authority else 'dicom'}://ORTHANC@127.0.0.1:{self.dicom_port}"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = {
            "Name": "tests",
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "HttpPort": self.port,
            "DicomPort": self.dicom_port,
            "DicomAet": "ORTHANC",
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowGet": True,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": bool(self.users),
            "RegisteredUsers": self.users,
            "OverwriteInstances": True,
            "StorageCommitmentReportsSize": 0,
            "SaveJobs": False,
            "SyncStorageArea": False,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            **self._encryption(),
            **self.settings,
        }
        (self.folder / "orthanc.json").write_text(json.dumps(configuration))
        with (self.folder / "log").open("ab") as log:
            command = [str(shutil.which("Orthanc")), str(self.folder / "orthanc.json")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        while self._process.poll() is None:
            try:
                self.request("GET", "/system")
                return
            except requests.ConnectionError:
                time.sleep(0.02)
        raise AssertionError((self.folder / "log").read_text()[-2000:])

    def _encryption(self) -> dict[str, Any]:
        if self.authority is None:
            return {}
        return {
            "DicomTlsEnabled": True,
            "DicomTlsCertificate": str(self.authority.server_certificate),
            "DicomTlsPrivateKey": str(self.authority.server_key),
            "DicomTlsTrustedCertificates": str(self.authority.certificate),
            "DicomTlsRemoteCertificateRequired": True,
        }

    def stop(self, kill: bool = False) -> None:
        """End the server."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            self._process.wait()
            self._process = None

    def request(self, method: str, path: str, **options: Any) -> Any:
        """Call Orthanc's own API."""
        with requests.Session() as session:
            session.trust_env = False
            session.auth = next(iter(self.users.items()), None)
            answer = session.request(method, f"{self.root}{path}", timeout=60, **options)
            answer.raise_for_status()
            return answer.json() if answer.content else None

    def add(self, *sources: Path) -> None:
        """Upload DICOM files or folders."""
        for source in sources:
            for path in sorted(source.rglob("*.dcm")) if source.is_dir() else [source]:
                self.request("POST", "/instances", data=path.read_bytes())

    def instances(self, **query: str) -> list[dict[str, Any]]:
        """Return what QIDO-RS answers about instances."""
        return self.request("GET", "/dicom-web/instances", params=query, headers={"Accept": "application/dicom+json"})


@contextmanager
def running_orthanc(folder: Path, **settings: Any) -> Iterator[Orthanc]:
    """Start a server that stops at the end."""
    orthanc = Orthanc(folder, **settings)
    try:
        orthanc.start()
        yield orthanc
    finally:
        orthanc.stop(kill=True)
        shutil.rmtree(folder, ignore_errors=True)
