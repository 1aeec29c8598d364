"""What the vision-language model is asked, shown and allowed to answer.

The answer is constrained while it is written, so that it cannot be of another form: section 2 in the words of
:data:`components.curation.text.controlled_vocabulary.STRUCTURES`, section 3 in short plain text. The schema
keeps to what the grammar engines of vLLM (xgrammar, llguidance) know: objects, strings, patterns.
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
from components.phi_patterns import identifies
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
MOST_STRUCTURES = 6
_WINDOW = 1.2
"""Signal (99.5th percentile = 1) that is shown white."""


@dataclass(frozen=True)
class Ask:
    """One question about one volume.

    Attributes:
        volume_id, content_md5: the volume, and the sum of its stored content.
        question: the text.
        image: (H, W) uint8, the slices tiled.
    """

    volume_id: str
    content_md5: str
    question: str
    image: NDArray[np.uint8]

    def png(self) -> bytes:
        """The image as a PNG without any text chunk."""
        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(self.image).convert("RGB").save(stream, format="PNG")
        return stream.getvalue()


def tiled(slices_KHW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """K slices side by side in rows of at most two, as grey values."""
    grey = np.clip(np.nan_to_num(slices_KHW) / _WINDOW * 255, 0, 255).astype(np.uint8)
    if len(grey) == 1:
        return grey[0]
    if len(grey) % 2:
        grey = np.concatenate([grey, np.zeros_like(grey[:1])])
    return np.concatenate([np.concatenate(list(grey[i : i + 2]), axis=1) for i in range(0, len(grey), 2)])


def answer_schema(characters: int) -> dict[str, Any]:
    """The JSON schema of an answer; ``characters`` bounds each text of section 3."""

    def listing(words: tuple[str, ...]) -> str:
        word = "|".join(re.escape(word).replace("\\ ", " ") for word in words)
        return f"^(|({word})(, ({word})){{0,{MOST_STRUCTURES - 1}}})$"

    free = f"^[A-Za-z0-9 ,;()/%-]{{0,{characters}}}$"
    sections: dict[str, Any] = {}
    for name in FIELD_NAMES:
        section, _, leaf = name.partition(".")
        if section in VISUAL_SECTIONS:
            pattern = listing(STRUCTURES[leaf]) if leaf in STRUCTURES else free
            sections.setdefault(section, {})[leaf] = {"type": "string", "pattern": pattern}
    return _object({section: _object(fields) for section, fields in sections.items()})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def longest_answer(characters: int) -> int:
    """Upper bound of an answer's characters (so of its tokens): an answer that is cut off would be no JSON."""
    longest = {
        leaf: MOST_STRUCTURES * (max(map(len, STRUCTURES[leaf])) + 2) if leaf in STRUCTURES else characters
        for name in FIELD_NAMES
        for section, _, leaf in [name.partition(".")]
        if section in VISUAL_SECTIONS
    }
    return len(json.dumps({name: dict.fromkeys(longest, "") for name in VISUAL_SECTIONS})) + sum(longest.values()) + 32


def parse_answer(text: str, schema: dict[str, Any]) -> dict[str, str]:
    """``"section.field"`` -> text of an answer; repeated names are named once, and a text that could name somebody is none: a model
    reads what is burnt into an image.

    Raises:
        BadInput: the answer is not of the schema. Its text is not repeated.
    """
    try:
        answer = json.loads(text)
    except json.JSONDecodeError:
        answer = None
    if next(Draft202012Validator(schema).iter_errors(answer), None) is not None:
        raise BadInput(
            "the model's answer is not of the schema", where="curation.visual", remedy="serve it with schema-guided decoding"
        )
    found = {f"{section}.{leaf}": text for section, fields in answer.items() for leaf, text in fields.items()}
    return {
        name: "" if identifies(text) else ", ".join(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        for name, text in found.items()
    }


def prompt_digest(schema: dict[str, Any], question: str) -> str:
    """Digest of everything that a model is told besides the image."""
    return digest(SYSTEM, question, schema)
