"""An answer comes back on the grid of the image that was asked about."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from components.curation.corpus import Corpus
from components.errors import BadInput
from components.evaluation.metrics import psnr
from components.inference import Predictor, Sampling, resolve_model, save
from components.inference.prediction import FoundBox
from components.inference.predictor import task_of
from components.inference.sliding_window import ResampledVolume
from components.ingestion.volume import Acquisition, Volume
from components.tasks.detection import drop_duplicate_boxes
from model_core.mri_physics.coils import calibration_width, estimate_sensitivities, measured_columns
from model_core.mri_physics.fourier import fft2c, ifft2c
from tests.helpers.corpora import tiny_corpus, tiny_volume
from tests.helpers.trained import tiny_model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def predictor(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(tiny_model(tmp_path_factory.mktemp("model"), corpus))


@pytest.fixture
def volume() -> Volume:
    return tiny_volume(0, matrix=40)


def _answer_with(predictor: Predictor, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr(Predictor, "_generate", lambda self, prompts: [answer] * len(prompts))


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
    assert task_of(answer).name == task


def test_a_mask_lies_on_the_grid_of_the_image(
    predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _answer_with(predictor, monkeypatch, "<seg>")
    prediction = predictor.predict(volume, "Segment the white matter.")
    assert prediction.mask is not None and prediction.mask.shape == volume.voxels.shape
    written = save(prediction, tmp_path)
    image = nib.load(tmp_path / "mask.nii")
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), prediction.mask)
    np.testing.assert_allclose(image.affine[:, [2, 1, 0, 3]], volume.affine)
    assert {path.name for path in written} == {"mask.nii", "picture.png", "answer.json"}
    assert json.loads((tmp_path / "answer.json").read_text())["task"] == "segmentation"


def test_an_untrained_decoder_gives_the_image_back(predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its output starts as zero residual, so only the way to the model's grid and back changes anything."""
    _answer_with(predictor, monkeypatch, "<image>")
    prediction = predictor.predict(volume, "Reconstruct this image.")
    assert prediction.image is not None
    inner = (slice(None), slice(4, -4), slice(4, -4))
    assert np.corrcoef(prediction.image[inner].ravel(), volume.voxels[inner].ravel())[0, 1] > 0.95


