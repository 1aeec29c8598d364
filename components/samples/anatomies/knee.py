"""Knee, coronal: femur, tibia, cartilage and menisci, with bone marrow edema, a meniscus tear, or an effusion.

Positions are mm from the center of the joint: z to posterior, y to inferior, x to the patient's left.
"""

from __future__ import annotations

import numpy as np

from components.samples.phantom import Anatomy, Array, Canvas, Grid, Protocol, ellipsoid, soft

FEMUR, TIBIA, CARTILAGE, MENISCUS = "femur", "tibia", "articular cartilage", "meniscus"
EDEMA, TEAR, EFFUSION = "bone marrow edema", "meniscus tear", "effusion"
STRUCTURES = {FEMUR: 1, TIBIA: 2, CARTILAGE: 3, MENISCUS: 4, EDEMA: 5, TEAR: 6, EFFUSION: 7}
KINDS: tuple[tuple[str, ...], ...] = ((), (TEAR,), (EDEMA,), (), (EFFUSION,), (TEAR, EFFUSION), (), (EDEMA, EFFUSION))
"""Findings of patient ``number % 8``."""
_TISSUES = ("fat", "muscle", "ligament", "cortex", FEMUR, TIBIA, "fibula", CARTILAGE, MENISCUS, "fluid", EDEMA, TEAR, EFFUSION)
PD = dict(zip(_TISSUES, (0.95, 0.5, 0.14, 0.06, 0.84, 0.84, 0.84, 0.66, 0.14, 1.1, 0.5, 0.95, 1.15), strict=True))
PD_FS = dict(zip(_TISSUES, (0.26, 0.45, 0.12, 0.05, 0.2, 0.2, 0.2, 0.8, 0.14, 1.2, 0.85, 1.05, 1.25), strict=True))
_CARTILAGE_MM, _JOINT_MM = 3.4, 7.2
_At = tuple[Array, Array, Array]


def _capsule(at: _At, x: float, y: tuple[float, float], radius: float) -> Array:
    """Return the signed distance to a vertical rounded cylinder."""
    beyond = np.maximum(np.maximum(y[0] - at[1], at[1] - y[1]), 0)
    return np.asarray(radius - np.sqrt(at[0] ** 2 + (at[2] - x) ** 2 + beyond**2))


def _femur(at: _At, size: float) -> Array:
    condyles = [ellipsoid(at, np.array([4.0, -20.0, side * 20.0]), size * np.array([30.0, 20.0, 20.5])) for side in (-1.0, 1.0)]
    body = ellipsoid(at, np.array([0.0, -34.0, 0.0]), size * np.array([24.0, 26.0, 34.0]))
    notch = ellipsoid(at, np.array([14.0, 0.0, 0.0]), np.array([26.0, 20.0, 8.5]))
    bone = np.maximum.reduce([*condyles, body, _capsule(at, 0.0, (-140.0, -45.0), 17.0 * size)])
    return np.minimum(bone, -notch)


def _tibia(at: _At, size: float) -> Array:
    plateau = ellipsoid(at, np.array([2.0, 24.0, 0.0]), size * np.array([28.0, 30.0, 42.0]))
    eminence = ellipsoid(at, np.array([4.0, 10.0, 0.0]), np.array([10.0, 8.0, 7.0]))
    bone = np.maximum(np.minimum(plateau, at[1] - _JOINT_MM), eminence)
    return np.maximum(bone, _capsule(at, 0.0, (40.0, 140.0), 17.0 * size))


def _paint_soft_tissue(canvas: Canvas, at: _At) -> None:
    """Paint fat within the skin, muscles above and below the joint."""
    outline = 1 - np.sqrt((at[0] / 58) ** 2 + (at[2] / 66) ** 2)
    canvas.paint("fat", soft(50 * outline, 3.0))
    inner = 1 - np.sqrt((at[0] / 48) ** 2 + (at[2] / 56) ** 2)
    beside = np.abs(at[1] - 5) - 36 - 0.004 * at[2] ** 2
    canvas.paint("muscle", soft(np.minimum(45 * inner, 0.4 * beside), 4.0))
    ligaments = np.minimum(1.9 - np.abs(np.abs(at[2]) - 44), 42 - np.abs(at[1] - 8))
    canvas.paint("ligament", soft(np.minimum(ligaments, 14 - np.abs(at[0])), 1.6))


