"""What waiting for jobs on a cluster costs: API calls a minute, CPU and memory of the waiting process, by the number of jobs.

    python -m benchmarks.kubernetes_waiting

Jobs of two pods wait in one process, as the launcher does it (two watches for all; a thread and a log connection for each pod that
runs) and, beside it, as a poll of every job each five seconds would. The API server is the double of the tests over real HTTP, in a
process of its own; its watches end after five minutes as a real server's do. The window is a minute after everything is running.
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
from components.launching.kubernetes.api_client import Cluster, RetryPolicy
from components.launching.kubernetes.job_handle import KubernetesHandle
from components.launching.kubernetes.launcher import KubernetesLauncher
from components.launching.kubernetes.manifests import JOBS, PODS

RESULTS = Path(__file__).parent / "results"
POLL_EVERY_S = 5.0


@dataclass(frozen=True)
class Row:
    """One way of waiting; CPU in percent of one core, memory in MiB beyond the process with nothing to wait for."""

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


def serve(port: Any, counted: Any, runs: bool) -> None:
    """The API server, controllers and kubelet, in a process of their own; counts the requests."""
    from tests.doubles.apiserver import RunningServer
    from tests.doubles.controllers import Controllers
    from tests.doubles.kubelet import BlockedPod, Kubelet, ScriptedPod

    fate = ScriptedPod(exit_code=None) if runs else BlockedPod("ContainerCreating")
    with RunningServer() as server, Controllers(server), Kubelet(server, lambda pod: fate):
        server.api.log_poll_s = 2.0  # pods of this measurement write nothing
        port.value = server.port
        while True:
            counted.value = len(server.requests())
            time.sleep(0.2)


def by_watch(launcher: KubernetesLauncher, handles: list[KubernetesHandle]) -> None:
    """A thread for each job, as flows do."""
    for handle in handles:
        threading.Thread(target=handle.wait, daemon=True).start()


def by_poll(launcher: KubernetesLauncher, handles: list[KubernetesHandle]) -> None:
    """A thread for each job that asks for the job and its pods every five seconds."""

    def poll(handle: KubernetesHandle) -> None:
        while True:
            launcher.cluster.get(JOBS, handle.key)
            launcher.cluster.list_objects(PODS, f"omnimri.dev/job={handle.key}")
            time.sleep(POLL_EVERY_S)

    for handle in handles:
        threading.Thread(target=poll, args=(handle,), daemon=True).start()


def waited(jobs: int, runs: bool, way: str, window_s: float, result: Any) -> None:
    """Measure in a fresh process."""
    from kubernetes import client

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # two hundred jobs have much to say
    context = multiprocessing.get_context("spawn")
    port, counted = context.Value("i", 0), context.Value("i", 0)
    server = context.Process(target=serve, args=(port, counted, runs), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.05)
    configuration = client.Configuration(host=f"http://127.0.0.1:{port.value}")
    configuration.retries, configuration.connection_pool_maxsize = False, 512
    launcher = KubernetesLauncher(Cluster(client.ApiClient(configuration), "omnimri", RetryPolicy()), "job")
    folder, this = Path(tempfile.mkdtemp()), psutil.Process()
    handles = []
    for number in range(jobs):
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
    memory = this.memory_info().rss
    (by_watch if way == "watch" else by_poll)(launcher, handles)
    settled = counted.value
    while True:  # until all connections are made
        time.sleep(3.0)
        if way == "poll" or counted.value == settled:
            break
        settled = counted.value
    calls, cpu, begun = counted.value, sum(this.cpu_times()[:2]), time.monotonic()
    time.sleep(window_s)
    seconds = time.monotonic() - begun
    result.send(
        (
            (counted.value - calls) / seconds * 60,
            (sum(this.cpu_times()[:2]) - cpu) / seconds * 100,
            (this.memory_info().rss - memory) / 2**20,
            this.num_threads(),
            seconds,
        )
    )
    server.kill()
    os._exit(0)


def main() -> None:
    """Measure and write ``results/kubernetes_waiting.csv``."""
    context, rows = multiprocessing.get_context("spawn"), []
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    machine = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = f"Python {platform.python_version()}, kubernetes {version('kubernetes')}, kmock {version('kmock')}"
    for jobs, runs, way, window_s in [
        (1, True, "watch", 10),
        (200, False, "watch", 10),
        (200, True, "watch", 60),
        (200, True, "poll", 15),
    ]:
        ours, result = context.Pipe()
        process = context.Process(target=waited, args=(jobs, runs, way, window_s, result))
        process.start()
        calls, cpu, memory, threads, seconds = ours.recv()
        process.join()
        rows.append(
            Row(
                jobs,
                runs,
                way,
                round(seconds, 1),
                round(calls, 2),
                round(cpu, 2),
                round(memory, 1),
                threads,
                f"{machine}, {os.cpu_count()} cores",
                versions,
            )
        )
        print(rows[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "kubernetes_waiting.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    main()
