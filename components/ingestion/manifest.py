"""Files that describe an ingested dataset: ``manifest.json``, ``quarantine.json``, and those of an unfinished ingestion (hidden).

The manifest (``data/<id>/manifest.json``) lists the series and, for each written file, the MD5 of its source, so that a file whose
source did not change is not written again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.errors import MachineFault
from components.file_switch import require_switched
from components.files import read_json, write_json
from components.ingestion.volume import SourceFile, SourceSeries

MANIFEST, QUARANTINE, JOURNAL = "manifest.json", "quarantine.json", ".journal.jsonl"
FILE_ROLES = ("files", "labels", "annotations")
"""Fields of a series that list files."""


@dataclass(frozen=True)
class Manifest:
    """Content of a manifest.

    Attributes:
        recipe: digest of the inputs that decide the written bytes besides the sources.
        series: ingested volumes.
        sources: path under ``data/`` -> MD5 of the source.
        contents: path of an image under ``data/`` -> MD5 of its content.
    """

    recipe: str
    series: tuple[SourceSeries, ...]
    sources: dict[str, str]
    contents: dict[str, str]

    @classmethod
    def read(cls, root: Path) -> Manifest | None:
        """Read the manifest of a dataset's folder; None where it has not been ingested.

        Raises:
            JobFailed: an ingestion was interrupted while it replaced files.
            MachineFault: the manifest is damaged.
        """
        path = root / MANIFEST
        require_switched(root, "omnimri ingest")
        if not path.exists():
            return None
        try:
            content = read_json(path)
            series = tuple(_series_from_json(entry) for entry in content["series"])
            return cls(content["recipe"], series, content["sources"], content["contents"])
        except (ValueError, KeyError, TypeError):  # cut short, or no manifest
            raise MachineFault(
                "the list of ingested files is damaged",
                where=str(path),
                remedy=f"restore it (omnimri data pull), or remove the folder {root} and run omnimri ingest again",
            ) from None

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file; a series that has no visit does not mention one."""
        content = asdict(self)
        for series in content["series"]:
            if not series["visit"]:
                del series["visit"]
        return content

    def write(self, root: Path) -> None:
        """Write the manifest to a dataset's folder, atomically."""
        write_json(root / MANIFEST, self.to_json())


def _series_from_json(entry: dict[str, Any]) -> SourceSeries:
    files = {role: tuple(SourceFile(**file) for file in entry[role]) for role in FILE_ROLES}
    return SourceSeries(**{**entry, **files})


def files_of(series: SourceSeries) -> tuple[SourceFile, ...]:
    """Return all files of a series: images, labels, annotations."""
    return (*series.files, *series.labels, *series.annotations)