def _paint_bones(canvas: Canvas, at: _At, femur: Array, tibia: Array, side: float) -> Array:
    """Paint bones within dark cortex, joint fluid, cartilage and menisci; return the signed distance to the menisci."""
    fibula = _capsule((at[0] - 16, at[1], at[2]), side * 34.0, (30.0, 140.0), 7.5)
    for bone in (femur, tibia, fibula):
        canvas.paint("cortex", soft(bone + 1.8, 1.6))
    gap = np.minimum.reduce([at[1] + 6, _JOINT_MM + 3 - at[1], 38 - np.abs(at[2]), 26 - np.abs(at[0] - 3)])
    canvas.paint("fluid", 0.4 * soft(np.minimum.reduce([gap, -femur, -tibia]), 2.0))
    crossing = np.minimum(2.6 - np.abs(at[2] - side * 5 + 0.35 * at[1]), 18 - np.abs(at[1] + 6))
    canvas.paint("ligament", soft(np.minimum.reduce([crossing, -femur, -tibia, 18 - np.abs(at[0])]), 2.0))
    on_femur = np.minimum.reduce([femur + _CARTILAGE_MM, at[1] + 14, np.abs(at[2]) - 7])
    plateau = np.minimum.reduce([_JOINT_MM - at[1], at[1] - _JOINT_MM + _CARTILAGE_MM, 37 - np.abs(at[2]), np.abs(at[2]) - 9])
    on_tibia = np.minimum(plateau, 25 - np.abs(at[0] - 3))
    wedge = [np.abs(at[2]) - 22, 41 - np.abs(at[2]), 26 - np.abs(at[0] - 3), at[1] + 5, _JOINT_MM - _CARTILAGE_MM + 0.8 - at[1]]
    menisci = np.minimum.reduce([*wedge, -femur - _CARTILAGE_MM])
    canvas.paint(CARTILAGE, soft(np.maximum(on_femur, on_tibia), 1.6))
    canvas.paint(MENISCUS, soft(menisci, 1.6))
    for tissue, bone in ((FEMUR, femur), (TIBIA, tibia), ("fibula", fibula)):
        canvas.paint(tissue, soft(bone, 1.6))
    return menisci


def _paint_findings(canvas: Canvas, at: _At, kinds: tuple[str, ...], femur: Array, tibia: Array, menisci: Array) -> None:
    rng = canvas.rng
    side = float(rng.choice([-1.0, 1.0]))
    if EDEMA in kinds:
        bone, y = (femur, -16.0) if rng.random() < 0.5 else (tibia, 20.0)
        center = np.array([rng.uniform(-6, 12), y, side * rng.uniform(16, 26)])
        window, signed = canvas.blob(center, rng.uniform(9, 15) * rng.uniform(0.85, 1.2, size=3), 0.2)
        canvas.paint_finding(EDEMA, soft(np.minimum(signed, bone[window]), 3.0), window)
    if TEAR in kinds:
        depth, middle, slope = rng.uniform(-8, 14), rng.uniform(30, 35), rng.uniform(-0.8, 0.8)
        cleft = np.minimum(2.6 - np.abs(side * at[2] - middle - slope * (at[1] - 2)), 13 - np.abs(at[0] - depth))
        canvas.paint_finding(TEAR, soft(np.minimum(cleft, menisci + 0.4), 1.6))
    if EFFUSION in kinds:
        width = rng.uniform(6, 11)
        recess = np.minimum.reduce([-femur - 2, femur + 2 + width, -4 - at[1], at[1] + 52, 12 - at[0]])
        canvas.paint_finding(EFFUSION, soft(np.minimum(recess, np.abs(at[2]) - 22), 2.5))


def paint(canvas: Canvas, number: int) -> None:
    """Paint patient ``number``: three in eight without a finding, five with one or two."""
    kinds = KINDS[number % len(KINDS)]
    canvas.findings = {finding: finding in kinds for finding in (EDEMA, TEAR, EFFUSION)}
    size = canvas.rng.uniform(0.95, 1.05)
    at = canvas.warped(2.0)
    femur, tibia = _femur(at, size), _tibia(at, size)
    _paint_soft_tissue(canvas, at)
    menisci = _paint_bones(canvas, at, femur, tibia, float(canvas.rng.choice([-1.0, 1.0])))
    _paint_findings(canvas, at, kinds, femur, tibia, menisci)


KNEE = Anatomy(
    name="knee",
    grid=Grid(slices=20, pixels=128, slice_mm=4.5, pixel_mm=1.6, plane="coronal"),
    kspace_grid=Grid(slices=16, pixels=128, slice_mm=5.0, pixel_mm=1.6, plane="coronal"),
    protocols=(
        Protocol("PD-weighted", "PDw", 2800.0, 28.0, PD),
        Protocol("PD-FS", "PDFS", 3000.0, 32.0, PD_FS),
    ),
    structures=STRUCTURES,
    kspace="PD-weighted",
    acquisition="CORPD_FBK",
    paint=paint,
)