def test_boxes_come_back_in_pixels_of_the_image(predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model sees 32 pixels over 216 mm, the image has 40 over the same: a box over everything covers everything."""
    _answer_with(predictor, monkeypatch, "<bbox>lesion(000,000,999,999)")
    boxes = predictor.predict(volume, "Find any lesion.").boxes
    assert boxes and {(b.row0, b.col0, b.row1, b.col1) for b in boxes} == {(0, 0, 40, 40)}


def test_a_box_without_a_pixel_is_no_box(predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer_with(predictor, monkeypatch, "<bbox>lesion(500,500,501,900)")
    prediction = predictor.predict(volume, "Find any lesion.")
    assert not prediction.boxes and prediction.text == "no lesion"


def test_a_diagnosis_has_a_probability(predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer_with(predictor, monkeypatch, "no, no lesion")
    prediction = predictor.predict(volume, "Is there a lesion?")
    assert prediction.task == "diagnosis" and "(p = 0." in prediction.text


def test_the_way_to_the_models_grid_and_back_is_the_identity_where_sizes_agree() -> None:
    resampled = ResampledVolume.from_volume(tiny_volume(1, matrix=32), 32, 6.75)
    assert resampled.corners == ((0, 0),)
    np.testing.assert_allclose(resampled.to_source_grid(resampled.voxels), resampled.voxels, atol=1e-6)


def test_measured_kspace_is_kept(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the columns measured: the reconstruction has them as they were."""
    whole = tiny_volume(0, "T2-weighted", kspace=True, matrix=32)
    assert whole.kspace is not None
    measured = whole.kspace * (np.arange(32) % 2 == 0)
    given = replace(whole, kspace=measured.astype(np.complex64), voxels=np.abs(ifft2c(measured[:, 0])).astype(np.float32))
    _answer_with(predictor, monkeypatch, "<image>")
    prediction = predictor.predict(given, "Reconstruct this image.")
    assert prediction.image is not None
    phase = np.exp(1j * np.angle(ifft2c(measured[:, 0])))
    kept = fft2c(prediction.image * phase)[:, :, ::2] - measured[:, 0, :, ::2]
    assert np.abs(kept).max() < 0.1 * np.abs(measured).max()


def test_the_same_seed_gives_the_same_answer(predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer_with(predictor, monkeypatch, "<seg>")
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


# Fields of tile larger than what the network looks at


def _wide(extent: int, *lesions: tuple[int, int]) -> Volume:
    """Three slices of ``extent`` pixels of the network's size, dark but for bright squares of eight pixels."""
    voxels = np.zeros((3, extent, extent), np.float32)
    for row, column in lesions:
        voxels[:, row : row + 8, column : column + 8] = 100
    return Volume(voxels, np.diag([5.0, 6.75, 6.75, 1.0]), Acquisition())


@settings(max_examples=50, deadline=None)
@given(st.integers(24, 90), st.lists(st.tuples(st.integers(0, 82), st.integers(0, 82)), min_size=1, max_size=3))
def test_no_foreground_is_outside_of_what_is_looked_at(extent: int, places: list[tuple[int, int]]) -> None:
    """Whatever the size of the plane and wherever the object: every bright pixel lies in a square of the network's size."""
    volume = _wide(extent, *[(min(row, extent - 8), min(column, extent - 8)) for row, column in places])
    resampled = ResampledVolume.from_volume(volume, 32, 6.75)
    seen = np.zeros(resampled.voxels.shape, bool)
    for tile in resampled.tiles(range(3)):
        assert resampled.crop(tile).shape == (32, 32)
        seen[tile.index, tile.row : tile.row + 32, tile.column : tile.column + 32] = True
    assert seen[resampled.voxels > 0.1].all()


@pytest.mark.parametrize(("place", "squares"), [((36, 36), 1), ((2, 70), 1)])
def test_a_small_object_is_seen_in_one_square(place: tuple[int, int], squares: int) -> None:
    resampled = ResampledVolume.from_volume(_wide(80, place), 32, 6.75)
    assert len(resampled.corners) == squares
    if place == (36, 36):
        assert resampled.corners == ((24, 24),)  # the middle, as in training


def test_overlapping_squares_blend_to_what_they_agree_on() -> None:
    resampled = ResampledVolume.from_volume(_wide(80, (0, 0), (72, 72)), 32, 6.75)
    tiles = resampled.tiles(range(3))
    assert len(resampled.corners) == 16
    made = np.stack([resampled.crop(tile)[None] for tile in tiles])
    np.testing.assert_allclose(resampled.blend(tiles, made)[0], resampled.voxels, atol=1e-5)


def test_a_large_image_keeps_every_pixel(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detail that the network's grid cannot hold is kept: its change is added to the image, here none."""
    torch.manual_seed(0)
    voxels = np.random.default_rng(0).uniform(0, 100, (2, 200, 180)).astype(np.float32)
    _answer_with(predictor, monkeypatch, "<image>")
    prediction = predictor.predict(Volume(voxels, np.diag([5.0, 1.5, 1.5, 1.0]), Acquisition()), "Reconstruct this image.")
    np.testing.assert_allclose(prediction.image, voxels, atol=1e-3)


def test_a_lesion_found_by_two_squares_is_one() -> None:
    one, again, other = (
        FoundBox("lesion", 0, 0, 0, 10, 10),
        FoundBox("lesion", 0, 1, 0, 10, 10),
        FoundBox("lesion", 1, 0, 0, 10, 10),
    )
    assert drop_duplicate_boxes([again, one, other]) == [one, other]


# k-space


def _multicoil(matrix: int) -> tuple[Volume, NDArray[np.float32]]:
    """Two slices seen by four coils, every second column and 14 in the middle measured; and the truth."""
    whole = tiny_volume(0, "T2-weighted", matrix=matrix)
    truth = whole.voxels[3:5]
    grid = np.linspace(-1, 1, matrix)
    places = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    raw = [np.exp(-((grid[:, None] - y) ** 2 + (grid[None] - x) ** 2) / 4 + 0.4j * y * grid[:, None]) for y, x in places]
    maps = np.stack(raw) / np.sqrt((np.abs(raw) ** 2).sum(0))
    columns = (np.arange(matrix) % 2 == 0) | (np.abs(np.arange(matrix) - matrix // 2) < 8)
    kspace = (fft2c(maps * truth[:, None]) * columns).astype(np.complex64)
    combined = np.sqrt((np.abs(ifft2c(kspace)) ** 2).sum(1)).astype(np.float32)
    return replace(whole, voxels=combined, kspace=kspace, labels=None), truth


@pytest.mark.parametrize("matrix", [32, 48])
def test_several_coils_unfold_what_they_measured(predictor: Predictor, monkeypatch: pytest.MonkeyPatch, matrix: int) -> None:
    """On the network's grid and on a finer one: the measurement of every coil is kept, by maps estimated from its own centre."""
    volume, truth = _multicoil(matrix)
    _answer_with(predictor, monkeypatch, "<image>")
    prediction = predictor.predict(volume, "Reconstruct this image.")
    assert prediction.image is not None
    zero_filled = ResampledVolume.from_volume(volume, 32, 6.75).zero_filled
    assert zero_filled is not None
    scale = float(truth.max())
    gained = psnr(prediction.image, truth, scale) - psnr(volume.voxels, truth, scale)
    assert gained > 6


def test_maps_are_espirit_where_its_calibration_fits_and_smooth_images_elsewhere() -> None:
    volume, _ = _multicoil(48)
    assert volume.kspace is not None
    assert calibration_width(measured_columns(volume.kspace)) == 16
    narrow = volume.kspace * (np.abs(np.arange(48) - 24) != 3)
    assert calibration_width(measured_columns(narrow)) < 12
    for kspace in (volume.kspace, narrow):
        maps = estimate_sensitivities(kspace.astype(np.complex64))
        inside = np.abs(ifft2c(volume.kspace)).sum(1) > 0.3 * np.abs(ifft2c(volume.kspace)).sum(1).max()
        np.testing.assert_allclose((np.abs(maps) ** 2).sum(1)[inside], 1, atol=1e-3)
    columns = measured_columns(volume.kspace + 1e-9 * volume.kspace.max())
    assert columns.sum() == (np.abs(volume.kspace).max((0, 1, 2)) > 0).sum()  # rounding is no measurement


# Samples, many at once, and text as it is written


def test_several_samples_have_a_deviation(
    predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _answer_with(predictor, monkeypatch, "<seg>")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in predictor.model.image_decoder.output.parameters():
            monkeypatch.setattr(parameter, "data", 0.3 * torch.randn_like(parameter))
    one = predictor.predict(volume, "Segment.")
    assert one.uncertainty is None
    many = predictor.predict(volume, "Segment.", Sampling(steps=2, sampler="heun", samples=3))
    assert many.uncertainty is not None and many.uncertainty.shape == volume.voxels.shape
    assert 0 < float(many.uncertainty.max()) <= 1
    assert "uncertainty.nii" in {path.name for path in save(many, tmp_path)}
    np.testing.assert_allclose(np.asarray(nib.load(tmp_path / "uncertainty.nii").dataobj).transpose(2, 1, 0), many.uncertainty)


def test_many_requests_have_the_answers_of_one_by_one(predictor: Predictor) -> None:
    requests = [
        (tiny_volume(seed, matrix=32), instruction) for seed, instruction in enumerate(["Report.", "Segment the lesion now."])
    ]
    together = predictor.predict_many(requests)
    assert [answer.text for answer in together] == [predictor.predict(*request).text for request in requests]


def test_streamed_pieces_are_the_answer(predictor: Predictor, volume: Volume) -> None:
    """Those of a trained one are its words: see ``test_overfit.py``."""
    assert "".join(predictor.stream(volume, "Report this image.")).strip() == predictor.predict(volume, "Report this image.").text


def test_a_failure_while_streaming_is_raised(predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(predictor.model, "generate_text", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(predictor.stream(volume, "Report this image."))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASR"])
def test_a_mask_lies_on_the_grid_of_an_oblique_nifti(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, codes: str
) -> None:
    """Same shape, same affine, same voxel: whatever the order of its axes, the file and its mask are one grid."""
    rng = np.random.default_rng(1)
    turn = Rotation.from_euler("xyz", [12, -8, 20], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag([6.75, 6.75, 12.0]), (-90, 40, 7)
    values = np.zeros((30, 26, 5), np.float32)
    values[8:14, 5:20, 1:4] = rng.uniform(50, 100, (6, 15, 3))
    image = nib.Nifti1Image(values, affine)
    image = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes)))
    nib.save(image, tmp_path / "oblique.nii")

    def bright(ids: object, mask: object, pixels: torch.Tensor, *_: object, **how: object) -> torch.Tensor:
        return (pixels > 0.3).float()[None]

    monkeypatch.setattr(predictor.model, "generate_images", bright)
    _answer_with(predictor, monkeypatch, "<seg>")
    save(predictor.predict(tmp_path / "oblique.nii", "Segment."), tmp_path / "out")
    made = nib.load(tmp_path / "out" / "mask.nii")
    np.testing.assert_array_equal(made.affine, nib.load(tmp_path / "oblique.nii").affine)
    assert made.shape == image.shape
    truth, mask = np.asarray(image.dataobj) > 0, np.asarray(made.dataobj) > 0
    assert 2 * (truth & mask).sum() / (truth.sum() + mask.sum()) > 0.97


@pytest.mark.parametrize(("answer", "task"), [("<seg>", "segmentation"), ("no lesion", "detection"), ("yes, lesion", "diagnosis")])
def test_progress_counts_images_answers_and_tiles(
    predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch, answer: str, task: str
) -> None:
    _answer_with(predictor, monkeypatch, answer)
    reports: list[tuple[str, int, int]] = []
    predictor.predict(volume, "Question?", progress=lambda phase, done, total: reports.append((phase, done, total)))
    assert list(dict.fromkeys(phase for phase, _, _ in reports)) == ["reading", "answering", task]
    for phase in ("reading", "answering", task):
        counts = [(done, total) for name, done, total in reports if name == phase]
        assert counts == sorted(counts) and counts[-1][0] == counts[-1][1] > 0
