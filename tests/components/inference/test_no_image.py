"""A constant or a label map is not answered as if it were an image; what may be one is answered with a warning."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from components.errors import BadInput
from components.inference import Predictor
from components.ingestion import ingest
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.formats.voxels import FRACTIONS, MAYBE_LABELS
from components.ingestion.volume import Acquisition, Volume
from model_core.mri_physics.fourier import fft2c_numpy
from tests.helpers.real_world.common import make_card
from tests.helpers.real_world.dicom_series import write_stack
from tests.helpers.real_world.kspace_files import write_fastmri

QUESTION = "Is there a lesion?"


def _answer_with(predictor: Predictor, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr(Predictor, "_generate", lambda self, prompts, *_: [answer] * len(prompts))


def _smooth() -> NDArray[np.float32]:
    """Return voxels (slices, rows, columns) of a smooth image with a background of zeros, rounded to whole numbers."""
    rows, columns = np.mgrid[-1:1:48j, -1:1:40j]
    disk = np.clip(1 - rows**2 - columns**2, 0, None)
    slices = disk * np.linspace(300, 600, 6)[:, None, None]
    return np.where(disk > 0.1, np.rint(slices + np.random.default_rng(0).normal(0, 4, slices.shape)), 0).astype(np.float32)


_LABELS = (_smooth() > 100).astype(np.float32) + (_smooth() > 300)
NO_IMAGES: dict[str, tuple[NDArray[Any], str]] = {
    "zeros": (np.zeros((6, 48, 40)), "no signal"),
    "a constant": (np.full((6, 48, 40), 7.5), "no signal"),
    "a negative constant": (np.full((6, 48, 40), -3), "no signal"),
    "a constant beside NaN": (np.where(_LABELS > 0, np.nan, 7.0), "2 different values"),
    "a mask": (_LABELS > 0, "2 different values"),
    "labels": (_LABELS, "3 different values"),
    "labels of 255": (_LABELS * 127, "3 different values"),
    "parcels": (np.kron(np.arange(1, 61).reshape(3, 5, 4), np.ones((2, 9, 10))), "regions of equal whole numbers"),
}


@pytest.mark.parametrize("suffix", [".nii.gz", ".npy", ".mha", "in a study", "in a folder"])
@pytest.mark.parametrize("case", NO_IMAGES)
def test_a_constant_or_a_label_map_is_no_image(predictor: Predictor, tmp_path: Path, case: str, suffix: str) -> None:
    values, reason = NO_IMAGES[case]
    values = np.asarray(values, np.float32)
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, values)
    elif suffix == ".mha":
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.nan_to_num(values)), str(path))
    else:
        image = nib.Nifti1Image(values.transpose(2, 1, 0), np.eye(4))
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, path if suffix == ".nii.gz" else tmp_path / "a.nii.gz")
    with pytest.raises(BadInput, match=reason) as error:
        if suffix in ("in a study", "in a folder"):
            predictor.predict_study([tmp_path / "a.nii.gz" if suffix == "in a study" else tmp_path], "Segment.")
        else:
            predictor.predict(path, "Segment.")
    assert "layout" not in error.value.remedy  # that of an ingestion


def test_a_constant_in_memory_is_no_image(predictor: Predictor) -> None:
    with pytest.raises(BadInput, match="no signal"):
        predictor.predict(Volume(np.full((6, 48, 40), 7.5, np.float32), np.eye(4), Acquisition()), "Segment.")


def test_labels_in_memory_are_answered_with_a_warning(
    predictor: Predictor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that hands an array over, as a server does, may know that it is an image."""
    _answer_with(predictor, monkeypatch, "yes")
    with caplog.at_level(logging.WARNING):
        assert predictor.predict(Volume(_LABELS, np.eye(4), Acquisition()), QUESTION).text
    assert "3 different values" in caplog.text


