"""Settings of the network, the training engine and the training stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, SerializeAsAny, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from components.errors import BadInput
from components.registries import STAGES
from components.settings.section import Fraction, Section, StageName


class ModelSettings(Section):
    """The network."""

    preset: Literal["debug", "demo", "gpu8", "gpu24", "gpu48", "0.5b", "1.5b", "7b"] = Field(
        default="demo", description="size of the network"
    )
    vocabulary: int = Field(
        default=2048, ge=300, description="entries of the tokenizer trained on the corpus, without location tokens"
    )
    tokenizer: Path | None = Field(default=None, description="local folder of a Qwen2.5 tokenizer; none = train one on the corpus")
    backbone: Path | None = Field(
        default=None, description="local folder of a dense Qwen2.5 checkpoint to upcycle; none = random weights"
    )

    intensity_frequencies: int = Field(
        default=3, ge=0, description="sine and cosine codes of the intensity in the patch embedding; 0 = the intensity alone"
    )
    position_frequencies: int = Field(
        default=8, ge=0, description="frequencies per axis of the position code of a visual token; 0 = no code"
    )

    @property
    def codes(self) -> dict[str, int]:
        """Fields of the network's configuration that these settings decide, whatever the preset is."""
        return {"intensity_frequencies": self.intensity_frequencies, "position_frequencies": self.position_frequencies}

    @model_validator(mode="after")
    def _require_tokenizer_of_backbone(self) -> ModelSettings:
        if self.backbone is not None and self.tokenizer is None:
            raise ValueError(
                "backbone needs the tokenizer that it was trained with: set tokenizer too, most often to the same folder"
            )
        return self


class MixtureSettings(Section):
    """Shares of the three data categories (Table 2 of the paper); they sum to 1."""

    image_only: Fraction = 0.0
    paired: Fraction = 0.0
    instruction: Fraction = 0.0

    @model_validator(mode="after")
    def _require_sum_of_one(self) -> MixtureSettings:
        if abs(self.image_only + self.paired + self.instruction - 1) > 1e-9:
            raise ValueError("the mixture must sum to 1: image_only + paired + instruction")
        return self


