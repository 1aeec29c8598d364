"""The training stages: data mixture, DeepSpeed engine, checkpoints, and one folder for each trained stage.

The names of this package are imported at first use: settings look up the registered stages without loading the corpus code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from components.training.trained_stage import (
        StageResult,
        prepare_tokenizer,
        stage_digest,
        stage_inputs,
        stage_jobs,
        train_stage,
    )

__all__ = ["StageResult", "prepare_tokenizer", "stage_digest", "stage_inputs", "stage_jobs", "train_stage"]


def __getattr__(name: str) -> Any:
    """Return a name of :mod:`components.training.trained_stage`, imported now."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from components.training import trained_stage

    return getattr(trained_stage, name)
