"""DICOM segmentations of every type are used, or refused with the cause of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.sr.codedict import codes

from components.ingestion import ingest, list_series, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from tests.helpers.real_world.common import make_card
from tests.helpers.real_world.dicom_series import edit, voxels, write_stack

CARD = make_card(formats=("DICOM",), tasks=("segmentation",), label_map={1: "Lesion", 2: "Oedema"})
FIELDS = dict.fromkeys(("PatientBirthDate", "StudyTime", "AccessionNumber", "StudyID", "ReferringPhysicianName"), "")


def _mask() -> NDArray[np.uint8]:
    """Return two lesions with empty slices between them."""
    mask = np.zeros((10, 28, 24), np.uint8)
    mask[2:4, 5:9, 6:10] = mask[7:9, 15:20, 12:18] = 1
    return mask


def _write(folder: Path, mask: NDArray[Any], kind: str, labels: tuple[str, ...] = ("Lesion",), turned: bool = False) -> None:
    """Write a series with its segmentation; ``turned``: drawn on the images in descending order."""
    paths = write_stack(folder, "s", voxels(10), **FIELDS)
    images = [pydicom.dcmread(path) for path in paths]
    described = [
        highdicom.seg.SegmentDescription(number, label, codes.SCT.Tissue, codes.SCT.Tissue, "MANUAL")
        for number, label in enumerate(labels, start=1)
    ]
    fractional = {"fractional_type": "PROBABILITY"} if kind == "FRACTIONAL" else {}
    images, mask = (images[::-1], mask[::-1]) if turned else (images, mask)
    uids = ("1.2.3.4", 9, "1.2.3.5", 1)
    highdicom.seg.Segmentation(images, mask, kind, described, *uids, "m", "m", "1", "1", **fractional).save_as(folder / "seg.dcm")


def _labels(folder: Path) -> tuple[NDArray[np.uint8] | None, list[str]]:
    report = ingest(CARD, folder / "source", folder / "data", DEMO_KEY)
    (series,) = list_series(folder / "data", CARD.id)
    return read_volume(folder / "data", series, CARD).labels, [item.reason for item in report.quarantined]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_segments_of_every_type_become_labels(tmp_path: Path, kind: str, turned: bool) -> None:
    mask = _mask()
    _write(tmp_path / "source", mask.astype(np.float32) if kind == "FRACTIONAL" else mask, kind, turned=turned)
    labels, reasons = _labels(tmp_path)
    assert not reasons
    np.testing.assert_array_equal(labels, mask)


def test_a_label_map_with_two_segments_keeps_both(tmp_path: Path) -> None:
    mask = _mask()
    mask[7:9] *= 2
    _write(tmp_path / "source", mask, "LABELMAP", ("Lesion", "Oedema"))
    labels, reasons = _labels(tmp_path)
    assert not reasons
    np.testing.assert_array_equal(labels, mask)


def _move_by_a_pixel(dataset: pydicom.Dataset) -> None:
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        groups.PlanePositionSequence[0].ImagePositionPatient = [float(position[0]) + 0.4, float(position[1]), float(position[2])]


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (
            lambda folder: _write(folder, _mask() * np.float32(0.7), "FRACTIONAL"),
            "fractional segmentation with values between 0 and",
        ),
        (lambda folder: _write(folder, np.stack([_mask()] * 2, -1), "BINARY", ("Lesion", "Oedema")), "segments overlap"),
        (lambda folder: _write(folder, _mask(), "BINARY", ("Zwetschge",)), "segment 1's label is not in the card's label map"),
        (
            lambda folder: (_write(folder, _mask(), "BINARY"), edit(folder / "seg.dcm", _move_by_a_pixel)),
            "the segmentation is on another grid than its image",
        ),
    ],
    ids=["fractions", "overlap", "unknown label", "another grid"],
)
def test_each_fault_of_a_segmentation_has_its_own_text(tmp_path: Path, write: Callable[[Path], object], reason: str) -> None:
    write(tmp_path / "source")
    labels, reasons = _labels(tmp_path)
    assert labels is None and len(reasons) == 1 and reason in reasons[0], reasons
