"""Studies: the series of one patient and visit, in an order that does not depend on file names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from components.curation.table_rows import VolumeRecord


def group_studies(records: Iterable[VolumeRecord]) -> dict[str, list[VolumeRecord]]:
    """Return volume_id -> the series of its study, itself included, ordered by sequence, plane and series.

    Series without a visit are those of the patient's only one: a source that tells visits apart names all of them.
    """
    studies: dict[tuple[str, str, str], list[VolumeRecord]] = defaultdict(list)
    for record in records:
        studies[record.dataset_id, record.patient_id, record.visit].append(record)
    for series in studies.values():
        series.sort(key=lambda record: (record.sequence or "", record.plane or "", record.series_id))
    return {record.volume_id: series for series in studies.values() for record in series}
