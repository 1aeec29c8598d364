"""The inputs of curation: the digests that name a volume and decide whether a corpus is up to date.

:func:`curation_inputs` is the only place where these are computed. :func:`components.curation.curate_corpus.curate` compares them
with the digest in ``corpus.json``; the planner of the flows compares them one by one. Only manifests and cards are read, never a
volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from components.curation.curate_volume import CardFacts
from components.ingestion.volume import SourceSeries
from components.provenance import code_digest, digest
from components.settings import CurationSettings

if TYPE_CHECKING:
    from components.catalog import DatasetCard

CODE = (
    "components/curation",
    "components/ingestion",
    "components/tasks",
    "components/phi_patterns.py",
    "model_core/boxes.py",
    "model_core/mri_physics",
)
"""Sources that decide the content of a curated volume and of its texts."""
DESCRIPTIVE_CARD_FIELDS = {
    "name",
    "landing_page",
    "licence",
    "access",
    "rights",
    "doi",
    "version",
    "regions",
    "tasks",
    "field_strengths_t",
    "vendors",
    "sequences",
    "patients",
    "scans",
    "volumes",
    "slices",
    "male",
    "female",
    "age_years",
    "mean_age_years",
    "overlaps",
    "sources",
    "notes",
}
"""Fields of a card that decide no voxel; an edit of them changes no volume (``name``, ``tasks``, ``patients`` and ``volumes`` are
copied into ``corpus.json``, see :func:`card_facts`)."""


@dataclass(frozen=True)
class CurationInputs:
    """Digests of everything that decides a corpus.

    Attributes:
        data: dataset id -> digest of its ingested series, ``""`` for a dataset that is not ingested.
        cards: dataset id -> digest of the fields of its card that curation uses.
        settings: digest of the curation settings, without the number of workers.
        code: digest of the code of curation.
    """

    data: Mapping[str, str]
    cards: Mapping[str, str]
    settings: str
    code: str

    def by_name(self) -> dict[str, str]:
        """Return each digest under the name of the input in plain words, e.g. ``"data of icbm152"``."""
        data = {f"data of {dataset_id}": value for dataset_id, value in self.data.items()}
        cards = {f"card of {dataset_id}": value for dataset_id, value in self.cards.items()}
        return {**data, **cards, "settings: curation": self.settings, "code of curation": self.code}

    @cached_property
    def digest(self) -> str:
        """Digest of all inputs; the order of the datasets does not matter."""
        return digest(self.by_name())

    @property
    def row_recipe(self) -> str:
        """Digest of what decides the table rows of a volume besides the volume itself: settings and code."""
        return digest(self.settings, self.code)


def curation_inputs(data: Path, cards: Iterable[DatasetCard], settings: CurationSettings) -> CurationInputs:
    """Return the inputs that :func:`components.curation.curate` would use now.

    Args:
        data: folder of the de-identified source files; datasets that are not ingested yet are allowed.
        cards: the datasets of the corpus.
        settings: of curation.
    """
    cards = list(cards)
    return inputs_of_series(ingested_series(data, cards), cards, settings)


def ingested_series(data: Path, cards: Iterable[DatasetCard]) -> dict[str, list[SourceSeries]]:
    """Read the manifests: dataset id -> its series, an empty list for a dataset that is not ingested."""
    from components.ingestion import list_series

    return {card.id: list_series(data, card.id) for card in cards}


def inputs_of_series(
    series: Mapping[str, list[SourceSeries]], cards: Iterable[DatasetCard], settings: CurationSettings
) -> CurationInputs:
    """Compute the inputs from series that have been listed already (:func:`ingested_series`)."""
    return CurationInputs(
        data={dataset_id: _series_digest(ingested) if ingested else "" for dataset_id, ingested in series.items()},
        cards={card.id: digest(card_digest(card), card_facts(card)) for card in cards},
        settings=digest(settings.model_dump(mode="json", exclude={"workers"})),
        code=code_version(),
    )


def _series_digest(series: list[SourceSeries]) -> str:
    """Digest of patients, series, and the path and MD5 of every file in its role; the order of the series does not matter."""
    entries = []
    for source in series:
        roles = (source.files, source.labels, source.annotations)
        files_by_role = [[[file.path, file.md5] for file in files] for files in roles]
        entries.append([source.series_id, source.patient_id, source.reader, source.md5, source.visit, files_by_role])
    return digest(sorted(entries))


def code_version() -> str:
    """Return the digest of the code that decides the content of a curated volume and of its texts."""
    return code_digest(*CODE)


def card_digest(card: DatasetCard) -> str:
    """Return the digest of the card fields that decide the voxels and annotations of a volume."""
    return digest(card.model_dump(mode="json", exclude=DESCRIPTIVE_CARD_FIELDS))


def compute_volume_id(series: SourceSeries, card: str, settings: CurationSettings) -> str:
    """Return the content address of a curated volume, 32 hex characters.

    Of each file, it covers the bytes (MD5), the role, and the name after its first dot (which distinguishes a label map from a
    tissue map). Of the settings, it covers only those that shape voxels: another split or phrasing leaves the store as it is.

    Args:
        series: the source files of the volume.
        card: :func:`card_digest` of its card.
        settings: of curation.
    """
    roles = (series.files, series.labels, series.annotations)
    content = [[[file.path.rpartition("/")[2].partition(".")[2], file.md5] for file in files] for files in roles]
    return digest(series.reader, content, card, settings.matrix, settings.pixel_mm, code_version())[:32]


def card_facts(card: DatasetCard) -> CardFacts:
    """Return the fields of a card that curation uses."""
    return CardFacts(
        dataset_id=card.id,
        name=card.name,
        anatomy=card.anatomy,
        synthetic=card.synthetic,
        label_map=card.stored_label_map,
        tasks=card.tasks,
        patients=card.patients,
        volumes=card.volumes,
        coil_reference=card.coil_reference,
    )
