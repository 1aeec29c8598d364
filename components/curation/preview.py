"""One HTML page with samples of everything that was curated, for a person to look at before anything is trained.

The page is self-contained: pictures are PNG inside of it, and it asks nothing of any network.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curation.corpus import Corpus
from components.curation.table_rows import InstructionRecord, VolumeRecord
from components.curation.text.instructions import spread
from components.curation.undersampling import sampling_mask, undersample
from components.files import atomic_file
from components.provenance import digest
from components.settings import TASKS
from model_core.boxes import GRID

TEMPLATE = "preview.html.j2"
SLICES = 3
_SIDE = 192
"""Pixels of a picture on the page, at least."""
_COLOURS = (
    (230, 75, 53),
    (77, 187, 213),
    (0, 160, 135),
    (60, 84, 136),
    (243, 155, 127),
    (145, 209, 194),
    (126, 97, 72),
    (220, 170, 0),
)
_WINDOW = 1.2


@dataclass(frozen=True)
class Picture:
    """A picture and the words under it."""

    png: str
    caption: str


def _png(rgb_HWC: NDArray[np.uint8]) -> str:
    """A data address; small slices are enlarged by whole pixels, so that what is seen is what is stored."""
    from PIL import Image

    factor = max(-(-_SIDE // rgb_HWC.shape[0]), 1)
    stream = io.BytesIO()
    Image.fromarray(np.repeat(np.repeat(rgb_HWC, factor, axis=0), factor, axis=1)).save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _grey(slice_HW: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    grey = (np.clip(np.nan_to_num(slice_HW) / _WINDOW, 0, 1) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def _overlaid(rgb_HWC: NDArray[np.uint8], labels_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels in colour over the image, half transparent."""
    made = rgb_HWC.astype(np.float32)
    for value in np.unique(labels_HW[labels_HW > 0]):
        made[labels_HW == value] = 0.55 * made[labels_HW == value] + 0.45 * np.array(colour(int(value)), dtype=np.float32)
    return made.astype(np.uint8)


def colour(value: int) -> tuple[int, int, int]:
    """The colour of a label value."""
    return _COLOURS[(value - 1) % len(_COLOURS)]


def _boxed(rgb_HWC: NDArray[np.uint8], record: InstructionRecord) -> NDArray[np.uint8]:
    made = rgb_HWC.copy()
    rows, columns = made.shape[0] / GRID, made.shape[1] / GRID
    for box in record.boxes:
        top, bottom = int(box.row0 * rows), min(int(np.ceil(box.row1 * rows)), made.shape[0]) - 1
        left, right = int(box.col0 * columns), min(int(np.ceil(box.col1 * columns)), made.shape[1]) - 1
        made[[top, bottom], left : right + 1] = _COLOURS[-1]
        made[top : bottom + 1, [left, right]] = _COLOURS[-1]
    return made


def _chosen(keys: Sequence[str], count: int) -> list[str]:
    """So many, by a keyed order: the same at every call, and not the first ones."""
    return sorted(keys, key=lambda key: digest("preview", key))[:count]


def _volume(corpus: Corpus, record: VolumeRecord) -> dict[str, Any]:
    """Slices without and with their labels, and the description with the source of every field."""
    store, names = corpus.store, corpus.label_map(record.dataset_id)
    pictures = []
    for index in spread(list(range(record.slices // 6, max(record.slices - record.slices // 6, 1))), SLICES):
        grey = _grey(store.read(record.volume_id, "voxels", index))
        pictures.append(Picture(_png(grey), f"slice {index}"))
        if record.has_labels:
            pictures.append(Picture(_png(_overlaid(grey, store.read(record.volume_id, "labels", index))), f"slice {index}, labels"))
    described = corpus.descriptions.get(record.volume_id)
    return {
        "record": record,
        "pictures": pictures,
        "legend": [
            (name, "#{:02x}{:02x}{:02x}".format(*colour(value))) for value, name in names.items() if value in record.label_values
        ],
        "fields": [(name, text, described.provenance[name]) for name, text in described.fields.items()] if described else [],
        "phrasings": [described.text, *described.phrasings] if described else [],
    }


def _instruction(corpus: Corpus, record: InstructionRecord) -> dict[str, Any]:
    """The image that is shown, what is asked, and the answer, as a picture where it is one."""
    image = corpus.store.read(record.volume_id, "voxels", record.slice_index)
    grey = _grey(image)
    pictures = [Picture(_png(grey), "shown")]
    if record.task == "reconstruction" and record.acceleration and record.centre_fraction and record.mask_seed is not None:
        columns = sampling_mask(image.shape[1], record.acceleration, record.centre_fraction, record.mask_seed)
        zero_filled, _ = undersample(corpus.store.read(record.volume_id, "kspace", record.slice_index), columns)
        pictures = [Picture(_png(_grey(zero_filled)), f"shown: {record.acceleration}x"), Picture(_png(grey), "answer")]
    elif record.task == "segmentation":
        labels = corpus.store.read(record.volume_id, "labels", record.slice_index)
        only = np.where(labels == record.label_value, labels, 0).astype(np.uint8)
        pictures.append(Picture(_png(_overlaid(grey, only)), "answer"))
    elif record.boxes:
        pictures.append(Picture(_png(_boxed(grey, record)), "answer"))
    return {"record": record, "volume": corpus.volumes[record.volume_id], "pictures": pictures}


def _samples(corpus: Corpus, task: str, count: int) -> list[InstructionRecord]:
    """Of one task, with and without a finding in turns, so that negatives are seen too."""
    of_task = {one.sample_id: one for one in corpus.instructions if one.task == task and one.volume_id in corpus.volumes}
    found = _chosen([key for key, one in of_task.items() if one.boxes or one.positive], count)
    rest = _chosen([key for key, one in of_task.items() if not (one.boxes or one.positive)], count)
    turns = [key for pair in zip(found, rest, strict=False) for key in pair] or found + rest
    return [of_task[key] for key in turns[:count]]


def write_preview(corpus: Corpus, target: Path, count: int) -> Path:
    """Write the page: ``count`` volumes with their descriptions, and as many instructions of every task."""
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(default=True))
    volumes = [_volume(corpus, corpus.volumes[key]) for key in _one_of_each(corpus, count)]
    tasks = [(task, [_instruction(corpus, one) for one in _samples(corpus, task, count)]) for task in TASKS]
    page = environment.get_template(TEMPLATE).render(corpus=corpus, counts=corpus.summary["counts"], volumes=volumes, tasks=tasks)
    with atomic_file(target) as temporary:
        temporary.write_text(page)
    return target


def _one_of_each(corpus: Corpus, count: int) -> list[str]:
    """Volumes of as many datasets and sequences as there is room for."""
    ranked = _chosen(list(corpus.volumes), len(corpus.volumes))
    seen: dict[tuple[str, str | None], int] = {}
    turn = {}
    for key in ranked:
        kind = (corpus.volumes[key].dataset_id, corpus.volumes[key].sequence)
        turn[key] = seen[kind] = seen.get(kind, -1) + 1
    return sorted(ranked, key=lambda key: turn[key])[:count]
