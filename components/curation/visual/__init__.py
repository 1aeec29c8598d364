"""Sections 2 and 3 of the template from a locally hosted Qwen-VL: behind an OpenAI-compatible server, or in this process."""

from components.curation.visual.run import VisualReport, add_visual, prune

__all__ = ["VisualReport", "add_visual", "prune"]
