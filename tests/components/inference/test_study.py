"""Whole volumes and studies are answered in one sequence, in the geometry of the series in question."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from components.curation.text.template import parse_paragraph
from components.errors import BadInput
from components.inference import Predictor, Sampling, save
from components.inference.prediction import FoundVolumeBox
from components.inference.sliding_window import ResampledVolume
from components.inference.study import Study, StudyQuestion, StudySeries
from components.ingestion.study_reader import read_study
from components.ingestion.volume import Volume
from components.tasks.known_structures import NONE_KNOWN
from components.tasks.scope import Scope
from model_core.boxes import VolumeBox, format_boxes
from model_core.heads import image_decoder
from model_core.targets import TARGET_MASK
from tests.helpers.corpora import tiny_volume
from tests.helpers.dicom_files import SAGITTAL, random_pixels, write_series
from tests.helpers.real_world.common import ramp
from tests.helpers.real_world.nifti_files import write_nifti_file

CONDITIONAL_MEAN = Sampling()


@pytest.fixture
def volumes() -> list[Volume]:
    """Return a T1 and a T2 of different sizes; the first has fewer slices."""
    first, second = tiny_volume(0, matrix=40), tiny_volume(0, "T2-weighted", matrix=32)
    return [replace(first, voxels=first.voxels[:5], labels=None), replace(second, labels=None)]


def _question(predictor: Predictor, volumes: list[Volume], instruction: str) -> StudyQuestion:
    series = [StudySeries(ResampledVolume.from_volume(one, predictor.matrix, predictor.pixel_mm)) for one in volumes]
    return StudyQuestion(Study(predictor, tuple(series)), instruction, CONDITIONAL_MEAN)


def _answer_with(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr(StudyQuestion, "generate", lambda *_: answer)


@pytest.mark.parametrize(
    ("instruction", "named"),
    [
        ("Segment the lesion in this axial T2-weighted brain MRI.", 1),
        ("segment the lesion in the axial t1-weighted series", 0),
        ("Is there a lesion in the T2-weighted image?", 1),
        ("Is there a lesion?", 0),
    ],
)
def test_the_instruction_names_the_series(predictor: Predictor, volumes: list[Volume], instruction: str, named: int) -> None:
    assert _question(predictor, volumes, instruction).named == named


@pytest.mark.parametrize(
    ("instruction", "named"),
    [
        ("Segment the lesion in the FLAIR.", 1),
        ("Segment the lesion in the T2 FLAIR image.", 1),
        ("Segment the lesion on the T1c.", 2),
        ("Segment the lesion in the contrast-enhanced T1-weighted MRI.", 2),
        ("Segment the lesion in the T1 MRI.", 0),
        ("Segment the lesion in the coronal FLAIR.", 3),
        ("Segment the lesion in the FLAIR, which T1 does not show.", 1),
        ("Segment the lesion in the STIR.", 0),
    ],
)
def test_a_series_is_named_by_any_name_of_its_sequence(
    predictor: Predictor, volumes: list[Volume], instruction: str, named: int
) -> None:
    """As clinicians write them; of several series of a sequence, by the plane."""

    def like(sequence: str, plane: str = "axial") -> Volume:
        return replace(volumes[0], acquisition=replace(volumes[0].acquisition, sequence=sequence, plane=plane))  # type: ignore[arg-type]

    study = [like("T1-weighted"), like("T2-FLAIR"), like("T1-weighted post-contrast"), like("T2-FLAIR", "coronal")]
    assert _question(predictor, study, instruction).named == named


def test_a_question_in_other_words_is_still_about_the_series_that_it_names(
    predictor: Predictor, volumes: list[Volume], monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = Scope(("diagnosis",), ("brain",), ("T1-weighted", "T2-weighted"), {}, {"brain": ("lesion",)})
    asked: list[StudyQuestion] = []

    def generate(question: StudyQuestion, _: int) -> str:
        asked.append(question)
        return "yes, lesion"

    monkeypatch.setattr(StudyQuestion, "generate", generate)
    answer = replace(predictor, scope=scope).predict_study(volumes, "is there a lesion in the T2-weighted image")
    assert [(one.instruction, one.named) for one in asked] == [("Does this image suggest a lesion?", 1)]
    assert answer.text.startswith("Does this image suggest a lesion? ")


@pytest.mark.parametrize(("answer", "array"), [("<seg>", "mask"), ("<image>", "image")])
def test_masks_and_images_are_on_the_grid_of_the_named_series(
    predictor: Predictor, volumes: list[Volume], monkeypatch: pytest.MonkeyPatch, answer: str, array: str, tmp_path: Path
) -> None:
    _answer_with(monkeypatch, answer)
    for number, sequence in enumerate(("T1", "T2")):
        prediction = predictor.predict_study(
            volumes, f"Segment it in this axial {sequence}-weighted MRI.", Sampling(samples=2, steps=2)
        )
        values = getattr(prediction, array)
        assert values.shape == prediction.uncertainty.shape == volumes[number].voxels.shape
        assert {path.name for path in save(prediction, tmp_path / sequence)} == {
            f"{array}.nii",
            "uncertainty.nii",
            "picture.png",
            "answer.json",
        }


def test_an_untrained_decoder_returns_the_volume(
    predictor: Predictor, volumes: list[Volume], monkeypatch: pytest.MonkeyPatch
) -> None:
    _answer_with(monkeypatch, "<image>")
    prediction = predictor.predict_study(volumes[1:], "Reconstruct the image.")
    change = np.abs(prediction.image - volumes[1].voxels)
    assert change.max() < 0.05 * volumes[1].voxels.max()


def test_boxes_of_six_edges_are_in_voxels_of_the_series(
    predictor: Predictor, volumes: list[Volume], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pixels of the T2 are those of the network: half of the bins are half of the voxels.

    A model that knows no finding by name writes them.
    """
    predictor = replace(predictor, known=NONE_KNOWN)
    _answer_with(monkeypatch, format_boxes([VolumeBox("lesion", 64, 128, 128, 192, 32, 96)]))
    prediction = predictor.predict_study(volumes[1:], "Find any lesion.")
    assert prediction.volume_boxes == (FoundVolumeBox("lesion", 1, 8, 16, 3, 16, 24),)
    assert [box.slice_index for box in prediction.boxes] == [1, 2] and prediction.task == "detection"


