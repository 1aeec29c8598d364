"""Scheduler and kubelet for tests: pods run as processes on this machine, or follow a script of a few lines.

A process gets the pod's command and environment, including the downward API. Host names of other pods resolve to this machine, and
every job has its own port for the rendezvous. Volumes are folders of this machine at the same paths. Each pod runs on a machine of
its own, ``machine-<index of the node>``, which can be drained, rebooted or lose its power.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from components.launching.kubernetes.pod_entrypoint import PORT
from components.provenance import REPOSITORY
from tests.doubles.apiserver import Object, RunningServer, condition, now
from tests.doubles.controllers import FINISHED_PHASES, INDEX, set_pod_status
from tests.helpers.ports import free_port


@dataclass
class ScriptedPod:
    """A pod that writes lines and exits; ``exit_code`` None = it runs until it is stopped."""

    lines: tuple[str, ...] = ()
    exit_code: int | None = 0
    reason: str = ""
    pause_s: float = 0.0
    termination_log: str = ""
    """Content of ``/dev/termination-log``; empty = the end of the log takes its place."""


@dataclass
class BlockedPod:
    """A pod that does not start: its container waits for a reason, or (``unschedulable``) no machine has room for it.

    Attributes:
        event: reason of the event that carries the message, as the kubelet and volume controllers record it: the pod's own status
            says only "ContainerCreating". event_type: ``Normal`` or ``Warning``.
    """

    reason: str = "ContainerCreating"
    message: str = ""
    unschedulable: bool = False
    event: str = ""
    event_type: str = "Warning"


@dataclass
class RefusedPod:
    """A pod that the kubelet refuses after the scheduler has chosen its node: it fails without ever having a container."""

    reason: str
    message: str


PodBehavior = ScriptedPod | BlockedPod | RefusedPod | None
"""None: run the pod's command as a process."""


