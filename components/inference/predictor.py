"""One model, ready to answer.

The model itself decides the task: its answer begins with ``<image>`` (reconstruction) or ``<seg>`` (segmentation), holds ``<bbox>``
or "no lesion" (detection), or begins with yes or no (diagnosis); anything else is a report. The question is asked about the middle
slice first; then, for images, masks and boxes, about every slice, and for a diagnosis about slices through the whole volume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from components.curation.facts import FOREGROUND
from components.curation.resampling import PlaneGrid
from components.curation.single import gridded
from components.errors import BadInput
from components.files import read_json
from components.inference.models import PREPROCESSING
from components.inference.prediction import FoundBox, Prediction
from components.ingestion.volume import Volume
from components.settings import TaskName
from model_core import OmniMRIForConditionalGeneration
from model_core.batch import TARGET_IMAGE, TARGET_MASK
from model_core.boxes import BOX_TOKEN, GRID, NO_LESION, parse_boxes
from model_core.processing import Processor
from model_core.tokenization import IMAGE, SEG

BATCH, DIAGNOSIS_SLICES, LONGEST_ANSWER = 8, 12, 200


def task_of(answer: str) -> TaskName:
    """The task that an answer's form belongs to."""
    if answer.startswith(IMAGE):
        return "reconstruction"
    if answer.startswith(SEG):
        return "segmentation"
    if BOX_TOKEN in answer or answer.startswith(NO_LESION):
        return "detection"
    return "diagnosis" if answer.lower().startswith(("yes", "no,", "no ")) or answer.lower() == "no" else "report"


@dataclass(frozen=True)
class _Input:
    """A volume as the model sees it.

    Attributes:
        volume: as it was read; grid: the map from its planes to the model's.
        voxels: (D, size, size), 99.5th percentile = 1; scale: source units of 1.
        kspace, sampling: (D, size, size), where the file holds undersampled k-space on the model's own grid.
    """

    volume: Volume
    grid: PlaneGrid
    voxels: NDArray[np.float32]
    scale: float
    kspace: NDArray[np.complex64] | None
    sampling: NDArray[np.bool_] | None

    @property
    def content(self) -> list[int]:
        """Slices that show something; all where none does."""
        shown = np.count_nonzero(self.voxels > FOREGROUND, axis=(1, 2))
        return np.flatnonzero(shown >= 0.1 * shown.max()).tolist() or list(range(len(self.voxels)))


