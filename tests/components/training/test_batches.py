"""Batches are a function of the step, the same in any process, and contain what the stage needs."""

import re
import signal
import threading
from contextlib import closing
from itertools import islice
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.curation.corpus import Corpus
from components.registries import STAGES
from components.settings import MixtureSettings, StageName, StageSettings
from components.training.augmentation import AffineParams
from components.training.batches import StageBatches
from components.training.loader import load_batches
from components.training.mixture import ALONE, Rank
from components.training.samples import Samples, task_of_source
from components.training.stages.vision_pretraining import BLOCK_SLICES
from components.training.volume_batches import step_scope
from model_core.batch import IGNORE, Batch, SequenceBatch, select_slices
from model_core.boxes import parse_boxes
from model_core.config import OmniMRIConfig
from model_core.mri_physics.fourier import fft2c, ifft2c
from model_core.processing import Processor
from model_core.targets import TARGET_IMAGE, TARGET_MASK
from model_core.tokenization import special_ids
from tests.helpers.corpora import LABEL_MAP, tiny_corpus

SHARES: dict[StageName, MixtureSettings] = {
    "vision_pretraining": MixtureSettings(image_only=1),
    "alignment": MixtureSettings(paired=1),
    "multimodal_pretraining": MixtureSettings(paired=0.8, instruction=0.2),
    "instruction_tuning": MixtureSettings(instruction=1),
}


