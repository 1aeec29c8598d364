"""Entry point of every pod of a job: ``python -m components.launching.kubernetes.pod_entrypoint [options] -- module argument ...``.

Runs torchrun's agent (:mod:`components.launching.elastic_agent`) with the options that only the pod knows: whether it hosts the
rendezvous, and its own address. All pods use the stable host name of node 0 as the rendezvous endpoint, whichever pod starts first,
and again after every restart. A pod that loses node 0 stays, and connects again when its replacement runs.

The exit status tells Kubernetes what a new pod is good for: ``FAILED`` and ``BAD_CONFIGURATION`` end the job, ``UNCOUNTED`` ones
are replaced without being counted as failures, and every other status means that the container was killed from outside.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from pathlib import Path

from components.launching.elastic_agent import RestartPolicy, run_agent
from components.launching.job import INTERRUPTED
from components.launching.worker_process import BAD_CONFIGURATION

PORT, MARGIN_S = 29400, 5
JOIN_TIMEOUT_S = 30 * 24 * 3600
"""Waiting time for the other nodes: a machine may be under maintenance, and the job's own time limits end the pod."""
DNS_TIMEOUT_S = 300.0
FAILED, PEER_LOST, STOPPED = 1, 69, 143
"""Exit statuses: the restarts are used up or useless; another node has ended the job; stopped before any process ran."""
UNCOUNTED = (PEER_LOST, INTERRUPTED, STOPPED)
FINAL = (FAILED, BAD_CONFIGURATION)
JOB_UID, JOBSET_UID = "OMNIMRI_JOB_UID", "OMNIMRI_JOBSET_UID"
"""Environment variables with the UIDs of the Job and of the JobSet, if there is one: they tell submissions apart."""


def build_arguments(
    job: list[str], nodes: int, processes_per_node: int, rendezvous: str, identity: str, restarts: int, grace_s: int, folder: Path
) -> list[str]:
    """Return the arguments of this module for one job; they are the same for each of its pods."""
    options = [f"--nodes={nodes}", f"--processes={processes_per_node}", f"--meeting={rendezvous}", f"--identity={identity}"]
    return [*options, f"--restarts={restarts}", f"--grace={grace_s}", f"--folder={folder}", "--", *job]


def build_torchrun_options(options: argparse.Namespace, index: int, address: str) -> list[str]:
    """Return torchrun's options for the pod with this index, and set the environment variables that torchrun reads."""
    torchrun = [f"--nnodes={options.nodes}", f"--nproc-per-node={options.processes}"]
    torchrun += ["--rdzv-backend=c10d", f"--rdzv-id={options.identity}"]
    torchrun += [
        f"--rdzv-endpoint={options.meeting}",
        f"--rdzv-conf=is_host={int(index == 0)},join_timeout={JOIN_TIMEOUT_S},last_call_timeout=1",
    ]
    torchrun += [f"--local-addr={address}"] if address else []
    if options.nodes * options.processes > 1:  # only torchrun knows the rank that wrote a line: it sorts nodes by address
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


def run_node(options: argparse.Namespace, policy: RestartPolicy, index: int) -> int:
    """Run the processes of this node until they finish or cannot be restarted; return the exit status of the pod."""
    host = options.meeting.rpartition(":")[0]
    while True:
        finished = policy.finished_elsewhere()
        if finished is not None:
            remedy = "" if finished else " without a result: run again, which resumes from the last checkpoint"
            print(f"the other nodes have finished{remedy}", file=sys.stderr, flush=True)
            return 0 if finished else FAILED
        if not wait_for_dns(host):
            print(f"cannot resolve {host}: check that the network policies allow DNS", file=sys.stderr, flush=True)
            if index == 0:  # its own name; that of another pod is missing while that pod waits for a machine
                return FAILED
            continue
        # Imported here: the preconditions are checked within a second, torch takes several.
        from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousConnectionError

        try:
            status = run_agent(build_torchrun_options(options, index, os.environ.get("POD_IP", "")), options.job, policy)
            return status if status in (0, *FINAL, *UNCOUNTED) else FAILED
        except RendezvousConnectionError as error:
            print(f"node 0 does not respond ({error}); connecting again", file=sys.stderr, flush=True)
            time.sleep(1.0)
        except RendezvousClosedError:
            if policy.finished_elsewhere() is None:
                print("another node has ended the job; its log names the cause", file=sys.stderr, flush=True)
                return PEER_LOST


def _stop(number: int, _: object) -> None:
    """Stop on SIGTERM, which the first process of a container ignores by default."""
    raise SystemExit(128 + number)


def main() -> int:
    """Check the preconditions, then run the node's processes; return the exit status of the pod."""
    signal.signal(signal.SIGTERM, _stop)
    parser = argparse.ArgumentParser(prog="components.launching.kubernetes.pod_entrypoint")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--meeting", required=True)
    parser.add_argument("--identity", required=True)
    parser.add_argument("--restarts", type=int, required=True)
    parser.add_argument("--grace", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
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
    index, job_uid = int(os.environ.get("JOB_COMPLETION_INDEX", "0")), os.environ.get(JOB_UID) or ""
    submission = os.environ.get(JOBSET_UID) or job_uid  # a JobSet that restarts creates new Jobs
    ledger = options.folder / "restarts" / submission if submission else None
    return run_node(options, RestartPolicy(options.restarts, options.nodes, index, ledger, job_uid), index)


if __name__ == "__main__":
    sys.exit(main())
