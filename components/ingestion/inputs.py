"""The inputs of ingestion: the digests that decide whether a dataset has to be read again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.catalog import DatasetCard
from components.ingestion.ingest_dataset import output_recipe
from components.ingestion.withdrawal import withdrawn_patients
from components.provenance import digest


@dataclass(frozen=True)
class IngestionInputs:
    """Digests of everything that decides the ingested files of a dataset.

    Attributes:
        source: state of the source folder or of the server, ``""`` where there is none yet.
        recipe: digest of the card's layout, the pseudonym key and the output format, ``""`` before a key has been created.
        withdrawn: digest of the pseudonyms of withdrawn patients.
        generated: digest of size, seed, difficulty and version of a generated cohort, ``""`` for other sources.
    """

    source: str
    recipe: str
    withdrawn: str
    generated: str = ""

    def by_name(self) -> dict[str, str]:
        """Return each digest under the name of the input in plain words."""
        return {
            "source files": self.source,
            "card, key or output format": self.recipe,
            "withdrawn patients": self.withdrawn,
            "generated cohort": self.generated,
        }


def ingestion_inputs(card: DatasetCard, source: str, data: Path, key: bytes | None, generated: str = "") -> IngestionInputs:
    """Return the inputs that :func:`components.ingestion.ingest` would use now; no source file is opened.

    Args:
        card: of the dataset.
        source: digest of the source: of names, sizes and modification times in a folder, or of what a server lists.
        data: folder of the de-identified files of all datasets.
        key: of the pseudonyms; None before it has been created.
        generated: digest of the cohort that the source is generated from; "" for other sources.
    """
    return IngestionInputs(
        source=source,
        recipe=output_recipe(card, key) if key is not None else "",
        withdrawn=digest(sorted(withdrawn_patients(data, card.id))),
        generated=generated,
    )
