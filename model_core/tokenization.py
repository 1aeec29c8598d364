"""Text tokenizer: byte-level BPE in the form of Qwen2.5, trained on the corpus if no Qwen2.5 tokenizer is available."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from model_core.boxes import LOCATIONS

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
IMAGE, SEG, BBOX, RESPONSE = "<image>", "<seg>", "<bbox>", "<response>"
SPECIAL_TOKENS = (PAD, START, END, VISION_START, VISION_END, IMAGE_PAD, IMAGE, SEG, BBOX, RESPONSE, *LOCATIONS)
"""Padding is first, so that its id is 0. ``IMAGE_PAD`` represents one visual token of the input; ``IMAGE`` and ``SEG`` in a
response represent the image and the mask that the image decoder generates. The location tokens are last, with consecutive ids."""
_WORDS = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""Qwen2's pre-tokenizer: words with the space before them, every digit a token of its own."""


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer on ``texts``. The same texts in the same order give the same tokenizer.

    Args:
        vocabulary: largest number of entries besides the location tokens, other special tokens and the 256 bytes included.

    Raises:
        ValueError: the vocabulary is too small for the bytes and the special tokens.
    """
    smallest = 256 + len(SPECIAL_TOKENS) - len(LOCATIONS)
    if vocabulary < smallest:
        raise ValueError(f"a vocabulary of {vocabulary} is too small: at least {smallest} (bytes and special tokens)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary + len(LOCATIONS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
        clean_up_tokenization_spaces=False,
    )


def add_special_tokens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Add the missing special tokens to a Qwen2.5 tokenizer; Qwen2.5 has spare embedding rows for them."""
    missing = [token for token in SPECIAL_TOKENS if token not in tokenizer.get_vocab()]
    tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    return tokenizer


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the token ids that :class:`~model_core.config.OmniMRIConfig` requires, by field name.

    Raises:
        ValueError: the location tokens do not have consecutive ids.
    """
    ids = {
        "image_token_id": IMAGE_PAD,
        "generate_image_token_id": IMAGE,
        "seg_token_id": SEG,
        "box_token_id": BBOX,
        "response_token_id": RESPONSE,
        "location_token_id": LOCATIONS[0],
        "pad_token_id": PAD,
        "eos_token_id": END,
    }
    vocabulary = tokenizer.get_vocab()
    first = vocabulary[LOCATIONS[0]]
    if [vocabulary[token] for token in LOCATIONS] != list(range(first, first + len(LOCATIONS))):
        raise ValueError("the ids of the location tokens are not consecutive: use a tokenizer without tokens of that name")
    return {name: vocabulary[token] for name, token in ids.items()}
