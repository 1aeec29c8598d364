"""Query a vision-language model about every volume of a corpus, once; answers are cached by everything that decides them.

The file of an answer is named by the content of the volume and by (question, schema, model). It is written as soon as the answer
arrives, so that a killed run resumes where it stopped, and a change of code, split or another dataset repeats no query.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from components.curation.curate_volume import CuratedVolume, LoadVolume
from components.curation.store import VolumeStore
from components.curation.table_rows import VolumeRecord
from components.curation.text.descriptions import add_vlm_answers
from components.curation.text.instructions import spread
from components.curation.text.phrasings import scan_name
from components.curation.vlm.prompt import QUESTION, VlmQuery, answer_schema, parse_answer, prompt_digest, tile_slices
from components.files import read_json, write_json
from components.progress import track
from components.provenance import digest
from components.settings import VisualSettings

FOLDER, RUNS = "visual", "runs.jsonl"
logger = logging.getLogger(__name__)


class VisionLanguageModel(Protocol):
    """A model that answers queries: :class:`~components.curation.vlm.openai_client.OpenAIClient` or ``local_model.LocalModel``.

    Attributes:
        digest: identifies the weights.
    """

    digest: str

    def answer(self, queries: Sequence[VlmQuery], schema: dict[str, Any]) -> list[str]:
        """Return one JSON text for each query."""


@dataclass(frozen=True)
class AnnotationReport:
    """Counts and duration of one run.

    Attributes:
        answered: volumes that the model answered in this run.
        reused: volumes whose answer was cached.
        seconds: duration of the queries.
    """

    answered: int
    reused: int
    seconds: float

    @property
    def rate(self) -> float:
        """Volumes per second; 0 if none was answered."""
        return self.answered / self.seconds if self.answered else 0.0


def load_model(settings: VisualSettings) -> VisionLanguageModel:
    """Return the model that the settings select."""
    if settings.server:
        from components.curation.vlm.openai_client import OpenAIClient

        return OpenAIClient(settings)
    from components.curation.vlm.local_model import LocalModel

    return LocalModel(settings)


def _build_query(curated: CuratedVolume, store: VolumeStore, slices: int) -> VlmQuery:
    record = curated.record
    chosen = spread(curated.facts.content_slices or [record.slices // 2], slices)
    question = QUESTION.format(count=len(chosen), scan=scan_name(record.sequence, record.plane, record.anatomy))
    image = tile_slices(store.read(record.volume_id)[chosen])
    return VlmQuery(record.volume_id, record.content_md5, question, image)


def remove_stale_answers(corpus_root: Path, contents: Collection[str]) -> None:
    """Remove the answers about every volume whose content is no longer in the corpus, such as that of a withdrawn patient.

    Args:
        corpus_root: folder of the corpus.
        contents: ``content_md5`` of the volumes that remain.
    """
    for path in (corpus_root / FOLDER).glob("??/*.json"):
        if path.name.partition(".")[0] not in contents:
            path.unlink()


class VlmAnnotator:
    """Answers of a vision-language model about the volumes of a corpus; each volume is queried once.

    Whatever the size of the corpus, only the sidecars and images of one batch are in memory at a time.

    Args:
        store: contains the images.
        corpus_root: answers are stored under ``visual/`` in it.
        settings: of the model and its queries.
        model: answers the queries; None = the model that the settings select.

    Raises:
        BadInput: the address or checkpoint is refused.
        JobFailed: the server does not answer.
    """

    def __init__(
        self, store: VolumeStore, corpus_root: Path, settings: VisualSettings, model: VisionLanguageModel | None = None
    ) -> None:
        self.model = model or load_model(settings)
        self._store, self._settings, self._folder = store, settings, corpus_root / FOLDER
        self._schema = answer_schema(settings.field_characters)
        self._prompt = prompt_digest(self._schema, QUESTION)

    def _answer_path(self, record: VolumeRecord) -> Path:
        scan = scan_name(record.sequence, record.plane, record.anatomy)
        key = digest(self._prompt, scan, self._settings.slices, self.model.digest)
        return self._folder / record.content_md5[:2] / f"{record.content_md5}.{key[:16]}.json"

    def annotate(self, records: Iterable[VolumeRecord], load: LoadVolume) -> AnnotationReport:
        """Query the model about every volume without a cached answer; append the rate of the run to ``visual/runs.jsonl``.

        Args:
            records: the volumes.
            load: reads a curated volume by its id; called only for volumes that are queried.

        Raises:
            BadInput: an answer does not conform to the schema.
            JobFailed: the model does not answer; earlier answers remain cached.
        """
        paths = [(self._answer_path(record), record.volume_id) for record in records]
        pending = list({path: volume_id for path, volume_id in paths if not path.exists()}.items())
        started, answered = time.monotonic(), 0
        batches = [pending[first : first + self._settings.batch] for first in range(0, len(pending), self._settings.batch)]
        try:
            for batch in track(batches, "querying the vision-language model"):
                queries = [_build_query(load(volume_id), self._store, self._settings.slices) for _, volume_id in batch]
                for (path, _), text in zip(batch, self.model.answer(queries, self._schema), strict=True):
                    write_json(path, {"model": self.model.digest, "answer": parse_answer(text, self._schema)})
                    answered += 1
        finally:
            report = AnnotationReport(answered, len(paths) - len(pending), time.monotonic() - started)
            if answered:
                self._record_rate(report)
        return report

    def _record_rate(self, report: AnnotationReport) -> None:
        """Append the rate of a run, which may have been interrupted, to ``visual/runs.jsonl``."""
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"ended": ended, "model": self.model.digest, **asdict(report), "volumes_per_s": report.rate}
        with (self._folder / RUNS).open("a") as file:
            file.write(json.dumps(line) + "\n")
        logger.info("vision-language model: %d volumes at %.2f per second, %d reused", report.answered, report.rate, report.reused)

    def add_answer(self, curated: CuratedVolume) -> CuratedVolume:
        """Return an annotated volume with the answer in those fields of sections 2 and 3 that no better source filled."""
        answer = read_json(self._answer_path(curated.record))["answer"]
        tag = f"{self.model.digest}/{self._prompt[:16]}"
        return curated.model_copy(update={"description": add_vlm_answers(curated.description, answer, tag)})

    def wrap_loader(self, load: LoadVolume) -> LoadVolume:
        """Return a loader that calls ``load``, then :meth:`add_answer`."""
        return lambda volume_id: self.add_answer(load(volume_id))
