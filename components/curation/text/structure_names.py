"""What the names in a card's label map mean: which are lesions, and which field of the template a structure belongs to."""

from __future__ import annotations

LESION_WORDS = (
    "lesion",
    "tumor",
    "tumour",
    "edema",
    "oedema",
    "necro",
    "enhancing",
    "infarct",
    "stroke",
    "haemorrhage",
    "hemorrhage",
    "metasta",
    "hyperintens",
    "cancer",
    "carcinoma",
    "tear",
    "cyst",
    "myopathology",
    "scar",
)
FLUID_WORDS = ("edema", "oedema", "effusion", "haemorrhage", "hemorrhage", "cyst")
REFERENCE_TISSUES = ("white matter", "muscle")
"""Signals are stated relative to the first of these that is labelled."""

_FIELD_WORDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("bony_structures", ("bone", "vertebra", "femur", "tibia", "patella", "skull", "pelvis", "sacrum")),
    ("articular_structures", ("cartilage", "menisc", "disc", "synovi", "knee")),
    ("spaces_or_cavities_or_joint_compartments", ("cerebrospinal", "csf", "ventricle", "canal", "cavity", "space", "atrium")),
    ("neurovascular_or_connective_structures", ("cord", "nerve", "ligament", "vessel", "arter", "vein", "aorta", "cruciate")),
    ("soft_tissues_and_musculature", ("muscle", "fat", "tendon", "skin", "scalp", "soft tissue")),
)
_ORGANS = ("left ventric", "right ventric", "myocard", "brainstem", "brain stem")
"""Names that hold another field's word: the ventricles of the heart are no spaces of the brain."""
_KNEE_ORGANS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("menisci", ("menisc",)),
    ("cartilage", ("cartilage", "chondral")),
    ("joint_space", ("effusion", "joint", "synovi", "baker", "loose body")),
    ("bone", ("bone", "marrow", "femur", "tibia", "patella", "fibula", "fracture", "osteo", "subchondral")),
    ("soft_tissues", ("ligament", "cruciate", "acl", "pcl", "mcl", "lcl", "tendon", "muscle", "fat", "soft tissue", "retinac")),
)


def is_lesion(name: str) -> bool:
    """Whether a label's name says something pathological."""
    return any(word in name.lower() for word in LESION_WORDS)


def is_fluid(name: str) -> bool:
    """Whether a lesion's name says signal change or fluid rather than a mass."""
    return any(word in name.lower() for word in FLUID_WORDS)


def lesion_values(label_map: dict[int, str]) -> list[int]:
    """Label values that are lesions, sorted; the background (0) never is."""
    return sorted(value for value, name in label_map.items() if value and is_lesion(name))


def structure_values(label_map: dict[int, str]) -> list[int]:
    """Label values that are normal structures, sorted."""
    return sorted(value for value, name in label_map.items() if value and not is_lesion(name))


def lesion_name(label_map: dict[int, str]) -> str:
    """What the lesions of a dataset are called in boxes and answers: the one name, or ``lesion`` for several kinds."""
    names = [label_map[value].lower() for value in lesion_values(label_map)]
    return names[0] if len(names) == 1 else "lesion"


def template_field(structure: str) -> str:
    """The field of ``visible_anatomical_structures`` that a structure (or anatomy) belongs to."""
    lowered = structure.lower()
    if any(word in lowered for word in _ORGANS):
        return "organs_or_central_structures"
    for field, words in _FIELD_WORDS:
        if any(word in lowered for word in words):
            return field
    return "organs_or_central_structures"


def knee_organ(text: str) -> str | None:
    """The organ of a knee report (``joint_space``, ``menisci``, ...) that a structure or finding belongs to; None = of none."""
    words = text.lower()
    return next((organ for organ, known in _KNEE_ORGANS if any(word in words for word in known)), None)
