"""Kinds of targets of the image decoder. Curation uses them too: this module must not import PyTorch."""

TARGET_NONE, TARGET_IMAGE, TARGET_MASK = 0, 1, 2
