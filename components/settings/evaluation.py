"""Settings of evaluation and of the model registry."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from components.settings.section import MaskKind, Section, TaskName


class EvaluationSettings(Section):
    """The fixed list of held-out cases and how predictions are made."""

    cases_per_task: int = Field(default=24, ge=1, description="held-out instructions per task, evenly over patients")
    volumes: int = Field(
        default=0, ge=0, description="held-out volumes that are read whole, in one pass, and slice by slice; 0 = none"
    )
    sampler_steps: int = Field(default=4, ge=1, description="flow-matching steps of the image decoder")
    samples: int = Field(default=2, ge=1, description="image samples averaged per case (K)")
    max_new_tokens: int = Field(default=160, ge=8, description="maximum length of generated text, tokens")
    accelerations: tuple[Annotated[int, Field(ge=2, le=16)], ...] = Field(
        default=(2, 4, 8), description="undersampling factors of the sweep over sampling masks"
    )
    masks: tuple[MaskKind, ...] = Field(
        default=("random", "equispaced", "magic"), description="kinds of sampling masks of the sweep"
    )
    sweep_cases: int = Field(default=4, ge=0, description="slices evaluated with every mask and acceleration; 0 = no sweep")


class RegistrySettings(Section):
    """The registered model and its promotion gates."""

    name: str = Field(default="omnimri", description="name of the registered model")
    tolerance: float = Field(default=0.02, ge=0, description="how much worse than production a task may be, relative")
    tolerances: dict[TaskName, float] = Field(default={}, description="tolerance of single tasks, instead of the general one")

    def tolerance_of(self, task: str) -> float:
        """Return how much worse than the version in place a task may be, relative."""
        return {str(name): value for name, value in self.tolerances.items()}.get(task, self.tolerance)
