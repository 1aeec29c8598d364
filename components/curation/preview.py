"""Write an HTML page with samples of the curated corpus, for visual inspection before training.

The page is self-contained: pictures are embedded as PNG, and it loads nothing from a network.
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

from components.curation.coil_data import read_undersampled
from components.curation.corpus import Corpus
from components.curation.table_rows import InstructionRecord, VolumeRecord
from components.curation.text.instructions import spread
from components.files import atomic_file
from components.provenance import digest
from components.registries import TASKS
from model_core.boxes import GRID
from model_core.mri_physics.sampling_masks import random_mask

TEMPLATE = "preview.html.j2"
SLICES = 3
_SIDE = 192
"""Minimum height of a picture on the page, pixels."""
_COLORS = (
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
"""Signal (99.5th percentile = 1) that maps to white."""
_OPACITY = 0.45
"""Opacity of labels over the image."""


@dataclass(frozen=True)
class Picture:
    """A picture, as a data URL, and its caption."""

    png: str
    caption: str


def write_preview(corpus: Corpus, target: Path, count: int) -> Path:
    """Write the page: ``count`` volumes with their descriptions, and as many instructions of every task."""
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(default=True))
    volumes = [_show_volume(corpus, corpus.volumes[volume_id]) for volume_id in _choose_volumes(corpus, count)]
    tasks = [(task, [_show_instruction(corpus, row) for row in _choose_instructions(corpus, task, count)]) for task in TASKS]
    page = environment.get_template(TEMPLATE).render(corpus=corpus, counts=corpus.summary["counts"], volumes=volumes, tasks=tasks)
    with atomic_file(target) as temporary:
        temporary.write_text(page)
    return target


def _choose(keys: Sequence[str], count: int) -> list[str]:
    """Choose ``count`` keys by a keyed order: the same in every call, and not the first ones."""
    return sorted(keys, key=lambda key: digest("preview", key))[:count]


def _choose_volumes(corpus: Corpus, count: int) -> list[str]:
    """Choose volumes of as many datasets and sequences as possible."""
    ranked = _choose(list(corpus.volumes), len(corpus.volumes))
    latest_round: dict[tuple[str, str | None], int] = {}
    round_of = {}
    for volume_id in ranked:
        kind = (corpus.volumes[volume_id].dataset_id, corpus.volumes[volume_id].sequence)
        round_of[volume_id] = latest_round[kind] = latest_round.get(kind, -1) + 1
    return sorted(ranked, key=lambda volume_id: round_of[volume_id])[:count]


def _choose_instructions(corpus: Corpus, task: str, count: int) -> list[InstructionRecord]:
    """Choose instructions of a task, alternately with and without a finding, so that negatives are included."""
    rows = {row.sample_id: row for row in corpus.instructions if row.task == task and row.volume_id in corpus.volumes}
    positive = _choose([key for key, row in rows.items() if row.boxes or row.positive], count)
    negative = _choose([key for key, row in rows.items() if not (row.boxes or row.positive)], count)
    alternating = [key for pair in zip(positive, negative, strict=False) for key in pair] or positive + negative
    return [rows[key] for key in alternating[:count]]


def _show_volume(corpus: Corpus, record: VolumeRecord) -> dict[str, Any]:
    """Collect slices without and with their labels, and the description with the source of every field."""
    store, label_map = corpus.store, corpus.label_map(record.dataset_id)
    margin = record.slices // 6
    pictures = []
    for index in spread(list(range(margin, max(record.slices - margin, 1))), SLICES):
        gray = _to_gray(store.read(record.volume_id, "voxels", index))
        pictures.append(Picture(_encode_png(gray), f"slice {index}"))
        if record.has_labels:
            overlay = _overlay_labels(gray, store.read(record.volume_id, "labels", index))
            pictures.append(Picture(_encode_png(overlay), f"slice {index}, labels"))
    description = corpus.descriptions.get(record.volume_id)
    legend = [
        (name, "#{:02x}{:02x}{:02x}".format(*label_color(value)))
        for value, name in label_map.items()
        if value in record.label_values
    ]
    fields = [(name, text, description.provenance[name]) for name, text in description.fields.items()] if description else []
    return {
        "record": record,
        "pictures": pictures,
        "legend": legend,
        "fields": fields,
        "phrasings": [description.text, *description.phrasings] if description else [],
    }


def _show_instruction(corpus: Corpus, record: InstructionRecord) -> dict[str, Any]:
    """Collect the image that is shown and, where the answer is an image, the answer."""
    image = corpus.store.read(record.volume_id, "voxels", record.slice_index)
    gray = _to_gray(image)
    pictures = [Picture(_encode_png(gray), "shown")]
    if record.acceleration and record.centre_fraction and record.mask_seed is not None:
        columns = random_mask(image.shape[1], record.acceleration, record.centre_fraction, record.mask_seed)
        measured = read_undersampled(corpus.store, record.volume_id, columns, record.slice_index)
        shown = Picture(_encode_png(_to_gray(measured.image)), f"shown: {record.acceleration}x")
        pictures = [shown, Picture(_encode_png(gray), "answer")]
    elif record.label_value is not None:
        labels = corpus.store.read(record.volume_id, "labels", record.slice_index)
        structure = np.where(labels == record.label_value, labels, 0).astype(np.uint8)
        pictures.append(Picture(_encode_png(_overlay_labels(gray, structure)), "answer"))
    elif record.boxes:
        pictures.append(Picture(_encode_png(_draw_boxes(gray, record)), "answer"))
    return {"record": record, "volume": corpus.volumes[record.volume_id], "pictures": pictures}


def _encode_png(rgb_HWC: NDArray[np.uint8]) -> str:
    """Encode an image as a data URL; small slices are enlarged by an integer factor, so that the stored pixels are visible."""
    from PIL import Image

    factor = max(-(-_SIDE // rgb_HWC.shape[0]), 1)
    stream = io.BytesIO()
    Image.fromarray(np.repeat(np.repeat(rgb_HWC, factor, axis=0), factor, axis=1)).save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _to_gray(slice_HW: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Convert a slice to a gray RGB image, (H, W, 3)."""
    gray = (np.clip(np.nan_to_num(slice_HW) / _WINDOW, 0, 1) * 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)


def _overlay_labels(rgb_HWC: NDArray[np.uint8], labels_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw labels in color over the image, half transparent."""
    overlay = rgb_HWC.astype(np.float32)
    for value in np.unique(labels_HW[labels_HW > 0]):
        color = np.array(label_color(int(value)), dtype=np.float32)
        overlay[labels_HW == value] = (1 - _OPACITY) * overlay[labels_HW == value] + _OPACITY * color
    return overlay.astype(np.uint8)


def label_color(value: int) -> tuple[int, int, int]:
    """Return the color of a label value."""
    return _COLORS[(value - 1) % len(_COLORS)]


def _draw_boxes(rgb_HWC: NDArray[np.uint8], record: InstructionRecord) -> NDArray[np.uint8]:
    """Draw the outlines of the boxes of a detection."""
    drawn = rgb_HWC.copy()
    rows, columns = drawn.shape[0] / GRID, drawn.shape[1] / GRID
    for box in record.boxes:
        top, bottom = int(box.row0 * rows), min(int(np.ceil(box.row1 * rows)), drawn.shape[0]) - 1
        left, right = int(box.col0 * columns), min(int(np.ceil(box.col1 * columns)), drawn.shape[1]) - 1
        drawn[[top, bottom], left : right + 1] = _COLORS[-1]
        drawn[top : bottom + 1, [left, right]] = _COLORS[-1]
    return drawn
