"""Patients of a corpus as digests: sufficient to test membership of a known patient, insufficient to list patients."""

from __future__ import annotations

from components.curation.corpus import Corpus
from components.provenance import SHORT, digest


def patient_digest(dataset: str, patient: str) -> str:
    """Return the digest of a patient's pseudonym in a dataset."""
    return digest(dataset, patient)[:SHORT]


def cohort_digests(corpus: Corpus) -> dict[str, dict[str, list[str]]]:
    """Return dataset -> split -> sorted digests of its patients."""
    cohort: dict[str, dict[str, set[str]]] = {}
    for volume in corpus.volumes.values():
        patients = cohort.setdefault(volume.dataset_id, {}).setdefault(str(volume.split), set())
        patients.add(patient_digest(volume.dataset_id, volume.patient_id))
    return {
        dataset: {split: sorted(patients) for split, patients in sorted(splits.items())}
        for dataset, splits in sorted(cohort.items())
    }
