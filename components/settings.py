"""Typed settings: one YAML profile, parsed once at the edge. Every field has a unit and a default.

Unknown names, wrong types and contradictions are refused with the field, the fault and the remedy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from components.assets import asset
from components.errors import BadInput
from components.provenance import digest
from components.registries import TASKS

StageName = Literal["vision_pretraining", "alignment", "multimodal_pretraining", "instruction_tuning"]
STAGES: tuple[StageName, ...] = ("vision_pretraining", "alignment", "multimodal_pretraining", "instruction_tuning")
CONTRASTIVE: tuple[StageName, ...] = ("vision_pretraining", "alignment")
"""Stages whose losses compare the samples of a micro-step, of all processes, with each other."""
BLOCK_SLICES = 4
"""Slices of the blocks that vision pretraining sees beside single slices."""


def _registered_task(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"no such task; the tasks are {', '.join(TASKS)}")
    return name


TaskName = Annotated[str, AfterValidator(_registered_task)]
"""Name of a task of :data:`components.registries.TASKS`."""

MaskKind = Literal["random", "equispaced", "magic"]


def block_samples(together: int, processes: int) -> int:
    """Blocks of slices that a micro-step of ``together`` single slices becomes: a quarter, at least two, equally many on each."""
    return -(-max(together // BLOCK_SLICES, 2) // processes) * processes


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A frozen group of settings; a misspelt name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def digest(self) -> str:
        """Content digest of these settings."""
        return digest(self)


class DatasetSettings(Section):
    """One dataset of a run."""

    card: str = Field(description="id of the dataset card: one of components/catalog/datasets, or of your own")
    path: Path | None = Field(default=None, description="source folder; none = the sample that OmniMRI can build itself")


class IngestionSettings(Section):
    """Reading and de-identification."""

    workers: int = Field(default=2, ge=1, description="processes")
    key_file: Path | None = Field(
        default=None, description="secret key of the pseudonyms; none = a fresh key, kept in the home folder"
    )
    public_demo_key: bool = Field(
        default=False, description="use the published demo key (sample datasets only), so that every machine makes the same bytes"
    )


class VisualSettings(Section):
    """The vision-language model that describes what is seen: a server on this machine or cluster, or a checkpoint in a folder."""

    server: str | None = Field(default=None, description="address of an OpenAI-compatible server, e.g. http://127.0.0.1:8000/v1")
    model: str | None = Field(default=None, description="name of the model on the server")
    revision: str = Field(default="", description="version of the served model; a new one asks everything again")
    folder: Path | None = Field(default=None, description="local folder of a Qwen-VL checkpoint (safetensors), instead of a server")
    allow_hosts: tuple[str, ...] = Field(default=(), description="hosts outside of machine and cluster that may see the images")
    batch: int = Field(default=8, ge=1, description="volumes asked about at a time")
    slices: int = Field(default=4, ge=1, description="slices shown of each volume")
    field_characters: int = Field(default=160, ge=8, description="longest free text of a field, characters")
    timeout_s: float = Field(default=120.0, gt=0, description="of one request, seconds")
    retries: int = Field(default=5, ge=0, description="attempts after the first, with growing waits")

    @model_validator(mode="after")
    def _one_place(self) -> VisualSettings:
        if (self.server is None) == (self.folder is None):
            raise ValueError("give either server (with model) or folder")
        if self.server is not None and not self.model:
            raise ValueError("a server needs the name of its model")
        return self


class CurationSettings(Section):
    """From de-identified files to the three training sets."""

    matrix: int = Field(default=96, ge=32, multiple_of=32, description="in-plane size, pixels")
    pixel_mm: float = Field(default=2.25, gt=0, description="in-plane spacing, mm")
    validation_fraction: Fraction = Field(default=0.15, description="share of patients")
    test_fraction: Fraction = Field(default=0.25, description="share of patients")
    split_seed: int = Field(default=0, description="key of the patient hash that decides the split")
    accelerations: tuple[int, ...] = Field(default=(4,), description="undersampling factors of reconstruction instructions")
    slices_per_volume: int = Field(default=8, ge=1, description="instruction slices per volume and task, evenly spaced")
    workers: int = Field(default=2, ge=1, description="processes")
    visual: VisualSettings | None = Field(default=None, description="model for sections 2 and 3; none = label statistics only")

    @model_validator(mode="after")
    def _leaves_patients_to_train_on(self) -> CurationSettings:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction leave no patients to train on: lower one of them below 1 in sum")
        return self


class ModelSettings(Section):
    """The network."""

    preset: Literal["debug", "demo", "0.5b", "1.5b", "7b"] = Field(default="demo", description="size of the network")
    vocabulary: int = Field(default=2048, ge=300, description="entries of the tokenizer trained on the corpus")
    tokenizer: Path | None = Field(default=None, description="local folder of a Qwen2.5 tokenizer; none = train one on the corpus")
    backbone: Path | None = Field(default=None, description="local folder of a dense Qwen2.5 checkpoint to upcycle; none = random")

    @model_validator(mode="after")
    def _speaks_the_language_of_its_backbone(self) -> ModelSettings:
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
    def _sums_to_one(self) -> MixtureSettings:
        if abs(self.image_only + self.paired + self.instruction - 1) > 1e-9:
            raise ValueError("the mixture must sum to 1: image_only + paired + instruction")
        return self


class StageSettings(Section):
    """One training stage."""

    steps: int = Field(ge=1, description="optimizer steps")
    micro_batch: int = Field(default=8, ge=1, description="samples per process and micro-step; with fewer processes, give more")
    gradient_accumulation: int = Field(default=1, ge=1, description="micro-steps per optimizer step")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate")
    warmup_steps: int = Field(default=10, ge=0, description="linear warm-up, steps; cosine to 10 % after")
    weight_decay: float = Field(default=0.05, ge=0, description="AdamW; not on norms, biases and tables")
    gradient_clip: float = Field(default=1.0, gt=0, description="global norm")
    checkpoint_every: int = Field(default=50, ge=1, description="steps")
    mixture: MixtureSettings


class TrainingSettings(Section):
    """The four stages and the engine that runs them."""

    processes: int = Field(default=1, ge=1, description="processes (ranks), on this machine or over all nodes")
    zero_stage: Literal[0, 1, 2, 3] = Field(default=1, description="DeepSpeed ZeRO stage")
    precision: Literal["float32", "bfloat16"] = Field(default="bfloat16", description="arithmetic of forward and backward")
    activation_checkpointing: bool = Field(
        default=False, description="compute layers again in the backward pass instead of keeping them: less memory, same result"
    )
    decoder_average: Fraction = Field(
        default=0.999, description="decay of the average of the image decoder's weights that a model is used with; 0 = none"
    )
    loader_workers: int = Field(default=0, ge=0, description="processes of each rank that prepare batches; 0 = the rank itself")
    keep_checkpoints: int = Field(default=2, ge=1, description="newest checkpoints kept")
    keep_every: int = Field(default=0, ge=0, description="steps between checkpoints that are kept for good; 0 = none")
    spike_deviations: float = Field(
        default=12.0, ge=0, description="a loss so far above the last hundred, three times in a row, is undone; 0 = never"
    )
    max_rollbacks: int = Field(default=3, ge=0, description="of a stage, before it is given up")
    pictures_every: int = Field(default=500, ge=0, description="steps between pictures of predictions; 0 = at the end only")
    vision_pretraining: StageSettings
    alignment: StageSettings
    multimodal_pretraining: StageSettings
    instruction_tuning: StageSettings

    @model_validator(mode="after")
    def _can_be_trained(self) -> TrainingSettings:
        for name in STAGES:
            stage = self.stage(name)
            if name in CONTRASTIVE and stage.micro_batch * self.processes < 2:
                raise ValueError(f"{name} compares samples with each other: set {name}.micro_batch to 2 or more")
        if self.keep_every:
            for name in STAGES:
                if self.keep_every % self.stage(name).checkpoint_every:
                    raise ValueError(f"keep_every is no multiple of {name}.checkpoint_every: set it to one, or to 0")
        return self

    def stage(self, name: StageName) -> StageSettings:
        """Settings of one stage."""
        stage: StageSettings = getattr(self, name)
        return stage


class KubernetesSettings(Section):
    """Where training jobs run with ``launcher: kubernetes``; docs/kubernetes.md explains each."""

    namespace: str = Field(default="omnimri", description="namespace of the jobs")
    context: str | None = Field(
        default=None, description="context of the kubeconfig; none = inside the cluster, or the current one"
    )
    rendering: Literal["auto", "jobset", "job", "trainjob"] = Field(
        default="auto", description="kind of object; auto = JobSet where the cluster has it, else an Indexed Job"
    )
    image: str = Field(default="omnimri:0.2.0", description="container image, best by digest")
    nodes: int = Field(default=1, ge=1, description="machines; training.processes is shared out over them")
    gpus_per_node: int = Field(default=0, ge=0, description="GPUs of each machine, one process each; 0 = train on the CPU")
    cpu: str = Field(default="4", description="cores of each machine, as a Kubernetes quantity")
    memory: str = Field(default="16Gi", description="memory of each machine")
    shared_memory: str = Field(default="2Gi", description="size of /dev/shm, part of memory")
    scratch: str = Field(default="20Gi", description="local disk of each machine")
    volumes: dict[str, Path] = Field(
        default={"omnimri-state": Path("/state")},
        description="claims and where pods mount them; OMNIMRI_HOME lies on one, under the same path here and there",
    )
    environment: dict[str, str] = Field(default={}, description="environment variables of the pods")
    secrets: tuple[str, ...] = Field(default=(), description="Secrets whose entries become environment variables of the pods")
    pull_secrets: tuple[str, ...] = Field(default=(), description="Secrets for the image registry")
    queue: str | None = Field(default=None, description="Kueue LocalQueue")
    priority: str | None = Field(default=None, description="PriorityClass")
    node_selector: dict[str, str] = Field(default={}, description="labels of the machines")
    service_account: str = Field(default="training", description="of the pods; it needs no permissions")
    time_limit_hours: float = Field(default=72, gt=0, description="after which a job is ended, hours")
    grace_s: int = Field(default=120, ge=1, description="for a checkpoint before a pod is killed, seconds")
    restarts: int = Field(default=3, ge=0, description="of processes in their place, and of failed pods")
    resumptions: int = Field(default=3, ge=0, description="of a job that an eviction, a preemption or a lost machine has ended")
    pending_limit_min: float = Field(default=30, gt=0, description="wait for a machine, minutes")
    image_limit_min: float = Field(default=5, gt=0, description="wait for an image, minutes")
    keep_hours: float = Field(default=24, ge=0, description="for which an ended job stays listed, hours")


class EvaluationSettings(Section):
    """The frozen held-out list and how predictions are made."""

    cases_per_task: int = Field(default=24, ge=1, description="held-out instructions per task, evenly over patients")
    sampler_steps: int = Field(default=4, ge=1, description="flow-matching steps of the image decoder")
    samples: int = Field(default=2, ge=1, description="image samples averaged per case (K)")
    max_new_tokens: int = Field(default=160, ge=8, description="length limit of generated text, tokens")
    accelerations: tuple[Annotated[int, Field(ge=2, le=16)], ...] = Field(default=(2, 4, 8), description="of the sweep over masks")
    masks: tuple[MaskKind, ...] = Field(default=("random", "equispaced", "magic"), description="of the sweep")
    sweep_cases: int = Field(default=4, ge=0, description="slices that every mask and acceleration is tried on; 0 = no sweep")


class RegistrySettings(Section):
    """The registered model and its gates."""

    name: str = Field(default="omnimri", description="registered model name")
    tolerance: float = Field(default=0.02, ge=0, description="how much worse than production a task may be, relative")
    tolerances: dict[TaskName, float] = Field(default={}, description="of single tasks, where it is another")

    def tolerance_of(self, task: str) -> float:
        """How much worse a task may be, relative to the version in place."""
        return {str(name): value for name, value in self.tolerances.items()}.get(task, self.tolerance)


class Settings(Section):
    """A whole profile."""

    profile: str = Field(description="name, for people")
    seed: int = Field(default=20260101, description="seed of everything that is random")
    launcher: Literal["local", "kubernetes"] = Field(default="local", description="where training jobs run")
    datasets: tuple[DatasetSettings, ...]
    ingestion: IngestionSettings = IngestionSettings()
    curation: CurationSettings = CurationSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings
    kubernetes: KubernetesSettings = KubernetesSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    registry: RegistrySettings = RegistrySettings()


def profiles() -> list[str]:
    """Names of the profiles that ship with OmniMRI."""
    return sorted(path.stem for path in asset("profiles").glob("*.yaml"))


def load_settings(profile: str, overrides: list[str] | None = None) -> Settings:
    """Read ``profiles/<profile>.yaml`` (or a YAML path) and apply ``section.field=value`` overrides.

    Raises:
        BadInput: no such profile, malformed YAML or override, or a value that the settings refuse.
    """
    path = Path(profile) if profile.endswith((".yaml", ".yml")) else asset("profiles") / f"{profile}.yaml"
    try:
        raw: Any = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise BadInput("no such profile", where=profile, remedy=f"choose one of {', '.join(profiles())}, or a .yaml path") from None
    except yaml.YAMLError as error:
        raise BadInput(f"not YAML: {error}", where=str(path), remedy="mend the file") from None
    if not isinstance(raw, dict):
        raise BadInput("a profile is a mapping of sections", where=str(path), remedy="see profiles/demo.yaml")
    for override in overrides or []:
        _apply(raw, override)
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors())
        raise BadInput(faults, where=str(path), remedy="mend the named fields; profiles/demo.yaml shows their form") from None


def _apply(raw: dict[str, Any], override: str) -> None:
    """Set one dotted field of a raw profile from ``a.b.c=value`` (value in YAML)."""
    name, found, value = override.partition("=")
    if not found or not name:
        raise BadInput("an override has the form section.field=value", where=override, remedy="e.g. training.processes=2")
    *sections, field = name.split(".")
    place = raw
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise BadInput(f"{section} is not a section", where=override, remedy="see profiles/demo.yaml for the names")
    place[field] = yaml.safe_load(value)
