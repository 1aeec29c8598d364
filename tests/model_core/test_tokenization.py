"""Text to ids and back, whatever the text."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from model_core.boxes import LOCATIONS
from model_core.processing import Processor
from model_core.tokenization import BBOX, IMAGE, RESPONSE, SEG, SPECIAL_TOKENS, special_ids, train_tokenizer

TEXTS = [
    "Segment the white matter in this brain MRI.",
    "<bbox>lesion<loc012><loc034><loc065><loc076>",
    "yes, lesion",
    "no, no lesion",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 320)


@settings(max_examples=200)
@given(text=st.text())
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    """Byte-level: no character is unknown. NFC is the one change that is made, as in Qwen2.5."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_special_token_is_one_id_at_every_position(tokenizer: PreTrainedTokenizerFast, token: str) -> None:
    """Markers are never split, nor joined to their neighbours."""
    (own,) = tokenizer(token, add_special_tokens=False)["input_ids"]
    ids = tokenizer(f"a{token}b{token}", add_special_tokens=False)["input_ids"]
    assert ids.count(own) == 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"


def test_special_ids_are_those_of_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = special_ids(tokenizer)
    assert ids["pad_token_id"] == 0
    assert ids["seg_token_id"] == tokenizer.convert_tokens_to_ids(SEG)
    assert ids["generate_image_token_id"] == tokenizer.convert_tokens_to_ids(IMAGE)
    assert len(set(ids.values())) == len(ids)


def test_every_digit_is_a_token(tokenizer: PreTrainedTokenizerFast) -> None:
    """Numbers are read digit by digit, as in Qwen2.5."""
    assert {len(tokenizer(f"{n:03d}")["input_ids"]) for n in (0, 7, 34, 256, 999)} == {3}


def test_an_edge_of_a_box_is_a_token(tokenizer: PreTrainedTokenizerFast) -> None:
    """Ids of the location tokens are consecutive, in the order of the bins."""
    ids = tokenizer("".join(LOCATIONS))["input_ids"]
    first = special_ids(tokenizer)["location_token_id"]
    assert ids == list(range(first, first + len(LOCATIONS)))
    assert len(tokenizer(f"{BBOX}{LOCATIONS[7]}{LOCATIONS[34]}")["input_ids"]) == 3


def test_the_same_texts_give_the_same_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    assert train_tokenizer(TEXTS, 320).get_vocab() == tokenizer.get_vocab()
    with pytest.raises(ValueError, match="too small"):
        train_tokenizer(TEXTS, 200)


@settings(max_examples=50)
@given(instruction=st.text(max_size=40), response=st.text(max_size=40))
def test_only_the_response_carries_loss(tokenizer: PreTrainedTokenizerFast, instruction: str, response: str) -> None:
    """The labels are the response, followed by the end token."""
    processor = Processor(tokenizer)
    encoded = processor.encode(instruction, response, 4)
    labelled = [label for label in encoded.labels if label >= 0]
    assert encoded.input_ids[-len(labelled) :] == labelled
    assert tokenizer.decode(labelled[:-1]) == unicodedata.normalize("NFC", response)
    assert encoded.input_ids[-len(labelled) - 1] == tokenizer.convert_tokens_to_ids(RESPONSE)
    assert processor.decode(labelled) == unicodedata.normalize("NFC", response).strip()
