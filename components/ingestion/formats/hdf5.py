"""HDF5 containers of k-space formats: recognition and limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py

from components.errors import BadInput
from components.ingestion.formats.gzipped import MAX_DEFLATE_RATIO

MAGIC = b"\x89HDF\r\n\x1a\n"


def is_stored(values: h5py.Dataset) -> bool:
    """Return whether a data set is not larger than its stored bytes can be: HDF5 returns zeros for what was never written."""
    stored_bytes = values.id.get_storage_size()
    return 0 < values.size * values.dtype.itemsize <= stored_bytes * MAX_DEFLATE_RATIO


def is_hard_link(group: h5py.Group, name: str) -> bool:
    """Return whether a group contains a member itself, not a link to elsewhere; no link is followed."""
    links = group.id.links
    return bool(links.exists(name.encode()) and links.get_info(name.encode()).type == h5py.h5l.TYPE_HARD)


def count_values(path: Path) -> int:
    """Return the number of values of all data sets.

    Raises:
        BadInput: a damaged file, or one that refers to other files.
    """
    try:
        with h5py.File(path) as file:
            return sum(_dataset_sizes(file))
    except BadInput:
        raise
    except Exception:  # h5py raises many types for damaged files
        raise BadInput("a damaged HDF5 file", where="image", remedy="get the file again") from None


def _dataset_sizes(group: h5py.Group) -> Iterator[int]:
    """Yield the number of values of each data set, groups included.

    Raises:
        BadInput: a link, or the storage of a data set, in another file.
    """
    external = BadInput("a file that refers to other files", where="image", remedy="send one HDF5 file that contains its data")
    for name in group:
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise external
        if isinstance(link, h5py.SoftLink):
            continue
        member = group[name]
        if isinstance(member, h5py.Group):
            yield from _dataset_sizes(member)
        elif isinstance(member, h5py.Dataset):
            if member.external or member.is_virtual:
                raise external
            yield int(member.size or 0)
