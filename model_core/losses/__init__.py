"""Losses of the four stages that are no single library call."""
