"""Values and cards that the makers of real-world inputs share.

Each module of this folder makes files of one kind as public bug reports describe them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.catalog import DatasetCard, Layout

PATIENT = "(sub-[0-9]+)"


def ramp(shape: tuple[int, ...] = (24, 28, 16), seed: int = 0) -> NDArray[np.int16]:
    """Return values (x, y, z) int16 of about 100 to 400 that differ along each axis, so that every flip or swap shows."""
    x, y, z = np.meshgrid(*[np.arange(side) for side in shape], indexing="ij")
    noise = np.random.default_rng(seed).normal(0, 1, shape)
    return np.rint(100 + 3 * x + 5 * y + 7 * z + noise).astype(np.int16)


def make_card(card_id: str = "real-world", formats: tuple[str, ...] = ("NIfTI",), **fields: Any) -> DatasetCard:
    """Return the card of a synthetic brain dataset; ``layout`` is given as keywords of :class:`components.catalog.Layout`."""
    layout = Layout(**fields.pop("layout", {}))
    return DatasetCard(id=card_id, name="x", rights="x", anatomy="brain", formats=formats, layout=layout, synthetic=True, **fields)


def nifti_card(card_id: str = "real-world", *, label_map: dict[int, str] | None = None, **layout: Any) -> DatasetCard:
    """Return the card of NIfTI images ``sub-NN..._T1w``; a label map makes it a card of segmentations."""
    fields: dict[str, Any] = {"label_map": label_map, "tasks": ("segmentation",)} if label_map else {}
    return make_card(card_id, layout={"patient": PATIENT, "sequences": {"T1w": "T1-weighted"}, **layout}, **fields)
