"""From settings to a launcher and its jobs."""

from __future__ import annotations

from dataclasses import replace

from components.errors import BadInput
from components.launching.job import JobSpec, Launcher, Resources, SharedVolume
from components.launching.local_launcher import LocalLauncher
from components.settings import KubernetesSettings, Settings


def open_launcher(settings: Settings) -> Launcher:
    """Where ``settings.launcher`` says; nothing is asked of a cluster yet.

    Raises:
        JobFailed: no cluster is configured.
    """
    if settings.launcher == "local":
        return LocalLauncher()
    from components.launching.kubernetes.api_client import Cluster  # not for those who stay at home
    from components.launching.kubernetes.launcher import KubernetesLauncher

    where = settings.kubernetes
    return KubernetesLauncher(Cluster.connect(where.namespace, where.context), where.rendering)


def on_cluster(job: JobSpec, settings: KubernetesSettings) -> JobSpec:
    """A job with all that a cluster wants to know.

    Raises:
        BadInput: the processes do not divide by the nodes.
    """
    if job.processes % settings.nodes:
        raise BadInput(
            f"{job.processes} processes do not divide over {settings.nodes} nodes",
            where="training.processes, kubernetes.nodes",
            remedy="training.processes = nodes times processes of each",
        )
    return replace(
        job,
        image=settings.image,
        nodes=settings.nodes,
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
        queue=settings.queue,
        priority=settings.priority,
        node_selector=settings.node_selector,
        service_account=settings.service_account,
        time_limit_s=round(settings.time_limit_hours * 3600),
        grace_s=settings.grace_s,
        restarts=settings.restarts,
        resumptions=settings.resumptions,
        pending_limit_s=settings.pending_limit_min * 60,
        image_limit_s=settings.image_limit_min * 60,
        keep_s=round(settings.keep_hours * 3600),
    )
