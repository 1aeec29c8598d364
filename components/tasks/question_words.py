"""Words of questions: anatomies, modalities, findings of any kind, and the comparison of words whatever their spelling and number.

The scope of a model (:mod:`components.tasks.scope`) is stated in these words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

Term = tuple[str, ...]

BODY: Mapping[str, tuple[str, ...]] = {
    "brain": ("brain", "head", "skull", "cerebral", "cranial", "intracranial", "neuro"),
    "heart": ("heart", "cardiac", "cardiovascular", "chest"),
    "breast": ("breast", "mammary"),
    "knee": ("knee",),
    "prostate": ("prostate", "prostatic", "pelvis", "pelvic"),
    "spine": (
        "spine",
        "spinal column",
        "cspine",
        "tspine",
        "lspine",
        "lsspine",
        "lumbar",
        "lumbosacral",
        "thoracic",
        "cervical",
        "vertebra",
    ),
    "liver": ("liver", "hepatic", "abdomen", "abdominal"),
    "abdomen": (
        "abdomen",
        "abdominal",
        "liver",
        "kidney",
        "renal",
        "spleen",
        "pancreas",
        "stomach",
        "bowel",
        "colon",
        "gallbladder",
    ),
    "head and neck": ("head and neck", "neck", "head", "throat", "larynx", "pharynx", "thyroid"),
    "whole body": ("whole body", "wholebody", "body"),
}
"""Anatomy of a card -> words of questions and headers that mean it; a word may mean several."""
OTHER_PARTS = (
    *(
        "ankle",
        "foot",
        "hip",
        "femur",
        "tibia",
        "shoulder",
        "elbow",
        "wrist",
        "hand",
        "finger",
        "arm",
        "leg",
        "thigh",
        "calf",
        "jaw",
    ),
    *("lung", "aorta", "carotid", "uterus", "ovary", "testis", "penis", "rectum", "bladder", "orbit", "eye", "ear", "pituitary"),
    *("sacrum", "sternum", "clavicle", "scapula", "trachea", "esophagus", "fetus", "fetal", "placenta", "skin"),
)
"""Body parts that are the anatomy of no card."""
OTHER_MODALITIES = (
    *("ct", "cta", "x ray", "xray", "radiograph", "ultrasound", "sonography"),
    *("pet", "spect", "mammogram", "mammography", "ecg", "eeg"),
)
"""Images of no MRI."""
GENERIC = (
    *("lesion", "finding", "abnormality", "anomaly", "pathology", "abnormal", "pathological", "suspicious", "anything", "disease"),
    *("normal", "wrong", "healthy"),
)
"""Words that ask for findings of every kind."""
STYLES = ("short", "brief", "concise", "full", "complete", "detailed", "structured", "radiology", "radiological", "medical", "new")
"""Words for the style of an answer: they refuse no question."""
IMAGE_WORDS = ("image", "scan", "mri", "mr", "volume", "study", "slice", "series", "picture", "examination", "exam", "this", "it")
"""Words for the image itself."""
SPELLINGS = (
    ("gray", "grey"),
    ("tumour", "tumor"),
    ("oedema", "edema"),
    ("haem", "hem"),
    ("ischaem", "ischem"),
    ("oesoph", "esoph"),
)
"""Parts of words: one of two spellings -> the one by which words are compared."""
STOP = frozenset(
    re.findall(
        r"\w+",
        """
        a an the any every all each some of in on at to for from by with without and or is are was be been does do did can could
        would should will shall may might i me my you your we us our it its this that these those there here what which who where
        when how why please kindly thanks not no if as than more most very just also only give get make show tell below above
        """,
    )
)
"""Words that say nothing about what a question asks for."""


def split_words(text: str) -> list[str]:
    """Return the words of a text as they are written."""
    return re.findall(r"[^\W_]+\*?", text.replace("'s", " "))


def respell(word: str) -> str:
    """Return a word in lower case and in one of its British and American spellings."""
    lowered = word.lower()
    for other, chosen in SPELLINGS:
        lowered = lowered.replace(other, chosen)
    return lowered


def normalize(word: str) -> str:
    """Return a word in lower case, in one spelling, and singular."""
    lowered = respell(word)
    if lowered in STOP or len(lowered) < 4 or lowered.endswith(("sis", "ss", "us")):
        return lowered
    return f"{lowered[:-3]}y" if lowered.endswith("ies") else lowered.removesuffix("s")


def tokens(text: str) -> Term:
    """Return the words of a text in one spelling."""
    return tuple(map(normalize, split_words(text)))


def longest_terms(words: Term, terms: Mapping[Term, bool]) -> Iterator[slice]:
    """Yield the places of the terms in a text from left to right, the longest at each word."""
    position, longest = 0, max(map(len, terms), default=0)
    while position < len(words):
        sizes = range(min(longest, len(words) - position), 0, -1)
        found = next((size for size in sizes if words[position : position + size] in terms), 0)
        if found:
            yield slice(position, position + found)
        position += found or 1


def has_cue(words: Sequence[str], cue: str) -> bool:
    """Return whether words in a row begin with the words of a cue."""
    parts = cue.split()
    return any(
        all(word.startswith(part) for word, part in zip(words[i : i + len(parts)], parts, strict=True))
        for i in range(len(words) - len(parts) + 1)
    )
