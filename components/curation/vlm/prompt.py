"""Prompt, image and answer schema for the vision-language model.

Decoding is constrained by the schema, so that no answer can have another form: section 2 uses the words of
:data:`components.curation.text.controlled_vocabulary.STRUCTURES`, section 3 short plain text. The schema uses only constructs that
the grammar engines of vLLM (xgrammar, llguidance) support: objects, strings, patterns.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator
from numpy.typing import NDArray

from components.curation.text.controlled_vocabulary import STRUCTURES
from components.curation.text.descriptions import VISUAL_SECTIONS
from components.curation.text.template import FIELD_NAMES
from components.errors import BadInput
from components.phi_patterns import contains_phi
from components.provenance import digest

SYSTEM = (
    "You are a radiologist's assistant. You describe what is visible in MRI slices in short, standardised terms. You name only "
    "what you see; where you see nothing of a kind you leave the text empty. You make no diagnosis."
)
QUESTION = (
    "These are {count} slices of one {scan}, in order. Fill the template: under visible_anatomical_structures the structures "
    "that are in view, separated by commas; under tissue_signal_characteristics how the tissues look (normal appearance, abnormal "
    "patterns, symmetry and integrity). Answer with the JSON object only."
)
MAX_STRUCTURES = 6
_WINDOW = 1.2
"""Signal (99.5th percentile = 1) that maps to white."""


@dataclass(frozen=True)
class VlmQuery:
    """One query about one volume.

    Attributes:
        volume_id, content_md5: the volume, and the MD5 of its stored content.
        question: text of the user message.
        image: (H, W) uint8, the slices tiled.
    """

    volume_id: str
    content_md5: str
    question: str
    image: NDArray[np.uint8]

    def encode_png(self) -> bytes:
        """Encode the image as PNG without any text chunk."""
        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(self.image).convert("RGB").save(stream, format="PNG")
        return stream.getvalue()


def tile_slices(slices_KHW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Tile (K, H, W) slices in rows of at most two, as gray values."""
    gray = np.clip(np.nan_to_num(slices_KHW) / _WINDOW * 255, 0, 255).astype(np.uint8)
    if len(gray) == 1:
        return gray[0]
    if len(gray) % 2:
        gray = np.concatenate([gray, np.zeros_like(gray[:1])])
    return np.concatenate([np.concatenate(list(gray[i : i + 2]), axis=1) for i in range(0, len(gray), 2)])


def answer_schema(characters: int) -> dict[str, Any]:
    """Return the JSON schema of an answer; ``characters`` limits the length of each text of section 3."""

    def list_pattern(words: tuple[str, ...]) -> str:
        word = "|".join(re.escape(word).replace("\\ ", " ") for word in words)
        return f"^(|({word})(, ({word})){{0,{MAX_STRUCTURES - 1}}})$"

    free_text = f"^[A-Za-z0-9 ,;()/%-]{{0,{characters}}}$"
    sections: dict[str, Any] = {}
    for name in FIELD_NAMES:
        section, _, leaf = name.partition(".")
        if section in VISUAL_SECTIONS:
            pattern = list_pattern(STRUCTURES[leaf]) if leaf in STRUCTURES else free_text
            sections.setdefault(section, {})[leaf] = {"type": "string", "pattern": pattern}
    return _object({section: _object(fields) for section, fields in sections.items()})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def max_answer_length(characters: int) -> int:
    """Return an upper bound of the characters, and so of the tokens, of an answer: a truncated answer would not be valid JSON."""
    longest: dict[str, int] = {}
    for name in FIELD_NAMES:
        section, _, leaf = name.partition(".")
        if section not in VISUAL_SECTIONS:
            continue
        structures = STRUCTURES.get(leaf)
        longest[leaf] = MAX_STRUCTURES * (max(map(len, structures)) + 2) if structures else characters
    return len(json.dumps({name: dict.fromkeys(longest, "") for name in VISUAL_SECTIONS})) + sum(longest.values()) + 32


def parse_answer(text: str, schema: dict[str, Any]) -> dict[str, str]:
    """Parse an answer into ``"section.field"`` -> text.

    Repeated structures are listed once. A text that could identify a person becomes empty, because a model reads text that is
    burnt into an image.

    Raises:
        BadInput: the answer does not conform to the schema. The message does not quote it.
    """
    try:
        answer = json.loads(text)
    except json.JSONDecodeError:
        answer = None
    if next(Draft202012Validator(schema).iter_errors(answer), None) is not None:
        raise BadInput(
            "the model's answer does not conform to the schema",
            where="curation.visual",
            remedy="serve it with schema-guided decoding",
        )
    texts = {f"{section}.{leaf}": text for section, fields in answer.items() for leaf, text in fields.items()}
    return {name: "" if contains_phi(text) else _without_repetitions(text) for name, text in texts.items()}


def _without_repetitions(listing: str) -> str:
    """Return a comma-separated list with each item once."""
    return ", ".join(dict.fromkeys(item.strip() for item in listing.split(",") if item.strip()))


def prompt_digest(schema: dict[str, Any], question: str) -> str:
    """Return the digest of everything in the prompt besides the image."""
    return digest(SYSTEM, question, schema)
