"""Who is trained on and who is held out: whole patients, never slices.

A **ranked cut**: the patients of a dataset are ordered by a keyed hash (HMAC-like: the split seed and the pseudonym) and cut at
the fractions. A pure threshold on the hash would never move a patient, but leaves a 12-patient dataset without a test (3 %)
or validation patient (14 %); reconstruction, which only the k-space dataset can show, would then not be measured at all. The
price of the cut: adding or withdrawing a patient may move the patients next to a cut. Models
are trained anew when the corpus changes, so nobody is both trained and tested on by the same model.

Details that matter:

- Patients with and without a lesion are cut separately (strata), so that both are held out where there are both.
- A patient seen in several datasets is placed once, with the first of them by name.
- Datasets of fewer than 4 patients go to ``train`` whole: they cannot be cut fairly. That is where the ICBM152 template belongs
  in any case: the synthetic patients are deformations of it, so it is no independent test of a model trained on them.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from components.curation.table_rows import Split

SMALLEST_CUT = 4


@dataclass(frozen=True)
class Patient:
    """A patient as the split sees it.

    Attributes:
        dataset_id: a dataset with a volume of this patient (one entry per dataset).
        lesion: a lesion is known to be present (True), absent (False), or unknown (None).
    """

    patient_id: str
    dataset_id: str
    lesion: bool | None


def _rank(patient_id: str, seed: int) -> str:
    return hashlib.blake2b(patient_id.encode(), key=seed.to_bytes(16, "big", signed=True)).hexdigest()


def _placed_once(patients: Iterable[Patient]) -> dict[str, dict[str, bool | None]]:
    """Dataset -> patient -> lesion, each patient under its first dataset only; a lesion anywhere counts."""
    home: dict[str, str] = {}
    lesion: dict[str, bool | None] = {}
    for patient in patients:
        home[patient.patient_id] = min(patient.dataset_id, home.get(patient.patient_id, patient.dataset_id))
        known = lesion.get(patient.patient_id)
        lesion[patient.patient_id] = patient.lesion if known is None else known or bool(patient.lesion)
    datasets: dict[str, dict[str, bool | None]] = defaultdict(dict)
    for patient_id, dataset_id in home.items():
        datasets[dataset_id][patient_id] = lesion[patient_id]
    return datasets


def _counts(total: int, validation: float, test: float) -> tuple[int, int]:
    """Patients to hold out for (validation, test): rounded, and at least one where a share is wanted."""
    tests = max(1, int(total * test + 0.5)) if test > 0 else 0
    validations = max(1, int(total * (test + validation) + 0.5) - tests) if validation > 0 else 0
    return validations, tests


def _cut(patients: dict[str, bool | None], validation: float, test: float, seed: int) -> dict[str, Split]:
    """Cut one dataset: counts by cumulative rounding, so they add up over the strata; what a stratum lacks, the next one gives."""
    total = len(patients)
    validations, tests = _counts(total, validation, test)
    splits: dict[str, Split] = {}
    seen = in_test = in_validation = 0
    for stratum in (True, False, None):
        ranked = sorted((p for p, lesion in patients.items() if lesion is stratum), key=lambda p: _rank(p, seed))
        seen += len(ranked)
        first = min(int(tests * seen / total + 0.5) - in_test, len(ranked))
        second = min(int(validations * seen / total + 0.5) - in_validation, len(ranked) - first)
        in_test, in_validation = in_test + first, in_validation + second
        for place, patient_id in enumerate(ranked):
            splits[patient_id] = "test" if place < first else "validation" if place < first + second else "train"
    return splits


def split_patients(patients: Iterable[Patient], validation: float, test: float, seed: int) -> dict[str, Split]:
    """Patient -> split.

    Args:
        patients: in any order, repeats allowed.
        validation, test: shares of patients, 0-1; a share above 0 gets at least one patient of every dataset that is cut.
        seed: key of the hash.
    """
    splits: dict[str, Split] = {}
    for _, members in sorted(_placed_once(patients).items()):
        if len(members) < SMALLEST_CUT:
            splits.update(dict.fromkeys(members, "train"))
        else:
            splits.update(_cut(members, validation, test, seed))
    return dict(sorted(splits.items()))
