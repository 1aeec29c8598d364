"""Settings of training jobs on a Kubernetes cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from components.settings.section import Section


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
