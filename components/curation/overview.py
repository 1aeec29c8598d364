"""Count the patients, volumes and slices of a corpus from the columns of its tables: seconds for 19 million slices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.curation.slice_table import YES, SliceTable
from components.curation.tables import VOLUMES, read_arrow


@dataclass(frozen=True)
class SplitCounts:
    """Counts of one dataset in one split.

    Attributes:
        showing: slices with tissue or labels.
        lesions: slices with a lesion; slices without annotation are not counted.
    """

    dataset_id: str
    split: str
    patients: int
    volumes: int
    slices: int
    showing: int
    lesions: int


def overview(root: Path) -> list[SplitCounts]:
    """Return the counts of every dataset and split of the corpus under ``root``, sorted by name.

    Raises:
        BadInput: there is no corpus.
    """
    volumes = read_arrow(root, VOLUMES, ["volume_id", "dataset_id", "split", "patient_id"])
    slices = SliceTable.read(root).take(volumes.column("volume_id").to_pylist())
    datasets, splits = (volumes.column(name).to_pylist() for name in ("dataset_id", "split"))
    names = [f"{dataset}\t{split}" for dataset, split in zip(datasets, splits, strict=True)]
    groups, group = np.unique(np.array(names, dtype=str), return_inverse=True)
    patients = np.unique(volumes.column("patient_id").to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[1]
    group_of_slice = group[slices.volume]

    def count(groups_of_rows: np.ndarray) -> np.ndarray:
        return np.bincount(groups_of_rows, minlength=len(groups))

    columns = (
        count(np.unique(np.stack([group, patients]), axis=1)[0]),
        count(group),
        count(group_of_slice),
        count(group_of_slice[slices.shows]),
        count(group_of_slice[slices.lesion == YES]),
    )
    return [SplitCounts(*name.split("\t"), *(int(column[number]) for column in columns)) for number, name in enumerate(groups)]
