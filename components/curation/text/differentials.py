"""Differential considerations for findings, used in the answers to open diagnostic questions.

A list is general knowledge, not a statement about a patient: only the finding that the dataset itself states is called likely. For
a finding without an entry, no differential is asked for. The first entry for the brain is the example of the paper's Fig. 4B.
"""

from __future__ import annotations

_TABLE: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("brain", ("infarct", "stroke"), ("encephalomalacia", "chronic infarct", "post-inflammatory change")),
    ("brain", ("glioma", "glioblastoma", "tumor", "tumour"), ("metastasis", "lymphoma", "abscess", "tumefactive demyelination")),
    ("brain", ("metasta",), ("glioma", "abscess", "lymphoma")),
    ("brain", ("hyperintens", "multiple sclerosis", "demyelinat"), ("small vessel disease", "demyelination", "vasculitis")),
    ("brain", ("haemorrhage", "hemorrhage"), ("cavernous malformation", "haemorrhagic metastasis", "amyloid angiopathy")),
    ("brain", ("atrophy",), ("normal ageing", "Alzheimer disease", "normal pressure hydrocephalus")),
    ("knee", ("meniscus tear", "meniscal tear"), ("meniscal degeneration", "discoid meniscus", "previous meniscectomy")),
    ("knee", ("acl", "cruciate"), ("partial tear", "mucoid degeneration", "ganglion cyst")),
    ("knee", ("marrow edema", "marrow oedema"), ("bone contusion", "stress fracture", "osteonecrosis", "osteomyelitis")),
    ("knee", ("cartilage",), ("osteoarthritis", "chondromalacia", "osteochondral lesion")),
    ("prostate", ("cancer", "lesion", "carcinoma"), ("prostatitis", "stromal nodule of hyperplasia", "haemorrhage after biopsy")),
    ("breast", ("cancer", "lesion", "carcinoma", "tumor", "tumour"), ("fibroadenoma", "papilloma", "fat necrosis")),
    ("liver", ("hepatocellular", "tumor", "tumour", "lesion"), ("focal nodular hyperplasia", "haemangioma", "metastasis")),
    ("spine", ("herniation", "protrusion"), ("disc bulge", "epidural haematoma", "synovial cyst")),
    ("heart", ("scar", "infarct"), ("myocarditis", "hypertrophic cardiomyopathy", "sarcoidosis")),
)


def list_considerations(finding: str, anatomy: str | None) -> list[str]:
    """Return the considerations besides a finding in a body part; empty if the table has no entry."""
    lowered_anatomy, lowered_finding = (anatomy or "").lower(), finding.lower()
    for body_part, words, considered in _TABLE:
        if body_part in lowered_anatomy and any(word in lowered_finding for word in words):
            return [consideration for consideration in considered if consideration != lowered_finding]
    return []
