"""Where a job runs: processes of this machine. One interface, so that a cluster can take their place."""

from components.launching.job import Handle, JobSpec, Launcher
from components.launching.local import LocalLauncher

__all__ = ["Handle", "JobSpec", "Launcher", "LocalLauncher"]
