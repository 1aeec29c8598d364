"""Program with known behavior for the conformance tests of a cluster: ``python -m components.launching.probe ACTION``.

Actions: ``succeed``; ``fail`` (an exception on the last rank); ``crash`` (SIGKILL); ``misconfigured`` (exit status 2); ``wait``
(until it is stopped); ``resume FOLDER`` (waits when a rank runs for the first time, and succeeds when it runs again).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from components.launching.worker_process import BAD_CONFIGURATION

CAUSE = "the probe fails on purpose"


def main(action: str, *arguments: str) -> int:
    """Run an action and return the exit status.

    Raises:
        ValueError: the action is ``fail``, and this is the last rank.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    print(f"probe: {action}", flush=True)
    if action == "misconfigured":
        print("the probe finds no configuration", file=sys.stderr, flush=True)
        return BAD_CONFIGURATION
    if action == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "fail" and rank == world_size - 1:
        raise ValueError(CAUSE)
    if action == "resume":
        marker = Path(arguments[0]) / f"probe-{rank}"
        if marker.exists():
            print("resumed", flush=True)
            return 0
        marker.touch()
    while action != "succeed":
        time.sleep(1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
