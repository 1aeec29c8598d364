"""Labels are labels: empty, rounded, scaled, above 255; and each goes to the images of its session and scan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from components.catalog import DatasetCard
from components.ingestion import ingest, list_series, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.file_names import contradict
from components.ingestion.formats.label_maps import read_labels
from components.ingestion.volume import IngestReport, Volume
from tests.helpers.real_world.common import nifti_card, ramp
from tests.helpers.real_world.nifti_files import nifti_bytes, write_nifti_file

LABELS = np.zeros((24, 28, 16), np.uint8)
LABELS[5:15, 6:18, 4:9] = 1
LABELS[8:11, 9:13, 5:8] = 2
LABELS[9, 10, 6] = 3
NAMES = {1: "necrosis", 2: "oedema", 3: "tumour"}


def ingest_all(source: Path, card: DatasetCard) -> tuple[IngestReport, list[Volume]]:
    data = source.parent / "data"
    report = ingest(card, source, data, DEMO_KEY)
    return report, [read_volume(data, series, card) for series in list_series(data, card.id)]


def segmentation_card(label_map: dict[int, str] | None = None, **layout: Any) -> DatasetCard:
    return nifti_card(label_map=label_map or NAMES, **{"labels": ["*_seg.nii*"], **layout})


def counts(volume: Volume) -> dict[int, int] | None:
    if volume.labels is None:
        return None
    values, found = np.unique(volume.labels, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, found, strict=True) if value}


def expected(labels: NDArray[Any]) -> dict[int, int]:
    values, found = np.unique(labels, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, found, strict=True) if value}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_nifti_file(tmp_path / "source" / "sub-01_T1w.nii.gz", ramp())
    return tmp_path / "source"


def rounded(labels: NDArray[Any]) -> NDArray[Any]:
    return (labels + np.random.default_rng(1).uniform(-1e-6, 1e-6, labels.shape)).astype(np.float64)


def with_nan(labels: NDArray[Any]) -> NDArray[Any]:
    values = labels.astype(np.float32)
    values[0] = np.nan
    return values


FORMS: dict[str, bytes] = {
    "uint8": nifti_bytes(LABELS),
    "bool": nifti_bytes((LABELS > 0).astype(np.uint8)),
    "int64": nifti_bytes(LABELS.astype(np.int64)),
    "float32": nifti_bytes(LABELS.astype(np.float32)),
    "rounded by 1e-6": nifti_bytes(rounded(LABELS)),
    "NaN outside of the head": nifti_bytes(with_nan(LABELS)),
    "empty": nifti_bytes(np.zeros_like(LABELS)),
    "a fourth axis of one": nifti_bytes(LABELS[..., None]),
    "float values in uint8 (nibabel)": nifti_bytes(LABELS * 85, slope=3 / 255),
    "a mask of 255 (SPM)": nifti_bytes((LABELS > 0).astype(np.uint8) * 255, slope=1 / 255),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_have_the_values_that_nibabel_reads(source: Path, form: str) -> None:
    """MIC-DKFZ/nnUNet #2847, #2767; DIAGNijmegen/picai_labels #8; nipy/nibabel #480, #1032, #220."""
    (source / "sub-01_seg.nii").write_bytes(FORMS[form])
    read = np.nan_to_num(np.asanyarray(nib.load(source / "sub-01_seg.nii").dataobj)).reshape(LABELS.shape)
    report, (volume,) = ingest_all(source, segmentation_card())
    assert not report.quarantined and counts(volume) == expected(np.rint(read))


