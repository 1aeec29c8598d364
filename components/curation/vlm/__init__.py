"""Sections 2 and 3 of the template from a locally hosted Qwen-VL: behind an OpenAI-compatible server, or in this process."""

from components.curation.vlm.annotate import Answers, VisualReport, prune

__all__ = ["Answers", "VisualReport", "prune"]
