"""Launch jobs through one interface: as processes on this machine, or as pods on a Kubernetes cluster."""

from components.launching.job import JobHandle, JobSpec, JobState, JobStatus, Launcher, Placement, Resources, SharedVolume
from components.launching.launcher_choice import configure_for_cluster, open_launcher
from components.launching.local_launcher import LocalLauncher

__all__ = [
    "JobHandle",
    "JobSpec",
    "JobState",
    "JobStatus",
    "Launcher",
    "LocalLauncher",
    "Placement",
    "Resources",
    "SharedVolume",
    "configure_for_cluster",
    "open_launcher",
]
