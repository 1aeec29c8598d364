"""The server that a dataset comes from, if it comes from one."""

from __future__ import annotations

from dataclasses import dataclass

from components.catalog import DatasetCard
from components.pacs.address import Server, find_server
from components.pacs.query import parse_query
from components.settings import DatasetSettings, PacsSettings


@dataclass(frozen=True)
class PacsSource:
    """Series of an archive.

    Attributes:
        server: the archive.
        filters: keyword -> value that a series or its study must match.
    """

    server: Server
    filters: dict[str, str]


def comes_from_server(dataset: DatasetSettings, card: DatasetCard) -> bool:
    """Return whether a dataset is fetched from a server: the profile names one, or names no folder and the card names one."""
    return dataset.server is not None or (dataset.path is None and card.pacs is not None)


def find_source(dataset: DatasetSettings, card: DatasetCard, pacs: PacsSettings) -> PacsSource | None:
    """Return the series that a dataset is fetched from; None for a folder or a generated dataset.

    Raises:
        BadInput: the server may not be contacted, or the query is malformed.
    """
    if not comes_from_server(dataset, card):
        return None
    named = card.pacs
    address = dataset.server or (named.server if named else "")
    query = dataset.query if dataset.query is not None else (named.query if named else "Modality=MR")
    recent_days = named.recent_days if named and dataset.query is None else None
    return PacsSource(find_server(address, pacs), parse_query(query, recent_days))
