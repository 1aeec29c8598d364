"""Losses of the four stages that no library provides."""
