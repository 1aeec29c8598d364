"""Flow runs whose process is gone, because it, its worker or its machine was killed: they are put in line again, and go on where
they stopped, since every step finds by content what has been done."""

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
"""After which a run that a worker has taken, and that has no process, is taken for lost."""
ATTEMPTS = 4
"""Starts of one run, the first included."""


@dataclass(frozen=True)
class Recovered:
    """A run that had lost its process, and what became of it."""

    name: str
    outcome: str


def _alive(run: FlowRun) -> bool:
    """Whether the process of a run is there (and is no other that got its number)."""
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


def under_way(client: SyncPrefectClient, pool: str) -> list[FlowRun]:
    """The runs of a pool that a worker has taken and that have not ended."""
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter

    states = FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}})
    return client.read_flow_runs(flow_run_filter=states, work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [pool]}}))


def recover(pool: str, cut_off: Collection[UUID] = ()) -> list[Recovered]:
    """Find the runs of a process pool of this machine that lost their process; put them in line again, four starts at most.

    Args:
        cut_off: runs that were ended with their worker: crashed, they are put in line again too.
    """
    from prefect.client.orchestration import get_client

    found: list[Recovered] = []
    with get_client(sync_client=True) as client:
        lost = [run for run in under_way(client, pool) if not _alive(run)]
        known = {run.id for run in lost}
        ended = [client.read_flow_run(number) for number in cut_off if number not in known]
        for run in [*lost, *(run for run in ended if run.state is not None and run.state.is_crashed())]:
            found.append(Recovered(run.name, _again(client, run)))
    return found


def runs_under_way(pool: str) -> list[UUID]:
    """Ids of the runs of a pool that are under way."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return [run.id for run in under_way(client, pool)]


def _again(client: SyncPrefectClient, run: FlowRun) -> str:
    from prefect.states import Cancelled, Crashed, Scheduled

    if run.state is not None and run.state.is_cancelling():
        client.set_flow_run_state(run.id, Cancelled(message="its process is gone"), force=True)
        return "cancelled"
    _end_inner_runs(client, run)
    if run.run_count >= ATTEMPTS:
        client.set_flow_run_state(run.id, Crashed(message=f"lost its process {run.run_count} times"), force=True)
        return "crashed"
    client.set_flow_run_state(run.id, Scheduled(message="lost its process; goes on where it stopped"), force=True)
    return "in line again"


def _end_inner_runs(client: SyncPrefectClient, run: FlowRun) -> None:
    """Flows within a flow run in its process: they ended with it, though nobody said so."""
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import Crashed

    for inner in client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [run.id]}})):
        _end_inner_runs(client, inner)
        if inner.state is None or not inner.state.is_final():
            client.set_flow_run_state(inner.id, Crashed(message="its process is gone"), force=True)
