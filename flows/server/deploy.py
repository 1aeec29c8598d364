"""``prefect.yaml`` into a Prefect server: work pool, queues, deployments, and the automation that follows updates. Doing it again
changes nothing but what has changed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

from components.assets import asset
from components.errors import JobFailed
from components.files import read_json
from components.home import Home

PREFECT_FILE = asset("prefect.yaml")
CLUSTER_TEMPLATE = asset("k8s/base/base-job-template.json")
PoolType = Literal["process", "kubernetes"]


@dataclass(frozen=True)
class Deploying:
    """How the flows are deployed.

    Attributes:
        pool: name of the work pool; pool_type: where its runs are, in processes of a worker's machine or in pods.
        profile: settings of runs that nobody gives others.
        train_on_update: a dataset that updates leads to a new candidate, not to a validated corpus only.
        gpu_limit: trainings at a time.
        timezone: of the schedules.
    """

    pool: str = "omnimri"
    pool_type: PoolType = "process"
    profile: str = "demo"
    train_on_update: bool = False
    gpu_limit: int = 1
    timezone: str = "UTC"

    def environment(self) -> dict[str, str]:
        """What ``prefect.yaml`` refers to."""
        return {
            "OMNIMRI_WORK_POOL": self.pool,
            "OMNIMRI_PROFILE": self.profile,
            "OMNIMRI_UPDATE_GOAL": "candidate" if self.train_on_update else "corpus",
            "OMNIMRI_TIMEZONE": self.timezone,
        }


def _template(pool_type: PoolType) -> dict[str, Any]:
    """How a run of the pool is started."""
    if pool_type == "kubernetes":
        template: dict[str, Any] = read_json(CLUSTER_TEMPLATE)
        return template
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    fields = template["variables"]["properties"]
    # One process for a run: our code needs no checkout, so nothing has to be prepared by another.
    fields["command"]["default"] = f"{sys.executable} -m prefect.engine"
    fields["working_dir"]["default"] = str(Home.open().root)
    return template


def make_pool(wanted: Deploying) -> None:
    """Create or update the work pool and its queue for accelerators."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    template = _template(wanted.pool_type)
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=wanted.pool, type=wanted.pool_type, base_job_template=template))
        except ObjectAlreadyExists:
            client.update_work_pool(wanted.pool, WorkPoolUpdate(base_job_template=template))
        try:
            queue = client.read_work_queue_by_name("gpu", wanted.pool)
            client.update_work_queue(queue.id, concurrency_limit=wanted.gpu_limit)
        except ObjectNotFound:
            client.create_work_queue("gpu", concurrency_limit=wanted.gpu_limit, work_pool_name=wanted.pool)


def deploy(wanted: Deploying) -> float:
    """Bring the server that ``PREFECT_API_URL`` names up to date with ``prefect.yaml``; seconds it took.

    Raises:
        JobFailed: Prefect refuses.
    """
    started = time.monotonic()
    make_pool(wanted)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(PREFECT_FILE)]
    environment = {**os.environ, **wanted.environment()}
    done = subprocess.run(command, cwd=PREFECT_FILE.parent, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise JobFailed(f"could not be deployed:\n{tail}", where=str(PREFECT_FILE), remedy="see the message of Prefect above")
    return time.monotonic() - started
