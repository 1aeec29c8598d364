"""Label maps in the form in which they are stored: three axes, whole numbers from 0 to 255."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.catalog import DatasetCard
from components.ingestion.quarantine import UnsupportedInput

TISSUE_INFIX, SEGMENTATION_SUFFIX, STRUCTURES_SUFFIX = ".tissue-", ".seg.dcm", ".rtstruct.dcm"
"""Parts of the names of label files under ``data/`` that tell their kind."""
ROUNDING = 1e-3
"""Largest distance of a label from a whole number: scaled and resampled label maps are off by rounding errors."""


def stored_label_image(image: Any, name: str, card: DatasetCard) -> Any:
    """Return a label map as it is stored; a probability map keeps its values.

    Args:
        image: NIfTI image (x, y, z[, channels]).
        name: of the target, which tells the map of one structure from a label map.

    Raises:
        UnsupportedInput: a fourth axis that the card does not explain, or values that are no labels of the card.
    """
    import nibabel as nib

    values = np.asanyarray(image.dataobj)
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.dtype.kind == "c":
        raise UnsupportedInput("label", "complex values, which are no labels", remedy="give whole numbers")
    if TISSUE_INFIX in name:
        if values.ndim != 3:
            raise _channels_fault(values.shape[3], "give one file for each structure")
        return nib.Nifti1Image(np.asarray(values, dtype=np.float32), image.affine)
    if values.ndim == 4:
        values = merge_channels(values, card.layout.label_channels)
    return nib.Nifti1Image(label_codes(whole_labels(values), card), image.affine)


def merge_channels(values: NDArray[Any], labels: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the label map (x, y, z) of masks along the fourth axis; a later channel covers an earlier one.

    Args:
        values: (x, y, z, channels), set where above one half.
        labels: label value of each channel, 0 = background.

    Raises:
        UnsupportedInput: another number of channels than the card's.
    """
    if values.shape[3] != len(labels):
        stated = f"the card's layout.label_channels names {len(labels)}" if labels else "the card does not say what they are"
        remedy = "name the label value of each in layout.label_channels, or give one file for each structure (layout.tissue_maps)"
        raise _channels_fault(values.shape[3], remedy, f", and {stated}")
    merged = np.zeros(values.shape[:3], dtype=np.int64)
    for channel, label in enumerate(labels):
        merged[values[..., channel] > 0.5] = label
    return merged


def _channels_fault(channels: int, remedy: str, more: str = "") -> UnsupportedInput:
    return UnsupportedInput("label", f"a label map of {channels} channels along the fourth axis{more}", remedy=remedy)


def whole_labels(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return labels as integers; voxels without a number are background.

    Raises:
        UnsupportedInput: negative values, or fractions.
    """
    finite = np.where(np.isfinite(values), values, 0) if values.dtype.kind == "f" else values
    whole = np.rint(finite).astype(np.int64)
    if finite.dtype.kind == "f" and float(np.abs(finite - whole).max(initial=0)) > ROUNDING:
        remedy = "declare a probability map in layout.tissue_maps; resample label maps with nearest neighbors"
        raise UnsupportedInput("label", "label values that are no whole numbers", remedy=remedy)
    if int(whole.min(initial=0)) < 0:
        raise UnsupportedInput("label", "negative label values", remedy="give the background the value 0")
    return whole


def label_codes(labels: NDArray[np.int64], card: DatasetCard) -> NDArray[np.uint8]:
    """Return the 8-bit codes of labels (see :attr:`components.catalog.DatasetCard.label_codes`).

    Raises:
        UnsupportedInput: values that the label map of the card does not name.
    """
    present = np.unique(labels)
    codes = card.label_codes
    unnamed = [int(value) for value in present if value and int(value) not in codes]
    if card.label_map and unnamed:
        shown = ", ".join(map(str, unnamed[:3])) + (", ..." if len(unnamed) > 3 else "")
        raise UnsupportedInput(
            "label", f"label values that the card does not name: {shown}", remedy="name them in label_map, or fix the label map"
        )
    if present.max(initial=0) > 255 and not card.label_map:
        raise UnsupportedInput("label", "label values above 255", remedy="name the values in label_map of the card")
    if not card.label_map or card.label_codes_are_values:
        return labels.astype(np.uint8)
    mapped = np.array([codes.get(int(value), 0) for value in present], dtype=np.uint8)
    return np.asarray(mapped[np.searchsorted(present, labels)], dtype=np.uint8)
