"""Random geometry and contrast of training images, so that few patients are not memorized. Masks and boxes follow their image.

There are no flips: "left" in the text would become wrong. Boxes are not rotated: the box around a rotated box is too large.

Shape letters: B images, H rows, W columns.
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
"""Maximum shift (fraction of the image side), relative scaling, rotation (degrees), relative change of gain and gamma."""


@dataclass(frozen=True)
class AffineParams:
    """Scaling and rotation about the image center, then a shift of the content down and right.

    Attributes:
        scale: magnification.
        down: shift down, fraction of the side.
        right: shift to the right, fraction of the side.
        degrees: rotation, counterclockwise as displayed.
    """

    scale: float = 1.0
    down: float = 0.0
    right: float = 0.0
    degrees: float = 0.0

    @classmethod
    def sample(cls, rng: np.random.Generator) -> AffineParams:
        """Draw every parameter from a uniform distribution."""
        scale, down, right, degrees = (rng.uniform(-1, 1, 4) * (SCALE, SHIFT, SHIFT, ANGLE)).tolist()
        return cls(1 + scale, down, right, degrees)

    def keeping_inside(self, boxes: Iterable[TextBox]) -> AffineParams:
        """Return this transform without its rotation, or the identity if a box would leave the image in part."""
        upright = replace(self, degrees=0.0)
        edges = [edge for box in upright.transform_boxes(boxes) for edge in box.edges]
        return upright if all(0 <= edge < GRID for edge in edges) else AffineParams()

    def transform_boxes(self, boxes: Iterable[TextBox]) -> list[TextBox]:
        """Scale and shift boxes as the image; the rotation is ignored, and so are the slices of a volume's boxes."""

        def transform(edge: int, shift: float) -> int:
            return round(((edge / GRID - 0.5) * self.scale + 0.5 + shift) * GRID)

        return [
            replace(
                box,
                row0=transform(box.row0, self.down),
                col0=transform(box.col0, self.right),
                row1=transform(box.row1, self.down),
                col1=transform(box.col1, self.right),
            )
            for box in boxes
        ]

    def apply(self, image_HW: Image, nearest: bool = False) -> Image:
        """Resample an image, zero outside of its field of view; ``nearest``: nearest-neighbor interpolation, for masks."""
        transformed: Image = apply_affine_batch(image_HW[None], [self], nearest)[0]
        return transformed


def apply_affine_batch(images_BHW: Image, affines: Sequence[AffineParams], nearest: bool = False) -> Image:
    """Resample each image with its own transform, in half the time of one call for each."""
    height, width = images_BHW.shape[1:]
    rotations = [cmath.rect(1 / affine.scale, math.radians(affine.degrees)) for affine in affines]
    numbers = [
        (rotation.real, rotation.imag, 2 * affine.right, 2 * affine.down)
        for rotation, affine in zip(rotations, affines, strict=True)
    ]
    cos, sin, right, down = np.array(numbers, np.float32).T[:, :, None, None]
    # Source position of each output pixel (x, y), in [-1, 1]. F.affine_grid computes the same, ten times as slowly.
    x, y = _pixel_centers(width) - right, _pixel_centers(height)[:, None] - down
    grid = np.empty((*images_BHW.shape, 2), np.float32)
    np.subtract(cos * x, sin * y, out=grid[..., 0])
    np.add(sin * x, cos * y, out=grid[..., 1])
    mode = "nearest" if nearest else "bilinear"
    resampled = F.grid_sample(torch.from_numpy(images_BHW)[:, None], torch.from_numpy(grid), mode=mode, align_corners=False)
    return np.asarray(resampled[:, 0].numpy())


@dataclass(frozen=True)
class Contrast:
    """Intensity transform ``gain * image ** gamma``; negative intensities become zero."""

    gain: float
    gamma: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Contrast:
        """Draw gain and gamma from a uniform distribution."""
        return cls(*rng.uniform(1 - CONTRAST, 1 + CONTRAST, 2).tolist())

    def apply(self, image: Image) -> Image:
        """Transform the intensities of an image of any shape."""
        # NumPy takes four times as long for zeros, which are many. NaN stays NaN: the loss spike guard looks for it.
        return np.asarray(self.gain * np.power(image, self.gamma, where=~(image <= 0), out=np.zeros_like(image)), np.float32)


@lru_cache(16)
def _pixel_centers(pixels: int) -> NDArray[np.float32]:
    """Return the centers of the pixels of a side that spans -1 to 1."""
    return ((2 * np.arange(pixels) + 1) / pixels - 1).astype(np.float32)