@dataclass
class Predictor:
    """A model with its processor and the grid that it was trained on.

    Attributes:
        matrix: pixels of a side; pixel_mm: their size.
    """

    model: OmniMRIForConditionalGeneration
    processor: Processor
    matrix: int
    pixel_mm: float

    @classmethod
    def load(cls, folder: str | Path) -> Predictor:
        """Load a saved model.

        Raises:
            BadInput: the folder lacks a part of it.
        """
        path = Path(folder)
        if not (path / PREPROCESSING).is_file():
            raise BadInput(
                f"no {PREPROCESSING}", where=str(path), remedy="name the model folder of a trained stage or of the registry"
            )
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        grid = read_json(path / PREPROCESSING)
        model = OmniMRIForConditionalGeneration.from_pretrained(path).eval()
        return cls(model, Processor.from_pretrained(path), int(grid["matrix"]), float(grid["pixel_mm"]))

    def predict(self, source: Sequence[Path] | Volume, instruction: str, seed: int = 0) -> Prediction:
        """Answer an instruction about one volume.

        Args:
            source: a volume, or one path to it (several paths: the files of one DICOM series' folder are given as the folder).

        Raises:
            BadInput: an empty instruction, several paths, or a file that cannot be read.
        """
        if not instruction.strip():
            raise BadInput("an empty instruction", where="instruction", remedy='e.g. "Segment the white matter in this brain MRI."')
        given = self._prepare(source if isinstance(source, Volume) else _read_one(source))
        middle = given.content[len(given.content) // 2]
        answer = self._texts(given, [middle], instruction)[0]
        task = task_of(answer)
        generator = torch.Generator().manual_seed(seed)
        if task in ("reconstruction", "segmentation"):
            return self._decoded(given, instruction, task, answer, generator)
        if task == "detection":
            return self._detected(given, instruction, middle)
        if task == "diagnosis":
            return self._diagnosed(given, instruction)
        return self._said(given, task, answer, (middle,))

    def _prepare(self, volume: Volume) -> _Input:
        _, rows, columns = volume.voxels.shape
        _, row_mm, column_mm = volume.spacing_mm
        grid = PlaneGrid.centred((rows, columns), (row_mm, column_mm), self.matrix, self.pixel_mm)
        arrays, scale = gridded(volume, grid)
        kspace, sampling = None, None
        if volume.kspace is not None and columns == grid.size and rows == grid.size and not grid.interpolates:
            measured = np.abs(volume.kspace).sum(axis=(0, 1, 2)) > 0
            if not measured.all():
                kspace = np.asarray(arrays["kspace"], dtype=np.complex64) * measured
                sampling = np.broadcast_to(measured, kspace.shape).copy()
        return _Input(volume, grid, np.asarray(arrays["voxels"], dtype=np.float32), scale, kspace, sampling)

    def _batches(self, given: _Input, slices: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
        for first in range(0, len(slices), BATCH):
            part = list(slices[first : first + BATCH])
            yield part, torch.from_numpy(given.voxels[part])[:, None, None]

    @property
    def _tokens(self) -> int:
        return self.model.image_tokens_for(1, self.matrix, self.matrix)

    def _texts(self, given: _Input, slices: Sequence[int], instruction: str) -> list[str]:
        prompt = self.processor.encode(instruction, None, self._tokens).input_ids
        answers: list[str] = []
        for part, pixels in self._batches(given, slices):
            ids, mask = self.processor.pad([prompt] * len(part), left=True)
            answers += [self.processor.decode(ids) for ids in self.model.generate_text(ids, mask, pixels, LONGEST_ANSWER)]
        return answers

    def _decoded(
        self, given: _Input, instruction: str, task: TaskName, answer: str, generator: torch.Generator
    ) -> Prediction:  # fmt: skip
        """Every slice through the image decoder, one step: the conditional mean."""
        marker, kind = (IMAGE, TARGET_IMAGE) if task == "reconstruction" else (SEG, TARGET_MASK)
        prompt = self.processor.encode_answer_prefix(instruction, marker, self._tokens)
        made: list[NDArray[np.float32]] = []
        for part, pixels in self._batches(given, range(len(given.voxels))):
            ids, mask = self.processor.pad([prompt] * len(part))
            kspace = None if given.kspace is None else torch.from_numpy(given.kspace[part])[:, None]
            sampling = None if given.sampling is None else torch.from_numpy(given.sampling[part])[:, None]
            kinds = torch.full((len(part),), kind)
            images = self.model.generate_image(ids, mask, pixels, kinds, kspace, sampling, generator=generator)
            made.extend(images[:, 0, 0].numpy())
        whole = _back(np.stack(made), given.grid, given.volume.voxels.shape)
        text = answer.removeprefix(marker).strip() or f"{task} of {len(made)} slices"
        if task == "reconstruction":
            return self._said(given, task, text, range(len(made)), image=(whole * given.scale).astype(np.float32))
        return self._said(given, task, text, range(len(made)), mask=(whole > 0.5).astype(np.uint8))

    def _detected(self, given: _Input, instruction: str, middle: int) -> Prediction:
        """Boxes on every slice that shows something."""
        slices = given.content
        found: list[FoundBox] = []
        for index, text in zip(slices, self._texts(given, slices, instruction), strict=True):
            for box in parse_boxes(text):
                edges = zip((box.row0, box.row1), (box.col0, box.col1), strict=True)
                (row0, col0), (row1, col1) = (self._source_pixel(given, row, column) for row, column in edges)
                if row0 < row1 and col0 < col1:  # a thin box may vanish between two pixels of a coarser image
                    found.append(FoundBox(box.label, index, row0, col0, row1, col1))
        count = len({box.slice_index for box in found})
        text = f"{len(found)} boxes on {count} of {len(slices)} slices" if found else NO_LESION
        return self._said(given, "detection", text, slices, boxes=tuple(found))

    def _source_pixel(self, given: _Input, row: int, column: int) -> tuple[int, int]:
        """An edge of the text's grid as an edge on the volume's own."""
        edges = []
        for value, scale, offset, size in zip(
            (row, column), given.grid.scale, given.grid.offset, given.volume.voxels.shape[1:], strict=True
        ):
            pixel = value * given.grid.size / GRID
            edges.append(int(np.clip(round((pixel - 0.5) * scale + offset + 0.5), 0, size)))
        return edges[0], edges[1]

    def _diagnosed(self, given: _Input, instruction: str) -> Prediction:
        """Mean p(yes) / (p(yes) + p(no)) over slices through the volume."""
        count = min(DIAGNOSIS_SLICES, len(given.content))
        slices = [given.content[round(place)] for place in np.linspace(0, len(given.content) - 1, count)]
        prompt = self.processor.encode(instruction, None, self._tokens).input_ids
        words = [self.processor.tokens("yes"), self.processor.tokens("no")]
        shares: list[float] = []
        for part, pixels in self._batches(given, slices):
            ids, mask = self.processor.pad([prompt] * len(part), left=True)
            scores = self.model.answer_probability(ids, mask, pixels, words)
            shares += (scores[:, 0] / scores.sum(-1).clamp(min=1e-12)).tolist()
        probability = float(np.mean(shares))
        text = f"{'yes' if probability > 0.5 else 'no'} (p = {probability:.2f} over {count} slices)"
        return self._said(given, "diagnosis", text, slices)

    def _said(self, given: _Input, task: TaskName, text: str, slices: Sequence[int], **parts: Any) -> Prediction:
        preview = given.voxels[slices[len(slices) // 2]]
        return Prediction(task, text, tuple(slices), np.asarray(given.volume.affine), preview, **parts)


def _read_one(paths: Sequence[Path]) -> Volume:
    from components.ingestion import read_path

    if len(paths) != 1:
        raise BadInput(
            f"{len(paths)} images, one at a time for now", where="IMAGE", remedy="give one file, or the folder of one DICOM series"
        )  # fmt: skip
    return read_path(Path(paths[0]))


def _back(made_Dss: NDArray[np.float32], grid: PlaneGrid, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """From the model's grid to the volume's own, linear, zero outside of what the model saw."""
    scale = np.array([1.0, *(1 / s for s in grid.scale)])
    offset = np.array([0.0, *(-o / s for o, s in zip(grid.offset, grid.scale, strict=True))])
    return np.asarray(ndimage.affine_transform(made_Dss, scale, offset, shape, order=1, mode="constant"), dtype=np.float32)
