"""Job specification, job states, and the interfaces of launchers and handles."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from components.provenance import digest

IDENTITY_CHARACTERS, NAME_CHARACTERS = 10, 36
INTERRUPTED = 75
"""Exit status of a process that stopped on request after writing a checkpoint (EX_TEMPFAIL)."""


class JobState(StrEnum):
    """State of a job.

    ``queued`` (waits for quota) -> ``pending`` (waits for a machine) -> ``starting`` (images, volumes) -> ``running`` ->
    ``succeeded`` or ``failed``; ``being deleted`` while its pods still stop, then ``deleted``. A job that lost a machine returns
    to ``pending``.
    """

    queued = "queued"
    pending = "pending"
    starting = "starting"
    running = "running"
    deleting = "being deleted"
    succeeded = "succeeded"
    failed = "failed"
    deleted = "deleted"

    @property
    def finished(self) -> bool:
        """Return whether the state is final."""
        return self in (JobState.succeeded, JobState.failed, JobState.deleted)


@dataclass(frozen=True)
class Resources:
    """Resources of one node of a job as Kubernetes quantities (``4``, ``16Gi``); requests and limits are equal.

    Attributes:
        gpus: number of whole GPUs; 0 = train on the CPU.
        shared_memory: size of ``/dev/shm``, which NCCL and data loaders use; counts toward ``memory``.
        scratch: local disk.
    """

    cpu: str = "4"
    memory: str = "16Gi"
    gpus: int = 0
    shared_memory: str = "2Gi"
    scratch: str = "20Gi"


@dataclass(frozen=True)
class SharedVolume:
    """A volume claim that every node mounts at ``path``; the submitting process sees the same files under the same path."""

    claim: str
    path: Path


@dataclass(frozen=True)
class Placement:
    """Where a cluster runs the nodes of a job, and who admits it.

    Attributes:
        queue: Kueue LocalQueue. queue_priority: Kueue WorkloadPriorityClass. priority: PriorityClass of the pods.
        node_selector, tolerations, labels, annotations: as in a pod, in addition to those that OmniMRI sets.
        scheduler, runtime_class: name of the scheduler and of the RuntimeClass; None = the cluster's default.
        topology: node label whose value all nodes should have in common, for example that of a rack.
        topology_required: wait rather than run in several topology domains.
        spread: node label over whose values the nodes are spread evenly.
        devices: extended resources of each node and their number, for example ``rdma/hca``.
        resource_claims: names and ResourceClaimTemplates of devices (dynamic resource allocation).
        excluded_machines: host names on which the job must not run.
    """

    queue: str | None = None
    queue_priority: str | None = None
    priority: str | None = None
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[dict[str, str | int], ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    scheduler: str | None = None
    runtime_class: str | None = None
    topology: str | None = None
    topology_required: bool = False
    spread: str | None = None
    devices: dict[str, int] = field(default_factory=dict)
    resource_claims: dict[str, str] = field(default_factory=dict)
    excluded_machines: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobSpec:
    """A Python module that runs in one or more processes connected by ``torch.distributed``.

    The local launcher needs the first seven fields; a cluster needs all of them.

    Attributes:
        name: human-readable name, used in messages and logs.
        module: module that ``python -m module argument ...`` runs.
        arguments: command-line arguments of the module.
        processes: world size over all nodes.
        folder: folder of the job's logs.
        environment: variables added to the environment.
        imports: modules that take long to import: jobs of one process on the same machine share the import (without a GPU).
        identity: digest of everything that determines the job's result; two submissions with the same name and identity are one
            job. Empty: derived from module, arguments and processes.
        image: container image.
        nodes: number of machines; ``processes`` must be a multiple of it.
        spare_nodes: number of further machines that wait, and take over at once for lost ones.
        resources: resources of each node.
        volumes: volumes that the nodes share with the submitting process.
        secrets: names of Secrets whose entries become environment variables.
        time_limit_s: maximum run time in seconds. keep_s: seconds for which the record of a finished job is kept.
        grace_s: seconds between the stop request and the kill of a node; must suffice to write a checkpoint.
        restarts: maximum number of process restarts in place after faults of machines, over all nodes, and of rounds in which
            killed pods are replaced. Disruptions are not counted, and an exception of the program is not retried.
        resumptions: maximum number of resubmissions of the whole job after an eviction, a preemption or the loss of a machine.
        pending_limit_s, image_limit_s: maximum waiting time for a machine and for an image pull, in seconds.
        placement: machines on which a cluster runs the job. pull_secrets, service_account: as in a pod spec.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    processes: int
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    imports: tuple[str, ...] = ()
    identity: str = ""
    image: str = ""
    nodes: int = 1
    spare_nodes: int = 0
    resources: Resources = Resources()
    volumes: tuple[SharedVolume, ...] = ()
    secrets: tuple[str, ...] = ()
    time_limit_s: int = 72 * 3600
    keep_s: int = 24 * 3600
    grace_s: int = 120
    restarts: int = 3
    resumptions: int = 3
    pending_limit_s: float = 1800.0
    image_limit_s: float = 300.0
    placement: Placement = Placement()
    pull_secrets: tuple[str, ...] = ()
    service_account: str = "training"

    @property
    def key(self) -> str:
        """Unique name under which a launcher finds the job: lower case, starts with a letter, at most 47 characters."""
        identity = self.identity or digest(self.module, self.arguments, self.processes)
        readable = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).lstrip("-0123456789")[:NAME_CHARACTERS].rstrip("-")
        return f"{readable or 'job'}-{identity[:IDENTITY_CHARACTERS]}"

    @property
    def pods(self) -> int:
        """Number of nodes with the spare ones."""
        return self.nodes + self.spare_nodes

    @property
    def processes_per_node(self) -> int:
        """Number of processes on each node."""
        return self.processes // self.nodes


@dataclass(frozen=True)
class JobStatus:
    """One row of the list of jobs. ``detail``: what the job waits for, or why it failed."""

    key: str
    state: JobState
    detail: str = ""
    nodes: int = 1
    created: str = ""


class JobHandle(Protocol):
    """Handle of a submitted job."""

    @property
    def key(self) -> str:
        """Unique name of the job (:attr:`JobSpec.key`)."""

    def status(self) -> JobStatus:
        """Return the current status."""

    def wait(self) -> None:
        """Return when the job has succeeded; raise :class:`~components.errors.JobFailed` when it has failed."""

    def cancel(self) -> None:
        """Request a stop (the job may write a checkpoint first), wait for the end, and delete the job's objects."""

    def logs(self) -> str:
        """Return the log so far, oldest line first; with several nodes, each line starts with its rank."""


class Launcher(Protocol):
    """Submits jobs and finds submitted ones."""

    def submit(self, job: JobSpec) -> JobHandle:
        """Start a job, or attach to it if it runs already; return immediately."""

    def find(self, key: str) -> JobHandle:
        """Return the job with this key; raise :class:`~components.errors.JobFailed` if there is none."""

    def jobs(self) -> list[JobStatus]:
        """Return the status of all known jobs."""

    def clean_up(self) -> list[str]:
        """Delete the remains of finished jobs and return their names."""


_AGENT_LINE = re.compile(r"(rank \d+: |node \d+: )?[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ .*torch/distributed/elastic/")


def program_lines(lines: list[str]) -> list[str]:
    """Return the lines of a log without the messages of torchrun's agent about its workers."""
    return [line for line in lines if not _AGENT_LINE.match(line)]
