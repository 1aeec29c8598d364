"""An answer is on the grid of the input image."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from components.curation.text.header_facts import HeaderFacts
from components.curation.text.template import parse_paragraph, with_fields
from components.errors import BadInput
from components.evaluation.metrics import psnr
from components.inference import Predictor, Sampling, resolve_model, save
from components.inference.prediction import FoundBox
from components.inference.predictor import task_of
from components.inference.question import Question
from components.inference.sliding_window import ResampledVolume
from components.ingestion.volume import Acquisition, Volume
from components.tasks.findings import find_volume_outlines
from components.tasks.known_structures import KnownStructures
from components.tasks.scope import Scope
from model_core.mri_physics.coils import calibration_width, estimate_sensitivities, measured_columns
from model_core.mri_physics.fourier import fft2c_numpy, ifft2c_numpy
from tests.helpers.corpora import tiny_volume
from tests.helpers.real_world.nifti_files import write_nifti_file


@pytest.fixture
def volume() -> Volume:
    return tiny_volume(0, matrix=40)


def _answer_with(predictor: Predictor, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr(Predictor, "_generate", lambda self, prompts, *_: [answer] * len(prompts))


@pytest.mark.parametrize(
    ("answer", "task"),
    [
        ("<image>", "reconstruction"),
        ("<seg>", "segmentation"),
        ("<bbox>lesion<loc001><loc002><loc003><loc004>", "detection"),
        ("no lesion", "detection"),
        ("yes, lesion", "diagnosis"),
        ("no, no lesion", "diagnosis"),
        ("Modality: MRI.", "report"),
    ],
)
def test_the_form_of_the_answer_decides_the_task(answer: str, task: str) -> None:
    assert task_of(answer).name == task


def test_a_mask_is_on_the_grid_of_the_image(
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


@pytest.mark.parametrize(
    ("name", "sidecar", "stated"),
    [
        ("sub-01_T2w.nii", None, "axial T2-weighted MRI"),
        ("sub-01_FLAIR.nii", {"MagneticFieldStrength": 3}, "axial T2-FLAIR MRI, 3.0 T"),
        ("scan.nii", {"Sequence": "PD-FS"}, "axial PD-FS MRI"),
        ("scan.nii", None, "axial MRI"),
    ],
)
def test_the_question_about_a_file_states_its_sidecar_and_the_sequence_of_its_name(
    predictor: Predictor, volume: Volume, tmp_path: Path, name: str, sidecar: dict[str, object] | None, stated: str
) -> None:
    """As in training, and as for the series of a study: without it, a model guesses the sequence from the words of the question."""
    path = write_nifti_file(tmp_path / name, volume.voxels.transpose(2, 1, 0))
    if sidecar is not None:
        path.with_suffix(".json").write_text(json.dumps(sidecar))
    [question] = predictor._read_questions([(path, "Report this image.")], Sampling(), lambda *_: None)
    assert question.text.startswith(f"{stated}, ")


def test_an_untrained_decoder_returns_the_image(predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its output is initialized to a zero residual: only resampling to the model's grid and back has an effect."""
    _answer_with(predictor, monkeypatch, "<image>")
    prediction = predictor.predict(volume, "Reconstruct this image.")
    assert prediction.image is not None
    inner = (slice(None), slice(4, -4), slice(4, -4))
    assert np.corrcoef(prediction.image[inner].ravel(), volume.voxels[inner].ravel())[0, 1] > 0.95


