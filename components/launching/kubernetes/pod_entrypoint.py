"""What every pod of a job runs: ``python -m components.launching.kubernetes.pod_entrypoint [options] -- module argument ...``.

It becomes ``torchrun``, with what only the pod itself can know: whether it is the one where the others meet, and its own address.
The others meet at rank 0's stable name, whoever is started first, and again after every restart.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from pathlib import Path

PORT, MARGIN_S = 29400, 5
BAD_CONFIGURATION = 2
"""Exit status that no restart can cure: the job fails at once."""
NAME_PATIENCE_S = 300.0


def arguments(job: list[str], nodes: int, processes: int, meeting: str, identity: str, restarts: int, grace_s: int) -> list[str]:
    """Arguments of this module for one job; the same for each of its pods."""
    options = [f"--nodes={nodes}", f"--processes={processes}", f"--meeting={meeting}", f"--identity={identity}"]
    return [*options, f"--restarts={restarts}", f"--grace={grace_s}", "--", *job]


def torchrun(options: argparse.Namespace, index: int, address: str) -> list[str]:
    """Command line of the pod with this index."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={options.nodes}", f"--nproc-per-node={options.processes}"]
    command += [f"--max-restarts={options.restarts}", "--rdzv-backend=c10d", f"--rdzv-id={options.identity}"]
    command += [
        f"--rdzv-endpoint={options.meeting}",
        f"--rdzv-conf=is_host={int(index == 0)},join_timeout=1800,last_call_timeout=1",
    ]
    command += [f"--local-addr={address}"] if address else []
    if options.processes > 1:  # who wrote a line is known here only
        os.environ.setdefault("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", "rank ${rank}: ")
        command += ["--tee=3"]
    # A replaced pod did not meet the others through the agents' common store (seen with torch 2.13, gloo: connecting timed out).
    # Without it rank 0 opens a fresh store for every attempt.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # torchrun itself would kill the processes 30 s after asking them to stop, whatever the pod is granted for its checkpoint.
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(max(options.grace - MARGIN_S, 1))
    return [*command, "-m", *options.job]


def wait_for_name(host: str, patience_s: float = NAME_PATIENCE_S) -> bool:
    """Whether a name is known within the time: a pod's name is published a little after the pod is made."""
    until = time.monotonic() + patience_s
    while True:
        try:
            socket.getaddrinfo(host, None)
            return True
        except socket.gaierror:
            if time.monotonic() > until:
                return False
            time.sleep(1.0)


def main() -> int:
    """Check what the pod needs, then become torchrun."""
    parser = argparse.ArgumentParser(prog="components.launching.kubernetes.pod_entrypoint")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--meeting", required=True)
    parser.add_argument("--identity", required=True)
    parser.add_argument("--restarts", type=int, required=True)
    parser.add_argument("--grace", type=int, required=True)
    parser.add_argument("job", nargs="+")
    options = parser.parse_args()
    missing = [word for word in options.job if word.endswith(".json") and not Path(word).exists()]
    if missing:
        print(
            f"{missing[0]} is not here: mount the volume that holds OMNIMRI_HOME (kubernetes.volumes)", file=sys.stderr, flush=True
        )
        return BAD_CONFIGURATION
    host = options.meeting.rpartition(":")[0]
    if not wait_for_name(host):
        print(f"the name {host} is unknown: is DNS allowed by the network policies?", file=sys.stderr, flush=True)
        return 1
    command = torchrun(options, int(os.environ.get("JOB_COMPLETION_INDEX", "0")), os.environ.get("POD_IP", ""))
    os.execv(command[0], command)  # noqa: S606  (a list, no shell)


if __name__ == "__main__":
    sys.exit(main())
