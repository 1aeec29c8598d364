"""An instruction about whole volumes: all series of a study in one sequence, and one pass of the network over them.

Shape letters: K samples, D slices, H rows, W columns (of the source), P side of a resampled slice, M side of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.curation.measure.regions import FOREGROUND
from components.curation.text.header_facts import HeaderFacts
from components.curation.text.phrasings import scan_name
from components.inference.prediction import FoundVolumeBox, Prediction
from components.inference.question import CONDITIONAL_MEAN, Sampling
from components.inference.sliding_window import ResampledVolume, Tile
from components.ingestion.sequence_classification import canonical_sequence, sequence_names
from components.settings import TaskName
from components.tasks.known_structures import Shown
from components.tasks.question_words import longest_terms, tokens
from model_core.boxes import GRID, VolumeBox
from model_core.heads.connector import pool_depth
from model_core.processing import PackedSequences, Series
from model_core.targets import TARGET_IMAGE

if TYPE_CHECKING:
    from components.inference.predictor import Predictor

THICK_MM = 4.0
"""Thin slices are averaged in groups up to this thickness before the network reads them, as a radiologist reads thick slabs.

It is about that of 2-D acquisitions, which training volumes mostly are: the time of a pass falls with the number of slices.
"""


@dataclass(frozen=True)
class StudySeries:
    """One series of a study: its volume, resampled to the network's pixels, of which the network sees one tile of every slice.

    Attributes:
        file_affine: (4, 4) of the NIfTI file that contains the volume; None for another format.
        dicom_files: files of the DICOM series; empty for another format.
    """

    volume: ResampledVolume
    file_affine: NDArray[np.float64] | None = None
    dicom_files: tuple[Path, ...] = ()

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
    def middle(self) -> Tile:
        """The tile of the middle slice."""
        return Tile(len(self.volume.voxels) // 2, *self.corner)

    @cached_property
    def pixels(self) -> Tensor:
        """The tile of every slice, (1, D, M, M) float32."""
        (row, column), side = self.corner, self.volume.matrix
        return torch.from_numpy(np.ascontiguousarray(self.volume.voxels[None, :, row : row + side, column : column + side]))

    @property
    def slices_joined(self) -> int:
        """Number of neighboring slices that one slice of :attr:`view` averages."""
        return max(int(THICK_MM / float(self.volume.volume.spacing_mm[0]) + 1e-3), 1)

    @cached_property
    def view(self) -> Tensor:
        """The tile of the slices that the network reads, (1, D', M, M) float32: thin ones are averaged (:data:`THICK_MM`)."""
        return pool_depth(self.pixels[..., None], self.slices_joined)[..., 0]

    def view_on_source(self, values_DMM: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return values of :attr:`view` on the grid of the source, (D, H, W), zero outside of the tile."""
        slices = np.repeat(values_DMM, self.slices_joined, axis=0)[: len(self.volume.voxels)]
        return self.volume.to_source_grid(self.embed(slices))

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
class Study:
    """The series of an examination as a model sees them.

    They are encoded once for all questions, and once more for each further pass of masks.
    """

    predictor: Predictor
    series: tuple[StudySeries, ...]
    _shown: dict[int, Shown | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def images(self) -> list[Tensor]:
        """The images of the sequence, (1, D', M, M) each."""
        return [one.view for one in self.series]

    @cached_property
    def features(self) -> list[list[Tensor]]:
        """Features of every image, every level."""
        with torch.no_grad():
            return self.predictor.model.encode_images(self.images)

    def pack(self, instruction: str, prefix: str = "", images: Sequence[Tensor] | None = None) -> PackedSequences:
        """Return the prompt of an instruction, followed by the beginning of an answer.

        Args:
            images: of the sequence; None = :attr:`images`.
        """
        processor, config = self.predictor.processor, self.predictor.model.config
        grids = [config.image_grid(*image.shape[1:]) for image in images or self.images]
        if len(self.series) == 1:
            blocks, text = [Series(grids[0])], self.series[0].header.before(instruction)
        else:
            lines = [one.header.line for one in self.series]
            blocks, text = [Series(grid, line) for grid, line in zip(grids, lines, strict=True)], instruction
        return processor.pack([processor.encode_prefix(text, prefix, blocks)], left=True)

    def show(self, index: int) -> Shown | None:
        """Return findings and the known structures in the anatomy of a series, on its grid; None if the model knows none."""
        if index not in self._shown:
            self._shown[index] = self._show(index)
        return self._shown[index]

    def _show(self, index: int) -> Shown | None:
        predictor, series = self.predictor, self.series[index]
        if not predictor.known.names:
            return None
        names, acquisition = predictor.known.names, series.volume.volume.acquisition
        known = predictor.known.in_anatomy(acquisition.anatomy, predictor.recognized_anatomy(series.volume, series.middle))
        scan = scan_name(acquisition.sequence, acquisition.plane, acquisition.anatomy)
        packed = self.pack(known.find_instruction if len(self.series) == 1 else known.find_instruction_in(scan))
        name_ids, _ = predictor.processor.pad([predictor.processor.tokens(name) for name in names])
        masks, logits = predictor.model.show_structures(
            packed.input_ids_BL,
            packed.attention_mask_BL,
            self.images,
            name_ids,
            grids_BG3=packed.grids_BG3,
            image_B=torch.tensor([index]),
            features_by_image=self.features,
        )
        probabilities = known.probabilities(names, logits[0].transpose(0, 1).numpy())
        on_source = series.view_on_source
        return Shown(on_source(masks[0].numpy()), {name: on_source(values) for name, values in probabilities.items()})


@dataclass(frozen=True)
class StudyQuestion:
    """An instruction about the series of a study.

    Masks, images and boxes are those of the series that it names, or of the first.

    Attributes:
        instruction: in words that the network was trained on.
        own_words: the user's instruction, which may name a series; "" = the same.
    """

    study: Study
    instruction: str
    sampling: Sampling = CONDITIONAL_MEAN
    own_words: str = ""

    @property
    def predictor(self) -> Predictor:
        """The model."""
        return self.study.predictor

    @property
    def series(self) -> tuple[StudySeries, ...]:
        """The series of the study."""
        return self.study.series

    @cached_property
    def named(self) -> int:
        """Index of the series whose sequence the instruction names first, by any of its names; the first one if there is none.

        Of several series of this sequence it is that whose plane the instruction names, if it names one.
        """
        words = tokens(self.own_words or self.instruction)
        terms = {tokens(name): sequence for name, sequence in sequence_names().items()}
        asked = [terms[words[one]] for one in longest_terms(words, dict.fromkeys(terms, True))]
        series = [canonical_sequence(one.header.sequence) or one.header.sequence for one in self.series]
        for sequence in asked:
            found = [index for index, one in enumerate(series) if one == sequence]
            if found:
                return max(found, key=lambda index: (self.series[index].header.plane or "").lower() in words)
        return 0

    @property
    def target(self) -> StudySeries:
        """The series of :attr:`named`."""
        return self.series[self.named]

    @cached_property
    def shown(self) -> Shown | None:
        """Findings and known structures of :attr:`target`, on its grid; None if the model knows no structure."""
        return self.study.show(self.named)

    def generate(self, max_new_tokens: int) -> str:
        """Generate the answer, greedily."""
        packed, study = self.study.pack(self.instruction), self.study
        tokens = self.predictor.model.generate_text(
            packed.input_ids_BL,
            packed.attention_mask_BL,
            study.images,
            max_new_tokens,
            grids_BG3=packed.grids_BG3,
            features_by_image=study.features,
            beginnings=[self.predictor.beginnings(self.instruction)],
        )
        return self.predictor.processor.decode(tokens[0])

    @torch.no_grad()
    def yes_probability(self) -> float:
        """Return p(yes) / (p(yes) + p(no)) of the first token of the answer, from one pass."""
        packed, study = self.study.pack(self.instruction), self.study
        output = self.predictor.model(
            packed.input_ids_BL,
            packed.attention_mask_BL,
            study.images,
            grids_BG3=packed.grids_BG3,
            logits_to_keep=1,
            features_by_image=study.features,
        )
        yes, no = (self.predictor.processor.tokens(word)[0] for word in ("yes", "no"))
        return float(output.logits[0, -1, [yes, no]].float().softmax(-1)[0])

    def generate_samples(self, marker: str, target_kind: int) -> NDArray[np.float32]:
        """Sample the image decoder on every slice of the named series, (K, D, P, P), zero outside of the tile.

        A mask is a probability; an image is the change of the input, in units of the network. The network reads every slice of this
        series, also thin ones.
        """
        images = [one.pixels if index == self.named else one.view for index, one in enumerate(self.series)]
        shared = self.target.slices_joined == 1
        packed = self.study.pack(self.instruction, marker, images)
        samples = self.predictor.model.generate_images(
            packed.input_ids_BL,
            packed.attention_mask_BL,
            images,
            torch.tensor([target_kind]),
            seeds=[self.sampling.seed],
            steps=self.sampling.steps,
            sampler=self.sampling.sampler,
            draws=self.sampling.samples,
            grids_BG3=packed.grids_BG3,
            image_B=torch.tensor([self.named]),
            features_by_image=self.study.features if shared else None,
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
        middle = self.target.middle
        fields["preview_scale"], fields["preview_offset"] = volume.frame(middle)
        affine = np.asarray(volume.volume.affine)
        others = [one.dicom_files for one in self.series if one is not self.target and one.dicom_files]
        files = (self.target.dicom_files, *others) if self.target.dicom_files else ()
        return Prediction(
            task,
            text,
            tuple(range(depth)),
            affine,
            volume.crop(middle),
            file_affine=self.target.file_affine,
            dicom_series=files,
            **fields,
        )
