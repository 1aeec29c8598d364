"""Modules around the backbone: the connector before it, the visual-token head and the image decoder after it."""
