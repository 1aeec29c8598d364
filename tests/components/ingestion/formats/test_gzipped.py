"""A gzipped DICOM file is read like the file inside of it, whatever its name."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.catalog import DatasetCard
from components.errors import BadInput
from components.inference.untrusted_input import Limits, check_limits
from components.ingestion import ingest, read_path, read_quarantine
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.formats import gzipped
from components.samples.packages import package_folder
from tests.helpers import dicom_files

CARD = DatasetCard(id="made-up", name="Made up", rights="none", formats=("DICOM",), synthetic=True)


def _write_classic(folder: Path) -> None:
    dicom_files.write_series(folder, "slice", dicom_files.random_pixels(4, 8, 9), dicom_files.OBLIQUE)


def _write_enhanced(folder: Path) -> None:
    dicom_files.write_enhanced(
        folder / "e.dcm",
        [{"plane": plane, "offset": 4.0 * index} for index, plane in enumerate(dicom_files.random_pixels(3, 8, 9))],
    )


def _write_mosaic(folder: Path) -> None:
    """Write a real header with noise in place of the pixels, which were removed before publication."""
    folder.mkdir()
    gzipped_path = package_folder("nibabel") / "nicom" / "tests" / "data" / "siemens_dwi_0.dcm.gz"
    image = pydicom.dcmread(BytesIO(gzip.decompress(gzipped_path.read_bytes())))
    image.PixelData = dicom_files.random_pixels(image.Rows, image.Columns).tobytes()
    image.save_as(folder / "mosaic.dcm")


def _checksums(data: Path) -> dict[str, str]:
    """Return the MD5 of every file under ``data/``; of the manifest without the MD5 of its sources."""
    contents = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    for path in data.rglob("manifest.json"):
        contents[path] = json.dumps({**json.loads(contents[path]), "sources": None}).encode()
    return {path.relative_to(data).as_posix(): hashlib.md5(body).hexdigest() for path, body in contents.items()}


@pytest.mark.parametrize("write", [_write_classic, _write_enhanced, _write_mosaic])
def test_gzipped_and_plain_files_leave_the_same_bytes(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", tmp_path / "packed")
    for number, path in enumerate(sorted((tmp_path / "packed").iterdir())):
        path.with_name(("a.dcm.gz", "b", "c.nii", "d.dcm")[number]).write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    for name in ("plain", "packed"):
        assert ingest(CARD, tmp_path / name, tmp_path / f"{name}-data", DEMO_KEY).quarantined == ()
    assert _checksums(tmp_path / "packed-data") == _checksums(tmp_path / "plain-data")
    np.testing.assert_array_equal(read_path(tmp_path / "packed").voxels, read_path(tmp_path / "plain").voxels)


def test_a_decompression_bomb_is_rejected_and_the_rest_is_ingested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A valid header and a gibibyte of zeros would be one; the limit is lowered here to keep the test short."""
    monkeypatch.setattr(gzipped, "MAX_DECOMPRESSED_BYTES", 2**21)
    paths = dicom_files.write_series(tmp_path / "source", "slice", dicom_files.random_pixels(4, 8, 9))
    bomb = dicom_files.write_slice(tmp_path, "bomb", 1, (0, 0, 0), dicom_files.random_pixels(8, 9)).read_bytes() + bytes(2**21)
    (tmp_path / "source" / "bomb.dcm.gz").write_bytes(gzip.compress(bomb))
    report = ingest(CARD, tmp_path / "source", tmp_path / "data", DEMO_KEY)
    assert report.series == 1 and len(paths) == report.files_new
    assert [(entry.kind, entry.reason, entry.remedy) for entry in report.quarantined] == [
        ("unreadable", "a gzipped file that unpacks to more than 2 MiB", "unpack it, if that is right")
    ]
    with pytest.raises(BadInput, match="more than 2 MiB"):
        check_limits(tmp_path / "source" / "bomb.dcm.gz", Limits())


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_a_damaged_gzipped_file_is_read_or_rejected_with_a_reason(tmp_path: Path, data: st.DataObject) -> None:
    source = tmp_path / "source"
    if not source.exists():
        dicom_files.write_series(source, "sound", dicom_files.random_pixels(2, 8, 9), SeriesInstanceUID="1.2.3.1")
        dicom_files.write_slice(tmp_path, "whole", 1, (0, 0, 0), dicom_files.random_pixels(8, 9, seed=1))
    broken = bytearray(gzip.compress((tmp_path / "whole.dcm").read_bytes(), mtime=0))
    for offset in data.draw(st.lists(st.integers(0, len(broken) - 1), max_size=3)):
        broken[offset] = data.draw(st.integers(0, 255))
    (source / "broken.dcm.gz").write_bytes(broken[: data.draw(st.integers(0, len(broken)))])
    report = ingest(CARD, source, tmp_path / "data", DEMO_KEY)
    assert report.series + len(report.quarantined) == 2
    assert all(entry.reason and entry.remedy for entry in read_quarantine(tmp_path / "data", CARD.id))
