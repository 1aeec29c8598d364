"""Typed settings: one YAML profile, parsed and validated once when a command starts. Every field has a unit and a default.

Unknown names, wrong types and contradictions are rejected with the field, the fault and the remedy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from components.assets import asset
from components.errors import BadInput
from components.provenance import digest
from components.registries import STAGES, TASKS

StageName = str
"""Name of a training stage: a key of :data:`components.registries.STAGES`."""


def _registered_task(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"no such task; the tasks are {', '.join(TASKS)}")
    return name


TaskName = Annotated[str, AfterValidator(_registered_task)]
"""Name of a task of :data:`components.registries.TASKS`."""

MaskKind = Literal["random", "equispaced", "magic"]
Category = Literal["image_only", "paired", "instruction"]
"""Category of training data (Table 2 of the paper)."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A frozen group of settings; a misspelled name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def digest(self) -> str:
        """Return the content digest of these settings."""
        return digest(self)


class DatasetSettings(Section):
    """One dataset of a run."""

    card: str = Field(description="id of the dataset card: one of components/catalog/datasets, or one of your own")
    path: Path | None = Field(default=None, description="source folder; none = the sample data that OmniMRI generates itself")
    patients: int | None = Field(
        default=None, ge=1, description="size of a generated cohort without a path; none = generated.patients of the card"
    )
    server: str | None = Field(
        default=None, description="instead of a path: a server of pacs.servers, or a URL; none = the server that the card names"
    )
    query: str | None = Field(
        default=None,
        description="series to fetch, e.g. Modality=MR&BodyPartExamined=BRAIN; none = the query of the card",
    )

    @model_validator(mode="after")
    def _require_one_source(self) -> DatasetSettings:
        if self.path is not None and (self.server is not None or self.query is not None):
            raise ValueError("a dataset comes from a folder or from a server: remove path, or server and query")
        if self.server is not None and self.patients is not None:
            raise ValueError("patients is the size of a generated cohort: remove it, or server")
        return self

    @model_validator(mode="after")
    def _require_generated(self) -> DatasetSettings:
        if self.path is not None and self.patients is not None:
            raise ValueError("patients is the size of a generated cohort: remove it, or path")
        return self


class IngestionSettings(Section):
    """Reading and de-identification of source files."""

    workers: int = Field(default=2, ge=1, description="number of processes")
    key_file: Path | None = Field(
        default=None,
        description="file with the secret key of the pseudonyms; none = a random key, created once and stored in the home folder",
    )
    public_demo_key: bool = Field(
        default=False,
        description="use the published demo key (sample datasets only), so that every machine produces the same bytes",
    )


class ServerSettings(Section):
    """One image archive (PACS). User name, password or token come from the environment, never from a file of settings."""

    url: str = Field(description="DICOMweb: https://host/dicom-web; DIMSE: dicom://AE_TITLE@host:port, with TLS dicom+tls://")
    ae_title: str = Field(
        default="OMNIMRI", min_length=1, max_length=16, description="application entity title of this machine (DIMSE)"
    )
    ca: Path | None = Field(
        default=None, description="PEM file of the authority that signed the server's certificate; none = those of the system"
    )
    certificate: Path | None = Field(default=None, description="PEM file of this machine's certificate, if the server asks for one")
    certificate_key: Path | None = Field(default=None, description="PEM file of its private key; none = in the certificate's file")


class PacsSettings(Section):
    """Image archives that datasets come from and that results may go to."""

    servers: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")], ServerSettings] = Field(
        default={}, description="name -> archive"
    )
    allow_hosts: tuple[str, ...] = Field(
        default=(), description="hosts outside of this machine and cluster that images may come from and results may go to"
    )
    timeout_s: float = Field(default=60.0, gt=0, description="timeout of a connection, and of a pause within an answer, seconds")
    patience_s: float = Field(default=300.0, ge=0, description="time to wait for a server that does not answer, seconds")
    batch_gb: float = Field(
        default=4.0, gt=0, description="size at which fetched series are ingested and their originals removed, gigabytes"
    )
    poll_s: float = Field(default=60.0, gt=0, description="time between two questions of the watcher to a server, seconds")


