"""Sections 2 and 3 of the template from a locally hosted Qwen-VL: behind an OpenAI-compatible server, or in this process."""

from components.curation.vlm.annotate import AnnotationReport, VlmAnnotator, remove_stale_answers

__all__ = ["AnnotationReport", "VlmAnnotator", "remove_stale_answers"]
