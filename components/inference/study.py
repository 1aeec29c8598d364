"""An instruction about whole volumes: all series of a study in one sequence, and one pass of the network over them.

Shape letters: K samples, D slices, H rows, W columns (of the source), P side of a resampled slice, M side of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.curation.measure.regions import FOREGROUND
from components.curation.text.header_facts import HeaderFacts
from components.curation.text.phrasings import scan_name
from components.inference.prediction import FoundVolumeBox, Prediction
from components.inference.question import Sampling
from components.inference.sliding_window import ResampledVolume, Tile
from components.settings import TaskName
from model_core.boxes import GRID, VolumeBox
from model_core.processing import PackedSequences, Series
from model_core.targets import TARGET_IMAGE

if TYPE_CHECKING:
    from components.inference.predictor import Predictor


@dataclass(frozen=True)
class StudySeries:
    """One series of a study: its volume, resampled to the network's pixels, of which the network sees one tile of every slice.

    Attributes:
        file_affine: (4, 4) of the NIfTI file that contains the volume; None for another format.
    """

    volume: ResampledVolume
    file_affine: NDArray[np.float64] | None = None

    @cached_property
    def header(self) -> HeaderFacts:
        """Facts that the header states."""
        return HeaderFacts.of_volume(self.volume.volume)

    @cached_property
    def corner(self) -> tuple[int, int]:
        """Row and column of the tile with the most foreground."""
        side = self.volume.matrix

        def foreground(corner: tuple[int, int]) -> int:
            row, column = corner
            return int(np.count_nonzero(self.volume.voxels[:, row : row + side, column : column + side] > FOREGROUND))

        return max(self.volume.corners, key=foreground)

    @property
    def pixels(self) -> Tensor:
        """The tile of every slice, (1, D, M, M) float32."""
        (row, column), side = self.corner, self.volume.matrix
        return torch.from_numpy(np.ascontiguousarray(self.volume.voxels[None, :, row : row + side, column : column + side]))

    def embed(self, values_DMM: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return values of the tile in the resampled slices, (D, P, P), zero outside of the tile."""
        (row, column), side = self.corner, self.volume.matrix
        whole = np.zeros_like(self.volume.voxels)
        whole[:, row : row + side, column : column + side] = values_DMM
        return whole

    def box_on_source(self, box: VolumeBox) -> FoundVolumeBox:
        """Return a box of the text in voxels of the source, half-open, at least one voxel along each axis."""
        depth, height, width = self.volume.volume.voxels.shape
        side, grid = self.volume.matrix, self.volume.grid

        def edge(value: int, axis: int) -> float:
            resampled = self.corner[axis] + value * side / GRID
            return grid.scale[axis] * (resampled - 0.5) + grid.offset[axis] + 0.5

        def interval(low: float, high: float, size: int) -> tuple[int, int]:
            first = min(max(round(low), 0), size - 1)
            return first, min(max(round(high), first + 1), size)

        slices = interval(box.slice0 * depth / GRID, box.slice1 * depth / GRID, depth)
        rows = interval(edge(box.row0, 0), edge(box.row1, 0), height)
        columns = interval(edge(box.col0, 1), edge(box.col1, 1), width)
        return FoundVolumeBox(box.label, slices[0], rows[0], columns[0], slices[1], rows[1], columns[1])


@dataclass(frozen=True)
class StudyQuestion:
    """An instruction about the series of a study.

    Masks, images and boxes are those of the series that it names, or of the first.
    """

    predictor: Predictor
    series: tuple[StudySeries, ...]
    instruction: str
    sampling: Sampling

    @cached_property
    def named(self) -> int:
        """Index of the series whose description is in the instruction; the first one if there is no such series."""
        lowered = self.instruction.lower()
        names = [scan_name(one.header.sequence, one.header.plane, None).removesuffix(" MRI").lower() for one in self.series]
        found = [index for index, name in enumerate(names) if name != "mri" and name in lowered]
        found += [i for i, one in enumerate(self.series) if (one.header.sequence or "\0").lower() in lowered]
        return max(found, key=lambda index: len(names[index]), default=0)

    @property
    def target(self) -> StudySeries:
        """The series of :attr:`named`."""
        return self.series[self.named]

    @cached_property
    def images(self) -> list[Tensor]:
        """The images of the sequence, (1, D, M, M) each."""
        return [one.pixels for one in self.series]

    def pack(self, prefix: str = "") -> PackedSequences:
        """Return the prompt, followed by the beginning of an answer."""
        processor, config = self.predictor.processor, self.predictor.model.config
        grids = [config.image_grid(*image.shape[1:]) for image in self.images]
        if len(self.series) == 1:
            blocks, text = [Series(grids[0])], self.target.header.before(self.instruction)
        else:
            lines = [one.header.line for one in self.series]
            blocks, text = [Series(grid, line) for grid, line in zip(grids, lines, strict=True)], self.instruction
        return processor.pack([processor.encode_prefix(text, prefix, blocks)], left=True)

    def generate(self, max_new_tokens: int) -> str:
        """Generate the answer, greedily."""
        packed = self.pack()
        tokens = self.predictor.model.generate_text(
            packed.input_ids_BL, packed.attention_mask_BL, self.images, max_new_tokens, grids_BG3=packed.grids_BG3
        )
        return self.predictor.processor.decode(tokens[0])

    @torch.no_grad()
    def yes_probability(self) -> float:
        """Return p(yes) / (p(yes) + p(no)) of the first token of the answer, from one pass."""
        packed = self.pack()
        output = self.predictor.model(
            packed.input_ids_BL, packed.attention_mask_BL, self.images, grids_BG3=packed.grids_BG3, logits_to_keep=1
        )
        yes, no = (self.predictor.processor.tokens(word)[0] for word in ("yes", "no"))
        return float(output.logits[0, -1, [yes, no]].float().softmax(-1)[0])

    def generate_samples(self, marker: str, target_kind: int) -> NDArray[np.float32]:
        """Sample the image decoder on every slice of the named series, (K, D, P, P), zero outside of the tile.

        A mask is a probability; an image is the change of the input, in units of the network.
        """
        packed = self.pack(marker)
        samples = self.predictor.model.generate_images(
            packed.input_ids_BL,
            packed.attention_mask_BL,
            self.images,
            torch.tensor([target_kind]),
            seeds=[self.sampling.seed],
            steps=self.sampling.steps,
            sampler=self.sampling.sampler,
            draws=self.sampling.samples,
            grids_BG3=packed.grids_BG3,
            image_B=torch.tensor([self.named]),
        )
        values = samples[:, 0, 0]
        if target_kind == TARGET_IMAGE:
            values = values - self.target.pixels
        return np.stack([self.target.embed(sample) for sample in values.numpy()])

    def prediction(self, task: TaskName, text: str, samples: NDArray[np.float32] | None = None, **fields: Any) -> Prediction:
        """Build the prediction; with two or more ``samples`` their standard deviation is the uncertainty."""
        if samples is not None and len(samples) > 1:
            fields["uncertainty"] = samples.std(axis=0, ddof=1, dtype=np.float32)
        volume = self.target.volume
        depth = len(volume.voxels)
        preview = volume.crop(Tile(depth // 2, *self.target.corner))
        affine = np.asarray(volume.volume.affine)
        return Prediction(task, text, tuple(range(depth)), affine, preview, file_affine=self.target.file_affine, **fields)