class VisualSettings(Section):
    """The vision-language model that describes images: a server on this machine or cluster, or a checkpoint in a local folder."""

    server: str | None = Field(default=None, description="URL of an OpenAI-compatible server, e.g. http://127.0.0.1:8000/v1")
    model: str | None = Field(default=None, description="name of the model on the server")
    revision: str = Field(default="", description="version of the served model; a new value repeats every request")
    folder: Path | None = Field(default=None, description="local folder of a Qwen-VL checkpoint (safetensors), instead of a server")
    allow_hosts: tuple[str, ...] = Field(
        default=(), description="hosts outside of this machine and cluster that may receive the images"
    )
    batch: int = Field(default=8, ge=1, description="volumes per batch of requests")
    slices: int = Field(default=4, ge=1, description="slices of each volume that the model sees")
    field_characters: int = Field(default=160, ge=8, description="maximum length of a free-text field, characters")
    timeout_s: float = Field(default=120.0, gt=0, description="timeout of one request, seconds")
    retries: int = Field(default=5, ge=0, description="attempts after the first, with exponential backoff")

    @model_validator(mode="after")
    def _require_one_model(self) -> VisualSettings:
        if (self.server is None) == (self.folder is None):
            raise ValueError("give either server (with model) or folder")
        if self.server is not None and not self.model:
            raise ValueError("a server needs the name of its model")
        return self


class CurationSettings(Section):
    """From de-identified files to the three training sets."""

    matrix: int = Field(default=96, ge=32, multiple_of=32, description="in-plane size, pixels")
    pixel_mm: float = Field(default=2.25, gt=0, description="in-plane spacing, mm")
    validation_fraction: Fraction = Field(default=0.15, description="share of patients in the validation split")
    test_fraction: Fraction = Field(default=0.25, description="share of patients in the test split")
    split_seed: int = Field(default=0, description="key of the patient hash that decides the split")
    accelerations: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(4,), description="undersampling factors of reconstruction instructions"
    )
    slices_per_volume: int = Field(default=8, ge=1, description="instruction slices per volume and task, evenly spaced")
    workers: int = Field(default=2, ge=1, description="number of processes")
    visual: VisualSettings | None = Field(
        default=None, description="model for sections 2 and 3 of the descriptions; none = label statistics only"
    )

    @model_validator(mode="after")
    def _require_training_patients(self) -> CurationSettings:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction leave no patients to train on: lower one of them below 1 in sum")
        return self


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
    def _require_partitioned_optimizer(self) -> TrainingSettings:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs DeepSpeed's own optimizer: set zero_stage to 1, 2 or 3, or remove it")
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


class KubernetesSettings(Section):
    """Training jobs with ``launcher: kubernetes``; docs/kubernetes.md explains each field."""

    namespace: str = Field(default="omnimri", description="namespace of the jobs")
    context: str | None = Field(
        default=None, description="context of the kubeconfig; none = inside the cluster, or the current one"
    )
    rendering: Literal["auto", "jobset", "job", "trainjob"] = Field(
        default="auto", description="kind of object; auto = JobSet where the cluster has it, else an Indexed Job"
    )
    image: str = Field(default="omnimri:0.2.0", description="container image, best by digest")
    nodes: int = Field(default=1, ge=1, description="number of nodes; training.processes is divided among them")
    spare_nodes: int = Field(
        default=0, ge=0, description="further nodes that wait, and take over at once for lost ones; a job also runs without them"
    )
    gpus_per_node: int = Field(default=0, ge=0, description="GPUs of each node, one process each; 0 = train on the CPU")
    cpu: str = Field(default="4", description="CPU cores of each node, as a Kubernetes quantity")
    memory: str = Field(default="16Gi", description="memory of each node")
    shared_memory: str = Field(default="2Gi", description="size of /dev/shm, part of memory")
    scratch: str = Field(default="20Gi", description="local disk of each node")
    volumes: dict[str, Path] = Field(
        default={"omnimri-state": Path("/state")},
        description="PersistentVolumeClaims and their mount paths in the pods; one of them contains OMNIMRI_HOME, under the same "
        "path here and there",
    )
    environment: dict[str, str] = Field(default={}, description="environment variables of the pods")
    secrets: tuple[str, ...] = Field(default=(), description="Secrets whose entries become environment variables of the pods")
    pull_secrets: tuple[str, ...] = Field(default=(), description="Secrets for the image registry")
    queue: str | None = Field(default=None, description="Kueue LocalQueue")
    queue_priority: str | None = Field(default=None, description="Kueue WorkloadPriorityClass")
    priority: str | None = Field(default=None, description="PriorityClass")
    node_selector: dict[str, str] = Field(default={}, description="node labels that the pods require")
    tolerations: tuple[dict[str, str | int], ...] = Field(default=(), description="tolerations of the pods, beside that for GPUs")
    labels: dict[str, str] = Field(default={}, description="further labels of the pods")
    annotations: dict[str, str] = Field(default={}, description="further annotations of the pods")
    scheduler: str | None = Field(default=None, description="name of the scheduler; none = the cluster's default")
    runtime_class: str | None = Field(default=None, description="RuntimeClass of the pods")
    topology: str | None = Field(
        default=None, description="node label that all nodes should share, such as that of a rack; Kueue's topology with a queue"
    )
    topology_required: bool = Field(default=False, description="wait rather than run in several domains of the topology")
    spread: str | None = Field(default=None, description="node label over whose values the nodes are spread evenly")
    devices: dict[str, int] = Field(default={}, description="extended resources of each node, such as rdma/hca: 1")
    resource_claims: dict[str, str] = Field(
        default={}, description="devices by dynamic resource allocation: names and their ResourceClaimTemplates"
    )
    excluded_machines: tuple[str, ...] = Field(default=(), description="machines (names of nodes) on which no job may run")
    service_account: str = Field(default="training", description="service account of the pods; it needs no permissions")
    time_limit_hours: float = Field(default=72, gt=0, description="maximum run time of a job, hours")
    grace_s: int = Field(default=120, ge=1, description="time for a checkpoint between SIGTERM and SIGKILL, seconds")
    restarts: int = Field(
        default=3,
        ge=0,
        description="restarts after faults of machines, over all nodes of a job: of its processes in place, and as many rounds in "
        "which killed pods are replaced. Evictions, lost machines and peers are not counted; an exception is never retried",
    )
    resumptions: int = Field(
        default=3, ge=0, description="resubmissions of a job after an eviction, a preemption or the loss of a node"
    )
    pending_limit_min: float = Field(
        default=30, gt=0, description="maximum wait for a node, minutes; a job that has run waits until its time limit"
    )
    image_limit_min: float = Field(default=5, gt=0, description="maximum wait for an image, minutes")
    keep_hours: float = Field(default=24, ge=0, description="time for which a finished job stays listed, hours")


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


