"""Asking a vision-language model about every volume of a corpus, once: answers are kept by what decided them.

An answer's file is named by the volume's content and by (question, schema, model). It is written as soon as it is there, so a
run that is killed goes on where it stopped, and a change of code, split or dataset elsewhere asks nothing again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from components.curation.curate_volume import CuratedVolume
from components.curation.store import VolumeStore
from components.curation.table_rows import VolumeRecord
from components.curation.text.descriptions import with_visual
from components.curation.text.instructions import spread
from components.curation.text.phrasings import scan_name
from components.curation.vlm.prompt import QUESTION, Ask, answer_schema, parse_answer, prompt_digest, tiled
from components.files import read_json, write_json
from components.progress import track
from components.provenance import digest
from components.settings import VisualSettings

FOLDER, RUNS = "visual", "runs.jsonl"
Load = Callable[[str], CuratedVolume]
logger = logging.getLogger(__name__)


class Model(Protocol):
    """What answers: :class:`~components.curation.vlm.openai_client.ServedModel` or ``local.LocalModel``."""

    digest: str

    def answer(self, asks: Sequence[Ask], schema: dict[str, Any]) -> list[str]:
        """One JSON text for each question."""


@dataclass(frozen=True)
class VisualReport:
    """What one run asked.

    Attributes:
        answered: volumes that the model answered now; reused: those whose answer was there.
        seconds: of answering.
    """

    answered: int
    reused: int
    seconds: float

    @property
    def rate(self) -> float:
        """Volumes a second; 0 where none was asked."""
        return self.answered / self.seconds if self.answered else 0.0


def load_model(settings: VisualSettings) -> Model:
    """The model that the settings name."""
    if settings.server:
        from components.curation.vlm.openai_client import ServedModel

        return ServedModel(settings)
    from components.curation.vlm.local_model import LocalModel

    return LocalModel(settings)


def _ask(curated: CuratedVolume, store: VolumeStore, slices: int) -> Ask:
    record = curated.record
    chosen = spread(curated.facts.content_slices or [record.slices // 2], slices)
    question = QUESTION.format(count=len(chosen), scan=scan_name(record.sequence, record.plane, record.anatomy))
    image = tiled(store.read(record.volume_id)[chosen])
    return Ask(record.volume_id, record.content_md5, question, image)


def prune(corpus_root: Path, contents: Collection[str]) -> None:
    """Remove the answers about every volume whose content is no longer in the corpus (a withdrawn patient)."""
    for path in (corpus_root / FOLDER).glob("??/*.json"):
        if path.name.partition(".")[0] not in contents:
            path.unlink()


class Answers:
    """What a model says about the volumes of a corpus; each is asked once.

    However large the corpus, sidecars and images of one batch are in memory at a time.

    Args:
        store: where the images are.
        corpus_root: answers are kept under ``visual/`` in it.
        model: what answers; none = the one that the settings name.

    Raises:
        BadInput: the address or checkpoint is refused.
        JobFailed: the server does not answer.
    """

    def __init__(self, store: VolumeStore, corpus_root: Path, settings: VisualSettings, model: Model | None = None) -> None:
        self.model = model or load_model(settings)
        self._store, self._settings, self._folder = store, settings, corpus_root / FOLDER
        self._schema = answer_schema(settings.field_characters)
        self._prompt = prompt_digest(self._schema, QUESTION)

    def _file(self, record: VolumeRecord) -> Path:
        scan = scan_name(record.sequence, record.plane, record.anatomy)
        key = digest(self._prompt, scan, self._settings.slices, self.model.digest)
        return self._folder / record.content_md5[:2] / f"{record.content_md5}.{key[:16]}.json"

    def ask(self, records: Iterable[VolumeRecord], load: Load) -> VisualReport:
        """Ask about every volume that has no answer yet; how fast that went is added to ``visual/runs.jsonl``.

        Args:
            load: what curation left of a volume, by its id; asked only for volumes that are asked about.

        Raises:
            BadInput: an answer is not of the schema.
            JobFailed: the model does not answer; what was answered is kept.
        """
        files = [(self._file(record), record.volume_id) for record in records]
        todo = list({path: volume_id for path, volume_id in files if not path.exists()}.items())
        started, answered = time.monotonic(), 0
        batches = [todo[first : first + self._settings.batch] for first in range(0, len(todo), self._settings.batch)]
        try:
            for batch in track(batches, "asking the vision-language model"):
                asks = [_ask(load(volume_id), self._store, self._settings.slices) for _, volume_id in batch]
                for (path, _), text in zip(batch, self.model.answer(asks, self._schema), strict=True):
                    write_json(path, {"model": self.model.digest, "answer": parse_answer(text, self._schema)})
                    answered += 1
        finally:
            report = VisualReport(answered, len(files) - len(todo), time.monotonic() - started)
            if answered:
                self._note(report)
        return report

    def _note(self, report: VisualReport) -> None:
        """Keep the rate of a run, one that did not come to its end included."""
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"ended": ended, "model": self.model.digest, **asdict(report), "volumes_per_s": report.rate}
        with (self._folder / RUNS).open("a") as file:
            file.write(json.dumps(line) + "\n")
        logger.info("vision-language model: %d volumes at %.2f a second, %d kept", report.answered, report.rate, report.reused)

    def fill(self, curated: CuratedVolume) -> CuratedVolume:
        """A volume that was asked about, with sections 2 and 3 filled where no better source had an answer."""
        answer = read_json(self._file(curated.record))["answer"]
        tag = f"{self.model.digest}/{self._prompt[:16]}"
        return curated.model_copy(update={"description": with_visual(curated.description, answer, tag)})

    def filling(self, load: Load) -> Load:
        """``load`` with :meth:`fill` after it."""
        return lambda volume_id: self.fill(load(volume_id))
