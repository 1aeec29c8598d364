"""Kinds of targets of the image decoder (no PyTorch import: curation uses them, too)."""

TARGET_NONE, TARGET_IMAGE, TARGET_MASK = 0, 1, 2
