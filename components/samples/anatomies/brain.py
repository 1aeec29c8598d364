"""Brain without skull: deformed ICBM 152 tissue maps with white-matter lesions, a tumor, or atrophy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from components.samples.icbm152 import deformed_positions, sample_template, widened_sulci
from components.samples.phantom import Anatomy, Array, Canvas, Grid, Protocol, soft

GRAY, WHITE, LESION, TUMOR, EDEMA = "gray matter", "white matter", "lesion", "tumor", "edema"
STRUCTURES = {GRAY: 1, WHITE: 2, LESION: 3, TUMOR: 4, EDEMA: 5}
KINDS = ("none", LESION, "none", TUMOR, "none", LESION)
"""Focal finding of patient ``number % 6``."""
ATROPHY = "atrophy"
CENTER_MM = (0.0, -18.0, 10.0)
GRID = Grid(slices=20, pixels=108, slice_mm=6.0, pixel_mm=2.0, center_mm=CENTER_MM)
KSPACE_GRID = Grid(slices=16, pixels=96, slice_mm=7.0, pixel_mm=2.25, center_mm=CENTER_MM)
T1 = {GRAY: 0.62, WHITE: 1.0, "fluid": 0.22, "other": 0.8, LESION: 0.42, "bleeding": 1.4, TUMOR: 0.4, "rim": 0.62, EDEMA: 0.6}
T2 = {GRAY: 0.68, WHITE: 0.45, "fluid": 1.25, "other": 0.5, LESION: 1.05, "bleeding": 0.15, TUMOR: 1.15, "rim": 0.6, EDEMA: 0.92}


def paint_brain(canvas: Canvas, atrophy: float = 0.0) -> tuple[Array, Array]:
    """Paint a brain; ``atrophy`` (0 to 0.5) enlarges ventricles and sulci. Return the fractions of white matter and of brain."""
    gray, white, fluid, other = sample_template(deformed_positions(canvas, atrophy))
    gray, fluid = widened_sulci(gray, fluid, atrophy)
    canvas.mix({GRAY: gray, WHITE: white, "fluid": fluid, "other": other})
    return white, np.clip(gray + white + fluid, 0, 1)


def _site(canvas: Canvas, white: Array, margin_mm: float) -> Array:
    """Return a random position (mm from the center of the grid) inside white matter, apart from the outer slices."""
    margin = max(1, int(margin_mm / canvas.grid.slice_mm))
    inner = np.flatnonzero(white[margin:-margin] > 0.8)
    if not len(inner):
        return np.zeros(3)
    index = np.array(np.unravel_index(inner[canvas.rng.integers(len(inner))], white[margin:-margin].shape))
    index[0] += margin
    return np.asarray((index - (np.array(canvas.grid.shape) - 1) / 2) * canvas.grid.spacing_mm)


def paint_lesions(canvas: Canvas, white: Array, brain: Array) -> None:
    """Paint one to five lesions of 6 to 16 mm radius in white matter, of one kind: like fluid, or like old blood in one of four."""
    rng = canvas.rng
    tissue, strength = ("bleeding" if rng.random() < 0.25 else LESION), rng.uniform(0.7, 1.1)
    count = int(rng.choice([1, 1, 2, 3, 5]))
    for _ in range(count):
        radii = 6.5 * 2.2 ** rng.random() * rng.uniform(0.85, 1.2, size=3)
        window, signed = canvas.blob(_site(canvas, white, 12.0), radii)
        canvas.paint_finding(tissue, soft(signed, 2.5) * brain[window], window, strength)


def paint_tumor(canvas: Canvas, white: Array, brain: Array, core: str = TUMOR, rim: str = "rim") -> None:
    """Paint a tumor: edema that spreads in white matter around a rim and a core without enhancement."""
    rng = canvas.rng
    radius = rng.uniform(10, 18)
    center = _site(canvas, white, radius)
    window, signed = canvas.blob(center, radius * rng.uniform(0.85, 1.2, size=3))
    window_edema, signed_edema = canvas.blob(center, (radius + rng.uniform(6, 12)) * rng.uniform(0.9, 1.15, size=3), 0.25)
    canvas.paint_finding(EDEMA, soft(signed_edema, 4.0) * np.clip(1.6 * white[window_edema], 0, 1), window_edema)
    canvas.paint_finding(rim, soft(signed, 2.5) * brain[window], window)
    canvas.paint_finding(core, soft(signed - rng.uniform(2.5, 4.5), 2.5) * brain[window], window)


def paint(canvas: Canvas, number: int, paint_tissues: Callable[[Canvas, float], tuple[Array, Array]] = paint_brain) -> None:
    """Paint patient ``number``: half have no focal finding, a third lesions, a sixth a tumor; one in five has atrophy besides."""
    kind = KINDS[number % len(KINDS)]
    canvas.findings = {ATROPHY: number % 5 == 2, LESION: kind == LESION, TUMOR: kind == TUMOR}
    white, brain = paint_tissues(canvas, canvas.rng.uniform(0.25, 0.45) if canvas.findings[ATROPHY] else 0.0)
    if kind == LESION:
        paint_lesions(canvas, white, brain)
    elif kind == TUMOR:
        paint_tumor(canvas, white, brain)


BRAIN = Anatomy(
    name="brain",
    grid=GRID,
    kspace_grid=KSPACE_GRID,
    protocols=(
        Protocol("T1-weighted", "T1w", 550.0, 11.0, T1),
        Protocol("T2-weighted", "T2w", 4200.0, 92.0, T2),
    ),
    structures={**STRUCTURES, "bleeding": STRUCTURES[LESION], "rim": STRUCTURES[TUMOR]},
    kspace="T2-weighted",
    acquisition="AXT2",
    paint=paint,
)
