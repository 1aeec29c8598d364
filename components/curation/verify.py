"""Verify every file of every volume in the store by its checksums."""

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
    """A damaged or missing file of the store.

    Attributes:
        volume_id: the volume.
        file: name of the file.
        what: one sentence; it names the slice if one is damaged.
    """

    volume_id: str
    file: str
    what: str


@dataclass(frozen=True)
class Verification:
    """Result of a verification.

    Attributes:
        volumes, files: numbers of volumes and files that were read.
        faults: in the order of the volumes.
        repaired: damaged volumes were removed, so that the next curation creates them again.
    """

    volumes: int
    files: int
    faults: tuple[Fault, ...]
    repaired: bool


def verify(root: Path, repair: bool = False) -> Verification:
    """Read every file of the store of the corpus under ``root`` and compare it with its checksums.

    Args:
        root: folder of the corpus.
        repair: remove volumes with a fault, so that the next curation creates them (and only them) again.

    Raises:
        BadInput: there is no store.
    """
    store = VolumeStore(root / STORE)
    volume_ids = list(store.volume_ids())
    if not volume_ids:
        raise BadInput("no volume store", where=str(store.root), remedy="run omnimri curate")
    faults: list[Fault] = []
    files = 0
    for volume_id in track(volume_ids, "verifying volumes"):
        try:
            checksums = load_curated_volume(store, volume_id).files
        except BadInput as error:
            faults.append(Fault(volume_id, sidecar_path(store, volume_id).name, error.what))
            continue
        files += len(checksums)
        for array, md5 in checksums.items():
            sentences = store.find_faults(volume_id, array, md5)
            faults += [Fault(volume_id, store.path(volume_id, array).name, sentence) for sentence in sentences]
    if repair and faults:
        (root / SUMMARY).unlink(missing_ok=True)
        for volume_id in {fault.volume_id for fault in faults}:
            store.remove(volume_id)
    return Verification(len(volume_ids), files, tuple(faults), repair and bool(faults))
