"""Records of data versions: a pinned version, its status, and the result of a checkout."""

from __future__ import annotations

from dataclasses import dataclass

from components.ingestion.withdrawal import Removed


@dataclass(frozen=True)
class DataVersion:
    """A pinned version of the data.

    Attributes:
        digest: md5 that DVC computes for the folder, without the suffix ``.dir``; identifies the version in every later step.
        files, bytes: number and total size of its files.
        changed: whether it differs from the previously pinned version.
    """

    digest: str
    files: int
    bytes: int
    changed: bool


@dataclass(frozen=True)
class DatasetStatus:
    """Number of files of one dataset that differ from the pinned version."""

    dataset_id: str
    new: int
    modified: int
    removed: int


@dataclass(frozen=True)
class DataStatus:
    """Difference between the folder and its pinned version.

    Attributes:
        digest: the pinned version.
        clean: whether the folder equals the pinned version.
        pushed: whether the default remote contains the complete pinned version.
        datasets: datasets that differ.
    """

    digest: str
    clean: bool
    pushed: bool
    datasets: tuple[DatasetStatus, ...]


@dataclass(frozen=True)
class CheckoutResult:
    """Result of writing a version into a folder.

    Attributes:
        digest: the version.
        files: number of files of the version after a checkout; number of written files after an export, without those that
            were complete already.
        withdrawn: excluded series and files of patients who have withdrawn since.
        cached_withdrawn: number of files of withdrawn patients that the cache of this checkout still contains.
    """

    digest: str
    files: int
    withdrawn: Removed
    cached_withdrawn: int = 0


@dataclass(frozen=True)
class Withdrawal:
    """Result of a withdrawal.

    Attributes:
        removed: series and files removed from the folder.
        digest: the pinned version; "" where none could be pinned.
        versions: versions that contained the patients' files.
        purged: number of files deleted from cache and remotes.
        unproven: one sentence for everything that could not be done or proved, with its remedy.
    """

    removed: Removed
    digest: str
    versions: frozenset[str]
    purged: int
    unproven: tuple[str, ...]
