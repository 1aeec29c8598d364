"""Asking a vision-language model about every volume of a corpus, once: answers are kept by what decided them.

An answer's file is named by the volume's content and by (question, schema, model). It is written as soon as it is there, so a
run that is killed goes on where it stopped, and a change of code, split or dataset elsewhere asks nothing again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from components.curation.descriptions import with_visual
from components.curation.instructions import spread
from components.curation.phrasings import scan_name
from components.curation.single import CuratedVolume
from components.curation.store import VolumeStore
from components.curation.visual.asking import QUESTION, Ask, answer_schema, parse_answer, prompt_digest, tiled
from components.files import read_json, write_json
from components.progress import track
from components.provenance import digest
from components.settings import VisualSettings

FOLDER = "visual"
logger = logging.getLogger(__name__)


class Model(Protocol):
    """What answers: :class:`~components.curation.visual.served.ServedModel` or ``local.LocalModel``."""

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
        from components.curation.visual.served import ServedModel

        return ServedModel(settings)
    from components.curation.visual.local import LocalModel

    return LocalModel(settings)


def _ask(curated: CuratedVolume, store: VolumeStore, slices: int) -> Ask:
    record = curated.record
    chosen = spread(curated.facts.content_slices or [record.slices // 2], slices)
    question = QUESTION.format(count=len(chosen), scan=scan_name(record.sequence, record.plane, record.anatomy))
    image = tiled(store.read(record.volume_id)[chosen])
    return Ask(record.volume_id, record.content_md5, question, image)


def _answer_file(folder: Path, content_md5: str, key: str) -> Path:
    return folder / content_md5[:2] / f"{content_md5}.{key[:16]}.json"


def prune(corpus_root: Path, contents: Collection[str]) -> None:
    """Remove the answers about every volume whose content is no longer in the corpus (a withdrawn patient)."""
    for path in (corpus_root / FOLDER).glob("??/*.json"):
        if path.name.partition(".")[0] not in contents:
            path.unlink()


def add_visual(
    volumes: Iterable[CuratedVolume], store: VolumeStore, corpus_root: Path, settings: VisualSettings, model: Model | None = None
) -> tuple[list[CuratedVolume], VisualReport]:
    """The volumes with sections 2 and 3 filled where no better source had an answer.

    Args:
        model: what answers; none = the one that the settings name.

    Raises:
        BadInput: the address or checkpoint is refused, or an answer is not of the schema.
        JobFailed: the model does not answer; what was answered is kept.
    """
    volumes = list(volumes)
    model = model or load_model(settings)
    schema, folder = answer_schema(settings.field_characters), corpus_root / FOLDER
    files, todo = {}, []
    for curated in volumes:
        record = curated.record
        scan = scan_name(record.sequence, record.plane, record.anatomy)
        key = digest(prompt_digest(schema, QUESTION), scan, settings.slices, model.digest)
        files[record.volume_id] = _answer_file(folder, record.content_md5, key)
        if not files[record.volume_id].exists():
            todo.append(curated)
    started = time.monotonic()
    batches = [todo[first : first + settings.batch] for first in range(0, len(todo), settings.batch)]
    for batch in track(batches, "asking the vision-language model"):
        asks = [_ask(curated, store, settings.slices) for curated in batch]
        for ask, text in zip(asks, model.answer(asks, schema), strict=True):
            write_json(files[ask.volume_id], {"model": model.digest, "answer": parse_answer(text, schema)})
    report = VisualReport(len(todo), len(volumes) - len(todo), time.monotonic() - started)
    if todo:
        logger.info("vision-language model: %d volumes at %.2f a second, %d kept", report.answered, report.rate, report.reused)
    tag = f"{model.digest}/{prompt_digest(schema, QUESTION)[:16]}"
    done = [
        curated.model_copy(
            update={"description": with_visual(curated.description, read_json(files[curated.record.volume_id])["answer"], tag)}
        )
        for curated in volumes
    ]
    return done, report