class StageSettings(Section):
    """One training stage. A registered stage may add fields of its own (:attr:`components.training.stages.base.Stage.settings`)."""

    steps: int = Field(ge=1, description="optimizer steps")
    micro_batch: int = Field(
        default=8, ge=1, description="samples per process and micro-step; with fewer processes, raise it accordingly"
    )
    gradient_accumulation: int = Field(default=1, ge=1, description="micro-steps per optimizer step")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate")
    warmup_steps: int = Field(default=10, ge=0, description="linear warm-up, steps; then a cosine to 10 % of the peak")
    weight_decay: float = Field(
        default=0.05, ge=0, description="weight decay of AdamW; not on norms, biases, embeddings and position tables"
    )
    gradient_clip: float = Field(default=1.0, gt=0, description="maximum global gradient norm")
    checkpoint_every: int = Field(default=50, ge=1, description="steps between checkpoints")
    mixture: MixtureSettings
    volume_steps: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="share of the steps that use whole volumes and studies; in stages that train on instructions"
    )
    volume_slices: int = Field(default=16, ge=1, description="largest number of slices of a volume in such a step, evenly spaced")
    volume_samples: int = Field(default=2, ge=1, description="volumes or studies of all processes in a micro-step of such a step")
    volume_targets: int = Field(default=2, ge=1, description="slices of a volume that teach the image decoder")

    def volume_samples_total(self, processes: int) -> int:
        """Return the volumes or studies of a micro-step, of all processes: a multiple of their number."""
        return -(-self.volume_samples // processes) * processes


class TrainingSettings(Section):
    """The training engine and the stages.

    Every further key is the name of a registered stage, with its :class:`StageSettings`. The four stages of the paper are required;
    a stage of a plugin is trained where the profile mentions it, after them.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, SerializeAsAny[StageSettings]]

    processes: int = Field(default=1, ge=1, description="number of processes (ranks), on this machine or over all nodes")
    zero_stage: Literal[0, 1, 2, 3] = Field(default=1, description="DeepSpeed ZeRO stage")
    offload_optimizer: bool = Field(
        default=False,
        description="keep the optimizer's state in the memory of the host and take its steps there: twelve bytes a parameter less "
        "on the GPU, slower steps; needs ZeRO stage 1 to 3",
    )
    optimizer_bits: Literal[32, 8] = Field(
        default=32,
        description="bits of each of AdamW's two moments; 8 (bitsandbytes, a scale for each 256 of them): six bytes a parameter "
        "less on the GPU, and with ZeRO stage 1 to 3 resumes on the same number of processes only; not with offload_optimizer",
    )
    adapter_rank: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="rank of low-rank adapters (LoRA) of the backbone's attention and experts, whose own weights are frozen: their "
        "gradients and optimizer state take no memory; needs model.backbone; 0 = the backbone itself is trained",
    )
    precision: Literal["float32", "bfloat16"] = Field(default="bfloat16", description="precision of forward and backward passes")
    activation_checkpointing: bool = Field(
        default=False,
        description="recompute activations of a layer in the backward pass instead of storing them: less memory, same result",
    )
    decoder_average: Fraction = Field(
        default=0.999,
        description="decay of the moving average of the image decoder's weights, which the exported model uses; 0 = none",
    )
    loader_workers: int = Field(default=0, ge=0, description="data loading processes of each rank; 0 = the rank itself loads")
    keep_checkpoints: int = Field(default=2, ge=1, description="number of newest checkpoints to keep")
    keep_every: int = Field(default=0, ge=0, description="steps between checkpoints that are never deleted; 0 = none")
    spike_deviations: float = Field(
        default=12.0,
        ge=0,
        description="roll back when the loss exceeds the median of the last hundred by this many robust standard deviations three "
        "times in a row; 0 = never",
    )
    max_rollbacks: int = Field(default=3, ge=0, description="rollbacks of a stage before it fails")
    pictures_every: int = Field(
        default=500, ge=0, description="steps between figures of predictions; 0 = only at the end of the stage"
    )

    @model_validator(mode="after")
    def _require_optimizer_that_can_move(self) -> TrainingSettings:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs DeepSpeed's own optimizer: set zero_stage to 1, 2 or 3, or remove it")
        if self.offload_optimizer and self.optimizer_bits == 8:
            raise ValueError(
                "optimizer_bits of 8 is for an optimizer on the GPU: set offload_optimizer to false, or optimizer_bits to 32"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _validate_stages(cls, raw: Any) -> Any:
        """Validate each stage with the settings class of its registry entry; reject names that are neither a field nor a stage."""
        if not isinstance(raw, dict):
            return raw
        validated, errors = dict(raw), []
        for name in [key for key in raw if key not in cls.model_fields]:
            if name not in STAGES:
                fault = PydanticCustomError("unknown", f"no such setting or stage; stages: {', '.join(STAGES)}")
                errors.append(InitErrorDetails(type=fault, loc=(name,), input=raw[name]))
                continue
            try:
                validated[name] = STAGES[name].settings.model_validate(raw[name])
            except ValidationError as error:
                for details in error.errors():
                    message = details["msg"].replace("{", "(").replace("}", ")")  # braces would be placeholders
                    located = PydanticCustomError("invalid", message)
                    errors.append(InitErrorDetails(type=located, loc=(name, *details["loc"]), input=details["input"]))
        for name in STAGES.built_in:
            if name not in raw:
                fault = PydanticCustomError("missing", "this stage is required")
                errors.append(InitErrorDetails(type=fault, loc=(name,), input=raw))
        if errors:
            raise ValidationError.from_exception_data("TrainingSettings", errors)
        return validated

    @model_validator(mode="after")
    def _require_trainable(self) -> TrainingSettings:
        for name, stage in self.stages.items():
            if STAGES[name].contrastive and stage.micro_batch * self.processes < 2:
                raise ValueError(f"{name} compares samples with each other: set {name}.micro_batch to 2 or more")
        if self.keep_every:
            for name, stage in self.stages.items():
                if self.keep_every % stage.checkpoint_every:
                    raise ValueError(f"keep_every is no multiple of {name}.checkpoint_every: set it to one, or to 0")
        return self

    @property
    def resumes_on_any_processes(self) -> bool:
        """Return whether another number of processes can resume a stage; DeepSpeed cannot partition moments of 8 bits anew."""
        return self.optimizer_bits == 32 or self.zero_stage == 0

    @property
    def stages(self) -> dict[StageName, StageSettings]:
        """Settings of the stages to train, in the order of training."""
        given = self.__pydantic_extra__
        return {name: given[name] for name in STAGES if name in given}

    def stage(self, name: StageName) -> StageSettings:
        """Return the settings of one stage.

        Raises:
            BadInput: the profile does not mention this stage.
        """
        if name not in self.__pydantic_extra__:
            raise BadInput("no such stage in this profile", where=str(name), remedy=f"one of: {', '.join(self.stages)}")
        return self.__pydantic_extra__[name]

    def stages_until(self, last: StageName | None = None) -> tuple[StageName, ...]:
        """Return the names of the stages to train, up to ``last`` (None = all of them).

        Raises:
            BadInput: the profile does not mention this stage.
        """
        names = tuple(self.stages)
        if last is None:
            return names
        self.stage(last)
        return names[: names.index(last) + 1]

    def last_stage(self, choice: str) -> StageName | None:
        """Return the stage that a number (from 1), a name or ``all`` names; None = all stages.

        Raises:
            BadInput: there is no such stage.
        """
        names = tuple(self.stages)
        if choice == "all":
            return None
        if choice in names:
            return choice
        if choice.isdecimal() and 1 <= int(choice) <= len(names):
            return names[int(choice) - 1]
        raise BadInput("no such stage", where=choice, remedy=f"1 to {len(names)}, all, or one of: {', '.join(names)}")
