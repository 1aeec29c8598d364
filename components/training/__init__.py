"""The four training stages: data mixture, DeepSpeed engine, checkpoints, and one folder for each trained stage."""

from components.training.stages import StageResult, prepare, stage_digest, stage_jobs, train_stage

__all__ = ["StageResult", "prepare", "stage_digest", "stage_jobs", "train_stage"]
