"""An instruction about a volume, with the settings of its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curation.text.header_facts import HeaderFacts
from components.errors import BadInput
from components.inference.prediction import Prediction
from components.inference.sliding_window import ResampledVolume, Tile
from components.settings import TaskName
from model_core.flow import SAMPLERS, Sampler

Progress = Callable[[str, int, int], None]
"""Progress callback (phase, done, total). Phases are ``"reading"`` (images), ``"answering"`` (first answers), and then the name of
the task that the answer belongs to (tiles of the volume)."""


def ignore_progress(phase: str, done: int, total: int) -> None:
    """Discard a progress report."""


@dataclass(frozen=True)
class Sampling:
    """Settings of the image sampler.

    Attributes:
        steps: number of steps; one step gives the conditional mean, which has the least squared error.
        sampler: ``euler`` or ``heun`` (two evaluations per step, and an error that decreases with the square of the step).
        samples: number of samples; the answer is their mean, and with two or more their standard deviation is the uncertainty.
        seed: random seed; the same seed gives the same answer.
    """

    steps: int = 1
    sampler: Sampler = "euler"
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.samples < 1 or self.sampler not in SAMPLERS:
            raise BadInput(
                "nothing to sample",
                where=f"{self.samples} samples of {self.steps} steps by {self.sampler}",
                remedy=f"request at least one sample of one step, by {' or '.join(SAMPLERS)}",
            )
        if self.samples > 1 and self.steps == 1:
            raise BadInput(
                "one step gives the conditional mean, which no random number changes",
                where=f"{self.samples} samples of 1 step",
                remedy="request at least two steps for several samples",
            )


CONDITIONAL_MEAN = Sampling()


@dataclass(frozen=True)
class Question:
    """An instruction about a volume.

    Attributes:
        instruction: in words that the network was trained on.
        file_affine: (4, 4) of the NIfTI file that contains the volume; None for another format.
        introduction: stands before the answer: the instruction, where it is not the user's own.
        own_words: the user's instruction, which may name an anatomy; "" = the same.
    """

    volume: ResampledVolume
    instruction: str
    sampling: Sampling = CONDITIONAL_MEAN
    file_affine: NDArray[np.float64] | None = None
    progress: Progress = ignore_progress
    introduction: str = ""
    own_words: str = ""

    @property
    def header(self) -> HeaderFacts:
        """Facts that the header of the volume states."""
        return HeaderFacts.of_volume(self.volume.volume)

    @property
    def text(self) -> str:
        """The instruction after the line of header facts."""
        return self.header.before(self.instruction)

    @property
    def first_tile(self) -> Tile:
        """The tile whose answer decides the task: the one with the most foreground in the middle slice with content."""
        content = self.volume.content_slices
        return self.volume.richest_tile(content[len(content) // 2])

    def prediction(
        self,
        task: TaskName,
        text: str,
        tiles: Sequence[Tile],
        samples: NDArray[np.float32] | None = None,
        **fields: Any,
    ) -> Prediction:
        """Build the prediction of a task.

        Args:
            tiles: the tiles that were processed.
            samples: (K, D, H, W) samples of the image decoder; with two or more, their standard deviation is the uncertainty.
            fields: image, mask or boxes of the prediction.
        """
        if samples is not None and len(samples) > 1:
            fields["uncertainty"] = samples.std(axis=0, ddof=1, dtype=np.float32)
        middle = tiles[len(tiles) // 2]
        slices = tuple(dict.fromkeys(tile.index for tile in tiles))
        affine = np.asarray(self.volume.volume.affine)
        fields["preview_scale"], fields["preview_offset"] = self.volume.frame(middle)
        return Prediction(task, text, slices, affine, self.volume.crop(middle), file_affine=self.file_affine, **fields)
