"""A tiny model with random weights, saved as a trained stage saves it."""

from __future__ import annotations

from pathlib import Path

import torch

from components.curation.corpus import Corpus
from components.files import write_json
from components.model_files import PREPROCESSING
from components.tasks.known_structures import KnownStructures
from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.processing import Processor
from model_core.tokenization import special_ids, train_tokenizer


def tiny_model(folder: Path, corpus: Corpus, matrix: int = 32, pixel_mm: float = 6.75) -> Path:
    """Save a debug-size model with a tokenizer of the corpus."""
    texts = [description.text for _, description in sorted(corpus.descriptions.items())]
    texts += [record.instruction for record in corpus.instructions]
    tokenizer = train_tokenizer(texts, 400)
    torch.manual_seed(0)
    model = OmniMRIForConditionalGeneration(OmniMRIConfig.from_preset("debug", len(tokenizer), **special_ids(tokenizer)))
    model.save_pretrained(folder)
    Processor(tokenizer).save_pretrained(folder)
    label_maps = KnownStructures.from_corpus(corpus).to_json()
    write_json(folder / PREPROCESSING, {"matrix": matrix, "pixel_mm": pixel_mm, "label_maps": label_maps})
    return folder
