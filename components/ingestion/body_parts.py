"""Body parts of headers and of dataset cards: a header often states the region that a card's anatomy is in, HEAD for a brain."""

from __future__ import annotations

import re
from collections.abc import Mapping

from components.ingestion.deidentification.allowlists import allowed_body_part

_HEAD = ("brain", "brainstem", "pituitary", "orbit", "face", "skull")
_NECK = ("throat", "thyroid", "carotid", "parotid", "spine")
_CHEST = ("heart", "breast", "lung", "aorta", "mediastinum", "spine")
_ABDOMEN = ("liver", "kidney", "spleen", "pancreas", "adrenal", "stomach", "colon", "bile duct", "gallbladder", "aorta", "spine")
_PELVIS = ("prostate", "uterus", "ovary", "cervix", "rectum", "testis", "hip", "sacrum")
_LEG = ("knee", "ankle", "foot", "hip", "thigh", "calf", "femur", "tibia")
_ARM = ("shoulder", "elbow", "wrist", "hand", "finger", "humerus", "forearm")
REGIONS: Mapping[str, tuple[str, ...]] = {
    "head": _HEAD,
    "skull": ("brain", "brainstem", "pituitary"),
    "brain": ("brainstem", "pituitary"),
    "neck": _NECK,
    "head neck": (*_HEAD, *_NECK, "head", "neck"),
    "chest": _CHEST,
    "thorax": _CHEST,
    "abdomen": _ABDOMEN,
    "pelvis": _PELVIS,
    "trunk": (*_CHEST, *_ABDOMEN, *_PELVIS, "chest", "abdomen", "pelvis"),
    "spine": ("cspine", "tspine", "lspine", "lsspine", "sacrum", "coccyx", "vertebra"),
    "leg": _LEG,
    "lower leg": ("knee", "ankle", "calf", "tibia"),
    "upper leg": ("knee", "hip", "thigh", "femur"),
    "lower extremity": _LEG,
    "arm": _ARM,
    "upper extremity": _ARM,
    "extremity": (*_LEG, *_ARM),
    "joint": ("knee", "ankle", "hip", "shoulder", "elbow", "wrist"),
}
"""Region, as Body Part Examined states it (DICOM PS3.16, annex L), in the form of :func:`_plain` -> body parts in it."""
_JOINING = {"and", "of", "lower", "upper"}


def _plain(text: str) -> str:
    """Return lower-case words with one blank between them, in the singular and without "and"."""
    words = [word for word in re.findall(r"[a-z]+", text.lower()) if word != "and"]
    return " ".join(words).replace("extremities", "extremity").replace("wholebody", "whole body")


def _parts_in(region: str) -> set[str]:
    """Return the body parts in a region, or in all the regions that a text names, the longest names first."""
    text, parts = f" {_plain(region)} ", set[str]()
    for name in sorted(REGIONS, key=len, reverse=True):
        if f" {name} " in text:
            parts.update(REGIONS[name])
            text = text.replace(f" {name} ", " ")
    return parts


def is_within(part: str, region: str) -> bool:
    """Return whether a body part lies in a region; several regions may be named, as in "abdomen and pelvis"."""
    return _plain(part) in _parts_in(region)


def examined_part(stated: object, of_card: str | None) -> str | None:
    """Return the body part of an image: that of its header, or that of its card if the header states none, or only its region.

    Args:
        stated: value of Body Part Examined.
        of_card: anatomy of the dataset card.
    """
    part = allowed_body_part(stated)
    return of_card if part is None or (of_card is not None and is_within(of_card, part)) else part


def agree(header: str | None, card: str | None) -> bool:
    """Return whether two body parts share a word, lie in each other, or one of them is unknown."""
    if not header or not card:
        return True
    shared = set(_plain(header).split()) & set(_plain(card).split())
    return bool(shared - _JOINING) or is_within(header, card) or is_within(card, header)
