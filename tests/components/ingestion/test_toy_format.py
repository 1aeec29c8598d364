"""An image format from a user's plugin is ingested, read back and read alone like a built-in one, in worker processes too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from components.catalog import DatasetCard, Layout
from components.errors import BadInput
from components.inference.untrusted_input import Limits, check_limits
from components.ingestion import ingest, list_series, read_path, read_quarantine, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.formats.sniff import detect_format
from components.registries import FORMATS, PLUGINS
from tests.helpers.workers import start_at_once

PLUGIN = "tests.helpers.toys.toy_format"
PATIENTS = 3
CARD = DatasetCard(
    id="toy-dataset",
    name="Toy dataset",
    rights="none",
    formats=("other",),
    synthetic=True,
    label_map={1: "lesion"},
    layout=Layout(patient="(sub-[0-9]+)", case="(sub-[0-9]+)", labels=("*-mask",)),
)


@pytest.fixture(autouse=True)
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name the plugin in the environment, as its user does, and forget it after the test."""
    monkeypatch.setenv(PLUGINS, PLUGIN)
    monkeypatch.setattr(FORMATS, "_entries", dict(FORMATS._entries))
    monkeypatch.setattr(FORMATS, "_objects", dict(FORMATS._objects))
    if "toy" not in FORMATS:  # the module was imported by an earlier test, and its entry removed
        FORMATS.add("toy", f"{PLUGIN}:FORMAT")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Images of several patients with label maps and sidecars; a broken image; a document."""
    from tests.helpers.toys import toy_format

    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(PATIENTS):
        toy_format.save(folder / f"sub-{number}", image(number), note="Doe^Jane")
        toy_format.save(folder / f"sub-{number}-mask", (image(number) > 0.9).astype(np.float32))
        (folder / f"sub-{number}.json").write_text(json.dumps({"EchoTime": 0.1, "RepetitionTime": 4.0}))
    toy_format.save(folder / "sub-9", image(9))
    (folder / "sub-9").write_bytes((folder / "sub-9").read_bytes()[:-4])
    (folder / "readme.txt").write_text("hello")
    return folder


def image(number: int) -> NDArray[np.float32]:
    return np.random.default_rng(number).random((10, 9, 4), dtype=np.float32)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_is_ingested_and_read_back(source: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    start_at_once(monkeypatch)
    monkeypatch.setattr("components.ingestion.ingest_dataset._CHUNK", 1)
    data = tmp_path / "data"
    report = ingest(CARD, source, data, DEMO_KEY, workers=workers)
    assert (report.series, report.patients, report.files_new) == (PATIENTS, PATIENTS, 3 * PATIENTS)
    assert sorted(entry.reason for entry in read_quarantine(data, CARD.id)) == [
        "another number of voxels than the header claims",
    ]
    assert report.files_of_layout == 1
    volumes = [read_volume(data, series, CARD) for series in list_series(data, CARD.id)]
    assert {volume.voxels[:, ::-1, ::-1].T.tobytes(order="C") for volume in volumes} == {
        image(number).tobytes() for number in range(PATIENTS)
    }
    for volume in volumes:
        assert volume.spacing_mm == (4.0, 1.0, 1.0) and volume.acquisition.sequence == "T2-weighted"
        assert volume.labels is not None
        np.testing.assert_array_equal(volume.labels, volume.voxels > 0.9)
    assert not [path for path in data.rglob("*") if path.is_file() and b"Doe" in path.read_bytes()]


def test_nothing_is_written_again_for_an_unchanged_folder(source: Path, tmp_path: Path) -> None:
    ingest(CARD, source, tmp_path / "data", DEMO_KEY)
    report = ingest(CARD, source, tmp_path / "data", DEMO_KEY)
    assert report.files_new == 0 and report.files_reused == 3 * PATIENTS


def test_one_file_is_read_for_prediction(source: Path, tmp_path: Path) -> None:
    volume = read_path(source / "sub-1")
    assert volume.voxels.shape == (4, 9, 10)
    np.testing.assert_array_equal(volume.voxels[:, ::-1, ::-1].T, image(1))
    with pytest.raises(BadInput, match="another number of voxels"):
        read_path(source / "sub-9")


def test_the_limits_of_untrusted_files_apply(source: Path) -> None:
    check_limits(source / "sub-1", Limits())
    with pytest.raises(BadInput, match="too many voxels"):
        check_limits(source / "sub-1", Limits(voxels=100))


def test_every_format_knows_its_registered_name(source: Path) -> None:
    assert [image_format.name for image_format in FORMATS.values()] == list(FORMATS)
    assert list(FORMATS)[-1] == "toy" and detect_format(source / "sub-1") == "toy"
