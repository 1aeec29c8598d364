"""Updates from a source that contains the new part of a dataset only, such as what was fetched from a server."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from components.ingestion.cleaning import CleanedFile
from components.ingestion.formats.base import PlannedFile
from components.ingestion.manifest import Manifest, files_of
from components.ingestion.quarantine import Rejection
from components.ingestion.source_folder import Plan
from components.ingestion.volume import SourceSeries
from components.provenance import digest

SeriesKey = tuple[str, str]
"""Pseudonyms of the patient and of the series."""
_KNOWN = Rejection("duplicate", "the same voxels as a series that was ingested before", "remove one of the two")


def key_of(series: SourceSeries) -> SeriesKey:
    """Return the name of a series within its dataset."""
    return series.patient_id, series.series_id


@dataclass(frozen=True)
class Retained:
    """Series of the last version that stay as they are.

    Attributes:
        series: the series.
        sources, contents: of their files, as in the manifest. A source is "" where its file was written for another recipe, so
            that the file is written again when its source comes back.
    """

    series: tuple[SourceSeries, ...] = ()
    sources: Mapping[str, str] | None = None
    contents: Mapping[str, str] | None = None

    @classmethod
    def of(cls, last: Manifest, replaced: Collection[SeriesKey], withdrawn: Collection[str], recipe: str) -> Retained:
        """Return the series of a version that are neither replaced nor of a withdrawn patient."""
        kept = tuple(one for one in last.series if key_of(one) not in replaced and one.patient_id not in withdrawn)
        paths = [file.path for one in kept for file in files_of(one)]
        sources = {path: last.sources[path] if last.recipe == recipe else "" for path in paths}
        return cls(kept, sources, {path: last.contents[path] for path in paths if path in last.contents})

    def without(self, new: Collection[SourceSeries]) -> Retained:
        """Return the series that no new one replaces by its name."""
        keys = {key_of(one) for one in new}
        return Retained(tuple(one for one in self.series if key_of(one) not in keys), self.sources, self.contents)

    def reject_copies(
        self, new: list[SourceSeries], results: Mapping[str, CleanedFile], files: Mapping[str, PlannedFile], plan: Plan
    ) -> list[SourceSeries]:
        """Return the new series whose voxels no retained series has; reject the others, as copies within one source are."""
        contents = self.contents or {}
        known = {digest(sorted(contents.get(file.path, "") for file in one.files)) for one in self.series}
        unique = []
        for one in new:
            if digest(sorted(results[file.path].content for file in one.files)) in known:
                plan.reject([files[file.path].source for file in one.files], _KNOWN)
            else:
                unique.append(one)
        return unique
