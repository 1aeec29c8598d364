"""Body parts of headers and of dataset cards: a header often states the region that a card's anatomy is in, HEAD for a brain."""

from __future__ import annotations

import re
from collections.abc import Mapping

from components.ingestion.deidentification.allowlists import allowed_body_part

_LIMB = ("knee", "ankle", "foot", "hip", "thigh", "calf", "femur", "tibia")
REGIONS: Mapping[str, tuple[str, ...]] = {
    "head": ("brain", "pituitary", "orbit", "face"),
    "skull": ("brain",),
    "head and neck": ("brain", "neck", "pituitary", "orbit", "face", "parotid", "thyroid"),
    "neck": ("throat", "thyroid", "carotid"),
    "chest": ("heart", "breast", "lung", "aorta", "mediastinum"),
    "thorax": ("heart", "breast", "lung", "aorta", "mediastinum"),
    "abdomen": ("liver", "kidney", "spleen", "pancreas", "adrenal", "stomach", "colon", "bile duct", "gallbladder"),
    "pelvis": ("prostate", "uterus", "ovary", "cervix", "rectum", "testis", "hip"),
    "trunk": ("heart", "breast", "lung", "liver", "kidney", "spleen", "pancreas", "spine", "abdomen", "chest", "pelvis"),
    "leg": _LIMB,
    "lower extremity": _LIMB,
    "extremity": (*_LIMB, "shoulder", "elbow", "wrist", "hand", "finger"),
    "upper extremity": ("shoulder", "elbow", "wrist", "hand", "finger"),
    "arm": ("shoulder", "elbow", "wrist", "hand"),
}
"""Region, as Body Part Examined states it (DICOM PS3.16, annex L) -> body parts in it."""


def is_within(part: str, region: str) -> bool:
    """Return whether a body part lies in a region."""
    return part.lower() in REGIONS.get(region.lower(), ())


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
    one, other = header.lower(), card.lower()
    shared = set(re.findall(r"[a-z]+", one)) & set(re.findall(r"[a-z]+", other))
    return bool(shared) or one in other or other in one or is_within(one, other) or is_within(other, one)