FAULTS: dict[str, tuple[NDArray[Any], str]] = {
    "fractions": (LABELS / 4, "no whole numbers"),
    "negative": (LABELS.astype(np.int16) - 1, "negative label values"),
    "a value without a name": (LABELS * 7, "that the card does not name: 7, 14, 21"),
    "a value above 255": (LABELS.astype(np.int16) * 1000, "that the card does not name: 1000, 2000, 3000"),
    "one-hot": (np.stack([value == LABELS for value in range(4)], -1).astype(np.uint8), "4 channels along the fourth axis"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_values_that_are_no_labels_of_the_card_are_refused_and_the_image_is_ingested(source: Path, fault: str) -> None:
    values, reason = FAULTS[fault]
    write_nifti_file(source / "sub-01_seg.nii.gz", values)
    report, (volume,) = ingest_all(source, segmentation_card())
    assert volume.labels is None
    (entry,) = report.quarantined
    assert entry.kind == "label" and reason in entry.reason and entry.remedy


@pytest.mark.parametrize("channels", [(0, 1, 2, 3), (1, 2, 3)])
def test_channels_are_merged_as_the_card_says(source: Path, channels: tuple[int, ...]) -> None:
    """MIC-DKFZ/nnUNet #681, #449."""
    one_hot = np.stack([value == LABELS for value in channels], -1)
    write_nifti_file(source / "sub-01_seg.nii.gz", one_hot.astype(np.uint8))
    report, (volume,) = ingest_all(source, segmentation_card(label_channels=channels))
    assert not report.quarantined and counts(volume) == expected(LABELS)


def test_of_nested_regions_the_later_channel_covers(source: Path) -> None:
    """The regions of BraTS: whole tumor contains the core, the core the enhancing tumor."""
    nested = np.stack([LABELS >= 1, LABELS >= 2, LABELS >= 3], -1)
    write_nifti_file(source / "sub-01_seg.nii.gz", nested.astype(np.float32))
    _, (volume,) = ingest_all(source, segmentation_card(label_channels=(1, 2, 3)))
    assert counts(volume) == expected(LABELS)


def test_another_number_of_channels_than_the_cards_is_refused(source: Path) -> None:
    write_nifti_file(source / "sub-01_seg.nii.gz", np.stack([LABELS, LABELS], -1))
    report, (volume,) = ingest_all(source, segmentation_card(label_channels=(1, 2, 3)))
    assert volume.labels is None and "2 channels along the fourth axis, and the card's" in report.quarantined[0].reason


def test_values_above_255_are_stored_by_rank(source: Path) -> None:
    """FreeSurfer's and MyoPS's label maps."""
    names = {500: "left ventricle", 1220: "oedema", 2221: "scar"}
    values = np.array([0, 500, 1220, 2221], np.int16)[LABELS]
    write_nifti_file(source / "sub-01_seg.nii.gz", values)
    card = segmentation_card(names)
    report, (volume,) = ingest_all(source, card)
    assert not report.quarantined and counts(volume) == expected(LABELS)
    assert card.stored_label_map == {1: "left ventricle", 2: "oedema", 3: "scar"}


@pytest.mark.parametrize("maximum", [1.0, 100.0, 255.0])
def test_tissue_maps_of_any_scale_become_labels(source: Path, maximum: float) -> None:
    for value, name in ((1, "gm"), (2, "wm")):
        write_nifti_file(source / f"sub-01_{name}.nii.gz", ((value == LABELS) * 0.9 * maximum + 0.05 * maximum).astype(np.float32))
    report, (volume,) = ingest_all(source, nifti_card(label_map={1: "a", 2: "b"}, tissue_maps={1: "*_gm.nii.gz", 2: "*_wm.nii.gz"}))
    assert not report.quarantined and counts(volume) == expected(np.where(LABELS == 3, 0, LABELS))


def test_an_improbable_tissue_is_none(source: Path) -> None:
    write_nifti_file(source / "sub-01_gm.nii.gz", (LABELS * 0.1).astype(np.float32))
    _, (volume,) = ingest_all(source, nifti_card(label_map={1: "a"}, tissue_maps={1: "*_gm.nii.gz"}))
    assert counts(volume) == {}


@pytest.mark.parametrize("axes", ["LPS", "SRA", "RAS"])
def test_labels_in_another_order_of_axes_lie_where_the_image_is_bright(tmp_path: Path, axes: str) -> None:
    """wasserth/TotalSegmentator #20, #31, nipy/nibabel #863."""
    values = ramp()
    values[3:7, 15:20, 9:13] = 1000
    affine = np.array([[0.9, 0, 0, -11], [0, 0.95, 0.1, 7], [0, -0.1, 2.9, 3], [0, 0, 0, 1.0]])
    label = nib.Nifti1Image((values == 1000).astype(np.uint8), affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(axes)))
    (tmp_path / "source").mkdir()
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "source" / "sub-01_T1w.nii")
    nib.save(label.as_reoriented(turn), tmp_path / "source" / "sub-01_seg.nii")
    _, (volume,) = ingest_all(tmp_path / "source", segmentation_card({1: "lesion"}))
    assert volume.labels is not None
    np.testing.assert_array_equal(volume.labels == 1, volume.voxels == 1000)


