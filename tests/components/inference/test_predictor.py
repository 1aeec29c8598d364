"""An answer comes back on the grid of the image that was asked about."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from components.curation.corpus import Corpus
from components.errors import BadInput
from components.inference import Predictor, Sampling, resolve_model, save
from components.inference.planes import Planes
from components.inference.predictor import task_of
from components.ingestion.volume import Volume
from tests.corpora import tiny_corpus, tiny_volume
from tests.trained import tiny_model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def predictor(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(tiny_model(tmp_path_factory.mktemp("model"), corpus))


@pytest.fixture
def volume() -> Volume:
    return tiny_volume(0, matrix=40)


def _answering(predictor: Predictor, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr(Predictor, "_texts", lambda self, asked: [answer] * len(asked))


@pytest.mark.parametrize(
    ("answer", "task"),
    [
        ("<image>", "reconstruction"),
        ("<seg>", "segmentation"),
        ("<bbox>lesion(001,002,003,004)", "detection"),
        ("no lesion", "detection"),
        ("yes, lesion", "diagnosis"),
        ("no, no lesion", "diagnosis"),
        ("Modality: MRI.", "report"),
    ],
)
def test_the_form_of_the_answer_tells_the_task(answer: str, task: str) -> None:
    assert task_of(answer) == task


def test_a_mask_lies_on_the_grid_of_the_image(
    predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _answering(predictor, monkeypatch, "<seg>")
    prediction = predictor.predict(volume, "Segment the white matter.")
    assert prediction.mask is not None and prediction.mask.shape == volume.voxels.shape
    written = save(prediction, tmp_path)
    image = nib.load(tmp_path / "mask.nii")
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), prediction.mask)
    np.testing.assert_allclose(image.affine[:, [2, 1, 0, 3]], volume.affine)
    assert {path.name for path in written} == {"mask.nii", "picture.png", "answer.json"}
    assert json.loads((tmp_path / "answer.json").read_text())["task"] == "segmentation"


def test_an_untrained_decoder_gives_the_image_back(
    predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Its output starts as zero residual, so only the way to the model's grid and back changes anything."""
    _answering(predictor, monkeypatch, "<image>")
    prediction = predictor.predict(volume, "Reconstruct this image.")
    assert prediction.image is not None
    inner = (slice(None), slice(4, -4), slice(4, -4))
    assert np.corrcoef(prediction.image[inner].ravel(), volume.voxels[inner].ravel())[0, 1] > 0.95


def test_boxes_come_back_in_pixels_of_the_image(predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model sees 32 pixels over 216 mm, the image has 40 over the same: a box over everything covers everything."""
    _answering(predictor, monkeypatch, "<bbox>lesion(000,000,999,999)")
    boxes = predictor.predict(volume, "Find any lesion.").boxes
    assert boxes and {(b.row0, b.col0, b.row1, b.col1) for b in boxes} == {(0, 0, 40, 40)}


def test_a_box_without_a_pixel_is_no_box(predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    _answering(predictor, monkeypatch, "<bbox>lesion(500,500,501,900)")
    prediction = predictor.predict(volume, "Find any lesion.")
    assert not prediction.boxes and prediction.text == "no lesion"


def test_a_diagnosis_has_a_probability(predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    _answering(predictor, monkeypatch, "no, no lesion")
    prediction = predictor.predict(volume, "Is there a lesion?")
    assert prediction.task == "diagnosis" and "(p = 0." in prediction.text


def test_the_way_to_the_models_grid_and_back_is_the_identity_where_sizes_agree() -> None:
    planes = Planes.of(tiny_volume(1, matrix=32), 32, 6.75)
    assert planes.corners == ((0, 0),)
    np.testing.assert_allclose(planes.on_source(planes.voxels), planes.voxels, atol=1e-6)


def test_measured_kspace_is_kept(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the columns measured: the reconstruction has them as they were."""
    from dataclasses import replace

    from components.fourier import fft2c, ifft2c

    whole = tiny_volume(0, "T2-weighted", kspace=True, matrix=32)
    assert whole.kspace is not None
    measured = whole.kspace * (np.arange(32) % 2 == 0)
    given = replace(whole, kspace=measured.astype(np.complex64), voxels=np.abs(ifft2c(measured[:, 0])).astype(np.float32))
    _answering(predictor, monkeypatch, "<image>")
    prediction = predictor.predict(given, "Reconstruct this image.")
    assert prediction.image is not None
    phase = np.exp(1j * np.angle(ifft2c(measured[:, 0])))
    kept = fft2c(prediction.image * phase)[:, :, ::2] - measured[:, 0, :, ::2]
    assert np.abs(kept).max() < 0.1 * np.abs(measured).max()


def test_the_same_seed_gives_the_same_answer(predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    _answering(predictor, monkeypatch, "<seg>")
    first, second = (predictor.predict(volume, "Segment.", Sampling(seed=3)) for _ in range(2))
    assert torch.equal(torch.from_numpy(first.mask), torch.from_numpy(second.mask))


def test_wrong_questions_are_refused(predictor: Predictor, volume: Volume, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="empty instruction"):
        predictor.predict(volume, " ")
    with pytest.raises(BadInput, match="no such file"):
        predictor.predict(tmp_path / "nothing.nii", "Segment.")
    with pytest.raises(BadInput, match="at least one sample"):
        Sampling(samples=0)
    with pytest.raises(BadInput, match="save_pretrained"):
        resolve_model(tmp_path, "")
