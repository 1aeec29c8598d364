"""One breast, axial: fat, fibroglandular tissue and chest wall, with a mass.

Positions are mm from the center of the image: z to superior, y to posterior, x to the patient's left.
"""

from __future__ import annotations

import numpy as np

from components.samples.phantom import Anatomy, Array, Canvas, Grid, Protocol, ellipsoid, smooth_field, soft

FAT, GLAND, MASS = "fat", "fibroglandular tissue", "mass"
STRUCTURES = {FAT: 1, GLAND: 2, MASS: 3}
_TISSUES = (FAT, GLAND, "skin", "muscle", "rib", "lung", "vessel", MASS)
T2 = dict(zip(_TISSUES, (0.8, 0.5, 0.45, 0.22, 0.5, 0.05, 1.1, 0.32), strict=True))
T1_FS = dict(zip(_TISSUES, (0.16, 0.44, 0.6, 0.4, 0.2, 0.05, 1.0, 1.2), strict=True))
_WALL_MM = 46.0
"""Position of the chest wall."""
_At = tuple[Array, Array, Array]


def _paint_chest(canvas: Canvas, at: _At) -> Array:
    """Paint lung, ribs, muscle, skin and fat; return the signed distance to the breast."""
    rng = canvas.rng
    curved = _WALL_MM + 0.0022 * at[2] ** 2
    behind = at[1] - curved
    canvas.paint("lung", soft(behind - 16, 2.0))
    ribs = np.minimum(4.5 - np.abs(behind - 17), 8.0 * np.cos(2 * np.pi * (at[2] + 1.5 * at[0]) / 62.0))
    canvas.paint("rib", soft(ribs, 2.0))
    canvas.paint("muscle", soft(np.minimum(behind, 13 - behind), 2.0))
    radii = np.array([rng.uniform(54, 68), rng.uniform(76, 98), rng.uniform(58, 72)])
    breast = np.minimum(ellipsoid(at, np.array([0.0, _WALL_MM + 2, 0.0]), radii), -behind)
    layer = np.minimum(12.0 - np.abs(behind + 12.0), 100.0 - np.abs(at[2]))
    outline = np.maximum(breast, layer)
    canvas.paint("skin", soft(outline + 2.0, 2.0))
    nipple = ellipsoid(at, np.array([0.0, _WALL_MM - radii[1] + 1.0, 0.0]), np.array([6.0, 6.0, 6.0]))
    canvas.paint("skin", soft(nipple, 2.0))
    canvas.paint(FAT, soft(np.minimum(outline, -behind - 1.0), 2.0))
    return np.asarray(breast)


def _paint_gland(canvas: Canvas, at: _At, breast: Array) -> Array:
    """Paint fibroglandular tissue, lobed and pierced by fat, that reaches to the nipple; return its signed distance."""
    rng = canvas.rng
    density = rng.uniform(0.75, 1.2)
    tree = ellipsoid(at, np.array([0.0, 4.0, rng.uniform(-8, 8)]), density * np.array([34.0, 34.0, 38.0]))
    lobes = 5.0 * smooth_field(rng, canvas.grid.shape, 9) + 3.0 * smooth_field(rng, canvas.grid.shape, 16)
    gland = np.minimum(tree + lobes, breast - 7.0)
    canvas.paint(GLAND, soft(gland, 2.5))
    ducts = np.minimum(2.2 - np.abs(at[2] - 9 * np.sin(at[1] / 14)), 30 - np.abs(at[1] + 26))
    canvas.paint(GLAND, 0.8 * soft(np.minimum.reduce([ducts, breast - 3.0, 6 - np.abs(at[0])]), 2.0))
    for _ in range(3):
        slope, start = rng.uniform(-0.7, 0.7), rng.uniform(-30, 30)
        vessel = 1.5 - np.sqrt((at[2] - start - slope * at[1]) ** 2 + (at[0] - rng.uniform(-25, 25)) ** 2)
        canvas.paint("vessel", soft(np.minimum(vessel, breast - 5.0), 1.6))
    return np.asarray(gland)


def _paint_mass(canvas: Canvas, breast: Array, gland: Array) -> None:
    """Paint one mass or two: round and smooth, or irregular."""
    rng = canvas.rng
    for _ in range(int(rng.choice([1, 1, 1, 2]))):
        sites = np.flatnonzero((gland > -4) & (breast > 14))
        index = np.array(np.unravel_index(sites[rng.integers(len(sites))], breast.shape))
        center = (index - (np.array(breast.shape) - 1) / 2) * canvas.grid.spacing_mm
        roughness = float(rng.choice([0.06, 0.35]))
        window, signed = canvas.blob(center, rng.uniform(6.5, 13) * rng.uniform(0.85, 1.2, size=3), roughness)
        canvas.paint_finding(MASS, soft(np.minimum(signed, breast[window] - 3.0), 2.0), window)


def paint(canvas: Canvas, number: int) -> None:
    """Paint patient ``number``: every odd one has a mass."""
    canvas.findings = {MASS: number % 2 == 1}
    at = canvas.warped(3.0)
    breast = _paint_chest(canvas, at)
    gland = _paint_gland(canvas, at, breast)
    if canvas.findings[MASS]:
        _paint_mass(canvas, breast, gland)


BREAST = Anatomy(
    name="breast",
    grid=Grid(slices=16, pixels=128, slice_mm=6.0, pixel_mm=1.6),
    kspace_grid=Grid(slices=16, pixels=128, slice_mm=6.0, pixel_mm=1.6),
    protocols=(
        Protocol("T2-weighted", "T2w", 4000.0, 90.0, T2),
        Protocol("T1-FS", "T1FS", 500.0, 10.0, T1_FS),
    ),
    structures=STRUCTURES,
    kspace="T2-weighted",
    acquisition="AXT2",
    paint=paint,
)
