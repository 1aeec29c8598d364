"""Whatever the scores are, a generated answer has the form of one task."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.answer_grammar import NAME_TOKENS, AnswerGrammar
from model_core.boxes import parse_boxes
from model_core.config import OmniMRIConfig
from model_core.processing import Processor
from model_core.tokenization import special_ids, train_tokenizer

PROCESSOR = Processor(train_tokenizer(["lesion yes no Modality: MRI."], 300))
IDS = special_ids(PROCESSOR.tokenizer)
CONFIG = OmniMRIConfig.from_preset("debug", len(PROCESSOR.tokenizer), **IDS)
PROMPT = PROCESSOR.encode("Is there?", None, 2).input_ids
MARKERS = {IDS[name] for name in ("generate_image_token_id", "seg_token_id", "box_token_id")}


def _answer(seed: int, first: int | None = None, length: int = 60) -> list[int]:
    """Generate greedily from random scores, after the token ``first`` if it is given."""
    generator, grammar = torch.Generator().manual_seed(seed), AnswerGrammar(CONFIG)
    answer = [] if first is None else [first]
    while len(answer) < length and CONFIG.eos_token_id not in answer:
        scores = torch.randn(1, CONFIG.vocab_size, generator=generator)
        scores[0, CONFIG.eos_token_id] += 2
        answer.append(int(grammar(torch.tensor([PROMPT + answer]), scores).argmax()))
    return answer


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), first=st.sampled_from([None, *sorted(MARKERS)]))
def test_an_answer_has_the_form_of_one_task(seed: int, first: int | None) -> None:
    answer = _answer(seed, first)
    locations = [token for token in answer if 0 <= token - CONFIG.location_token_id < 256]
    if answer[0] in MARKERS - {CONFIG.box_token_id}:
        assert answer[1:] == [CONFIG.eos_token_id]
    elif answer[0] == CONFIG.box_token_id:
        assert not MARKERS - {CONFIG.box_token_id} & set(answer)
        complete = len(locations) // 4
        assert len([token for token in answer if token == CONFIG.box_token_id]) - complete in (0, 1)
    else:
        assert not MARKERS & set(answer) and not locations and answer[0] != CONFIG.eos_token_id


@given(seed=st.integers(0, 10**6), axes=st.sampled_from([2, 3]))
def test_a_finished_box_is_well_formed(seed: int, axes: int) -> None:
    """A name of letters is followed by the edges, the later ones larger; then the answer ends or another box begins."""
    name = PROCESSOR.tokens("lesion")
    generator, grammar = torch.Generator().manual_seed(seed), AnswerGrammar(CONFIG, axes)
    answer = [CONFIG.box_token_id, *name]
    for _ in range(NAME_TOKENS + 2 * axes):
        scores = torch.randn(1, CONFIG.vocab_size, generator=generator)
        scores[0, CONFIG.location_token_id : CONFIG.location_token_id + 256] += 50
        answer.append(int(grammar(torch.tensor([PROMPT + answer]), scores).argmax()))
        if answer[-1] in (CONFIG.eos_token_id, CONFIG.box_token_id):
            break
    [box] = parse_boxes(PROCESSOR.decode(answer[: len(name) + 2 * axes + 1]))
    assert box.label == "lesion" and len(box.edges) == 2 * axes and len(answer) == len(name) + 2 * axes + 2


def test_a_sequence_without_a_question_is_free() -> None:
    scores = torch.randn(1, CONFIG.vocab_size)
    assert torch.equal(AnswerGrammar(CONFIG)(torch.tensor([PROCESSOR.encode_description("lesion")]), scores), scores)


@given(seed=st.integers(0, 10**6))
def test_an_answer_begins_as_the_question_asks(seed: int) -> None:
    """Each sequence of a batch has beginnings of its own; none leaves it free."""
    texts = [["<seg>"], ["<bbox>", "no lesion"], ["yes", "no"], []]
    beginnings = [[PROCESSOR.tokens(text) for text in row] for row in texts]
    generator, grammar = torch.Generator().manual_seed(seed), AnswerGrammar(CONFIG, beginnings=beginnings)
    sequences = torch.tensor([PROMPT] * len(texts))
    for _ in range(12):
        scores = torch.randn(len(texts), CONFIG.vocab_size, generator=generator)
        sequences = torch.cat([sequences, grammar(sequences, scores).argmax(-1, keepdim=True)], dim=1)
    for row, answer in zip(texts, sequences[:, len(PROMPT) :].tolist(), strict=True):
        assert not row or PROCESSOR.decode(answer).startswith(tuple(row))