def test_boxes_are_in_pixels_of_the_image(predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tile has 32 pixels over 216 mm, the image 40 pixels: half of the tile's mask is half of the image.

    The outermost pixels of the image lie beyond the centers of the tile's.
    """
    _answer_with(predictor, monkeypatch, "<bbox>lesion<loc001>")
    _mask_rows(predictor, monkeypatch, 16)
    prediction = predictor.predict(volume, "Find any lesion.")
    assert {(b.row0, b.col0, b.row1, b.col1) for b in prediction.boxes} == {(1, 1, 20, 39)}
    assert {b.label for b in prediction.boxes} == {"lesion"} and prediction.text.startswith(f"{len(prediction.boxes)} boxes on")


def test_an_answer_replaces_an_earlier_one_in_its_folder_and_nothing_else(
    predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mask.nii").write_bytes(b"somebody's own")
    _answer_with(predictor, monkeypatch, "Modality: MRI.")
    save(predictor.predict(volume, "Report this image."), tmp_path)
    assert (tmp_path / "mask.nii").read_bytes() == b"somebody's own"  # the folder had no answer
    _answer_with(predictor, monkeypatch, "<seg>")
    save(predictor.predict(volume, "Segment the white matter."), tmp_path)
    (tmp_path / "notes.txt").touch()
    _answer_with(predictor, monkeypatch, "Modality: MRI.")
    save(predictor.predict(volume, "Report this image."), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"answer.json", "picture.png", "notes.txt"}


def test_boxes_and_reports_are_of_the_same_findings(predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small one that the next slice shows, too, counts; what only one of several slices shows does not."""
    mask = np.zeros(volume.voxels.shape, np.float32)
    mask[2:4, 4:8, 4:8] = 0.9
    mask[3, 20:32, 20:32] = 0.9
    kinds = {"lesion": mask}
    monkeypatch.setattr("components.tasks.detection.finding_masks", lambda *_: (mask, kinds))
    _answer_with(predictor, monkeypatch, "<bbox>lesion<loc001>")
    boxes = predictor.predict(volume, "Find any lesion.").boxes
    assert [(b.label, b.slice_index, b.row0, b.col0, b.row1, b.col1) for b in boxes] == [
        ("lesion", index, 4, 4, 8, 8) for index in (2, 3)
    ]
    found = find_volume_outlines(mask, kinds, volume.spacing_mm)
    assert {(one.slices, one.rows, one.columns) for one in found} == {((2, 4), (4, 8), (4, 8))}


@pytest.mark.parametrize(("extent", "pixel_mm"), [(80, 6.75), (64, 3.0), (20, 9.0)])
def test_a_box_is_drawn_where_its_voxels_are_in_the_picture(predictor: Predictor, extent: int, pixel_mm: float) -> None:
    """The picture shows a tile of the network, whose pixels have another size and begin elsewhere."""
    voxels = np.zeros((3, extent, extent), np.float32)
    row, column, size = extent // 2, extent // 3, extent // 5
    voxels[:, row : row + size, column : column + size] = 1
    volume = Volume(voxels, np.diag([6.0, pixel_mm, pixel_mm, 1.0]), Acquisition())
    resampled = ResampledVolume.from_volume(volume, predictor.matrix, predictor.pixel_mm)
    prediction = Question(resampled, "").prediction("detection", "", [resampled.richest_tile(1)])
    top, left, height, width = prediction.box_on_preview(FoundBox("lesion", 1, row, column, row + size, column + size))
    bright = prediction.preview > 0.5
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    expected = (rows[0] - 0.5, columns[0] - 0.5, len(rows), len(columns))
    np.testing.assert_allclose((top, left, height, width), expected, atol=1)


def test_without_a_mask_there_is_no_lesion(predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer_with(predictor, monkeypatch, "<bbox>lesion<loc001>")
    _mask_rows(predictor, monkeypatch, 0)
    prediction = predictor.predict(volume, "Find any lesion.")
    assert not prediction.boxes and prediction.text == "no lesion"


def _mask_rows(predictor: Predictor, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Let the image decoder mark the first rows of every tile, and call them a lesion."""

    def masks(ids: object, mask: object, pixels: torch.Tensor, *_: object, **how: object) -> torch.Tensor:
        marked = torch.zeros_like(pixels)
        marked[..., :rows, :] = 1
        return marked[None]

    def shown(ids: object, mask: object, pixels: torch.Tensor, names: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        marked = torch.zeros_like(pixels[:, 0])
        marked[..., :rows, :] = 1
        logits = torch.full((len(pixels), len(names), *pixels.shape[2:]), -20.0)
        logits[:, predictor.known.names.index("lesion"), :, :rows] = 20
        return marked, logits

    monkeypatch.setattr(predictor.model, "generate_images", masks)
    monkeypatch.setattr(predictor.model, "show_structures", shown)


def test_a_diagnosis_has_a_probability(predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer_with(predictor, monkeypatch, "no, no lesion")
    prediction = predictor.predict(volume, "Is there a lesion?")
    assert prediction.task == "diagnosis" and "(p = 0." in prediction.text


def test_a_finding_of_a_whole_organ_is_predicted_by_volumetry(
    with_volumetry: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In diagnosis and report alike, whatever the text says; of other findings, volumes tell nothing."""
    _answer_with(with_volumetry, monkeypatch, "no, no atrophy")
    asked = with_volumetry.predict(volume, "Is there an atrophy?")
    assert asked.probability == pytest.approx(0.9) and asked.text.startswith("yes (p = 0.90")
    assert with_volumetry.predict(volume, "Is there a lesion?").probability != pytest.approx(0.9)
    _answer_with(with_volumetry, monkeypatch, "Modality: MRI. Suggestive of: no atrophy.")
    fields = parse_paragraph(with_volumetry.predict(volume, "Write a report of this image.").text)
    assert fields["pathological_findings.structural_abnormalities"] == "atrophy"
    assert fields["diagnostic_impression.suggestive_of"].endswith(", atrophy")


def test_structures_are_measured_on_the_grid_of_the_image(
    with_volumetry: Predictor,
    volume: Volume,
    measured_grids: list[tuple[tuple[int, ...], tuple[float, ...]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not on that of the network, whose pixels have another size."""
    fine = replace(volume, affine=volume.affine @ np.diag([1, 0.7, 0.7, 1]))
    assert not np.isclose(fine.spacing_mm[1], with_volumetry.pixel_mm)
    _answer_with(with_volumetry, monkeypatch, "no, no atrophy")
    with_volumetry.predict(fine, "Is there an atrophy?")
    _answer_with(with_volumetry, monkeypatch, "Modality: MRI. Suggestive of: no atrophy.")
    with_volumetry.predict(fine, "Write a report of this image.")
    assert measured_grids == [(fine.voxels.shape, fine.spacing_mm)] * 2


def test_measured_kspace_is_preserved(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the columns are measured; the reconstruction has the same values there."""
    whole = tiny_volume(0, "T2-weighted", kspace=True, matrix=32)
    assert whole.kspace is not None
    measured = whole.kspace * (np.arange(32) % 2 == 0)
    undersampled = replace(
        whole, kspace=measured.astype(np.complex64), voxels=np.abs(ifft2c_numpy(measured[:, 0])).astype(np.float32)
    )
    _answer_with(predictor, monkeypatch, "<image>")
    prediction = predictor.predict(undersampled, "Reconstruct this image.")
    assert prediction.image is not None
    phase = np.exp(1j * np.angle(ifft2c_numpy(measured[:, 0])))
    difference = fft2c_numpy(prediction.image * phase)[:, :, ::2] - measured[:, 0, :, ::2]
    assert np.abs(difference).max() < 0.1 * np.abs(measured).max()


def test_the_same_seed_gives_the_same_answer(predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer_with(predictor, monkeypatch, "<seg>")
    first, second = (predictor.predict(volume, "Segment.", Sampling(seed=3)) for _ in range(2))
    assert torch.equal(torch.from_numpy(first.mask), torch.from_numpy(second.mask))


def test_invalid_requests_are_rejected(predictor: Predictor, volume: Volume, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="empty instruction"):
        predictor.predict(volume, " ")
    with pytest.raises(BadInput, match="no such file"):
        predictor.predict(tmp_path / "nothing.nii", "Segment.")
    with pytest.raises(BadInput, match="at least one sample"):
        Sampling(samples=0)
    with pytest.raises(BadInput, match="conditional mean"):
        Sampling(samples=2)
    with pytest.raises(BadInput, match="save_pretrained"):
        resolve_model(tmp_path, "")


def test_a_large_image_preserves_every_pixel(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detail finer than the network's grid is preserved, because its change, here zero, is added to the image."""
    torch.manual_seed(0)
    voxels = np.random.default_rng(0).uniform(0, 100, (2, 200, 180)).astype(np.float32)
    _answer_with(predictor, monkeypatch, "<image>")
    prediction = predictor.predict(Volume(voxels, np.diag([5.0, 1.5, 1.5, 1.0]), Acquisition()), "Reconstruct this image.")
    np.testing.assert_allclose(prediction.image, voxels, atol=1e-3)


# k-space


def _multicoil(matrix: int) -> tuple[Volume, NDArray[np.float32]]:
    """Return two slices of four coils, with every second column and 15 central columns measured, and the true image."""
    whole = tiny_volume(0, "T2-weighted", matrix=matrix)
    truth = whole.voxels[3:5]
    grid = np.linspace(-1, 1, matrix)
    positions = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    raw = [np.exp(-((grid[:, None] - y) ** 2 + (grid[None] - x) ** 2) / 4 + 0.4j * y * grid[:, None]) for y, x in positions]
    maps = np.stack(raw) / np.sqrt((np.abs(raw) ** 2).sum(0))
    columns = (np.arange(matrix) % 2 == 0) | (np.abs(np.arange(matrix) - matrix // 2) < 8)
    kspace = (fft2c_numpy(maps * truth[:, None]) * columns).astype(np.complex64)
    combined = np.sqrt((np.abs(ifft2c_numpy(kspace)) ** 2).sum(1)).astype(np.float32)
    return replace(whole, voxels=combined, kspace=kspace, labels=None), truth


@pytest.mark.parametrize("matrix", [32, 48])
def test_several_coils_resolve_aliasing(predictor: Predictor, monkeypatch: pytest.MonkeyPatch, matrix: int) -> None:
    """On the network's grid and on a finer one, the result agrees with every coil, with maps from the calibration region."""
    volume, truth = _multicoil(matrix)
    _answer_with(predictor, monkeypatch, "<image>")
    prediction = predictor.predict(volume, "Reconstruct this image.")
    assert prediction.image is not None
    resampled, scale = ResampledVolume.from_volume(volume, 32, 6.75), float(truth.max())
    assert resampled.first_image is not None
    images = (volume.voxels, resampled.first_image * np.float32(resampled.scale), prediction.image)
    combined, first, final = (psnr(one, truth, scale) for one in images)
    assert first > combined + 3 and final > combined + 6


def test_maps_are_espirit_if_its_calibration_fits_and_low_resolution_images_otherwise() -> None:
    volume, _ = _multicoil(48)
    assert volume.kspace is not None
    assert calibration_width(measured_columns(volume.kspace)) == 16
    narrow = volume.kspace * (np.abs(np.arange(48) - 24) != 3)
    assert calibration_width(measured_columns(narrow)) < 12
    for kspace in (volume.kspace, narrow):
        maps = estimate_sensitivities(kspace.astype(np.complex64))
        inside = np.abs(ifft2c_numpy(volume.kspace)).sum(1) > 0.3 * np.abs(ifft2c_numpy(volume.kspace)).sum(1).max()
        np.testing.assert_allclose((np.abs(maps) ** 2).sum(1)[inside], 1, atol=1e-3)
    columns = measured_columns(volume.kspace + 1e-9 * volume.kspace.max())
    assert columns.sum() == (np.abs(volume.kspace).max((0, 1, 2)) > 0).sum()  # rounding is not a measurement


# Samples, batches, streaming, progress


def test_several_samples_have_an_uncertainty(
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


BRAIN = Scope(
    ("segmentation", "detection", "diagnosis", "report"),
    ("brain",),
    (),
    {"brain": ("grey matter", "lesion")},
    {"brain": ("lesion", "tumor")},
)


@pytest.mark.parametrize(
    ("instruction", "asked", "text"),
    [
        ("Segment the gray matter.", "Segment the grey matter.", "segmentation of"),
        ("Is a tumour present?", "Is a tumor present?", "yes (p ="),
        ("is there a Tumour", "Does this image suggest a tumor?", "Does this image suggest a tumor? yes (p ="),
        ("Is this brain normal?", "Does this image suggest a lesion?", "Does this image suggest a lesion? yes (p ="),
    ],
)
def test_the_network_is_asked_in_words_of_its_training_data(
    predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch, instruction: str, asked: str, text: str
) -> None:
    """An answer repeats the question that was asked: to "Is this brain normal?", a bare "yes" would mislead."""
    questions: list[str] = []

    def generate(self: Predictor, prompts: Sequence[tuple[Question, object]], *_: object) -> list[str]:
        questions.extend(question.instruction for question, _ in prompts)
        return ["<seg>" if "Segment" in instruction else "yes"] * len(prompts)

    monkeypatch.setattr(Predictor, "_generate", generate)
    monkeypatch.setattr(Predictor, "yes_probabilities", lambda self, question, tiles, task: [0.9] * len(tiles))
    [prediction] = replace(predictor, scope=BRAIN).predict_many([(volume, instruction)])
    assert questions == [asked] and prediction.text.startswith(text)


def test_a_streamed_answer_begins_with_the_question_that_was_asked(predictor: Predictor, volume: Volume) -> None:
    asking = replace(predictor, scope=BRAIN)
    assert next(asking.stream(volume, "Is this brain normal?")) == "Does this image suggest a lesion? "


def test_the_anatomy_is_that_of_the_users_own_words(predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question about a knee is answered from structures of knees, also where "knee" is not in the question to the network."""
    seen: list[str] = []
    known = type(predictor.known).in_anatomy

    def in_anatomy(self: KnownStructures, header: str | None, question: str, recognized: str | None) -> KnownStructures:
        seen.append(question)
        return known(self, header, question, recognized)

    monkeypatch.setattr(KnownStructures, "in_anatomy", in_anatomy)
    _answer_with(predictor, monkeypatch, "yes, lesion")
    replace(predictor, scope=BRAIN).predict_many([(volume, "Is this brain normal?")])
    assert set(seen) == {"Is this brain normal?"}


def test_batched_requests_have_the_same_answers_as_single_ones(predictor: Predictor) -> None:
    requests = [
        (tiny_volume(seed, matrix=32), instruction) for seed, instruction in enumerate(["Report.", "Segment the lesion now."])
    ]
    batched = predictor.predict_many(requests)
    assert [answer.text for answer in batched] == [predictor.predict(*request).text for request in requests]


def test_streamed_pieces_make_up_the_answer(predictor: Predictor, volume: Volume) -> None:
    """Streaming of a trained model is tested in ``test_overfit.py``."""
    streamed = "".join(predictor.stream(volume, "Report this image.")).strip()
    facts = HeaderFacts.of_volume(volume).fields  # copied into the report when it is complete
    assert with_fields(streamed, facts) == predictor.predict(volume, "Report this image.").text


def test_a_failure_while_streaming_is_raised(predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(predictor.model, "generate_text", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(predictor.stream(volume, "Report this image."))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASR"])
def test_a_mask_is_on_the_grid_of_an_oblique_nifti(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, codes: str
) -> None:
    """File and mask have the same shape, affine and voxels, for every order of the axes."""
    rng = np.random.default_rng(1)
    rotation = Rotation.from_euler("xyz", [12, -8, 20], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation @ np.diag([6.75, 6.75, 12.0]), (-90, 40, 7)
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
    written = nib.load(tmp_path / "out" / "mask.nii")
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "oblique.nii").affine)
    assert written.shape == image.shape
    truth, mask = np.asarray(image.dataobj) > 0, np.asarray(written.dataobj) > 0
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
