"""Inputs of public bug reports: each is stored as nibabel reads it, or refused at ingestion with its own cause."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from components.catalog import DatasetCard
from components.errors import BadInput
from components.ingestion import ingest, list_series, read_path, read_quarantine, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.volume import IngestReport, Volume
from tests.helpers.real_world.common import nifti_card, ramp
from tests.helpers.real_world.nifti_files import AFFINE, nifti_bytes, write_nifti_file
from tests.helpers.stored_volumes import assert_same, source_indices

REPOSITORY = Path(__file__).resolve().parents[3]


def ingest_all(source: Path, card: DatasetCard | None = None) -> tuple[IngestReport, list[Volume]]:
    """Ingest a folder, and read its volumes as curation reads them."""
    data, card = source.parent / "data", card or nifti_card()
    report = ingest(card, source, data, DEMO_KEY)
    return report, [read_volume(data, series, card) for series in list_series(data, card.id)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


PHASES = (ramp(seed=1).astype(int) * 37 % 4096).astype(np.int16)
BYTES = (ramp(seed=2) % 250).astype(np.uint8)
HOLES = ramp(seed=4).astype(np.float64)
HOLES[:3] = np.nan
READ = {
    "slope 2 of dcm2niix": nifti_bytes(PHASES, slope=2.0, inter=-4096.0),
    "bytes with a slope": nifti_bytes(BYTES, slope=0.5, inter=10.0),
    "single precision with a slope": nifti_bytes(ramp().astype(np.float32), slope=0.1, inter=0.3),
    "a negative slope": nifti_bytes(ramp(), slope=-0.25, inter=7.0),
    "int64": nifti_bytes(ramp(seed=1).astype(np.int64)),
    "slope 0": nifti_bytes(ramp(seed=2), slope=0.0),
    "slope NaN": nifti_bytes(ramp(seed=3), slope=float("nan"), inter=float("nan")),
    "NaN outside of the head": nifti_bytes(HOLES),
    "big endian": nifti_bytes(ramp(seed=6), big_endian=True),
    "NIfTI-2": nifti_bytes(ramp(seed=7), version=2),
    "NIfTI-2 with a slope in double precision": nifti_bytes(ramp(seed=7), version=2, slope=0.1, inter=1e-12),
}


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzipped"])
def test_scaled_and_odd_values_are_those_of_nibabel_and_of_a_prediction(source: Path, compressed: bool) -> None:
    """nipy/nibabel #480, #1032, #220, #1046, #1089: the whole ingestion, the volume of `predict`, and nibabel on the source."""
    for number, content in enumerate(READ.values(), 10):
        name = f"sub-{number}_T1w.nii{'.gz' if compressed else ''}"
        (source / name).write_bytes(gzip.compress(content) if compressed else content)
    report, volumes = ingest_all(source)
    assert not report.quarantined and len(volumes) == len(READ)
    found = {volume.voxels.tobytes(): volume for volume in volumes}
    for path in sorted(source.iterdir()):
        image = nib.load(path)
        predicted = read_path(path)
        assert_same(found[predicted.voxels.tobytes()], np.asanyarray(image.dataobj), image.affine)


def test_a_pair_is_stored_as_nibabel_reads_it(source: Path) -> None:
    image = nib.Nifti1Pair(PHASES, AFFINE)
    image.header.set_slope_inter(2.0, -4096.0)
    nib.save(image, source / "sub-08_T1w.hdr")
    _, (volume,) = ingest_all(source)
    loaded = nib.load(source / "sub-08_T1w.hdr")
    assert_same(volume, np.asanyarray(loaded.dataobj), loaded.affine)


def test_scaled_label_maps_are_the_labels_that_nibabel_reads(source: Path) -> None:
    """nibabel stores labels 1, 2, 3 of a float array in bytes as 85, 170, 255 with slope 3/255; SPM a mask as 255 with 1/255."""
    labels = np.zeros((24, 28, 16))
    labels[5:15, 6:18, 4:9], labels[8:11, 9:13, 5:8], labels[9, 10, 6] = 1, 2, 3
    image = nib.Nifti1Image(labels, AFFINE)
    image.set_data_dtype(np.uint8)
    for number in (3, 4):
        write_nifti_file(source / f"sub-0{number}_T1w.nii", ramp(seed=number))
    nib.save(image, source / "sub-03_seg.nii")
    write_nifti_file(source / "sub-04_seg.nii", ((labels > 0) * 255).astype(np.uint8), slope=1 / 255)
    card = nifti_card(label_map={1: "necrosis", 2: "edema", 3: "tumor"}, labels=["*_seg.nii"])
    report, volumes = ingest_all(source, card)
    assert not report.quarantined and len(volumes) == 2
    expected = {ramp(seed=3).sum(): labels, ramp(seed=4).sum(): labels > 0}
    for volume in volumes:
        assert volume.labels is not None
        wanted = expected[volume.voxels.astype(int).sum()]
        np.testing.assert_array_equal(volume.labels.ravel(), wanted[source_indices(volume, AFFINE)])


