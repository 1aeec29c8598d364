"""Anatomies that can be generated, one module each."""

from __future__ import annotations

from components.samples.anatomies.brain import BRAIN
from components.samples.anatomies.brain_tumor import BRAIN_TUMOR
from components.samples.anatomies.breast import BREAST
from components.samples.anatomies.head import HEAD
from components.samples.anatomies.heart import HEART
from components.samples.anatomies.knee import KNEE
from components.samples.anatomies.prostate import PROSTATE
from components.samples.phantom import Anatomy

ANATOMIES: dict[str, Anatomy] = {anatomy.name: anatomy for anatomy in (BRAIN, HEAD, BRAIN_TUMOR, KNEE, PROSTATE, HEART, BREAST)}
"""Name in cards -> anatomy."""
