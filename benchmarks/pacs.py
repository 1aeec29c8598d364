"""Files per second from an archive: small series by WADO-RS and C-GET, compared with DCMTK's storescu and a plain copy.

``python -m benchmarks.pacs [series]`` (default 1,000) starts Orthanc on loopback, in a temporary folder.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from benchmarks.harness import versions, write_rows
from components.catalog.cards import DatasetCard
from components.home import Home
from components.pacs.address import find_server
from components.pacs.archive import open_archive
from components.pacs.credentials import credentials_from_environment
from components.pacs.fetching import Fetcher
from components.pacs.source import PacsSource
from components.pacs.update import DatasetUpdate, update_from_archive
from components.settings import PacsSettings
from tests.helpers.orthanc import Orthanc, running_orthanc
from tests.helpers.studies import write_mr_series

SLICES, PIXELS, SERIES_OF_A_STUDY = 4, 64, 5
KEY = b"a key of thirty-two bytes, no less"
CARD = DatasetCard(id="pacs", name="Archive", rights="benchmark", formats=("DICOM",), anatomy="brain", synthetic=False)


def timed(action: Callable[[], object]) -> float:
    """Return the duration of an action, seconds."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def fetch_all(url: str, folder: Path) -> None:
    """Fetch every series of an archive, without ingesting it."""
    archive = open_archive(find_server(url, PacsSettings()), credentials_from_environment)
    fetcher = Fetcher(archive, 60)
    listing = archive.list_series({})
    for number, study in enumerate(sorted({one.study for one in listing})):
        fetched = fetcher.fetch_study(study, [one for one in listing if one.study == study], folder / str(number))
        assert not fetched.left_out


def update(url: str, folder: Path) -> None:
    """Fetch and ingest every series of an archive."""
    server = find_server(url, PacsSettings())
    archive = open_archive(server, credentials_from_environment)
    dataset = DatasetUpdate(CARD, Home(folder / "home", folder / "data"), KEY, 2, nullcontext)
    update_from_archive(dataset, PacsSource(server, {}), archive, PacsSettings())


def send(source: Path, orthanc: Orthanc) -> None:
    """Send a folder by DCMTK's storescu."""
    command = ["/usr/bin/storescu", "+sd", "+r", "-aec", "ORTHANC", "127.0.0.1", str(orthanc.dicom_port), str(source)]
    subprocess.run(command, check=True, capture_output=True)


def main(series: int) -> None:
    """Measure, print and write the results."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for number in range(series):
            write_mr_series(root / "source", number // SERIES_OF_A_STUDY, f"s{number % SERIES_OF_A_STUDY}", SLICES, pixels=PIXELS)
        files = series * SLICES
        with running_orthanc(root / "orthanc") as orthanc:
            seconds = {
                "plain copy": timed(lambda: shutil.copytree(root / "source", root / "copy")),
                "storescu to Orthanc": timed(lambda: send(root / "source", orthanc)),
                "WADO-RS": timed(lambda: fetch_all(orthanc.url, root / "web")),
                "C-GET": timed(lambda: fetch_all(orthanc.dimse, root / "dimse")),
                "WADO-RS and ingestion": timed(lambda: update(orthanc.url, root / "update")),
                "WADO-RS, nothing new": timed(lambda: update(orthanc.url, root / "update")),
            }
    rows = [
        {"way": way, "series": series, "files": files, "s": f"{s:.2f}", "files_per_s": f"{files / s:.0f}"}
        for way, s in seconds.items()
    ]
    write_rows("pacs", rows, f"{versions()}, Orthanc 1.10.1, DCMTK 3.6.7")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
