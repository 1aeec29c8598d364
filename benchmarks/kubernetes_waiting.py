"""Cost of waiting for jobs on a cluster: API calls per minute, CPU and memory of the waiting process, by number of jobs.

    python -m benchmarks.kubernetes_waiting

One process waits for jobs of two pods: as the launcher does (two watches for all jobs; one thread and one log connection for each
running pod), and, for comparison, by polling every job every five seconds. The API server is the one of the tests over HTTP, in a
process of its own; its watches end after five minutes, as those of a real server do. Measurement starts when all connections are
open.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import platform
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from components.launching import JobSpec, SharedVolume
from components.launching.kubernetes.api_client import Cluster
from components.launching.kubernetes.job_handle import KubernetesHandle
from components.launching.kubernetes.launcher import KubernetesLauncher
from components.launching.kubernetes.manifests import JOBS, PODS

RESULTS = Path(__file__).parent / "results"
POLL_INTERVAL_S = 5.0


@dataclass(frozen=True)
class Measurement:
    """Cost of one scenario; CPU in percent of one core, memory in MiB in addition to that of the idle process."""

    window_s: float
    api_calls_per_minute: float
    cpu_percent: float
    memory_mib: float
    threads: int


@dataclass(frozen=True)
class Row:
    """Row of the results: scenario, measurement and environment."""

    jobs: int
    pods_running: bool
    way: str
    window_s: float
    api_calls_per_minute: float
    cpu_percent: float
    memory_mib: float
    threads: int
    machine: str
    versions: str


def serve(port: Any, request_count: Any, pods_run: bool) -> None:
    """Run API server, controllers and kubelet in this process, and count the requests."""
    from tests.doubles.apiserver import RunningServer
    from tests.doubles.controllers import Controllers
    from tests.doubles.kubelet import BlockedPod, Kubelet, ScriptedPod

    behavior = ScriptedPod(exit_code=None) if pods_run else BlockedPod("ContainerCreating")
    with RunningServer() as server, Controllers(server), Kubelet(server, lambda pod: behavior):
        server.api.log_poll_s = 2.0  # pods of this benchmark write nothing
        port.value = server.port
        while True:
            request_count.value = len(server.requests())
            time.sleep(0.2)


def wait_by_watch(launcher: KubernetesLauncher, handles: list[KubernetesHandle]) -> None:
    """Start one waiting thread for each job, as flows do."""
    for handle in handles:
        threading.Thread(target=handle.wait, daemon=True).start()


def wait_by_poll(launcher: KubernetesLauncher, handles: list[KubernetesHandle]) -> None:
    """Start one thread for each job that requests the job and its pods every five seconds."""

    def poll(handle: KubernetesHandle) -> None:
        while True:
            launcher.cluster.get(JOBS, handle.key)
            launcher.cluster.list_objects(PODS, f"omnimri.dev/job={handle.key}")
            time.sleep(POLL_INTERVAL_S)

    for handle in handles:
        threading.Thread(target=poll, args=(handle,), daemon=True).start()


def submit_jobs(launcher: KubernetesLauncher, count: int) -> list[KubernetesHandle]:
    """Submit jobs of two nodes each."""
    folder = Path(tempfile.mkdtemp())
    handles = []
    for number in range(count):
        job = JobSpec(
            f"job {number}",
            "module",
            (str(number),),
            processes=2,
            nodes=2,
            folder=folder / str(number),
            image="image",
            volumes=(SharedVolume("state", folder),),
            image_limit_s=3600,
            pending_limit_s=3600,
        )
        handles.append(launcher.submit(job))
    return handles


def wait_for_connections(request_count: Any, way: str) -> None:
    """Return when no new connections are opened; polling has no persistent ones."""
    previous = request_count.value
    while True:
        time.sleep(3.0)
        if way == "poll" or request_count.value == previous:
            return
        previous = request_count.value


def measure(jobs: int, pods_run: bool, way: str, window_s: float, result: Any) -> None:
    """Measure one scenario in this process, send the result, and end the process."""
    from kubernetes import client

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # two hundred jobs log too much
    context = multiprocessing.get_context("spawn")
    port, request_count = context.Value("i", 0), context.Value("i", 0)
    server = context.Process(target=serve, args=(port, request_count, pods_run), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.05)
    configuration = client.Configuration(host=f"http://127.0.0.1:{port.value}")
    configuration.retries, configuration.connection_pool_maxsize = False, 512
    launcher = KubernetesLauncher(Cluster(client.ApiClient(configuration), "omnimri"), "job")
    process = psutil.Process()
    handles = submit_jobs(launcher, jobs)
    memory = process.memory_info().rss
    (wait_by_watch if way == "watch" else wait_by_poll)(launcher, handles)
    wait_for_connections(request_count, way)
    calls, cpu_s, started = request_count.value, sum(process.cpu_times()[:2]), time.monotonic()
    time.sleep(window_s)
    seconds = time.monotonic() - started
    result.send(
        Measurement(
            round(seconds, 1),
            round((request_count.value - calls) / seconds * 60, 2),
            round((sum(process.cpu_times()[:2]) - cpu_s) / seconds * 100, 2),
            round((process.memory_info().rss - memory) / 2**20, 1),
            process.num_threads(),
        )
    )
    server.kill()
    os._exit(0)


def main() -> None:
    """Measure all scenarios and write ``results/kubernetes_waiting.csv``."""
    context, rows = multiprocessing.get_context("spawn"), []
    cpu_lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in cpu_lines if line.startswith("model name")), platform.processor())
    versions = f"Python {platform.python_version()}, kubernetes {version('kubernetes')}, kmock {version('kmock')}"
    for jobs, pods_run, way, window_s in [
        (1, True, "watch", 10),
        (200, False, "watch", 10),
        (200, True, "watch", 60),
        (200, True, "poll", 15),
    ]:
        receiver, sender = context.Pipe()
        process = context.Process(target=measure, args=(jobs, pods_run, way, window_s, sender))
        process.start()
        measurement: Measurement = receiver.recv()
        process.join()
        rows.append(Row(jobs, pods_run, way, **asdict(measurement), machine=f"{cpu}, {os.cpu_count()} cores", versions=versions))
        print(rows[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "kubernetes_waiting.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    main()
