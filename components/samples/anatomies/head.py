"""Whole head: the brain of :mod:`components.samples.anatomies.brain`, with its findings, inside of a skull and a scalp.

What is around the brain are layers of a given thickness. There are no eyes, sinuses and jaws.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from components.samples.anatomies import brain
from components.samples.icbm152 import LONGEST_MM, deformed_positions, sample_template, widened_sulci
from components.samples.phantom import Array, Canvas, smooth_field, soft

HEIGHT_MM = 10.0
"""Largest distance of the slices from their usual height."""
BASE_MM = -15.0
"""Height (RAS+ mm) below which muscles thicken the scalp."""
SIGNALS = {
    "T1-weighted": {"bone": 0.08, "marrow": 0.85, "fat": 1.3, "muscle": 0.55},
    "T2-weighted": {"bone": 0.06, "marrow": 0.5, "fat": 0.8, "muscle": 0.28},
}


def _around_brain(canvas: Canvas, distance_mm: Array, height_mm: Array) -> dict[str, Array]:
    """Return the shares (D, H, W) of the tissues around the brain, as if there were no brain.

    Args:
        canvas: of the patient.
        distance_mm: to the brain (D, H, W).
        height_mm: RAS+ height in the template (D, H, W).
    """
    rng, shape, edge_mm = canvas.rng, canvas.grid.shape, canvas.grid.pixel_mm
    gap, bone, scalp = rng.uniform(1.0, 3.0), rng.uniform(4.0, 7.0), rng.uniform(3.0, 6.5)
    uneven = np.exp(0.15 * smooth_field(rng, shape, 6))
    skull = gap + bone * uneven
    skin = skull + scalp * uneven + np.clip(0.5 * (BASE_MM - height_mm), 0, 20)
    in_gap, in_skull, in_skin = (soft(limit - distance_mm, edge_mm) for limit in (gap, skull, skin))
    marrow = (in_skull - in_gap) * soft(bone * uneven / 6 - np.abs(distance_mm - (gap + skull) / 2), edge_mm)
    below = np.clip((BASE_MM + 10 - height_mm) / 20, 0, 1)
    muscle = (in_skin - in_skull) * soft(2 * below - 1 + 0.5 * smooth_field(rng, shape, 12), 1.0)
    fat = in_skin - in_skull - muscle
    return {"fluid": in_gap, "bone": in_skull - in_gap - marrow, "marrow": marrow, "fat": fat, "muscle": muscle}


def paint_head(canvas: Canvas, atrophy: float) -> tuple[Array, Array]:
    """Paint a head; ``atrophy`` (0 to 0.5) enlarges ventricles and sulci. Return the fractions of white matter and of brain."""
    positions = deformed_positions(canvas, atrophy, canvas.rng.uniform(-HEIGHT_MM, HEIGHT_MM))
    gray, white, fluid, distance = sample_template(positions, "distance")
    gray, fluid = widened_sulci(gray, fluid, atrophy)
    inside = np.clip(gray + white + fluid, 0, 1)
    shares = {tissue: (1 - inside) * share for tissue, share in _around_brain(canvas, LONGEST_MM * distance, positions[2]).items()}
    canvas.mix({**shares, brain.GRAY: gray, brain.WHITE: white, "fluid": fluid + shares["fluid"]})
    return white, inside


def paint(canvas: Canvas, number: int) -> None:
    """Paint patient ``number``, whose findings are those of the brains."""
    brain.paint(canvas, number, paint_head)


HEAD = replace(
    brain.BRAIN,
    name="head",
    protocols=tuple(
        replace(protocol, signals={**protocol.signals, **SIGNALS[protocol.sequence]}) for protocol in brain.BRAIN.protocols
    ),
    paint=paint,
)
