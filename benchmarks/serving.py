"""Latency of a served model version for each task, and its behavior under a thousand malformed requests.

``OMNIMRI_HOME=.omnimri python -m benchmarks.serving --version staging`` starts the server as ``omnimri models serve`` does,
requests the five tasks for one synthetic volume of 20 slices over HTTP, then sends malformed requests (tests/helpers/malformed.py)
and records responses and memory.
"""

from __future__ import annotations

import argparse
import random
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter

import httpx
import nibabel as nib
import numpy as np
import psutil
from hypothesis import HealthCheck, Phase, given, seed, settings

from benchmarks.harness import versions, write_rows
from components.samples.anatomies.brain import BRAIN, GRID
from components.samples.phantom import generate_patient
from tests.helpers.malformed import DAMAGED, MALFORMED, Request, asked

QUESTIONS = {
    "reconstruction": "Reconstruct the image from this under-sampled MRI data.",
    "segmentation": "Segment the white matter in this brain MRI.",
    "detection": "Locate the lesion in this brain MRI.",
    "diagnosis": "Is there a lesion in this image?",
    "report": "Generate a diagnostic report based on this MRI scan.",
}
JSON = {"content-type": "application/json"}


def build_volume() -> bytes:
    """Return a T1 of the synthetic cohort as NIfTI."""
    voxels = generate_patient(BRAIN, 0, GRID, (152, 0), 0.5).simulate_magnitude("T1-weighted").astype(np.int16)
    content: bytes = nib.Nifti1Image(voxels.transpose(2, 1, 0), GRID.affine[:, [2, 1, 0, 3]]).to_bytes()
    return content


def memory_mib(process: psutil.Process) -> float:
    """Return the resident memory of a process and its children, in MiB."""
    return sum(member.memory_info().rss for member in [process, *process.children(recursive=True)]) / 2**20


def main() -> None:
    """Measure and write ``serving_cpu.csv``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", default="staging")
    parser.add_argument("--malformed", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "flows.cli", "models", "serve", arguments.version, "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=150) as client:
            _wait_for_server(client, server)
            measure(client, psutil.Process(server.pid), arguments.repeats, arguments.malformed)
    finally:
        server.terminate()
        server.wait(30)


def _wait_for_server(client: httpx.Client, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        try:
            client.get("/ping").raise_for_status()
            return
        except httpx.TransportError:
            if server.poll() is not None:
                raise SystemExit("the server did not start") from None
            time.sleep(0.2)


def measure(client: httpx.Client, process: psutil.Process, repeats: int, malformed: int) -> None:
    """Measure latencies, then send malformed requests, and write the rows."""
    image, rows = build_volume(), []
    for task, question in QUESTIONS.items():
        body, times, answered = asked(image, question), [], ""
        for _ in range(repeats + 1):
            start = time.perf_counter()
            answer = client.post("/invocations", content=body, headers=JSON)
            times.append(time.perf_counter() - start)
            answered = answer.raise_for_status().json()["predictions"][0]["task"]
        ordered = sorted(times[1:])
        p95 = ordered[min(round(0.95 * len(ordered)), len(ordered) - 1)]
        rows.append({"asked": task, "answered": answered, "p50_s": f"{statistics.median(ordered):.3f}", "p95_s": f"{p95:.3f}"})
        print(f"{task:16s} answered as {answered:16s} p50 {statistics.median(ordered):.3f} s  p95 {p95:.3f} s", flush=True)
    statuses, kinds, memory = Counter[int](), Counter[str](), [memory_mib(process)]
    for count, request in enumerate(_generate_requests(malformed), start=1):
        headers = {"content-type": request.content_type} if request.content_type else {}
        answer = client.post("/invocations", content=request.body, headers=headers)
        statuses[answer.status_code] += 1
        kinds[request.kind] += 1
        if answer.status_code >= 500:
            raise SystemExit(f"{request.kind}: {answer.status_code} {answer.text[:200]}")
        if count * 4 % malformed < 4:
            memory.append(memory_mib(process))
    statuses_text = " ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))
    memory_text = " ".join(f"{mib:.0f}" for mib in memory)
    rows = [{**row, "memory_mib": ""} for row in rows]
    rows.append(
        {
            "asked": f"{malformed} malformed requests of {len(kinds)} kinds",
            "answered": statuses_text,
            "p50_s": "",
            "p95_s": "",
            "memory_mib": memory_text,
        }
    )
    print(f"{malformed} malformed requests: {statuses_text}; memory before, and after each quarter: {memory_text} MiB", flush=True)
    write_rows("serving_cpu", rows, versions())


def _generate_requests(count: int) -> list[Request]:
    """Return reproducible malformed requests; every tenth one is an image with a damaged header, which may be valid."""
    requests: list[Request] = []

    @seed(0)
    @settings(
        max_examples=4 * count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(MALFORMED, DAMAGED)
    def collect(malformed: Request, damaged: Request) -> None:
        if len(requests) < count:
            requests.append(damaged if len(requests) % 10 == 9 else malformed)

    collect()
    random.Random(0).shuffle(requests)
    return requests


if __name__ == "__main__":
    main()
