"""Whether the volume store still holds what was written to it: every file of every volume, by its checksums."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.curation.corpus import STORE, SUMMARY
from components.curation.curate_corpus import load_curated_volume, sidecar_path
from components.curation.store import VolumeStore
from components.errors import BadInput
from components.progress import track


@dataclass(frozen=True)
class Fault:
    """Something that is wrong in the store.

    Attributes:
        file: its name.
        what: one sentence; where slices are damaged, which.
    """

    volume_id: str
    file: str
    what: str


@dataclass(frozen=True)
class Verification:
    """What a check of the store found.

    Attributes:
        volumes, files: how many were read.
        faults: by volume.
        repaired: damaged volumes were removed, to be made again by the next curation.
    """

    volumes: int
    files: int
    faults: tuple[Fault, ...]
    repaired: bool


def verify(root: Path, repair: bool = False) -> Verification:
    """Read every file of the store of the corpus under ``root`` and compare it with its checksums.

    Args:
        repair: remove volumes with a fault, so that the next curation makes them (and only them) again.

    Raises:
        BadInput: there is no store.
    """
    store = VolumeStore(root / STORE)
    names = list(store.volume_ids())
    if not names:
        raise BadInput("no volume store", where=str(store.root), remedy="run omnimri curate")
    faults: list[Fault] = []
    files = 0
    for name in track(names, "verifying volumes"):
        try:
            written = load_curated_volume(store, name).files
        except BadInput as error:
            faults.append(Fault(name, sidecar_path(store, name).name, error.what))
            continue
        files += len(written)
        for array, md5 in written.items():
            faults += [Fault(name, store.path(name, array).name, what) for what in store.faults(name, array, md5)]
    if repair and faults:
        (root / SUMMARY).unlink(missing_ok=True)
        for name in {fault.volume_id for fault in faults}:
            store.remove(name)
    return Verification(len(names), files, tuple(faults), repair and bool(faults))
