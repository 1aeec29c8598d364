"""Open the launcher that the settings name, and add cluster settings to a job."""

from __future__ import annotations

from dataclasses import fields, replace

from components.errors import BadInput
from components.launching.job import JobSpec, Launcher, Placement, Resources, SharedVolume
from components.launching.local_launcher import LocalLauncher
from components.settings import KubernetesSettings, Settings

PLACEMENT_SETTINGS = tuple(field.name for field in fields(Placement))
"""Fields of :class:`Placement`, which have the same names in the settings."""


def open_launcher(settings: Settings) -> Launcher:
    """Return the launcher that ``settings.launcher`` names; no request is sent to the cluster yet.

    Raises:
        JobFailed: no cluster is configured.
    """
    if settings.launcher == "local":
        return LocalLauncher()
    # Imported here: local runs do not need the Kubernetes client.
    from components.launching.kubernetes.api_client import Cluster
    from components.launching.kubernetes.launcher import KubernetesLauncher

    options = settings.kubernetes
    return KubernetesLauncher(Cluster.connect(options.namespace, options.context), options.rendering)


def configure_for_cluster(job: JobSpec, settings: KubernetesSettings) -> JobSpec:
    """Return the job with image, nodes, resources, volumes and limits from the settings.

    Raises:
        BadInput: the number of processes is not a multiple of the number of nodes.
    """
    if job.processes % settings.nodes:
        raise BadInput(
            f"{job.processes} processes cannot be divided evenly among {settings.nodes} nodes",
            where="training.processes, kubernetes.nodes",
            remedy="training.processes = nodes times processes of each",
        )
    return replace(
        job,
        image=settings.image,
        nodes=settings.nodes,
        spare_nodes=settings.spare_nodes,
        resources=Resources(
            cpu=settings.cpu,
            memory=settings.memory,
            gpus=settings.gpus_per_node,
            shared_memory=settings.shared_memory,
            scratch=settings.scratch,
        ),
        volumes=tuple(SharedVolume(claim, path) for claim, path in settings.volumes.items()),
        environment={**settings.environment, **job.environment},
        secrets=settings.secrets,
        pull_secrets=settings.pull_secrets,
        placement=Placement(**{name: getattr(settings, name) for name in PLACEMENT_SETTINGS}),
        service_account=settings.service_account,
        time_limit_s=round(settings.time_limit_hours * 3600),
        grace_s=settings.grace_s,
        restarts=settings.restarts,
        resumptions=settings.resumptions,
        pending_limit_s=settings.pending_limit_min * 60,
        image_limit_s=settings.image_limit_min * 60,
        keep_s=round(settings.keep_hours * 3600),
    )
