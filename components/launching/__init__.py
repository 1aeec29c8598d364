"""Where a job runs: processes of this machine, or pods of a Kubernetes cluster, behind one interface."""

from components.launching.choice import on_cluster, open_launcher
from components.launching.job import Handle, JobSpec, JobState, JobStatus, Launcher, Resources, SharedVolume
from components.launching.local import LocalLauncher

__all__ = [
    "Handle",
    "JobSpec",
    "JobState",
    "JobStatus",
    "Launcher",
    "LocalLauncher",
    "Resources",
    "SharedVolume",
    "on_cluster",
    "open_launcher",
]
