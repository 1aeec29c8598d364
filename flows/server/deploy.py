"""Deployment of ``prefect.yaml`` to a Prefect server: work pool, queues, flows, and the automation that follows updates.

Deploying again changes only what differs.
"""

from __future__ import annotations

import os
import shlex
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
class Deployment:
    """Options of the deployed flows.

    Attributes:
        pool: name of the work pool.
        pool_type: runs execute in processes of a worker's machine, or in pods.
        profile: default settings of the runs.
        train_on_update: train a new candidate after an update of a dataset, rather than stop at a validated corpus.
        gpu_limit: number of concurrent trainings.
        timezone: of the schedules.
    """

    pool: str = "omnimri"
    pool_type: PoolType = "process"
    profile: str = "demo"
    train_on_update: bool = False
    gpu_limit: int = 1
    timezone: str = "UTC"

    def environment(self) -> dict[str, str]:
        """Return the environment variables that ``prefect.yaml`` refers to."""
        return {
            "OMNIMRI_WORK_POOL": self.pool,
            "OMNIMRI_PROFILE": self.profile,
            "OMNIMRI_UPDATE_GOAL": "candidate" if self.train_on_update else "corpus",
            "OMNIMRI_TIMEZONE": self.timezone,
        }


def _template(pool_type: PoolType) -> dict[str, Any]:
    """Return the base job template of a work pool."""
    if pool_type == "kubernetes":
        template: dict[str, Any] = read_json(CLUSTER_TEMPLATE)
        return template
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    fields = template["variables"]["properties"]
    # A single process for each run: our code needs no checkout, and so no process that prepares one.
    fields["command"]["default"] = f"{shlex.quote(sys.executable)} -m prefect.engine"
    fields["working_dir"]["default"] = str(Home.open().root)
    return template


def create_pool(deployment: Deployment) -> None:
    """Create or update the work pool and its queue for accelerators."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    template = _template(deployment.pool_type)
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=deployment.pool, type=deployment.pool_type, base_job_template=template))
        except ObjectAlreadyExists:
            client.update_work_pool(deployment.pool, WorkPoolUpdate(base_job_template=template))
        try:
            queue = client.read_work_queue_by_name("gpu", deployment.pool)
            client.update_work_queue(queue.id, concurrency_limit=deployment.gpu_limit)
        except ObjectNotFound:
            client.create_work_queue("gpu", concurrency_limit=deployment.gpu_limit, work_pool_name=deployment.pool)


def deploy(deployment: Deployment) -> float:
    """Bring the server that ``PREFECT_API_URL`` names up to date with ``prefect.yaml``; return the time it took, seconds.

    Raises:
        JobFailed: Prefect reports an error.
    """
    started = time.monotonic()
    create_pool(deployment)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(PREFECT_FILE)]
    environment = {**os.environ, **deployment.environment()}
    done = subprocess.run(command, cwd=PREFECT_FILE.parent, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise JobFailed(f"deployment failed:\n{tail}", where=str(PREFECT_FILE), remedy="see the message of Prefect above")
    return time.monotonic() - started