UNUSABLE = {
    "all NaN": (np.full((24, 28, 16), np.nan), "no finite voxel: every one is NaN or infinite"),
    "all infinite": (np.full((24, 28, 16), np.inf), "no finite voxel: every one is NaN or infinite"),
    "constant with a NaN": (np.where(ramp() == ramp().min(), np.nan, 7.0), "no signal: every voxel has the same value"),
    "beyond single precision": (ramp() * 1e37, "values beyond single precision (3.4e38)"),
    "an axis that only NIfTI-2 can store": (
        np.arange(33000).reshape(33000, 1, 1),
        "an axis of more than 32767 voxels, the limit of NIfTI-1",
    ),
    "beyond it and negative": (ramp() * -1e37, "values beyond single precision (3.4e38)"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_nothing_can_read_is_refused_at_ingestion(source: Path, case: str) -> None:
    values, reason = UNUSABLE[case]
    write_nifti_file(source / "sub-01_T1w.nii.gz", values, version=2)
    write_nifti_file(source / "sub-03_T1w.nii.gz", ramp())
    report, volumes = ingest_all(source)
    assert [entry.reason for entry in report.quarantined] == [reason] and report.quarantined[0].path == "file 1 of 2, *.gz"
    assert_same(volumes[0], ramp(), AFFINE)


@pytest.mark.parametrize("place", ["equal", "inside", "above", "a link to it", "a folder that links to it", "a path with .."])
def test_a_source_in_our_own_folder_is_refused_before_anything_is_written(source: Path, place: str) -> None:
    for number in (1, 2, 3):
        write_nifti_file(source / f"sub-0{number}_T1w.nii.gz", ramp(seed=number))
    ingest_all(source)
    data = source.parent / "data"
    (source.parent / "link").symlink_to(data)
    (source.parent / "folder").mkdir()
    (source.parent / "folder" / "more").symlink_to(data / "real-world")
    named = {
        "equal": data,
        "inside": data / "real-world",
        "above": source.parent,
        "a link to it": source.parent / "link" / "real-world",
        "a folder that links to it": source.parent / "folder",
        "a path with ..": source.parent / "source" / ".." / "data" / "real-world",
    }[place]
    before = snapshot(source.parent)
    with pytest.raises(BadInput, match="a source is only read, never written to"):
        ingest(nifti_card(), named, data, DEMO_KEY)
    assert snapshot(source.parent) == before


def test_links_are_followed_and_what_was_not_fetched_is_counted_with_an_example(source: Path) -> None:
    """bids-standard/pybids #631, legacy-validator #1029, #1050: a DataLad clone, and a dataset of several disks."""
    store = source.parent / "store"
    write_nifti_file(store / "object1.nii.gz", ramp(seed=1))
    write_nifti_file(store / "sub-06" / "sub-06_T1w.nii.gz", ramp(seed=6))
    (source / "sub-01_T1w.nii.gz").symlink_to(store / "object1.nii.gz")
    (source / "sub-06").symlink_to(store / "sub-06")
    for number in (2, 3):
        (source / f"sub-0{number}_T1w.nii.gz").symlink_to(f".git/annex/objects/Xx/Yy/SHA256E-s{number}.nii.gz")
    (source / "sub-04_T1w.nii.gz").symlink_to("nowhere.nii.gz")
    (source / "sub-05_T1w.nii.gz").write_text("/annex/objects/SHA256E-s26201493--b2dfade69e364be4.nii.gz\n")
    report, volumes = ingest_all(source)
    assert sorted(volume.voxels.sum() for volume in volumes) == sorted(float(ramp(seed=seed).sum()) for seed in (1, 6))
    told = [(entry.path, entry.kind, entry.reason) for entry in read_quarantine(source.parent / "data", "real-world")]
    missing = "content that was not fetched (git-annex or Git LFS)"
    assert told == [
        ("file 2 of 3, *.gz", "inaccessible", missing),
        ("link 1 of 3, *.gz", "inaccessible", missing),
        ("link 2 of 3, *.gz", "inaccessible", missing),
        ("link 3 of 3, *.gz", "inaccessible", "a link to nothing"),
    ]
    assert all("datalad get" in entry.remedy for entry in report.quarantined if entry.reason == missing)


def test_names_that_are_no_utf8_or_decomposed_are_read_and_appear_nowhere(source: Path) -> None:
    write_nifti_file(source / "sub-Mu\u0308llerPLANTED_T1w.nii.gz", ramp(seed=2))
    write_nifti_file(source / "sub-03 with space_T1w.nii.gz", ramp(seed=3))
    (source / os.fsdecode(b"sub-M\xfcllerPLANTED_T1w.nii")).write_bytes(nifti_bytes(ramp(seed=1)))
    report, volumes = ingest_all(source, nifti_card(patient="(sub-[^/_]+)"))
    assert not report.quarantined and report.patients == 3 and len(volumes) == 3
    for name, content in snapshot(source.parent / "data").items():
        assert "PLANTED" not in name and b"PLANTED" not in content and b"M\xfcller" not in content


_INGEST = """
import sys
from pathlib import Path
from components.ingestion import ingest
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from tests.helpers.real_world.common import nifti_card
ingest(nifti_card(), Path(sys.argv[1]), Path(sys.argv[2]), DEMO_KEY)
"""


def test_a_locked_file_and_a_locked_folder_are_counted(source: Path) -> None:
    """The ingestion runs without the capabilities by which root reads what it may not."""
    drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if drop and subprocess.run([*drop, "true"], capture_output=True).returncode:
        pytest.skip("root reads everything, and setpriv cannot drop its capabilities here")
    for name in ("sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz", "locked/sub-03_T1w.nii.gz"):
        write_nifti_file(source / name, ramp(seed=len(name)))
    locked = (source / "sub-02_T1w.nii.gz", source / "locked")
    for path in locked:
        path.chmod(0)
    try:
        command = [*drop, sys.executable, "-c", _INGEST, str(source), str(source.parent / "data")]
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    finally:
        for path in locked:
            path.chmod(0o700)
    assert ended.returncode == 0, ended.stderr
    assert [(entry.path, entry.reason) for entry in read_quarantine(source.parent / "data", "real-world")] == [
        ("file 2 of 2, *.gz", "a file that may not be read"),
        ("folder 1 of 1", "a folder that may not be read"),
    ]
    assert len(list_series(source.parent / "data", "real-world")) == 1
