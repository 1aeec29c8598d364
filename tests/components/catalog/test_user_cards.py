"""A user card suffices to ingest a dataset in a known layout; no code is needed."""

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from components.catalog import load_card
from components.ingestion import ingest, list_series, read_volume
from components.ingestion.volume import Volume

KEY = bytes(range(32))
SHAPE = (12, 10, 8)

BRATS = """
id: {id}
name: Gliomas of a clinic
rights: ours
anatomy: brain
synthetic: false
formats: [NIfTI]
layout:
  labels: ["*-seg.nii.gz"]
  case: "(GLI-[0-9]+-[0-9]+)"
  patient: "(GLI-[0-9]+)-"
  sequences: {{-t1n: T1-weighted, -t2f: FLAIR}}
label_map: {{1: core, 2: oedema, 3: enhancing tumour}}
"""
BIDS = """
id: {id}
name: A BIDS dataset
rights: ours
anatomy: brain
synthetic: false
formats: [NIfTI]
layout:
  images: ["sub-*_T1w.nii.gz"]
  labels: ["derivatives/*_dseg.nii.gz"]
  patient: "(sub-[^/]+)/"
  sequences: {{_T1w: T1-weighted}}
label_map: {{1: lesion}}
"""
FASTMRI = """
id: {id}
name: Knees
rights: ours
anatomy: knee
synthetic: false
formats: [k-space HDF5]
layout:
  images: ["*.h5"]
  boxes: ["boxes.csv"]
  patient: "([^/]+)\\\\.h5$"
"""


def _ingest_with_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, source: Path) -> list[Volume]:
    """Ingest a source folder with a card in the user's home folder and read the volumes back."""
    monkeypatch.delenv("OMNIMRI_CARDS", raising=False)
    monkeypatch.setenv("OMNIMRI_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "cards").mkdir(parents=True)
    (tmp_path / "home" / "cards" / "mine.yaml").write_text(text.format(id="mine"))
    card = load_card("mine")
    ingest(card, source, tmp_path / "data", KEY)
    return [read_volume(tmp_path / "data", series, card) for series in list_series(tmp_path / "data", "mine")]


def _write_image(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0])), path)


def _noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(SHAPE, dtype=np.float32)


def _mask(*values: int) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    for index, value in enumerate(values):
        mask[2 + index, 3:6, 2:4] = value
    return mask


def test_brats_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        stem = tmp_path / "source" / f"GLI-0000{number}-000" / f"GLI-0000{number}-000"
        for index, name in enumerate(("t1n", "t2f")):
            _write_image(stem.with_name(f"{stem.name}-{name}.nii.gz"), _noise(10 * number + index))
        _write_image(stem.with_name(f"{stem.name}-seg.nii.gz"), _mask(1, 2, 3))
    volumes = _ingest_with_card(tmp_path, monkeypatch, BRATS, tmp_path / "source")
    assert sorted(str(volume.acquisition.sequence) for volume in volumes) == ["FLAIR", "FLAIR", "T1-weighted", "T1-weighted"]
    assert all(volume.labels is not None and set(np.unique(volume.labels)) == {0, 1, 2, 3} for volume in volumes)
    assert all(volume.acquisition.anatomy == "brain" for volume in volumes)


def test_bids_with_masks_in_derivatives_and_unlisted_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    for number in (1, 2):
        _write_image(source / f"sub-{number}" / "anat" / f"sub-{number}_T1w.nii.gz", _noise(number))
        (source / f"sub-{number}" / "anat" / f"sub-{number}_T1w.json").write_text(
            '{"MagneticFieldStrength": 3, "RepetitionTime": 2}'
        )
        _write_image(source / "derivatives" / f"sub-{number}" / f"sub-{number}_dseg.nii.gz", _mask(1))
        _write_image(source / "derivatives" / f"sub-{number}" / f"sub-{number}_desc-brain_mask.nii.gz", _mask(7))
    volumes = _ingest_with_card(tmp_path, monkeypatch, BIDS, source)
    assert [volume.acquisition.sequence for volume in volumes] == ["T1-weighted", "T1-weighted"]
    assert [volume.acquisition.field_strength_t for volume in volumes] == [3, 3]
    assert all(volume.labels is not None and set(np.unique(volume.labels)) == {0, 1} for volume in volumes)


def test_fastmri_with_lesion_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    rng = np.random.default_rng(5)
    for name in ("file1", "file2"):
        with h5py.File(source / f"{name}.h5", "w") as file:
            file["kspace"] = (rng.normal(size=(3, 2, 16, 12)) + 1j * rng.normal(size=(3, 2, 16, 12))).astype(np.complex64)
            file.attrs["acquisition"] = "CORPDFS_FBK"
    rows = ["file,slice,study_level,x,y,width,height,label", "file1,1,No,2,3,4,5,Meniscus Tear", "file2,,Yes,,,,,Normal"]
    (source / "boxes.csv").write_text("\n".join(rows) + "\n")
    volumes = _ingest_with_card(tmp_path, monkeypatch, FASTMRI, source)
    assert all(volume.kspace is not None and volume.voxels.shape[0] == 3 for volume in volumes)
    assert sorted([box.label for box in volume.boxes] for volume in volumes) == [[], ["meniscus tear"]]


def test_a_corrected_statistic_does_not_trigger_ingestion(tmp_path: Path) -> None:
    from components.ingestion.ingest_dataset import output_recipe

    card = load_card("isles-2022")
    assert output_recipe(card.model_copy(update={"patients": 1, "rights": "others"}), KEY) == output_recipe(card, KEY)
    assert output_recipe(card.model_copy(update={"label_map": {1: "other"}}), KEY) != output_recipe(card, KEY)
    layout = card.layout.model_copy(update={"labels": ()})
    assert output_recipe(card.model_copy(update={"layout": layout}), KEY) != output_recipe(card, KEY)
