"""Brain tumor: the brain of the brain cohort with an enhancing rim, a core without enhancement, and edema."""

from __future__ import annotations

from components.samples.anatomies import brain
from components.samples.phantom import Anatomy, Canvas, Protocol

CORE, EDEMA, RIM = "non-enhancing tumor", "edema", "enhancing tumor"
STRUCTURES = {brain.GRAY: 1, brain.WHITE: 2, CORE: 3, EDEMA: 4, RIM: 5}
_HEAD = (brain.GRAY, brain.WHITE, "fluid", "other")
_SIGNALS = {
    "T1-weighted post-contrast": (0.6, 0.9, 0.2, 0.8, 0.32, 0.55, 1.35),
    "T2-weighted": (0.68, 0.45, 1.25, 0.5, 1.15, 0.92, 0.62),
    "T2-FLAIR": (0.72, 0.52, 0.12, 0.5, 0.5, 1.1, 0.8),
}
_TIMES = {
    "T1-weighted post-contrast": ("T1wpost", 600.0, 12.0, None),
    "T2-weighted": ("T2w", 4200.0, 92.0, None),
    "T2-FLAIR": ("FLAIR", 9000.0, 120.0, 2500.0),
}


def paint(canvas: Canvas, number: int) -> None:
    """Paint patient ``number``: two in three have a tumor."""
    canvas.findings = {"tumor": number % 3 != 0}
    white, tissue = brain.paint_brain(canvas)
    if canvas.findings["tumor"]:
        brain.paint_tumor(canvas, white, tissue, core=CORE, rim=RIM)


def _protocol(sequence: str) -> Protocol:
    suffix, repetition_ms, echo_ms, inversion_ms = _TIMES[sequence]
    signals = dict(zip((*_HEAD, CORE, EDEMA, RIM), _SIGNALS[sequence], strict=True))
    return Protocol(sequence, suffix, repetition_ms, echo_ms, signals, inversion_ms=inversion_ms)


BRAIN_TUMOR = Anatomy(
    name="brain tumor",
    grid=brain.GRID,
    kspace_grid=brain.KSPACE_GRID,
    protocols=tuple(_protocol(sequence) for sequence in _SIGNALS),
    structures=STRUCTURES,
    kspace="T2-weighted",
    acquisition="AXT2",
    paint=paint,
)
