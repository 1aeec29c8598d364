"""Images are moved, with what is said about them, and change in contrast, so that few patients are not learnt by heart.

No flips: "left" would be wrong in the text. Boxes are not turned: the box around a turned box is too large.
B images, H rows, W columns.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from components.tasks.base import Image
from model_core.boxes import GRID, TextBox

SHIFT, SCALE, ANGLE, CONTRAST = 0.04, 0.08, 8.0, 0.1
"""Largest shift, of the image's side; largest change of size, relative; largest turn, degrees; largest change of gain and gamma."""


@dataclass(frozen=True)
class Movement:
    """Magnification and turn about the image's middle, then a shift of the content down and right, as fractions of the side.

    Attributes:
        scale: magnification.
        down: shift down.
        right: shift to the right.
        degrees: turn, counterclockwise as seen.
    """

    scale: float = 1.0
    down: float = 0.0
    right: float = 0.0
    degrees: float = 0.0

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Movement:
        """At random, evenly."""
        scale, down, right, degrees = (rng.uniform(-1, 1, 4) * (SCALE, SHIFT, SHIFT, ANGLE)).tolist()
        return cls(1 + scale, down, right, degrees)

    def keeping(self, boxes: Iterable[TextBox]) -> Movement:
        """This movement without its turn, or none if it would take a part of a box out of the image."""
        upright = replace(self, degrees=0.0)
        edges = [edge for box in upright.boxes(boxes) for edge in (box.row0, box.col0, box.row1, box.col1)]
        return upright if all(0 <= edge < GRID for edge in edges) else Movement()

    def boxes(self, boxes: Iterable[TextBox]) -> list[TextBox]:
        """The same boxes in the moved, not turned, image."""

        def moved(edge: int, shift: float) -> int:
            return round(((edge / GRID - 0.5) * self.scale + 0.5 + shift) * GRID)

        return [
            TextBox(
                box.label,
                moved(box.row0, self.down),
                moved(box.col0, self.right),
                moved(box.row1, self.down),
                moved(box.col1, self.right),
            )
            for box in boxes
        ]

    def image(self, image_HW: Image, nearest: bool = False) -> Image:
        """The moved image, zero where nothing was; ``nearest`` for masks."""
        moved: Image = moved_together(image_HW[None], [self], nearest)[0]
        return moved


def moved_together(images_BHW: Image, movements: Sequence[Movement], nearest: bool = False) -> Image:
    """Each image by its own movement, in half the time that they take one after another."""
    height, width = images_BHW.shape[1:]
    turns = [cmath.rect(1 / one.scale, math.radians(one.degrees)) for one in movements]
    numbers = [(turn.real, turn.imag, 2 * one.right, 2 * one.down) for turn, one in zip(turns, movements, strict=True)]
    cos, sin, right, down = np.array(numbers, np.float32).T[:, :, None, None]
    # Where each place (x, y) of the result comes from, in [-1, 1]. F.affine_grid makes the same, ten times as slowly.
    x, y = _centres(width) - right, _centres(height)[:, None] - down
    grid = np.empty((*images_BHW.shape, 2), np.float32)
    np.subtract(cos * x, sin * y, out=grid[..., 0])
    np.add(sin * x, cos * y, out=grid[..., 1])
    mode = "nearest" if nearest else "bilinear"
    moved = F.grid_sample(torch.from_numpy(images_BHW)[:, None], torch.from_numpy(grid), mode=mode, align_corners=False)
    return np.asarray(moved[:, 0].numpy())


@dataclass(frozen=True)
class Contrast:
    """``gain * image ** gamma``; what is below zero becomes zero."""

    gain: float
    gamma: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Contrast:
        """At random, evenly."""
        return cls(*rng.uniform(1 - CONTRAST, 1 + CONTRAST, 2).tolist())

    def image(self, image: Image) -> Image:
        """An image of any shape, changed."""
        # Zeros, of which there are many, take NumPy four times as long as other numbers. NaN stays NaN: guards look for it.
        return np.asarray(self.gain * np.power(image, self.gamma, where=~(image <= 0), out=np.zeros_like(image)), np.float32)


@lru_cache(16)
def _centres(pixels: int) -> NDArray[np.float32]:
    """Of the pixels of a side that goes from -1 to 1."""
    return ((2 * np.arange(pixels) + 1) / pixels - 1).astype(np.float32)
