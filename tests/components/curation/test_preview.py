"""The preview page is complete and self-contained."""

from __future__ import annotations

from pathlib import Path

from components.curation.corpus import Corpus
from components.curation.preview import write_preview
from tests.helpers.corpora import tiny_corpus


def test_the_preview_shows_every_task_and_loads_nothing_from_a_network(tmp_path: Path) -> None:
    corpus: Corpus = tiny_corpus(tmp_path / "corpus", patients=4)
    page = write_preview(corpus, tmp_path / "preview.html", count=2).read_text()
    for word in ("Reconstruction", "Segmentation", "Detection", "Diagnosis", "Report", "statistics", "data:image/png;base64,"):
        assert word in page
    assert "http://" not in page and "https://" not in page and "<script" not in page
    assert write_preview(corpus, tmp_path / "again.html", count=2).read_text() == page