@dataclass
class Kubelet:
    """Runs the pods of a server; ``choose_behavior`` decides how each one behaves."""

    server: RunningServer
    choose_behavior: Callable[[Object], PodBehavior] = lambda pod: None
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=dict)
    grace_s: float = 60.0
    claims: set[str] | None = None
    """Names of the PersistentVolumeClaims that exist; None = all."""
    secrets: set[str] | None = None
    """Names of the Secrets that exist; None = all."""
    schedulers: frozenset[str] = frozenset({"default-scheduler", "scheduler-plugins", "scheduler-plugins-scheduler", "volcano"})
    """Names of the schedulers that run."""
    claim_templates: set[str] | None = None
    """Names of the ResourceClaimTemplates that exist; None = all."""
    spare_machines: bool = True
    """True = there is another machine for a job that excludes one."""

    def __enter__(self) -> Kubelet:
        self._without_power: set[str] = set()
        self._started_names: set[str] = set()
        self._stopping_names: set[str] = set()
        self._script_tasks: list[asyncio.Task[None]] = []
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
                        if pod["status"]["phase"] not in FINISHED_PHASES and name not in self._stopping_names:
                            self._stopping_names.add(name)
                            await self._stop(pod)
                    elif name not in self._started_names:
                        self._started_names.add(name)
                        await self._start(pod)
            async with api.changed:
                if seen == api.store.version:
                    await api.changed.wait()

    async def _start(self, pod: Object) -> None:
        api, behavior = self.server.api, self.choose_behavior(pod)
        if pod["spec"].get("schedulerName", "default-scheduler") not in self.schedulers:
            return
        behavior = self._find_missing_secret(pod) or behavior
        unschedulable = self._find_no_machine(pod, behavior)
        if unschedulable:
            pod["status"]["conditions"] = [condition("PodScheduled", "Unschedulable", unschedulable, "False")]
            await api.put("pods", pod)
            return
        pod["spec"]["nodeName"] = choose_machine(pod)
        pod["status"]["conditions"] = [condition("PodScheduled")]
        if isinstance(behavior, RefusedPod):
            pod["status"].update(phase="Failed", reason=behavior.reason, message=behavior.message)
            await api.put("pods", pod)
            return
        waiting = {"reason": "ContainerCreating"}
        if isinstance(behavior, BlockedPod):
            waiting = {"reason": behavior.reason} | ({} if behavior.event else {"message": behavior.message})
        set_pod_status(pod, "Pending", waiting=waiting)
        await api.put("pods", pod)
        if isinstance(behavior, BlockedPod):
            if behavior.event:
                await api.record_event(pod, behavior.event, behavior.message, behavior.event_type)
            return
        self.started.append(pod["metadata"]["name"])
        set_pod_status(pod, "Running", running={"startedAt": now()})
        await api.put("pods", pod)
        if isinstance(behavior, ScriptedPod):
            self._script_tasks.append(asyncio.create_task(self._run_script(pod, behavior)))
        else:
            self._start_process(pod)

    def _find_no_machine(self, pod: Object, behavior: PodBehavior) -> str:
        """Return why the scheduler finds no machine, in its words, or an empty string."""
        if isinstance(behavior, BlockedPod) and behavior.unschedulable:
            return behavior.message
        templates = {claim["resourceClaimTemplateName"] for claim in pod["spec"].get("resourceClaims", [])}
        if self.claim_templates is not None and templates - self.claim_templates:
            return f'pod "omnimri/{pod["metadata"]["name"]}": ResourceClaim not created yet'
        sources = [volume["persistentVolumeClaim"] for volume in pod["spec"]["volumes"] if "persistentVolumeClaim" in volume]
        missing = [source["claimName"] for source in sources if self.claims is not None and source["claimName"] not in self.claims]
        if not missing and not self.spare_machines and choose_machine(pod).startswith("spare"):
            return "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 Insufficient cpu."
        return f'0/2 nodes are available: persistentvolumeclaim "{missing[0]}" not found. not found' if missing else ""

    def _find_missing_secret(self, pod: Object) -> BlockedPod | None:
        """Return how a pod waits for a Secret that does not exist, or None."""
        sources = [source["secretRef"]["name"] for source in pod["spec"]["containers"][0].get("envFrom", [])]
        missing = [name for name in sources if self.secrets is not None and name not in self.secrets]
        return BlockedPod("CreateContainerConfigError", f'secret "{missing[0]}" not found') if missing else None

    def write(self, pod: Object, text: str) -> None:
        self.server.api.logs.setdefault(pod["metadata"]["name"], []).append(f"{now(micro=True)} {text}")

    async def _run_script(self, pod: Object, script: ScriptedPod) -> None:
        for line in script.lines:
            self.write(pod, prefix_rank(pod, line))
            await asyncio.sleep(script.pause_s)
        if script.exit_code is not None:
            await self._finish(pod, script.exit_code, script.reason, script.termination_log)

    async def _finish(self, pod: Object, code: int, reason: str = "", message: str = "") -> None:
        if pod["status"]["phase"] in FINISHED_PHASES:
            return
        tail = "\n".join(line.partition(" ")[2] for line in self.server.api.logs.get(pod["metadata"]["name"], [])[-5:])
        terminated: Object = {"exitCode": code, "reason": reason or ("Completed" if code == 0 else "Error")}
        if code:
            terminated["message"] = message or tail
        set_pod_status(pod, "Failed" if code else "Succeeded", terminated=terminated)
        await self.server.api.put("pods", pod)

    # ---- processes

    def _start_process(self, pod: Object) -> None:
        container, name = pod["spec"]["containers"][0], pod["metadata"]["name"]
        job = pod["metadata"]["labels"]["omnimri.dev/job"]
        port = self.ports.setdefault(job, free_port())
        rendezvous = (
            f"{pod['spec']['hostname'].rpartition('-')[0]}-0.{pod['spec']['subdomain']}.{pod['metadata']['namespace']}.svc:{PORT}"
        )
        command = [word.replace(rendezvous, f"127.0.0.1:{port}") for word in [*container["command"], *container["args"]]]
        assert f"--meeting=127.0.0.1:{port}" in command, "the pod does not use the stable name of node 0 as its rendezvous endpoint"
        command[0] = sys.executable
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}
        for entry in container["env"]:
            environment[entry["name"]] = entry["value"] if "value" in entry else read_field(pod, entry["valueFrom"]["fieldRef"])
        process = subprocess.Popen(
            command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self.processes[name] = process
        threading.Thread(target=self._forward_output, args=(pod, process), daemon=True).start()

    def _forward_output(self, pod: Object, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.write(pod, line.decode(errors="replace").rstrip("\n"))
        code = process.wait()
        self.server.run(self._finish(pod, code if code >= 0 else 128 - code))

    async def _stop(self, pod: Object) -> None:
        if pod["spec"].get("nodeName") in self._without_power:
            return  # the pod stays as it is: nobody on its machine can confirm its end
        process = self.processes.get(pod["metadata"]["name"])
        if process is None:
            await self._finish(pod, 143)
        elif process.poll() is None:
            process.send_signal(signal.SIGTERM)
            grace = min(self.grace_s, pod["spec"]["terminationGracePeriodSeconds"])
            self.server.loop.call_later(grace, lambda: process.poll() is None and os.killpg(process.pid, signal.SIGKILL))

    # ---- interface for tests

    def running_pod(self, index: int) -> Object:
        """Return the running pod of a node."""
        pods = [pod for pod in self.server.objects("pods") if pod["status"]["phase"] == "Running"]
        return next(pod for pod in pods if pod["metadata"]["labels"][INDEX] == str(index))

    def disrupt(self, index: int, reason: str, message: str = "", kill: bool = False) -> Object:
        """Take the machine away from the pod of a node; ``reason`` becomes that of its condition DisruptionTarget."""
        pod = self.running_pod(index)
        if kill and (process := self.processes.get(pod["metadata"]["name"])):
            os.killpg(process.pid, signal.SIGKILL)
        self.server.run(self.server.api.disrupt(pod, reason, message))
        return pod

    def cut_power(self, index: int) -> Object:
        """Cut the power of a pod's machine; after five minutes the taint manager marks the pod, which then stays as it is."""
        pod = self.stop_reporting(index)
        self._without_power.add(pod["spec"]["nodeName"])
        message = "Taint manager: deleting due to NoExecute taint"
        self.server.run(self.server.api.disrupt(pod, "DeletionByTaintManager", message))
        return pod

    def stop_reporting(self, index: int) -> Object:
        """Let a pod's machine fall silent: after 50 s the node controller calls its pods not ready, and changes nothing else."""
        pod = self.running_pod(index)
        ready = [condition("Ready", value="False"), condition("ContainersReady")]
        pod["status"]["conditions"] = [*pod["status"].get("conditions", []), *ready]
        self.server.put("pods", pod)
        return pod

    def confirm_out_of_service(self, name: str) -> None:
        """Taint a machine as out of service: the pod garbage collector then ends its pods."""

        async def end() -> None:
            for pod in [pod for pod in self.server.objects("pods") if pod["spec"].get("nodeName") == name]:
                pod["status"]["phase"] = "Failed"
                await self.server.api.put("pods", pod)

        self.server.run(end())

    def reboot(self, index: int, is_known: bool = False) -> None:
        """Restart a pod's machine; no disruption is recorded.

        The kubelet reports status 137 for a container that it no longer knows, or 255 of containerd if that still knows it.
        """
        status, reason = (255, "Unknown") if is_known else (137, "ContainerStatusUnknown")
        self.server.run(self._finish(self.running_pod(index), status, reason))

    def kill_sidecar(self, index: int) -> None:
        """End a container that a webhook has injected into the pod of a node; the pod runs on."""
        pod = self.running_pod(index)
        sidecar = {"name": "istio-proxy", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
        pod["status"]["containerStatuses"] = [sidecar, *pod["status"]["containerStatuses"]]
        self.server.put("pods", pod)

    def kill(self, index: int) -> None:
        """End a pod by SIGKILL, as a pod that does not stop within its grace period."""
        self.server.run(self._finish(self.running_pod(index), 137, "Error"))

    def finish(self, index: int, exit_code: int = 0, reason: str = "") -> None:
        """End the pod of a node with an exit code."""
        self.server.run(self._finish(self.running_pod(index), exit_code, reason))

    def kill_out_of_memory(self, index: int) -> None:
        """End the pod of a node as the kernel ends a container that exceeds its memory limit."""
        self.finish(index, 137, "OOMKilled")


def prefix_rank(pod: Object, line: str) -> str:
    """Name the rank as torchrun does where there are several processes; here, the index of the pod is the rank."""
    arguments = [argument for argument in pod["spec"]["containers"][0]["args"] if argument in ("--nodes=1", "--processes=1")]
    return line if len(arguments) == 2 else f"rank {pod['metadata']['labels'][INDEX]}: {line}"


def read_field(pod: Object, reference: Object) -> str:
    """Return a field of a pod as the downward API does: a label that does not exist is an empty text."""
    path = reference["fieldPath"]
    if path == "status.podIP":
        return "127.0.0.1"
    kind, _, name = path.removeprefix("metadata.").removesuffix("']").partition("['")
    return str(pod["metadata"].get(kind, {}).get(name, ""))


def choose_machine(pod: Object) -> str:
    """Return the machine of a pod: one for each node of the job, or a spare one if the job avoids that."""
    affinity = pod["spec"].get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    excluded = [name for t in affinity.get("nodeSelectorTerms", []) for e in t["matchExpressions"] for name in e["values"]]
    own = f"machine-{pod['metadata']['labels'].get(INDEX, 0)}"
    return own if own not in excluded else f"spare-{own}"
