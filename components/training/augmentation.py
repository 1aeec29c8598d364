"""Movements of an image and of what is said about it, so that the few patients of a small corpus are not learnt by heart.

No flips: "left" would be wrong in the text. Boxes are not turned: the box around a turned box is too large. H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from components.training.samples import Image
from model_core.boxes import GRID, TextBox

SHIFT, SCALE, ANGLE = 0.04, 0.08, 8.0
"""Largest shift, of the image's side; largest change of size, relative; largest turn, degrees."""


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
            TextBox(box.label, moved(box.row0, self.down), moved(box.col0, self.right),
                    moved(box.row1, self.down), moved(box.col1, self.right))
            for box in boxes
        ]  # fmt: skip

    def image(self, image_HW: Image, nearest: bool = False) -> Image:
        """The moved image, zero where nothing was; ``nearest`` for masks."""
        # Where each place (x, y) of the result comes from, in [-1, 1]. F.affine_grid makes the same, ten times as slowly.
        cos, sin = math.cos(math.radians(self.degrees)) / self.scale, math.sin(math.radians(self.degrees)) / self.scale
        right, down = 2 * self.right, 2 * self.down
        back = torch.tensor([[cos, -sin, sin * down - cos * right], [sin, cos, -sin * right - cos * down]])
        grid = (back @ _places(*image_HW.shape)).view(2, *image_HW.shape).permute(1, 2, 0)[None]
        mode = "nearest" if nearest else "bilinear"
        moved = F.grid_sample(torch.from_numpy(image_HW)[None, None], grid, mode=mode, align_corners=False)
        return np.asarray(moved[0, 0].numpy())


@lru_cache(16)
def _places(height: int, width: int) -> torch.Tensor:
    """x, y and 1 of every pixel's centre, the image going from -1 to 1; (3, H * W)."""
    y, x = ((2 * torch.arange(pixels) + 1) / pixels - 1 for pixels in (height, width))
    return torch.stack([x.repeat(height), y.repeat_interleave(width), torch.ones(height * width)])
