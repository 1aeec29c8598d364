"""A stand-in for scheduler and kubelet: pods become processes of this machine, or scripts of a few lines.

A process is what the pod says: its command, its environment, downward API included. Names of other pods mean this machine, and
every job has a port of its own for its rendezvous. Volumes are the folders of this machine at the same paths.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from components.launching.kubernetes.pod_entrypoint import PORT
from components.provenance import REPOSITORY
from tests.doubles.apiserver import Object, RunningServer, now
from tests.doubles.controllers import ENDED, start_pod_status


@dataclass
class Script:
    """A pod that writes lines and ends: ``exit_code`` None = it runs until it is stopped."""

    lines: tuple[str, ...] = ()
    exit_code: int | None = 0
    reason: str = ""
    pause_s: float = 0.0


@dataclass
class Stuck:
    """A pod that does not start: a waiting reason of its container, or (``unschedulable``) no machine."""

    reason: str
    message: str = ""
    unschedulable: bool = False


Fate = Script | Stuck | None
"""None = really run it."""


@dataclass
class Kubelet:
    """Runs the pods of a server. ``fate`` decides what becomes of each."""

    server: RunningServer
    fate: Callable[[Object], Fate] = lambda pod: None
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=dict)
    grace_s: float = 60.0

    def __enter__(self) -> Kubelet:
        self._begun: set[str] = set()
        self._stopping: set[str] = set()
        self._plays: list[asyncio.Task[None]] = []
        self._task = asyncio.run_coroutine_threadsafe(self._run(), self.server.loop)
        return self

    def __exit__(self, *_: object) -> None:
        self._task.cancel()
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    async def _run(self) -> None:
        api = self.server.api
        seen = -1
        while True:
            while seen != api.store.version:
                seen = api.store.version
                for (plural, name), pod in list(api.store.objects.items()):
                    if plural != "pods":
                        continue
                    if pod["metadata"].get("deletionTimestamp"):
                        if pod["status"]["phase"] not in ENDED and name not in self._stopping:
                            self._stopping.add(name)
                            await self._stop(pod)
                    elif name not in self._begun:
                        self._begun.add(name)
                        await self._start(pod)
            async with api.changed:
                if seen == api.store.version:
                    await api.changed.wait()

    async def _start(self, pod: Object) -> None:
        api, fate = self.server.api, self.fate(pod)
        if isinstance(fate, Stuck) and fate.unschedulable:
            pod["status"]["conditions"] = [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": fate.message}
            ]
            await api.put("pods", pod)
            return
        pod["spec"]["nodeName"] = "this-machine"
        waiting = {"reason": fate.reason, "message": fate.message} if isinstance(fate, Stuck) else {"reason": "ContainerCreating"}
        start_pod_status(pod, "Pending", waiting=waiting)
        await api.put("pods", pod)
        if isinstance(fate, Stuck):
            return
        self.started.append(pod["metadata"]["name"])
        start_pod_status(pod, "Running", running={"startedAt": now()})
        await api.put("pods", pod)
        if isinstance(fate, Script):
            self._plays.append(asyncio.create_task(self._play(pod, fate)))
        else:
            self._process(pod)

    def write(self, pod: Object, text: str) -> None:
        self.server.api.logs.setdefault(pod["metadata"]["name"], []).append(f"{now(micro=True)} {text}")

    async def _play(self, pod: Object, script: Script) -> None:
        for line in script.lines:
            self.write(pod, line)
            await asyncio.sleep(script.pause_s)
        if script.exit_code is not None:
            await self._ended(pod, script.exit_code, script.reason)

    async def _ended(self, pod: Object, code: int, reason: str = "") -> None:
        if pod["status"]["phase"] in ENDED:
            return
        tail = "\n".join(line.partition(" ")[2] for line in self.server.api.logs.get(pod["metadata"]["name"], [])[-5:])
        terminated: Object = {"exitCode": code, "reason": reason or ("Completed" if code == 0 else "Error")}
        if code:
            terminated["message"] = tail
        start_pod_status(pod, "Failed" if code else "Succeeded", terminated=terminated)
        await self.server.api.put("pods", pod)

    # ---- processes

    def _process(self, pod: Object) -> None:
        container, name = pod["spec"]["containers"][0], pod["metadata"]["name"]
        job = pod["metadata"]["labels"]["omnimri.dev/job"]
        port = self.ports.setdefault(job, _free_port())
        meeting = (
            f"{pod['spec']['hostname'].rpartition('-')[0]}-0.{pod['spec']['subdomain']}.{pod['metadata']['namespace']}.svc:{PORT}"
        )
        words = [word.replace(meeting, f"127.0.0.1:{port}") for word in [*container["command"], *container["args"]]]
        assert f"--meeting=127.0.0.1:{port}" in words, "the pod does not meet the others at rank 0's stable name"
        words[0] = sys.executable
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}
        for entry in container["env"]:
            environment[entry["name"]] = (
                entry.get("value") or {"status.podIP": "127.0.0.1"}[entry["valueFrom"]["fieldRef"]["fieldPath"]]
            )
        process = subprocess.Popen(
            words, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self.processes[name] = process
        threading.Thread(target=self._relay, args=(pod, process), daemon=True).start()

    def _relay(self, pod: Object, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.write(pod, line.decode(errors="replace").rstrip("\n"))
        code = process.wait()
        self.server.do(self._ended(pod, code if code >= 0 else 128 - code))

    async def _stop(self, pod: Object) -> None:
        process = self.processes.get(pod["metadata"]["name"])
        if process is None:
            await self._ended(pod, 143)
        elif process.poll() is None:
            process.send_signal(signal.SIGTERM)
            grace = min(self.grace_s, pod["spec"]["terminationGracePeriodSeconds"])
            self.server.loop.call_later(grace, lambda: process.poll() is None and os.killpg(process.pid, signal.SIGKILL))

    # ---- what befalls pods

    def _pod(self, index: int) -> Object:
        pods = [pod for pod in self.server.objects("pods") if pod["status"]["phase"] == "Running"]
        return next(pod for pod in pods if pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] == str(index))

    def disrupt(self, index: int, reason: str, message: str = "", kill: bool = False) -> Object:
        """Take the machine away from the pod of a node: ``reason`` is that of its condition DisruptionTarget."""
        pod = self._pod(index)
        pod["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}]
        if kill and (process := self.processes.get(pod["metadata"]["name"])):
            os.killpg(process.pid, signal.SIGKILL)
        pod["metadata"]["deletionTimestamp"] = now()
        self.server.put("pods", pod)
        return pod

    def kill(self, index: int, reason: str = "OOMKilled") -> None:
        """As the kernel does with a container beyond its memory limit."""
        pod = self._pod(index)
        self.server.do(self._ended(pod, 137, reason))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
