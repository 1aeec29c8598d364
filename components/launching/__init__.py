"""Where a job runs: processes of this machine, or pods of a Kubernetes cluster, behind one interface."""

from components.launching.job import Handle, JobSpec, JobState, JobStatus, Launcher, Resources, SharedVolume
from components.launching.launcher_choice import on_cluster, open_launcher
from components.launching.local_launcher import LocalLauncher

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