@pytest.mark.parametrize("background", [0, -1, 25])
def test_an_image_with_a_large_constant_background_is_one(
    predictor: Predictor, background: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = _smooth()
    values[values == 0] = background
    _answer_with(predictor, monkeypatch, "yes")
    assert predictor.predict(Volume(values, np.eye(4), Acquisition()), QUESTION).text


def test_a_mask_in_the_folder_of_a_study_is_left_out(
    predictor: Predictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, values in (("a", _smooth()), ("b", _LABELS)):
        image = nib.Nifti1Image(values.transpose(2, 1, 0), np.eye(4))
        nib.save(image, tmp_path / f"{name}.nii.gz")
    with caplog.at_level(logging.WARNING):
        predictor.predict_study([tmp_path], QUESTION)
    assert "a series of" in caplog.text and "a mask or label map by its values" in caplog.text


def test_fractions_are_answered_with_a_warning(
    predictor: Predictor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be a probability map, or an image that was normalized."""
    _answer_with(predictor, monkeypatch, "yes")
    with caplog.at_level(logging.WARNING):
        predictor.predict(Volume(_smooth() / _smooth().max(), np.eye(4), Acquisition()), QUESTION)
    assert FRACTIONS in caplog.text


def _random(shape: tuple[int, ...], *ends: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).integers(*ends, shape).astype(np.float32)


def _disk(side: int, radius: float) -> NDArray[np.float64]:
    rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    return np.clip(radius**2 - rows**2 - columns**2, 0, None)


_SMOOTH = np.rint(_disk(400, 1) * 60) * np.ones((4, 1, 1))
_NOISE = np.random.default_rng(0).normal(1, 0.02, (64, 64))
_SATURATED = np.clip(np.rint(_disk(64, 0.55) * 3000 * _NOISE), 0, 255)[None]
IMAGES: dict[str, tuple[NDArray[Any], bool]] = {
    "a smooth phantom of 8 bits": (_SMOOTH, True),
    "a smooth slice of 8 bits": (_SMOOTH[:1], True),
    "a saturated slice of 8 bits": (_SATURATED, True),
    "a slice enlarged threefold": (np.kron(_smooth()[2:3], np.ones((1, 3, 3))), False),
    "a volume enlarged twofold": (np.kron(_smooth(), np.ones((2, 2, 2))), False),
}
"""Images with plateaus, and whether a label map may have them, too."""


@pytest.mark.parametrize("case", IMAGES)
def test_images_with_plateaus_are_answered_and_ingested_alike(
    predictor: Predictor, tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, is_unclear = IMAGES[case]
    _answer_with(predictor, monkeypatch, "yes")
    image = nib.Nifti1Image(values.transpose(2, 1, 0).astype(np.int16), np.diag([2.0, 2, 4, 1]))
    (tmp_path / "source").mkdir()
    nib.save(image, tmp_path / "source" / "a.nii.gz")
    with caplog.at_level(logging.WARNING):
        assert predictor.predict(tmp_path / "source" / "a.nii.gz", QUESTION).text
    assert (MAYBE_LABELS in caplog.text) == is_unclear
    report = ingest(make_card(), tmp_path / "source", tmp_path / "data", DEMO_KEY)
    assert not report.quarantined
    assert (MAYBE_LABELS in [notice.text for notice in report.notices]) == is_unclear


@pytest.mark.parametrize("source", ["file", "folder", "study", "ingestion"])
@pytest.mark.parametrize("case", ["a dozen values", "plateaus"])
def test_a_magnitude_by_its_header_is_one_whatever_values_it_has(
    predictor: Predictor, tmp_path: Path, case: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answer_with(predictor, monkeypatch, "yes")
    values = _random((4, 28, 24), 0, 12) if case == "a dozen values" else np.kron(_random((4, 4, 4), 0, 99), np.ones((1, 7, 6)))
    paths = write_stack(tmp_path / "source", "s", values.astype(np.uint16))
    if source == "ingestion":
        card = make_card(formats=("DICOM",))
        assert not ingest(card, tmp_path / "source", tmp_path / "data", DEMO_KEY).quarantined
    elif source == "study":
        assert predictor.predict_study([tmp_path / "source"], QUESTION).text
    else:
        assert predictor.predict(paths[0] if source == "file" else tmp_path / "source", QUESTION).text


def test_kspace_is_that_of_an_image(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer_with(predictor, monkeypatch, "yes")
    write_fastmri(tmp_path / "a.h5", np.asarray(fft2c_numpy(_LABELS[:, None]), np.complex64))
    assert predictor.predict(tmp_path / "a.h5", QUESTION).text
