"""Sequences of any number of image blocks: positions are those of Qwen2-VL, series do not mix, one image is as it always was.

Shape letters: B samples, L tokens, G image blocks of a sequence.
"""

from __future__ import annotations

import itertools
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.config import Triple
from model_core.processing import Processor, Series
from model_core.sequences import (
    build_attention_mask,
    compute_last_position,
    compute_positions,
    index_image_blocks,
    one_block_each,
    stack_grids,
)
from model_core.tokenization import special_ids, train_tokenizer

SIZE = 32
LINES = ("axial T1-weighted MRI, 3.0 T.", "sagittal T2-weighted MRI.", "")
PADDING, TEXT, IMAGE = 2, 0, 1
grids = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
flat_grids = grids.map(lambda grid: (min(grid[0], max(grid[1:])), grid[1], grid[2]))


@st.composite
def sequences(draw: st.DrawFn, grid: st.SearchStrategy[Triple] = grids) -> tuple[Tensor, Tensor, list[list[Triple]]]:
    """Draw which tokens are images and which are valid, (B, L), of left-padded sequences, and the grids of their blocks."""
    rows, blocks = [], []
    for _ in range(draw(st.integers(1, 3))):
        row = [PADDING] * draw(st.integers(0, 2))
        blocks.append(draw(st.lists(grid, max_size=3)))
        for depth, height, width in blocks[-1]:
            row += [TEXT] * draw(st.integers(1, 3)) + [IMAGE] * (depth * height * width)
        rows.append(row + [TEXT] * draw(st.integers(1, 3)))
    longest = max(map(len, rows))
    kind = torch.tensor([[PADDING] * (longest - len(row)) + row for row in rows])
    return kind == IMAGE, kind != PADDING, blocks


def _qwen2_vl_positions(is_image_BL: Tensor, valid_BL: Tensor, blocks: list[list[Triple]]) -> Tensor:
    settings_of_vision = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=1))
    place = partial(Qwen2VLModel.get_vision_position_ids, None)
    model = SimpleNamespace(config=settings_of_vision, get_vision_position_ids=place)
    listed = torch.tensor([list(grid) for grid in itertools.chain(*blocks)]).view(-1, 3)
    positions, _ = Qwen2VLModel.get_rope_index(model, is_image_BL.long(), is_image_BL.int(), listed, attention_mask=valid_BL)
    return positions


@settings(max_examples=60)
@given(sequence=sequences(flat_grids))
def test_positions_are_those_of_qwen2_vl(sequence: tuple[Tensor, Tensor, list[list[Triple]]]) -> None:
    """For volumes that have no more slices than rows or columns; for others see the next test."""
    is_image, valid, blocks = sequence
    positions = compute_positions(is_image, valid, stack_grids(blocks))
    assert torch.equal(positions[:, valid], _qwen2_vl_positions(is_image, valid, blocks)[:, valid])


def test_text_after_a_deep_volume_continues_past_its_last_slice() -> None:
    """The paper's rule (arXiv:2409.12191, section 2.1); transformers continues past rows and columns alone."""
    is_image = torch.tensor([[False, *[True] * 5, False, True, False]])
    positions = compute_positions(is_image, torch.ones_like(is_image), stack_grids([[(5, 1, 1), (1, 1, 1)]]))
    assert positions[:, 0].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 1, 1, 1, 1, 6, 7, 8], [0, 1, 1, 1, 1, 1, 6, 7, 8]]


@settings(max_examples=60)
@given(sequence=sequences())
def test_the_last_position_is_that_of_the_whole_sequence(sequence: tuple[Tensor, Tensor, list[list[Triple]]]) -> None:
    is_image, valid, blocks = sequence
    stacked = stack_grids(blocks)
    assert torch.equal(compute_last_position(is_image, valid, stacked), compute_positions(is_image, valid, stacked)[..., -1:])