def test_an_empty_metaimage_mask_is_a_negative(tmp_path: Path) -> None:
    """DIAGNijmegen/picai_labels: two thirds of PI-CAI have no lesion."""
    (tmp_path / "source").mkdir()
    for name, values in (("t2w", ramp((16, 28, 24))), ("mask", np.zeros((16, 28, 24), np.uint8))):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(tmp_path / "source" / f"sub-01_{name}.mha"))
    report, (volume,) = ingest_all(tmp_path / "source", segmentation_card(labels=["*_mask.mha"]))
    assert not report.quarantined and volume.labels is not None and not volume.labels.any()


def place(source: Path, images: list[str], masks: list[str]) -> dict[str, int]:
    """Write images and masks of 8, 16, 24 ... voxels on one grid; return the name of each mask -> its voxels."""
    for seed, name in enumerate(images):
        write_nifti_file(source / name, ramp(seed=seed))
    for number, name in enumerate(masks, 1):
        mask = np.zeros((24, 28, 16), np.uint8)
        mask[:2, :2, : 2 * number] = 1
        write_nifti_file(source / name, mask)
    return {name: 8 * number for number, name in enumerate(masks, 1)}


BIDS = ["sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz"]
MATCHES: dict[str, tuple[list[str], list[str], list[int | None], int]] = {
    "sessions of BIDS": (BIDS, [name.replace("T1w", "dseg") for name in BIDS], [8, 16], 0),
    "masks in derivatives": (BIDS, [f"derivatives/x/{name.replace('T1w', 'desc-a_dseg')}" for name in BIDS], [8, 16], 0),
    "a mask of one session": (BIDS, [BIDS[1].replace("T1w", "dseg")], [None, 8], 0),
    "a mask without its image": (BIDS[:1], [BIDS[1].replace("T1w", "dseg")], [None], 1),
    "a mask without a session": (BIDS, ["sub-01/sub-01_dseg.nii.gz"], [None, None], 1),
    "folders of visits": (
        ["sub-01/visit1/a.nii", "sub-01/visit2/a.nii"],
        ["sub-01/visit1/m_dseg.nii", "sub-01/visit2/m_dseg.nii"],
        [8, 16],
        0,
    ),
    "a visit without its image": (["sub-01/visit1/a.nii"], ["sub-01/visit2/m_dseg.nii"], [None], 1),
    "dates in names": (["sub-01_20200101_t1.nii", "sub-01_20200607_t1.nii"], ["sub-01_20200607_dseg.nii"], [None, 8], 0),
    "both dates": (
        ["sub-01_20200101_t1.nii", "sub-01_20200607_t1.nii"],
        ["sub-01_20200101_dseg.nii", "sub-01_20200607_dseg.nii"],
        [8, 16],
        0,
    ),
    "acquisitions": (["sub-01_acq-a_T1w.nii", "sub-01_acq-b_T1w.nii"], ["sub-01_acq-b_dseg.nii"], [None, 8], 0),
    "runs": (["sub-01_run-1_T1w.nii", "sub-01_run-2_T1w.nii"], ["sub-01_run-2_dseg.nii", "sub-01_run-1_dseg.nii"], [16, 8], 0),
    "sequences": (["sub-01_T1w.nii", "sub-01_T2w.nii"], ["sub-01_T2w_dseg.nii", "sub-01_T1w_dseg.nii"], [16, 8], 0),
    "one mask for two sequences": (["sub-01_T1w.nii", "sub-01_T2w.nii"], ["sub-01_dseg.nii"], [8, 8], 0),
    "two readers": (["sub-01_T1w.nii"], ["sub-01_desc-a_dseg.nii", "sub-01_desc-b_dseg.nii"], [None], 2),
}