def test_boxes_and_reports_rest_on_the_findings_of_the_volume(
    predictor: Predictor, volumes: list[Volume], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that knows its findings by name shows them on the slices that it reads: here a block of 2 x 6 x 6 voxels."""
    names = predictor.known.names
    logits = torch.full((1, len(names), 8, 32, 32), -20.0)
    logits[0, names.index("lesion"), 2:4, 8:14, 10:16] = 20
    mask = torch.zeros(1, 8, 32, 32)
    mask[0, 2:4, 8:14, 10:16] = 1
    monkeypatch.setattr(predictor.model, "show_structures", lambda *_, **__: (mask, logits))
    _answer_with(monkeypatch, "no lesion")
    prediction = predictor.predict_study(volumes[1:], "Find any lesion.")
    assert prediction.volume_boxes == (FoundVolumeBox("lesion", 2, 8, 10, 4, 14, 16),)
    _answer_with(monkeypatch, "Sequence: T2-FLAIR. Masses or suspicious lesions: no lesion. Suggestive of: no lesion.")
    report = predictor.predict_study(volumes[1:], "Report this image.").text
    assert "Sequence: T2-weighted. Plane: axial. Field strength: 3.0 T." in report and "no lesion" not in report
    assert parse_paragraph(report)["pathological_findings.masses_or_suspicious_lesions"].startswith("one lesion, ")


def test_thin_slices_are_read_as_thick_ones_and_shown_on_every_slice(predictor: Predictor) -> None:
    """Slices of 1 mm are averaged by four; masks and images keep every slice."""
    volume = tiny_volume(1)
    thin = replace(volume, affine=volume.affine @ np.diag([1 / 12, 1, 1, 1]), labels=None)
    series = StudySeries(ResampledVolume.from_volume(thin, predictor.matrix, predictor.pixel_mm))
    assert series.slices_joined == 4 and series.view.shape == (1, 2, 32, 32) and series.pixels.shape == (1, 8, 32, 32)
    np.testing.assert_allclose(series.view[0, 1], series.pixels[0, 4:].mean(0), atol=1e-6)
    shown = series.view_on_source(series.view[0].numpy())
    np.testing.assert_allclose(shown[5], series.pixels[0, 4:].mean(0), atol=1e-6)
    question = StudyQuestion(Study(predictor, (series,)), "Segment the white matter.")
    assert question.generate_samples("<seg>", TARGET_MASK).shape == (1, 8, 32, 32)


def test_all_questions_about_a_study_share_one_pass_of_the_encoder(
    predictor: Predictor, volumes: list[Volume], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features that are given change no answer."""
    question = _question(predictor, volumes, "Is there a lesion?")
    packed, encoded = question.study.pack(question.instruction), question.study.features
    arguments = (packed.input_ids_BL, packed.attention_mask_BL, question.study.images)
    with torch.no_grad():
        fresh = predictor.model(*arguments, grids_BG3=packed.grids_BG3)
        given = predictor.model(*arguments, grids_BG3=packed.grids_BG3, features_by_image=encoded)
    torch.testing.assert_close(given.logits, fresh.logits, rtol=0, atol=0)
    monkeypatch.setattr(predictor.model, "encode_images", None)
    assert question.generate(4) is not None and question.shown is not None and 0 < question.yes_probability() < 1


def test_structures_are_decoded_in_chunks(predictor: Predictor, volumes: list[Volume], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _question(predictor, volumes, "Find any lesion.").shown
    monkeypatch.setattr(image_decoder, "DECODED_VOXELS", 3 * 32 * 32)
    chunks = _question(predictor, volumes, "Find any lesion.").shown
    assert whole is not None and chunks is not None
    np.testing.assert_allclose(chunks.mask, whole.mask, atol=1e-5)


def test_a_diagnosis_is_one_pass(predictor: Predictor, volumes: list[Volume], monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the generated answer, which decides the task: every series is encoded once."""
    _answer_with(monkeypatch, "yes, lesion")
    calls: list[int] = []
    encode = predictor.model.encode_images
    monkeypatch.setattr(predictor.model, "encode_images", lambda images: calls.append(len(images)) or encode(images))
    prediction = predictor.predict_study(volumes, "Is there a lesion?")
    assert calls == [2] and prediction.task == "diagnosis" and "(p = 0." in prediction.text


def test_a_finding_of_a_whole_organ_is_predicted_by_volumetry(
    with_volumetry: Predictor, volumes: list[Volume], monkeypatch: pytest.MonkeyPatch
) -> None:
    _answer_with(monkeypatch, "no, no atrophy")
    assert with_volumetry.predict_study(volumes, "Is there an atrophy?").probability == pytest.approx(0.9)
    _answer_with(monkeypatch, "Modality: MRI. Suggestive of: no atrophy.")
    fields = parse_paragraph(with_volumetry.predict_study(volumes, "Write a report of this study.").text)
    assert fields["pathological_findings.structural_abnormalities"] == "atrophy"


def test_structures_are_measured_on_the_grid_of_their_series(
    with_volumetry: Predictor,
    volumes: list[Volume],
    measured_grids: list[tuple[tuple[int, ...], tuple[float, ...]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fine = [replace(volume, affine=volume.affine @ np.diag([1, 0.7, 0.7, 1])) for volume in volumes]
    _answer_with(monkeypatch, "no, no atrophy")
    with_volumetry.predict_study(fine, "Is there an atrophy?")
    [(shape, spacing_mm)] = measured_grids
    assert (shape, spacing_mm) in [(volume.voxels.shape, volume.spacing_mm) for volume in fine]


def test_generation_knows_every_series_and_its_header(predictor: Predictor, volumes: list[Volume]) -> None:
    """Another second series, or another header line, changes the states from which the answer is generated."""

    def states(chosen: list[Volume]) -> torch.Tensor:
        question = _question(predictor, chosen, "Is there a lesion?")
        packed = question.study.pack(question.instruction)
        with torch.no_grad():
            output = predictor.model(packed.input_ids_BL, None, question.study.images, grids_BG3=packed.grids_BG3)
        return output.hidden_states[0, -1]

    first, second = volumes
    flipped = replace(second, voxels=second.voxels[:, ::-1].copy())
    renamed = replace(second, acquisition=replace(second.acquisition, sequence="T2-FLAIR"))
    for other in (flipped, renamed):
        assert not torch.allclose(states([first, other]), states(volumes), atol=1e-6)


def test_a_dicom_study_is_read_by_series(tmp_path: Path) -> None:
    """A localizer of two planes is left out with its reason; the order is that of sequences and planes, not of files."""
    for number, (name, orientation) in enumerate((("z", (1.0, 0, 0, 0, 1, 0)), ("a", SAGITTAL))):
        write_series(tmp_path, name, random_pixels(4, 16, 16, seed=number), orientation, SeriesInstanceUID=f"1.2.{number}")
    for number, orientation in enumerate(((1.0, 0, 0, 0, 1, 0), SAGITTAL)):
        write_series(tmp_path, f"localizer{number}", random_pixels(3, 16, 16, seed=9), orientation, SeriesInstanceUID="1.2.9")
    sources, left_out = read_study([tmp_path])
    assert [one.volume.acquisition.plane for one in sources] == ["axial", "sagittal"]
    assert len(left_out) == 1 and "volumes" in left_out[0]


def test_images_of_two_visits_are_no_study(tmp_path: Path) -> None:
    for number, study in enumerate(("1.5", "1.6")):
        pixels = random_pixels(4, 16, 16, seed=number)
        write_series(tmp_path / "d", f"s{number}", pixels, StudyInstanceUID=study, SeriesInstanceUID=f"1.2.{number}")
        write_nifti_file(tmp_path / "n" / f"ses-{number}" / f"sub-1_ses-{number}_T1w.nii.gz", ramp(seed=number))
    for folder, noun in (("d", "studies"), ("n", "sessions")):
        with pytest.raises(BadInput, match=f"2 {noun}"):
            read_study([tmp_path / folder])


def test_a_bids_session_is_read_with_its_sidecars_and_without_its_masks(tmp_path: Path) -> None:
    anat = tmp_path / "sub-01" / "ses-1" / "anat"
    for number, suffix in enumerate(("T2w", "T1w", "FLAIR")):
        write_nifti_file(anat / f"sub-01_ses-1_{suffix}.nii.gz", ramp(seed=number))
    write_nifti_file(anat / "sub-01_ses-1_dseg.nii.gz", (ramp() > 200).astype(np.int16))
    (anat / "sub-01_ses-1_T1w.json").write_text('{"MagneticFieldStrength": 1.5, "PatientName": "Roe"}')
    sources, left_out = read_study([tmp_path / "sub-01" / "ses-1"])
    assert [one.volume.acquisition.sequence for one in sources] == ["T1-weighted", "T2-FLAIR", "T2-weighted"] and not left_out
    assert sources[0].volume.acquisition.field_strength_t == 1.5
    assert np.allclose(nib.load(sources[0].path).affine[:3, 3], nib.load(sources[1].path).affine[:3, 3])
