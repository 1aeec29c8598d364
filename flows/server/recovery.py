"""Recovery of flow runs that lost their process, because it, its worker or its machine was killed.

Such a run is scheduled again, and resumes where it stopped: every step finds finished work by its content.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

PENDING_S = 120
"""Time after which a run that a worker has accepted, and that has no process, counts as lost."""
ATTEMPTS = 4
"""Starts of one run, including the first."""


@dataclass(frozen=True)
class Recovery:
    """A run that lost its process, and its new state."""

    name: str
    outcome: str


def _has_process(run: FlowRun) -> bool:
    """Return whether the process of a run exists; another process may have got its id."""
    if not run.infrastructure_pid:
        since = run.state.timestamp if run.state else datetime.now(UTC)
        return datetime.now(UTC) - since < timedelta(seconds=PENDING_S)
    try:
        process = psutil.Process(int(run.infrastructure_pid.rpartition(":")[2]))
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("PREFECT__FLOW_RUN_ID") == str(run.id)
    except (psutil.NoSuchProcess, ValueError):
        return False
    except psutil.AccessDenied:
        return True


def active_runs(client: SyncPrefectClient, pool: str) -> list[FlowRun]:
    """Return the runs of a pool that a worker has accepted and that have not ended."""
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter

    states = FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}})
    return client.read_flow_runs(flow_run_filter=states, work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [pool]}}))


def recover(pool: str, interrupted: Collection[UUID] = ()) -> list[Recovery]:
    """Find the runs of a process pool of this machine that lost their process, and schedule them again, up to four starts.

    Args:
        pool: name of the work pool.
        interrupted: runs that ended with their worker; those that crashed are scheduled again too.
    """
    from prefect.client.orchestration import get_client

    recoveries: list[Recovery] = []
    with get_client(sync_client=True) as client:
        lost = [run for run in active_runs(client, pool) if not _has_process(run)]
        lost_ids = {run.id for run in lost}
        ended = [client.read_flow_run(run_id) for run_id in interrupted if run_id not in lost_ids]
        for run in [*lost, *(run for run in ended if run.state is not None and run.state.is_crashed())]:
            recoveries.append(Recovery(run.name, _reschedule(client, run)))
    return recoveries


def active_run_ids(pool: str) -> list[UUID]:
    """Return the ids of the active runs of a pool."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return [run.id for run in active_runs(client, pool)]


def _reschedule(client: SyncPrefectClient, run: FlowRun) -> str:
    """Schedule a run again, or end it if it was being canceled or has used up its starts; return its new state."""
    from prefect.states import Cancelled, Crashed, Scheduled

    if run.state is not None and run.state.is_cancelling():
        client.set_flow_run_state(run.id, Cancelled(message="its process has ended"), force=True)
        return "cancelled"
    _end_inner_runs(client, run)
    if run.run_count >= ATTEMPTS:
        client.set_flow_run_state(run.id, Crashed(message=f"lost its process {run.run_count} times"), force=True)
        return "crashed"
    client.set_flow_run_state(run.id, Scheduled(message="lost its process; resumes where it stopped"), force=True)
    return "scheduled again"


def _end_inner_runs(client: SyncPrefectClient, run: FlowRun) -> None:
    """Mark the nested flow runs of a run as crashed: they ran in its process, and nothing reported their end."""
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import Crashed

    for inner in client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [run.id]}})):
        _end_inner_runs(client, inner)
        if inner.state is None or not inner.state.is_final():
            client.set_flow_run_state(inner.id, Crashed(message="its process has ended"), force=True)
