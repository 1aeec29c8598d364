"""Interpret the names in the label map of a card: which are lesions, and to which field of the template a structure belongs."""

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
    "effusion",
    "mass",
)
DIFFUSE_WORDS = ("atrophy",)
"""Findings of a whole organ, which have no place: they are neither lesions nor boxes."""
_TUMOR_WORDS = ("tumor", "tumour")
_TUMOR_PARTS = (*_TUMOR_WORDS, "edema", "oedema", "necro", "enhancing")
FLUID_WORDS = ("edema", "oedema", "effusion", "haemorrhage", "hemorrhage", "cyst")
REFERENCE_TISSUES = ("white matter", "muscle")
"""Signals are stated relative to the first of these that is labeled."""

_FIELD_WORDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("bony_structures", ("bone", "vertebra", "femur", "tibia", "patella", "skull", "pelvis", "sacrum")),
    ("articular_structures", ("cartilage", "menisc", "disc", "synovi", "knee")),
    ("spaces_or_cavities_or_joint_compartments", ("cerebrospinal", "csf", "ventricle", "canal", "cavity", "space", "atrium")),
    ("neurovascular_or_connective_structures", ("cord", "nerve", "ligament", "vessel", "arter", "vein", "aorta", "cruciate")),
    ("soft_tissues_and_musculature", ("muscle", "fat", "tendon", "skin", "scalp", "soft tissue")),
)
_ORGANS = ("left ventric", "right ventric", "myocard", "brainstem", "brain stem")
"""Names that contain a word of another field: the ventricles of the heart are not spaces of the brain."""
_KNEE_ORGANS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("menisci", ("menisc",)),
    ("cartilage", ("cartilage", "chondral")),
    ("joint_space", ("effusion", "joint", "synovi", "baker", "loose body")),
    ("bone", ("bone", "marrow", "femur", "tibia", "patella", "fibula", "fracture", "osteo", "subchondral")),
    ("soft_tissues", ("ligament", "cruciate", "acl", "pcl", "mcl", "lcl", "tendon", "muscle", "fat", "soft tissue", "retinac")),
)


def is_lesion(name: str) -> bool:
    """Return whether the name of a label is that of a lesion."""
    return any(word in name.lower() for word in LESION_WORDS)


def is_fluid(name: str) -> bool:
    """Return whether the name of a lesion is that of a signal change or fluid rather than a mass."""
    return any(word in name.lower() for word in FLUID_WORDS)


def lesion_values(label_map: dict[int, str]) -> list[int]:
    """Return the label values of lesions, sorted; the background (0) is never one."""
    return sorted(value for value, name in label_map.items() if value and is_lesion(name))


def is_diffuse(finding: str) -> bool:
    """Return whether a finding concerns a whole organ and has no place."""
    return any(word in finding.lower() for word in DIFFUSE_WORDS)


def lesion_kinds(label_map: dict[int, str]) -> dict[str, list[int]]:
    """Return kind -> label values of the lesions of a dataset: every name is one, but a tumor and its edema are one kind."""
    names = {value: label_map[value].lower() for value in lesion_values(label_map)}
    has_tumor = any(word in name for name in names.values() for word in _TUMOR_WORDS)
    kinds: dict[str, list[int]] = {}
    for value, name in names.items():
        is_tumor = has_tumor and any(part in name for part in _TUMOR_PARTS)
        kinds.setdefault("tumor" if is_tumor and len(names) > 1 else name, []).append(value)
    return kinds


def lesion_name(label_map: dict[int, str]) -> str:
    """Return the name of the lesions of a dataset in questions: their kind, or ``lesion`` for several kinds."""
    kinds = list(lesion_kinds(label_map))
    return kinds[0] if len(kinds) == 1 else "lesion"


def template_field(structure: str) -> str:
    """Return the field of ``visible_anatomical_structures`` to which a structure or body part belongs."""
    lowered = structure.lower()
    if any(word in lowered for word in _ORGANS):
        return "organs_or_central_structures"
    for field, words in _FIELD_WORDS:
        if any(word in lowered for word in words):
            return field
    return "organs_or_central_structures"


def knee_organ(text: str) -> str | None:
    """Return the organ of a knee report (``joint_space``, ``menisci``, ...) to which a structure or finding belongs, else None."""
    lowered = text.lower()
    return next((organ for organ, organ_words in _KNEE_ORGANS if any(word in lowered for word in organ_words)), None)