@pytest.fixture(autouse=True)
def exit_calls_of_this_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked workers end without the exit calls of other tests in this process: those of Prefect raise in a fork.

    A trainer process has none of them: `components` may not import Prefect (`lint-imports`).
    """
    monkeypatch.setattr(threading, "_threading_atexits", [])


def _batches(
    corpus: Corpus, processor: Processor, stage: StageName, rank: Rank = ALONE, micro: int = 4, accumulation: int = 1
) -> StageBatches:
    config = OmniMRIConfig.from_preset("debug", len(processor.tokenizer), **special_ids(processor.tokenizer))
    settings = StageSettings(steps=9, micro_batch=micro, gradient_accumulation=accumulation, mixture=SHARES[stage])
    return StageBatches(STAGES[stage], Samples.from_corpus(corpus, "train"), settings, config, processor, 0, rank)


def _equal(a: Batch, b: Batch) -> bool:
    values = [(getattr(a, name), getattr(b, name)) for name in vars(a)]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in values)


@pytest.mark.parametrize("stage", SHARES)
def test_a_resumed_run_sees_the_batches_of_a_whole_one(corpus: Corpus, processor: Processor, stage: StageName) -> None:
    whole = list(load_batches(_batches(corpus, processor, stage), range(6), workers=0))
    again = list(load_batches(_batches(corpus, processor, stage), range(3, 6), workers=0))
    assert all(_equal(a[0], b[0]) for a, b in zip(whole[3:], again, strict=True))


def test_undersampling_of_several_coils_is_drawn_in_training_and_named_by_the_instruction(
    tmp_path: Path, processor: Processor
) -> None:
    """The input is the first image of the measurement of the objective; patients of one coil stay as they are."""
    corpus = tiny_corpus(tmp_path, patients=4, coils=3)
    batches = _batches(corpus, processor, "instruction_tuning", micro=6)
    whole, again = ([one[0] for one in load_batches(batches, steps, 0)] for steps in (range(12), range(9, 12)))
    assert all(_equal(a, b) for a, b in zip(whole[9:], again, strict=True))
    sampled, named = set(), set()
    for batch in whole:
        rows = batch.measured.has_coils_B
        if not rows.any():
            continue
        measured = batch.measured.rows(rows)
        torch.testing.assert_close(measured.first_image().abs(), batch.pixel_values_B1DHW[rows, 0], atol=1e-5, rtol=1e-4)
        sampled |= {tuple(mask.tolist()) for mask in measured.sampling_BDHW[:, 0, 0]}
        texts = [processor.decode(ids[ids > 0].tolist()) for ids in batch.input_ids_BL[rows]]
        named |= {match for text in texts for match in re.findall(r"\d+(?=x)", text)}
        assert _is_one_coil(batch, ~rows & (batch.target_kind_B == TARGET_IMAGE))
    assert len(sampled) > 5 and len(named) > 1


def _is_one_coil(batch: SequenceBatch, rows: torch.Tensor) -> bool:
    """Return whether measurements have the sensitivity 1 in the first coil and 0 in the others."""
    maps = batch.measured.rows(rows).coil_maps_BCDHW
    return maps is not None and bool((maps[:, 0] == 1).all()) and not bool(maps[:, 1:].any())


def test_worker_processes_load_the_same_batches(corpus: Corpus, processor: Processor) -> None:
    stage_batches = _batches(corpus, processor, "instruction_tuning")
    alone, ahead = (list(load_batches(stage_batches, range(5), workers)) for workers in (0, 2))
    assert all(_equal(a[0], b[0]) for a, b in zip(alone, ahead, strict=True))


def test_workers_continue_when_their_process_group_is_stopped(corpus: Corpus, processor: Processor) -> None:
    """The trainer finishes its step and writes a checkpoint."""
    stage_batches = _batches(corpus, processor, "alignment")
    with closing(load_batches(stage_batches, range(6), 1)) as loaded:
        next(loaded)
        for child in psutil.Process().children():
            child.send_signal(signal.SIGTERM)
            child.send_signal(signal.SIGHUP)
            child.send_signal(signal.SIGINT)
        assert len(list(loaded)) == 5


@pytest.mark.parametrize("step", [0, 3], ids=["slices", "blocks"])
def test_two_processes_share_the_samples_of_one(corpus: Corpus, processor: Processor, step: int) -> None:
    """Every micro-step is shared, with the same random numbers."""
    one = _batches(corpus, processor, "vision_pretraining", micro=8, accumulation=2)[step]
    parts = [_batches(corpus, processor, "vision_pretraining", Rank(r, 2), micro=4, accumulation=2)[step] for r in range(2)]
    for whole, *shared in zip(one, *parts, strict=True):
        for name in ("pixel_values_B1DHW", "volume_B", "seed_B"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in shared]))


def test_only_training_patients_are_seen(corpus: Corpus) -> None:
    samples = Samples.from_corpus(corpus, "train")
    assert {corpus.volumes[ref.volume_id].split for ref in samples.slices} == {"train"}
    assert {record.split for records in samples.instructions.values() for record in records} == {"train"}


def test_some_steps_of_vision_pretraining_see_volumes(corpus: Corpus, processor: Processor) -> None:
    depths = [
        micro_batches[0].pixel_values_B1DHW.shape[2]
        for micro_batches in load_batches(_batches(corpus, processor, "vision_pretraining"), range(4), workers=0)
    ]
    assert depths == [1, 1, 1, BLOCK_SLICES]


def test_text_before_the_image_means_that_the_image_is_predicted(corpus: Corpus, processor: Processor) -> None:
    stage_batches = _batches(corpus, processor, "multimodal_pretraining", micro=10)
    batch = stage_batches[0][0]
    starts_with_image = batch.input_ids_BL[:, 1] == stage_batches.config.image_token_id
    assert 0 < int(batch.visual_loss_B.sum()) < 10
    assert not (batch.visual_loss_B & starts_with_image).any()
    assert (batch.labels_BL != IGNORE).any(-1).all()


def test_a_reconstruction_has_the_zero_filled_input_and_the_full_target(corpus: Corpus, processor: Processor) -> None:
    batch = _batches(corpus, processor, "instruction_tuning", micro=20)[0][0]
    rows = batch.target_kind_B == TARGET_IMAGE
    assert torch.equal(batch.task_B == batch.tasks.index("reconstruction"), rows)
    assert rows.any() and (batch.target_kind_B == TARGET_MASK).any()
    kspace, sampling = batch.kspace_BCDHW[rows, 0], batch.sampling_BDHW[rows]
    torch.testing.assert_close(ifft2c(kspace).abs(), batch.pixel_values_B1DHW[rows][:, 0], atol=1e-4, rtol=1e-4)
    assert not kspace[~sampling].any() and not batch.sampling_BDHW[~rows].any()
    target = batch.target_B1DHW[rows][:, 0]
    assert (fft2c(target.to(torch.complex64)).abs().sum() > kspace.abs().sum()).item()


def test_masks_are_masks(corpus: Corpus, processor: Processor) -> None:
    batch = _batches(corpus, processor, "instruction_tuning", micro=20)[0][0]
    masks = batch.target_B1DHW[batch.target_kind_B == TARGET_MASK]
    segmented = batch.target_B1DHW[batch.task_B == batch.tasks.index("segmentation")]
    assert set(masks.unique().tolist()) <= {0.0, 1.0} and segmented.flatten(1).any(1).all()


def test_every_labeled_sample_has_its_label_map(corpus: Corpus, processor: Processor) -> None:
    """The structure of a mask is where its target is, and names are those of the card."""
    stage_batches = _batches(corpus, processor, "instruction_tuning", micro=20)
    batch = stage_batches[0][0]
    labels = batch.structure_labels(torch.ones(20, dtype=torch.bool))
    names = [processor.tokenizer.decode([i for i in ids if i != processor.pad_id]) for ids in labels.names_SL.tolist()]
    assert names == sorted(LABEL_MAP.values()) and labels.listed_BS.all() and batch.labeled_B.all()
    draws = list(islice(stage_batches.mixture.draws(0), 20))
    for row, draw in enumerate(draws):
        source = stage_batches.mixture.sources[draw.source].name
        record = stage_batches.samples.instruction(source, draw.index) if source != "reconstruction" else None
        if record is not None and record.task == "segmentation":
            structure = labels.structures_BDHW[row] == names.index(str(record.structure)) + 1
            assert torch.equal(structure, batch.target_B1DHW[row, 0] > 0.5)


def test_every_structure_is_drawn_alike(corpus: Corpus, processor: Processor) -> None:
    """However few slices show it: a finding of few patients is otherwise hardly ever asked for."""
    samples = Samples.from_corpus(corpus, "train")
    structures = samples.groups_of("segmentation")
    sizes = [len(records) for records in structures.values()]
    mixture = samples.mixture(SHARES["instruction_tuning"], 0)
    names = [mixture.sources[draw.source].name for draw in islice(mixture.draws(0), 1000)]
    counts = [names.count(f"segmentation/{structure}") for structure in structures]
    assert max(sizes) > min(sizes) and max(counts) - min(counts) <= 2 and len(structures) == len(LABEL_MAP)
    assert {record.structure for record in structures["white matter"]} == {"white matter"}


def test_images_are_not_scaled_where_the_text_states_sizes(corpus: Corpus, processor: Processor) -> None:
    stage_batches = _batches(corpus, processor, "instruction_tuning")
    draws = list(islice(stage_batches.mixture.draws(0), 8))
    moved = {
        name: [stage_batches.augmentation(name, draw)[0] for draw in draws]
        for name in ("paired", "report", "segmentation", "diagnosis")
    }
    assert all(len(set(affines)) == len(draws) for affines in moved.values())
    for name, affines in moved.items():
        assert ({affine.scale for affine in affines} == {1.0}) == (name in ("paired", "report"))


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_targets_are_transformed_with_their_image(corpus: Corpus, processor: Processor, task: str) -> None:
    stage_batches = _batches(corpus, processor, "instruction_tuning", micro=1)
    sources = stage_batches.mixture.sources
    draws = [one for one in islice(stage_batches.mixture.draws(0), 400) if task_of_source(sources[one.source].name) == task]
    records = [stage_batches.samples.instruction(sources[one.source].name, one.index) for one in draws]
    draw, record = next((one, record) for one, record in zip(draws, records, strict=True) if task == "segmentation" or record.boxes)
    batch, (_, target) = stage_batches.micro_batch([draw], 0), stage_batches.samples.input_and_target(record)
    boxes, affine = parse_boxes(record.response), stage_batches.augmentation(task, draw)[0]
    affine = affine.keeping_inside(boxes) if boxes else affine
    assert affine != AffineParams()
    torch.testing.assert_close(batch.target_B1DHW[0, 0, 0], torch.from_numpy(affine.apply(target.image, nearest=True)))
    answered = processor.tokenizer.decode(batch.labels_BL[0][batch.labels_BL[0] != IGNORE])
    assert parse_boxes(answered) == affine.transform_boxes(boxes)


def test_an_empty_corpus_of_instructions_is_refused(corpus: Corpus, processor: Processor, tmp_path: Path) -> None:
    samples = Samples.from_corpus(corpus, "train")
    samples.instructions = {task: [] for task in samples.instructions}
    with pytest.raises(ValueError, match="labels or k-space"):
        samples.mixture(SHARES["instruction_tuning"], 0)


def _volumes(corpus: Corpus, processor: Processor, share: float, rank: Rank = ALONE, **options: int) -> StageBatches:
    config = OmniMRIConfig.from_preset("debug", len(processor.tokenizer), **special_ids(processor.tokenizer))
    sizes = {"volume_slices": 6, "volume_samples": 4, **options}
    settings = StageSettings(steps=9, micro_batch=4, mixture=SHARES["instruction_tuning"], volume_steps=share, **sizes)
    return StageBatches(STAGES["instruction_tuning"], Samples.from_corpus(corpus, "train"), settings, config, processor, 0, rank)


@given(share=st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 1.0]), steps=st.integers(1, 60))
def test_the_number_of_a_step_determines_its_scope(share: float, steps: int) -> None:
    """Steps with volumes have consecutive numbers, and so have the others; every prefix has the exact share, rounded down."""
    scopes = [step_scope(step, share) for step in range(steps)]
    volumes = [number for number, _ in scopes if number is not None]
    assert volumes == list(range(len(volumes))) and abs(len(volumes) - share * steps) < 1
    assert [step - before for step, (number, before) in enumerate(scopes) if number is None] == list(range(steps - len(volumes)))


def test_without_volumes_every_step_is_as_before(corpus: Corpus, processor: Processor) -> None:
    """And with them, the steps with slices see the same samples in the same order."""
    slices, mixed = _batches(corpus, processor, "instruction_tuning"), _volumes(corpus, processor, 0.5)
    for step in range(3):
        assert _equal(mixed[2 * step][0], slices[step][0])
        assert mixed[2 * step + 1][0].grids_BG3 is not None


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_volumes_of_one(corpus: Corpus, processor: Processor, world: int) -> None:
    whole = _volumes(corpus, processor, 1.0)[5][0]
    parts = [_volumes(corpus, processor, 1.0, Rank(index, world))[5][0] for index in range(world)]
    for name in ("seed_B", "task_B", "target_B1DHW", "structures_BDHW", "block_B", "slices_BT"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
    assert torch.equal(torch.cat([part.pixel_values_B1DHW for part in parts]), whole.pixel_values_B1DHW)


def test_volumes_and_studies_have_what_their_instructions_need(corpus: Corpus, processor: Processor) -> None:
    """All tasks and both scopes; tokens and grids agree with the images; targets are on the slices that they belong to."""
    seen: set[str] = set()
    batches = _volumes(corpus, processor, 1.0)
    for step in range(12):
        [batch] = batches[step]
        seen |= {batch.tasks[int(task)] for task in batch.task_B}
        images = (batch.grids_BG3.prod(-1) > 0).sum(-1)
        assert int(images.sum()) == len(batch.pixel_values_B1DHW) and set(images.tolist()) <= {1, 2}
        seen |= {"study" if count == 2 else "volume" for count in images.tolist()}
        assert torch.equal((batch.input_ids_BL == batches.config.image_token_id).sum(-1), batch.grids_BG3.prod(-1).sum(-1))
        own = batch.pixel_values_B1DHW[batch.image_B][:, 0]
        at = select_slices(own, batch.slices_BT, 1)
        for row, kind in enumerate(batch.target_kind_B.tolist()):
            if kind == TARGET_IMAGE:
                torch.testing.assert_close(ifft2c(batch.kspace_BCDHW[row, 0]).abs(), at[row], atol=1e-4, rtol=1e-4)
            if kind == TARGET_MASK and bool(batch.target_B1DHW[row].any()):
                assert set(batch.target_B1DHW[row].unique().tolist()) <= {0.0, 1.0}
                labels = select_slices(batch.structures_BDHW, batch.slices_BT, 1)[row]
                assert bool((labels[batch.target_B1DHW[row, 0] > 0] > 0).all())
    assert seen == {"volume", "study", "reconstruction", "segmentation", "detection", "diagnosis", "report"}


def test_boxes_of_a_volume_enclose_its_lesion_after_augmentation(corpus: Corpus, processor: Processor) -> None:
    batches = _volumes(corpus, processor, 1.0, volume_slices=8, volume_samples=2)
    lesion, found = batches.samples.structures.index("lesion") + 1, 0
    for step in range(40):
        [batch] = batches[step]
        for row in range(2):
            labels = batch.labels_BL[row]
            boxes = parse_boxes(processor.decode(labels[labels != IGNORE]))
            voxels = (batch.structures_BDHW[row] == lesion).nonzero()
            if boxes and len(voxels):
                edges = torch.tensor([box.edges for box in boxes]).view(-1, 2, 3)
                sides = torch.tensor(batch.structures_BDHW.shape[1:])
                inside = ((voxels[:, None] + 0.5) * 256 / sides + 12 >= edges[None, :, 0]) & (
                    (voxels[:, None] + 0.5) * 256 / sides - 12 <= edges[None, :, 1]
                )
                assert bool(inside.all(-1).any(-1).all())
                found += 1
    assert found


def test_volumes_need_instructions_about_them(corpus: Corpus, processor: Processor) -> None:
    with pytest.raises(ValueError, match="volume_steps"):
        settings = StageSettings(steps=1, mixture=SHARES["alignment"], volume_steps=0.5)
        config = OmniMRIConfig.from_preset("debug", len(processor.tokenizer), **special_ids(processor.tokenizer))
        StageBatches(STAGES["alignment"], Samples.from_corpus(corpus, "train"), settings, config, processor, 0)
