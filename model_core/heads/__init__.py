"""Heads around the backbone: connector in front; visual-token flow head and image decoder behind."""