class Settings(Section):
    """A whole profile."""

    profile: str = Field(description="name of the profile, for people")
    seed: int = Field(default=20260101, description="seed of all random numbers")
    launcher: Literal["local", "kubernetes"] = Field(default="local", description="where training jobs run")
    datasets: tuple[DatasetSettings, ...]
    ingestion: IngestionSettings = IngestionSettings()
    pacs: PacsSettings = PacsSettings()
    curation: CurationSettings = CurationSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings
    kubernetes: KubernetesSettings = KubernetesSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    registry: RegistrySettings = RegistrySettings()


def profiles() -> list[str]:
    """Return the names of the profiles that ship with OmniMRI."""
    return sorted(path.stem for path in asset("profiles").glob("*.yaml"))


def load_settings(profile: str, overrides: list[str] | None = None) -> Settings:
    """Read ``profiles/<profile>.yaml`` (or a YAML path) and apply ``section.field=value`` overrides.

    Raises:
        BadInput: no such profile, malformed YAML or override, or an invalid value.
    """
    path = Path(profile) if profile.endswith((".yaml", ".yml")) else asset("profiles") / f"{profile}.yaml"
    try:
        raw: Any = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise BadInput("no such profile", where=profile, remedy=f"choose one of {', '.join(profiles())}, or a .yaml path") from None
    except yaml.YAMLError as error:
        raise BadInput(f"not YAML: {error}", where=str(path), remedy="fix the file") from None
    if not isinstance(raw, dict):
        raise BadInput("a profile is a mapping of sections", where=str(path), remedy="see profiles/demo.yaml")
    for override in overrides or []:
        _apply_override(raw, override)
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(str(key) for key in fault['loc'])}: {fault['msg']}" for fault in error.errors())
        where = " ".join([str(path), *(f"--set {override}" for override in overrides or [])])
        raise BadInput(faults, where=where, remedy="fix the named fields; profiles/demo.yaml shows their form") from None


def _apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one dotted field of a raw profile from ``a.b.c=value`` (value in YAML)."""
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise BadInput("an override has the form section.field=value", where=override, remedy="e.g. training.processes=2")
    *sections, field = name.split(".")
    node = raw
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise BadInput(f"{section} is not a section", where=override, remedy="see profiles/demo.yaml for the names")
    node[field] = yaml.safe_load(value)
