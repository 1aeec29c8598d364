"""Images of a study on a server, for a prediction about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from components.errors import BadInput, JobFailed
from components.home import Home
from components.pacs.archive import Archive
from components.pacs.fetching import Fetcher
from components.pacs.originals import originals_folder
from components.pacs.study_address import StudyAddress


@dataclass(frozen=True)
class RemoteImages:
    """Series of a study.

    Attributes:
        folders: one folder for each series, removed at the end of the context.
        left_out: reasons why further series could not be fetched.
    """

    folders: list[Path]
    left_out: list[str]


@contextmanager
def fetched_images(address: StudyAddress, archive: Archive, home: Home, patience_s: float) -> Iterator[RemoteImages]:
    """Fetch the MR series of a study into a private folder, which is removed at the end.

    Raises:
        BadInput: the server has no such study, or no MR series in it.
        JobFailed: none of them can be fetched.
    """
    fetcher = Fetcher(archive, patience_s)
    listing = fetcher.ask(lambda: archive.list_series({"StudyInstanceUID": address.study}))
    wanted = [one for one in listing if one.study == address.study and one.modality in ("MR", "")]
    if address.series is not None:
        wanted = [one for one in wanted if one.series == address.series]
    if not wanted:
        where = archive.server.label
        raise BadInput("no MR series of this study", where=where, remedy="check the UIDs; QIDO-RS lists those of the server")
    with originals_folder(home) as folder:
        fetched = fetcher.fetch_study(address.study, wanted, folder)
        if not fetched.whole:
            raise JobFailed(
                f"no series could be fetched: {fetched.left_out[0]}", where=archive.server.label, remedy="try again later"
            )
        folders = sorted({path.parent for one in fetched.whole for path in one.files.values()})
        yield RemoteImages(folders, fetched.left_out)
