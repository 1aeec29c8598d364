"""Split patients into train, validation and test: whole patients, never slices.

The split is a **ranked cut**: the patients of a dataset are ordered by a keyed hash (HMAC-like: the split seed and the pseudonym)
and cut at the fractions. A pure threshold on the hash would never move a patient, but may leave a 12-patient dataset without a test
(3 %) or validation patient (14 %); reconstruction, for which only the k-space dataset has data, would then not be evaluated at all.
The price of the cut: adding or withdrawing a patient may move the patients next to a cut. Models are retrained when the corpus
changes, so that no model is tested on a patient whom it was trained on.

Details that matter:

- Patients with and without a lesion are cut separately (strata), so that both groups are held out if both exist.
- A patient who is in several datasets is assigned once, in the first of them by name.
- Datasets of fewer than 4 patients go to ``train`` completely: they cannot be cut fairly. The ICBM152 template belongs there in any
  case: the synthetic patients are deformations of it, so that it is no independent test of a model trained on them.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from components.curation.table_rows import Split

MIN_PATIENTS = 4


@dataclass(frozen=True)
class Patient:
    """A patient of one dataset.

    Attributes:
        dataset_id: a dataset with a volume of this patient (one entry per dataset).
        lesion: a lesion is known to be present (True), absent (False), or unknown (None).
    """

    patient_id: str
    dataset_id: str
    lesion: bool | None


def _rank(patient_id: str, seed: int) -> str:
    return hashlib.blake2b(patient_id.encode(), key=seed.to_bytes(16, "big", signed=True)).hexdigest()


def _assign_to_datasets(patients: Iterable[Patient]) -> dict[str, dict[str, bool | None]]:
    """Return dataset -> patient -> lesion, each patient in its first dataset only; a lesion in any dataset counts."""
    first_dataset: dict[str, str] = {}
    lesion: dict[str, bool | None] = {}
    for patient in patients:
        first_dataset[patient.patient_id] = min(patient.dataset_id, first_dataset.get(patient.patient_id, patient.dataset_id))
        earlier = lesion.get(patient.patient_id)
        lesion[patient.patient_id] = patient.lesion if earlier is None else earlier or bool(patient.lesion)
    datasets: dict[str, dict[str, bool | None]] = defaultdict(dict)
    for patient_id, dataset_id in first_dataset.items():
        datasets[dataset_id][patient_id] = lesion[patient_id]
    return datasets


def _counts(total: int, validation: float, test: float) -> tuple[int, int]:
    """Return the number of patients for (validation, test): rounded, and at least one if the share is above 0."""
    tests = max(1, int(total * test + 0.5)) if test > 0 else 0
    validations = max(1, int(total * (test + validation) + 0.5) - tests) if validation > 0 else 0
    return validations, tests


def _cut(patients: dict[str, bool | None], validation: float, test: float, seed: int) -> dict[str, Split]:
    """Cut one dataset; cumulative rounding makes the counts of the strata add up, and the next stratum makes up for a deficit."""
    total = len(patients)
    validations, tests = _counts(total, validation, test)
    splits: dict[str, Split] = {}
    seen = in_test = in_validation = 0
    for stratum in (True, False, None):
        ranked = sorted((p for p, lesion in patients.items() if lesion is stratum), key=lambda p: _rank(p, seed))
        seen += len(ranked)
        tests_here = min(int(tests * seen / total + 0.5) - in_test, len(ranked))
        validations_here = min(int(validations * seen / total + 0.5) - in_validation, len(ranked) - tests_here)
        in_test, in_validation = in_test + tests_here, in_validation + validations_here
        for rank, patient_id in enumerate(ranked):
            splits[patient_id] = "test" if rank < tests_here else "validation" if rank < tests_here + validations_here else "train"
    return splits


def split_patients(patients: Iterable[Patient], validation: float, test: float, seed: int) -> dict[str, Split]:
    """Assign every patient to a split.

    Args:
        patients: in any order, repetitions allowed.
        validation, test: shares of patients, 0-1; a share above 0 gets at least one patient of every dataset that is cut.
        seed: key of the hash.
    """
    splits: dict[str, Split] = {}
    for _, members in sorted(_assign_to_datasets(patients).items()):
        if len(members) < MIN_PATIENTS:
            splits.update(dict.fromkeys(members, "train"))
        else:
            splits.update(_cut(members, validation, test, seed))
    return dict(sorted(splits.items()))
