"""Prostate, axial: peripheral and transition zone between bladder, rectum, muscles and bones, with a lesion.

Positions are mm from the center of the gland: z to superior, y to posterior, x to the patient's left.
"""

from __future__ import annotations

import numpy as np

from components.samples.phantom import Anatomy, Array, Canvas, Grid, Protocol, ellipsoid, soft

PERIPHERAL, TRANSITION, LESION = "peripheral zone", "transition zone", "lesion"
STRUCTURES = {PERIPHERAL: 1, TRANSITION: 2, LESION: 3, "bright nodule": 2, "dark nodule": 2}
_TISSUES = (
    *("fat", "muscle", "bone", "cortex", "rectum", "gas", "bladder", "capsule", "stroma"),
    *(PERIPHERAL, TRANSITION, "bright nodule", "dark nodule", LESION),
)
T2 = dict(zip(_TISSUES, (0.8, 0.24, 0.62, 0.1, 0.4, 0.04, 1.35, 0.2, 0.24, 1.05, 0.58, 0.85, 0.42, 0.3), strict=True))
ADC = dict(zip(_TISSUES, (0.08, 0.55, 0.12, 0.05, 0.6, 0.03, 1.5, 0.6, 0.5, 1.0, 0.75, 0.85, 0.66, 0.36), strict=True))
_At = tuple[Array, Array, Array]


def _paint_pelvis(canvas: Canvas, at: _At) -> None:
    """Paint fat, bones, muscles, bladder and rectum around the gland."""
    rng = canvas.rng
    body = 1 - np.sqrt((at[1] / 98) ** 2 + (at[2] / 135) ** 2)
    canvas.paint("fat", soft(98 * body, 3.0))
    for side in (-1.0, 1.0):
        muscle = ellipsoid(at, np.array([0.0, -2.0, side * 50.0]), np.array([70.0, 36.0, 10.0]))
        back = ellipsoid(at, np.array([0.0, 78.0, side * 48.0]), np.array([90.0, 26.0, 48.0]))
        lift = np.minimum(2.2 - np.abs(np.abs(at[2]) - 33 + 0.012 * (at[1] - 10) ** 2), 26 - np.abs(at[1] - 14))
        canvas.paint("muscle", soft(np.maximum.reduce([muscle, back, lift]), 2.5))
        hip = ellipsoid(at, np.array([10.0, -8.0, side * 84.0]), np.array([46.0, 30.0, 25.0]))
        pubis = ellipsoid(at, np.array([-14.0, -58.0, side * 20.0]), np.array([26.0, 12.0, 17.0]))
        for bone in (hip, pubis):
            canvas.paint("cortex", soft(bone + 2.4, 1.8))
            canvas.paint("bone", soft(bone, 1.8))
    bladder = ellipsoid(at, np.array([52.0, -16.0, 0.0]), rng.uniform(0.85, 1.2) * np.array([30.0, 26.0, 36.0]))
    canvas.paint("muscle", soft(bladder + 3.5, 2.0))
    canvas.paint("bladder", soft(bladder, 2.0))
    rectum = np.array([rng.uniform(-3, 3), rng.uniform(11, 15), rng.uniform(13, 18)])
    wall = 1 - np.sqrt(((at[1] - 38) / rectum[1]) ** 2 + ((at[2] - rectum[0]) / rectum[2]) ** 2)
    canvas.paint("rectum", soft(13 * wall, 2.0))
    canvas.paint("gas", soft(13 * wall - 4.5, 2.0))


def _paint_gland(canvas: Canvas, at: _At) -> tuple[Array, Array]:
    """Paint the zones; return the signed distances to the gland and to its transition zone."""
    rng = canvas.rng
    growth = rng.uniform(0.8, 1.25)
    gland = ellipsoid(at, np.zeros(3), np.array([22.0, 19.0, 26.0]) * (0.72 + 0.28 * growth))
    transition = ellipsoid(at, np.array([2.0, -4.5, 0.0]), growth * np.array([16.0, 12.0, 16.5]))
    transition = np.minimum(transition, gland - 3.0)
    canvas.paint("capsule", soft(gland + 1.5, 1.6))
    canvas.paint(PERIPHERAL, soft(gland, 1.6))
    canvas.paint("stroma", soft(np.minimum(gland, -11.0 - at[1] - 0.02 * at[2] ** 2), 2.0))
    canvas.paint("capsule", soft(transition + 1.2, 1.6))
    canvas.paint(TRANSITION, soft(transition, 1.6))
    for _ in range(int(rng.integers(2, 6))):
        center = np.array([rng.uniform(-8, 10), rng.uniform(-9, 1), rng.uniform(-10, 10)])
        window, signed = canvas.blob(center, growth * rng.uniform(3.5, 6.5, size=3))
        tissue = "bright nodule" if rng.random() < 0.5 else "dark nodule"
        canvas.paint(tissue, soft(np.minimum(signed, transition[window] - 1.0), 2.0), window)
    return gland, transition


def _paint_lesion(canvas: Canvas, gland: Array, transition: Array) -> None:
    """Paint one or two lesions, two thirds of them in the peripheral zone."""
    rng = canvas.rng
    for _ in range(int(rng.choice([1, 1, 2]))):
        angle, depth = rng.uniform(-1.1, 1.1), rng.uniform(-9, 9)
        if rng.random() < 0.67:
            center = np.array([depth, 12.5 * np.cos(angle) - 0.5, 19.0 * np.sin(angle)])
            inside = np.minimum(gland, -transition)
        else:
            center, inside = np.array([depth, rng.uniform(-10, -2), rng.uniform(-9, 9)]), gland
        window, signed = canvas.blob(center, rng.uniform(6.5, 11) * rng.uniform(0.85, 1.2, size=3))
        canvas.paint_finding(LESION, soft(np.minimum(signed, inside[window]), 2.0), window)


def paint(canvas: Canvas, number: int) -> None:
    """Paint patient ``number``: every odd one has lesions."""
    canvas.findings = {LESION: number % 2 == 1}
    at = canvas.warped(2.0)
    _paint_pelvis(canvas, at)
    gland, transition = _paint_gland(canvas, at)
    if canvas.findings[LESION]:
        _paint_lesion(canvas, gland, transition)


PROSTATE = Anatomy(
    name="prostate",
    grid=Grid(slices=16, pixels=128, slice_mm=4.0, pixel_mm=1.6),
    kspace_grid=Grid(slices=16, pixels=128, slice_mm=4.0, pixel_mm=1.6),
    protocols=(
        Protocol("T2-weighted", "T2w", 4500.0, 100.0, T2),
        Protocol("ADC", "ADC", 4000.0, 70.0, ADC, technique="EP"),
    ),
    structures=STRUCTURES,
    kspace="T2-weighted",
    acquisition="AXT2",
    paint=paint,
)
