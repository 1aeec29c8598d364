"""Entry point of every pod of a job: ``python -m components.launching.kubernetes.pod_entrypoint [options] -- module argument ...``.

Runs torchrun's agent (:mod:`components.launching.elastic_agent`) with the options that only the pod knows: whether it hosts the
rendezvous, and its own address. All pods use the stable host name of node 0 as the rendezvous endpoint, whichever pod starts first,
and again after every restart. The pod ends with the status of the worker that failed first.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from pathlib import Path

from components.launching.elastic_agent import run_agent
from components.launching.worker_process import BAD_CONFIGURATION

PORT, MARGIN_S = 29400, 5
DNS_TIMEOUT_S = 300.0


def build_arguments(
    job: list[str], nodes: int, processes_per_node: int, rendezvous: str, identity: str, restarts: int, grace_s: int
) -> list[str]:
    """Return the arguments of this module for one job; they are the same for each of its pods."""
    options = [f"--nodes={nodes}", f"--processes={processes_per_node}", f"--meeting={rendezvous}", f"--identity={identity}"]
    return [*options, f"--restarts={restarts}", f"--grace={grace_s}", "--", *job]


def build_torchrun_options(options: argparse.Namespace, index: int, address: str) -> list[str]:
    """Return torchrun's options for the pod with this index, and set the environment variables that torchrun reads."""
    torchrun = [f"--nnodes={options.nodes}", f"--nproc-per-node={options.processes}"]
    torchrun += [f"--max-restarts={options.restarts}", "--rdzv-backend=c10d", f"--rdzv-id={options.identity}"]
    torchrun += [
        f"--rdzv-endpoint={options.meeting}",
        f"--rdzv-conf=is_host={int(index == 0)},join_timeout=1800,last_call_timeout=1",
    ]
    torchrun += [f"--local-addr={address}"] if address else []
    if options.processes > 1:  # only torchrun knows the rank that wrote a line
        os.environ.setdefault("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", "rank ${rank}: ")
        torchrun += ["--tee=3"]
    # With the agents' shared TCP store, a replaced pod could not join the others (torch 2.13, gloo: the connection timed out).
    # Without it, rank 0 opens a new store for every attempt.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # By default torchrun kills the processes 30 s after SIGTERM, whatever grace period the pod has for its checkpoint.
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(max(options.grace - MARGIN_S, 1))
    return torchrun


def wait_for_dns(host: str, timeout_s: float = DNS_TIMEOUT_S) -> bool:
    """Return whether DNS resolves a host name within the timeout: the name of a pod is published shortly after its creation."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.getaddrinfo(host, None)
            return True
        except socket.gaierror:
            if time.monotonic() > deadline:
                return False
            time.sleep(1.0)


def main() -> int:
    """Check the preconditions, then run the node's processes; return the exit status of the pod."""
    parser = argparse.ArgumentParser(prog="components.launching.kubernetes.pod_entrypoint")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--meeting", required=True)
    parser.add_argument("--identity", required=True)
    parser.add_argument("--restarts", type=int, required=True)
    parser.add_argument("--grace", type=int, required=True)
    parser.add_argument("job", nargs="+")
    options = parser.parse_args()
    missing = [argument for argument in options.job if argument.endswith(".json") and not Path(argument).exists()]
    if missing:
        print(
            f"{missing[0]} does not exist: mount the volume that contains OMNIMRI_HOME (kubernetes.volumes)",
            file=sys.stderr,
            flush=True,
        )
        return BAD_CONFIGURATION
    host = options.meeting.rpartition(":")[0]
    if not wait_for_dns(host):
        print(f"cannot resolve {host}: check that the network policies allow DNS", file=sys.stderr, flush=True)
        return 1
    index, address = int(os.environ.get("JOB_COMPLETION_INDEX", "0")), os.environ.get("POD_IP", "")
    return run_agent(build_torchrun_options(options, index, address), options.job)


if __name__ == "__main__":
    sys.exit(main())