@settings(max_examples=60)
@given(sequence=sequences())
def test_attention_is_causal_but_within_a_block(sequence: tuple[Tensor, Tensor, list[list[Triple]]]) -> None:
    is_image, valid, blocks = sequence
    length, bidirectional = is_image.shape[1], torch.arange(len(is_image)) % 2 == 0
    allowed = build_attention_mask(is_image, valid, bidirectional, stack_grids(blocks))[:, 0]
    for row, sizes in enumerate(blocks):
        expected = torch.ones(length, length, dtype=torch.bool).tril()
        first = is_image[row].nonzero().flatten().tolist()
        for size in (d * h * w for d, h, w in sizes):
            tokens, first = torch.tensor(first[:size]), first[size:]
            if bidirectional[row]:
                expected[tokens[:, None], tokens] = True
        assert torch.equal(allowed[row], expected & valid[row] | torch.eye(length, dtype=torch.bool))


def _one_image_positions(is_image_BL: Tensor, valid_BL: Tensor, grid: Triple) -> Tensor:
    """Positions as the network had them when a batch had one grid (commit 80ef2b3)."""
    depth, height, width = grid
    index = torch.where(is_image_BL, (is_image_BL.long().cumsum(-1) - 1) % (depth * height * width), 0)
    ends_block = is_image_BL & (index == depth * height * width - 1)
    advance = (valid_BL & ~is_image_BL).long() + ends_block.long() * max(grid)
    inside = torch.stack([index // (height * width), index // width % height, index % width])
    return advance.cumsum(-1) - advance + torch.where(is_image_BL, inside, 0)


@settings(max_examples=60)
@given(grid=grids, padding=st.integers(0, 3), before=st.integers(0, 3), after=st.integers(0, 3))
def test_one_image_has_the_positions_that_it_had(grid: Triple, padding: int, before: int, after: int) -> None:
    size = grid[0] * grid[1] * grid[2]
    kind = torch.tensor([[PADDING] * padding + [TEXT] * before + [IMAGE] * size + [TEXT] * after + [PADDING] * padding])
    is_image, valid, grids_BG3 = kind == IMAGE, kind != PADDING, one_block_each(grid, 1)
    assert torch.equal(compute_positions(is_image, valid, grids_BG3), _one_image_positions(is_image, valid, grid))


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(train_tokenizer(["Is there a lesion in this image? yes, lesion. no, no lesion.", *LINES], 300))


@pytest.fixture(scope="module")
def model(processor: Processor) -> OmniMRIForConditionalGeneration:
    torch.manual_seed(0)
    config = OmniMRIConfig.from_preset("debug", len(processor.tokenizer), **special_ids(processor.tokenizer))
    return OmniMRIForConditionalGeneration(config).eval()


def _study(model: OmniMRIForConditionalGeneration) -> tuple[list[Tensor], list[Series]]:
    """Return a slice and two volumes of different shapes, and their series."""
    shapes = [(1, 1, SIZE, SIZE), (1, 6, SIZE, 2 * SIZE), (1, 9, SIZE, SIZE)]
    images = [torch.rand(shape, generator=torch.Generator().manual_seed(seed)) for seed, shape in enumerate(shapes)]
    return images, [Series(model.config.image_grid(*i.shape[1:]), line) for i, line in zip(images, LINES, strict=True)]


@torch.no_grad()
def test_a_permutation_of_series_permutes_nothing_else(model: OmniMRIForConditionalGeneration, processor: Processor) -> None:
    """Tokens, visual tokens, positions within a series and those of the instruction: each series has its own, in any order."""
    images, series = _study(model)
    parts = []
    for order in itertools.permutations(range(3)):
        encoded = processor.encode_study("Is there a lesion?", None, [series[index] for index in order])
        packed = processor.pack([encoded])
        output = model(packed.input_ids_BL, None, [images[index] for index in order], grids_BG3=packed.grids_BG3)
        is_image = packed.input_ids_BL == model.config.image_token_id
        positions = compute_positions(is_image, torch.ones_like(is_image), packed.grids_BG3)[:, 0]
        edges = [0]
        for index in order:
            edges.append(edges[-1] + len(processor.encode_study("", None, [series[index]]).input_ids) - 1)
        found = {"instruction": (packed.input_ids_BL[0, edges[-1] :], positions[:, edges[-1] :])}
        for place, index in enumerate(order):
            span = slice(edges[place], edges[place + 1])
            features = output.features_by_image[place][0]
            found[str(index)] = packed.input_ids_BL[0, span], positions[:, span] - positions[:, span.start, None], features
        parts.append(found)
    for found in parts[1:]:
        for name, tensors in parts[0].items():
            assert all(torch.equal(a, b) for a, b in zip(tensors, found[name], strict=True)), name


@torch.no_grad()
def test_a_sequence_is_the_same_alone_and_beside_others(model: OmniMRIForConditionalGeneration, processor: Processor) -> None:
    """Sequences of three, one and two images in a batch have the logits that each has by itself."""
    images, series = _study(model)
    chosen = [(0, 1, 2), (1,), (2, 0)]
    encoded = [processor.encode_study("lesion?", None, [series[index] for index in row]) for row in chosen]
    packed = processor.pack(encoded, left=True)
    flat = [images[index] for row in chosen for index in row]
    logits = model(packed.input_ids_BL, packed.attention_mask_BL, flat, grids_BG3=packed.grids_BG3).logits[:, -1]
    for row, indices in enumerate(chosen):
        alone = processor.pack([encoded[row]])
        expected = model(alone.input_ids_BL, None, [images[index] for index in indices], grids_BG3=alone.grids_BG3)
        torch.testing.assert_close(logits[row], expected.logits[0, -1], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_one_image_is_the_same_in_either_form(model: OmniMRIForConditionalGeneration, processor: Processor) -> None:
    """The same bits, whether the pixels state the grid of the block or the sequence does."""
    images = torch.rand(2, 1, 6, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    grid = model.config.image_grid(6, SIZE, SIZE)
    one = processor.encode("lesion?", None, grid[0] * grid[1] * grid[2])
    packed = processor.pack([processor.encode_study("lesion?", None, [Series(grid)])] * 2)
    assert packed.input_ids_BL.tolist() == [one.input_ids] * 2
    expected = model(packed.input_ids_BL, None, images).logits
    assert torch.equal(model(packed.input_ids_BL, None, images, grids_BG3=packed.grids_BG3).logits, expected)
    assert torch.equal(model(packed.input_ids_BL, None, list(images), grids_BG3=packed.grids_BG3).logits, expected)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_the_cache_changes_no_token_about_several_series(
    model: OmniMRIForConditionalGeneration, processor: Processor, options: dict[str, int]
) -> None:
    images, series = _study(model)
    packed = processor.pack([processor.encode_study("lesion?", None, series[:count]) for count in (3, 1)], left=True)
    arguments = {"attention_mask": packed.attention_mask_BL, "grids_BG3": packed.grids_BG3, "do_sample": False, **options}
    flat = [*images, images[0]]
    answers = [
        model.generate(packed.input_ids_BL, pixel_values=flat, max_new_tokens=5, use_cache=use_cache, **arguments)
        for use_cache in (True, False)
    ]
    assert torch.equal(*answers)


def test_tokens_that_images_do_not_have_are_rejected(model: OmniMRIForConditionalGeneration, processor: Processor) -> None:
    images, series = _study(model)
    packed = processor.pack([processor.encode_study("lesion?", None, series)])
    with pytest.raises(ValueError, match="visual tokens"):
        model(packed.input_ids_BL, None, images[:2], grids_BG3=packed.grids_BG3)


def test_blocks_are_numbered_and_their_tokens_counted() -> None:
    is_image = torch.tensor([[True, True, True, False, False]])
    index, block = index_image_blocks(is_image, stack_grids([[(1, 1, 2), (1, 1, 1)]]))
    assert (index.tolist(), block.tolist()) == ([[0, 1, 0, 0, 0]], [[1, 1, 2, 0, 0]])
