"""Reports of steps: to Prefect's log, and to the terminal of the command that runs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.settings import PREFECT_API_URL

from components.progress import Step, report, step
from flows.server.temporary_server import await_server, launch_server


@contextmanager
def reported_step(name: str) -> Iterator[Step]:
    """Report a step at its end; set ``result`` of the yielded object to its summary."""
    with step(name) as running:
        yield running
    get_run_logger().info(running.result)


def report_waiting(message: str) -> None:
    """Report that a step waits for another process."""
    get_run_logger().info(message)
    report(message)


def report_warning(message: str) -> None:
    """Report something that the user should know, and that does not stop the run."""
    get_run_logger().warning(message)
    report(f"warning: {message}")


def start_prefect() -> None:
    """Wait for Prefect's temporary server, which is started now unless it was started early or the settings name another one.

    Raises:
        MachineFault, JobFailed: the temporary server does not start.
    """
    if not PREFECT_API_URL.value():
        launch_server()
        refresh_global_settings_context()
    await_server()
    with get_client(sync_client=True) as client:
        client.hello()
