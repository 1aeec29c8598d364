"""Heart in short axis: both ventricles and the myocardium, with an infarct scar.

The stack is stored as if it were axial: slices run from apex to base. Positions are mm from the center of the image: z along the
long axis to the base, y to posterior, x to the patient's left.
"""

from __future__ import annotations

import numpy as np

from components.samples.phantom import Anatomy, Array, Canvas, Grid, Protocol, ellipsoid, smooth_field, soft

LEFT, MYOCARDIUM, RIGHT, SCAR = "left ventricle", "myocardium", "right ventricle", "scar"
STRUCTURES = {LEFT: 1, MYOCARDIUM: 2, RIGHT: 3, SCAR: 4, "papillary muscle": 1}
_TISSUES = ("lung", "vessel", "fat", "muscle", "liver", "aorta", "wall", LEFT, MYOCARDIUM, RIGHT, "papillary muscle", SCAR)
CINE = dict(zip(_TISSUES, (0.07, 0.5, 0.85, 0.35, 0.5, 0.95, 0.4, 1.05, 0.4, 1.0, 0.45, 0.5), strict=True))
LATE = dict(zip(_TISSUES, (0.05, 0.3, 0.8, 0.3, 0.35, 0.6, 0.2, 0.66, 0.13, 0.62, 0.16, 1.15), strict=True))
_LENGTH_MM = 84.0
_At = tuple[Array, Array, Array]


def _paint_chest(canvas: Canvas, at: _At) -> None:
    """Paint chest wall, lungs with vessels, liver and aorta."""
    rng = canvas.rng
    body = 1 - np.sqrt(((at[1] - 6) / 104) ** 2 + ((at[2] + 4) / 140) ** 2)
    canvas.paint("fat", soft(104 * body, 3.0))
    canvas.paint("muscle", soft(104 * body - 11, 3.0))
    inner = 1 - np.sqrt(((at[1] - 6) / 84) ** 2 + ((at[2] + 4) / 118) ** 2)
    canvas.paint("lung", soft(84 * inner, 3.0))
    vessels = smooth_field(rng, canvas.grid.shape, 12) - 1.4
    canvas.paint("vessel", 0.8 * soft(np.minimum(6 * vessels, 84 * inner - 6), 3.0))
    liver = ellipsoid(at, np.array([-40.0, 62.0, -58.0]), np.array([90.0, 46.0, 62.0]))
    canvas.paint("liver", soft(np.minimum(liver, 84 * inner), 3.0))
    canvas.paint("aorta", soft(11 - np.sqrt((at[1] - 62) ** 2 + (at[2] - 44) ** 2), 2.0))


def _paint_heart(canvas: Canvas, at: _At) -> tuple[Array, Array]:
    """Paint both ventricles; return the signed distances to the left cavity and to its outer surface."""
    rng = canvas.rng
    radius, wall = rng.uniform(21, 28), rng.uniform(8.5, 12.5)
    along = np.clip((at[0] + 42) / _LENGTH_MM, 0, 1)
    profile = np.sqrt(np.clip(1 - (1 - along) ** 2.2, 0, 1))
    around = np.sqrt((at[1] - 2) ** 2 + ((at[2] - 16) / 1.04) ** 2)
    left, outer = radius * profile - around - 2.0 * (1 - profile), radius * profile + wall - around
    exists = at[0] + 40
    left, outer = np.minimum(left, exists - 6), np.minimum(outer, exists)
    right = 1 - np.sqrt(((at[1] + 4) / (36 * profile + 1)) ** 2 + ((at[2] + 20) / (34 * profile + 1)) ** 2)
    right = np.minimum(np.minimum(34 * right * profile, exists - 12), -outer)
    canvas.paint("fat", soft(np.maximum(outer, right) + 6.0, 3.0))
    canvas.paint("wall", soft(np.maximum(outer, right + 3.0), 2.0))
    canvas.paint(RIGHT, soft(right, 2.0))
    canvas.paint(MYOCARDIUM, soft(outer, 2.0))
    canvas.paint(LEFT, soft(left, 2.0))
    for angle in (rng.uniform(0.4, 1.1), rng.uniform(2.0, 2.7)):
        y, x = 2 + 0.62 * radius * np.sin(angle), 16 + 0.62 * radius * np.cos(angle)
        muscle = np.minimum(4.2 - np.sqrt((at[1] - y) ** 2 + (at[2] - x) ** 2), 24 - np.abs(at[0] + 2))
        canvas.paint("papillary muscle", soft(np.minimum(muscle, left), 2.0))
    return left, outer


def _paint_scar(canvas: Canvas, at: _At, left: Array, outer: Array) -> None:
    """Paint a scar: a sector of the wall from the inner surface outward, over a part of the long axis."""
    rng = canvas.rng
    middle, half = rng.uniform(-np.pi, np.pi), rng.uniform(0.35, 0.75)
    angle = np.arctan2(at[1] - 2, at[2] - 16)
    across = 30 * (half - np.abs(np.mod(angle - middle + np.pi, 2 * np.pi) - np.pi))
    depth = -rng.uniform(0.55, 1.0) * (left - outer) + left
    along = rng.uniform(14, 26) - np.abs(at[0] - rng.uniform(-14, 18))
    canvas.paint_finding(SCAR, soft(np.minimum.reduce([across, depth, along, outer, -left]), 2.0))


def paint(canvas: Canvas, number: int) -> None:
    """Paint patient ``number``: every odd one has a scar."""
    canvas.findings = {SCAR: number % 2 == 1}
    at = canvas.warped(2.0)
    _paint_chest(canvas, at)
    left, outer = _paint_heart(canvas, at)
    if canvas.findings[SCAR]:
        _paint_scar(canvas, at, left, outer)


HEART = Anatomy(
    name="heart",
    grid=Grid(slices=12, pixels=128, slice_mm=8.0, pixel_mm=1.6),
    kspace_grid=Grid(slices=12, pixels=128, slice_mm=8.0, pixel_mm=1.6),
    protocols=(
        Protocol("bSSFP", "bSSFP", 3.4, 1.6, CINE, flip_deg=55.0, technique="GR"),
        Protocol("T1-weighted post-contrast", "T1wpost", 700.0, 3.3, LATE, flip_deg=25.0, technique="GR", inversion_ms=300.0),
    ),
    structures=STRUCTURES,
    kspace="bSSFP",
    acquisition="AXT2",
    paint=paint,
)