@pytest.mark.parametrize("case", MATCHES)
def test_a_mask_goes_to_the_images_of_its_session_and_scan_or_is_refused(tmp_path: Path, case: str) -> None:
    images, masks, expected_voxels, refused = MATCHES[case]
    place(tmp_path / "source", images, masks)
    report, volumes = ingest_all(tmp_path / "source", nifti_card(label_map={1: "lesion"}, labels=["*_dseg.nii*"]))
    by_image = {tuple(np.sort(volume.voxels, axis=None)[:50]): volume for volume in volumes}
    found = []
    for seed in range(len(images)):
        voxels = counts(by_image[tuple(np.sort(ramp(seed=seed).astype(np.float32), axis=None)[:50])])
        found.append(None if voxels is None else voxels[1])
    assert found == expected_voxels
    assert len(report.quarantined) == refused and all(entry.kind == "label" and entry.remedy for entry in report.quarantined)


def test_equal_copies_of_a_mask_are_one(tmp_path: Path) -> None:
    write_nifti_file(tmp_path / "source" / "sub-01_T1w.nii", ramp())
    for name in ("desc-a", "desc-b"):
        write_nifti_file(tmp_path / "source" / f"sub-01_{name}_seg.nii", LABELS)
    report, (volume,) = ingest_all(tmp_path / "source", segmentation_card())
    assert counts(volume) == expected(LABELS) and len(report.quarantined) == 1


def test_accepted_labels_are_compared_again_only_after_a_change(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[Path] = []

    def compare(paths: Sequence[Path], *others: Any) -> Any:
        compared.extend(paths)
        return read_labels(paths, *others)

    monkeypatch.setattr("components.ingestion.series_checks.read_labels", compare)
    for labels, comparisons in ((LABELS, 1), (LABELS, 1), (LABELS[:, ::-1].copy(), 2)):
        write_nifti_file(source / "sub-01_seg.nii.gz", labels)
        report, (volume,) = ingest_all(source, segmentation_card())
        assert len(compared) == comparisons and not report.quarantined and counts(volume) == expected(labels)


def test_the_case_of_the_card_decides_over_names(tmp_path: Path) -> None:
    """A longitudinal label map, registered to both visits, is declared by its case."""
    place(tmp_path / "source", BIDS, ["sub-01/sub-01_dseg.nii.gz"])
    card = nifti_card(label_map={1: "lesion"}, labels=["*_dseg.nii.gz"], case="(sub-[0-9]+)")
    report, volumes = ingest_all(tmp_path / "source", card)
    assert [counts(volume) for volume in volumes] == [{1: 8}, {1: 8}] and not report.quarantined


@pytest.mark.parametrize(
    ("label", "image", "is_contradiction"),
    [
        ("sub-01_ses-1_dseg.nii", "sub-01_ses-2_T1w.nii", True),
        ("sub-01_dseg.nii", "sub-01_ses-2_T1w.nii", False),
        ("sub-01_run-1_space-MNI_dseg.nii", "sub-01_run-1_T1w.nii", False),
        ("labels/p1/week_02/m.nii", "images/p1/week_10/t1.nii", True),
        ("labels/p1/week_02/m.nii", "images/p1/week_02/t1.nii", False),
        ("sub-02_dseg.nii", "sub-01_T1w.nii", True),
    ],
)
def test_names_of_other_sessions_and_scans_contradict(label: str, image: str, is_contradiction: bool) -> None:
    assert contradict(label, image) is is_contradiction


@pytest.mark.parametrize("difference_mm", [0.0, 1e-6, -1e-6])
def test_labels_whose_voxel_size_is_rounded_differently_stay_with_their_image(tmp_path: Path, difference_mm: float) -> None:
    """1.5 mm slices of 1 mm pixels are at the limit from which the slice axis is that of the coarse voxels."""
    cosine, sine = np.cos(0.35), np.sin(0.35)
    rotation = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) @ [[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]
    values = ramp((10, 28, 24))
    for name, slice_mm in (("T1w", 1.5), ("seg", 1.5 + difference_mm)):
        affine = np.eye(4)
        affine[:3, :3] = rotation * [slice_mm, 1.0, 1.0]
        stored = values if name == "T1w" else (values > 250).astype(np.uint8)
        write_nifti_file(tmp_path / "source" / f"sub-01_{name}.nii.gz", stored, affine)
    report, (volume,) = ingest_all(tmp_path / "source", segmentation_card())
    assert not report.quarantined and volume.labels is not None
    np.testing.assert_array_equal(volume.labels, volume.voxels > 250)
