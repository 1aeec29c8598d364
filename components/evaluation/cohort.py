"""Who is in a corpus, as digests: enough to ask whether somebody is, too little to say who."""

from __future__ import annotations

from components.curation.corpus import Corpus
from components.provenance import SHORT, digest


def person(dataset: str, patient: str) -> str:
    """Digest of a patient's pseudonym in a dataset."""
    return digest(dataset, patient)[:SHORT]


def cohort_of(corpus: Corpus) -> dict[str, dict[str, list[str]]]:
    """Dataset -> split -> digests of its patients."""
    found: dict[str, dict[str, set[str]]] = {}
    for one in corpus.volumes.values():
        found.setdefault(one.dataset_id, {}).setdefault(str(one.split), set()).add(person(one.dataset_id, one.patient_id))
    return {
        dataset: {split: sorted(people) for split, people in sorted(splits.items())} for dataset, splits in sorted(found.items())
    }
