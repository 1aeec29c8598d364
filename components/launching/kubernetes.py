"""Jobs on a Kubernetes cluster: submit once, watch, keep the logs, go on after a lost machine, leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kubernetes.client.exceptions import ApiException

from components.errors import JobFailed
from components.launching.cluster import CONFLICT, UNPROCESSABLE, Cluster, Mirror, say
from components.launching.failures import (
    HOPELESS_IMAGE,
    RESUMABLE,
    Failure,
    FailureKind,
    Observation,
    disruption,
    failure_of,
    index_of,
    observe,
)
from components.launching.job import JobSpec, JobState, JobStatus
from components.launching.logs import Follower, KeptLog, merged, prefixed
from components.launching.rendering import (
    DIGEST,
    EVENTS,
    FOLDER,
    JOB_LABEL,
    MAIN,
    MANAGED,
    MANAGER,
    PODS,
    RUNTIMES,
    SERVICES,
    Rendered,
    RenderingName,
    Resource,
    render,
)  # fmt: skip

Object = dict[str, Any]
SHOWN_LINES = 15
SAY_EVERY_S = 10.0
STARTED = ("Running", "Succeeded", "Failed")
NO_PODS_S = 30.0
"""Time after which a job without pods is asked why."""
CONFIRM_S = 30.0
DRAIN_S = 60.0
GO_ON = "run again: it goes on from its last checkpoint"


class KubernetesLauncher:
    """Jobs in one namespace. However many are waited for, two watches follow them all.

    Args:
        cluster: where.
        rendering: the kind of object to make; ``auto`` = the best that the cluster serves.
    """

    def __init__(self, cluster: Cluster, rendering: RenderingName | Literal["auto"] = "auto") -> None:
        self.cluster, self._wanted = cluster, rendering
        self._mirrors: dict[Resource, Mirror] = {}
        self._listeners: dict[str, list[threading.Event]] = {}
        self._lock = threading.Lock()

    @property
    def rendering(self) -> RenderingName:
        """What jobs become here."""
        if self._wanted == "auto":
            self._wanted = self.cluster.renderings()[0]
        return self._wanted

    def submit(self, job: JobSpec) -> KubernetesHandle:
        """Start a job, or find it: by name, so that a process started anew waits for the job that it had begun.

        A job that failed before is removed and started again. One that another process submits at the same moment is one job.

        Raises:
            BadInput: the job cannot be rendered.
            JobFailed: forbidden, no answer, or the name belongs to something that is not ours.
        """
        rendered = render(job, self.rendering, self.cluster.namespace)
        found = self._existing(rendered)
        main = found or self._create(rendered)
        try:
            self._own(rendered, main)
        except JobFailed as error:  # half a job would wait for its other half, and hold its machines meanwhile
            if found is None and error.where != self.cluster.api.configuration.host:
                self.cluster.delete(main)
            raise
        return KubernetesHandle(self, job, rendered, main)

    def jobs(self) -> list[JobStatus]:
        """Every job of ours in the namespace, newest last."""
        pods, _ = self.cluster.collection(PODS)
        statuses = []
        for main in self._mains():
            key = main["metadata"]["labels"][JOB_LABEL]
            statuses.append(_status(key, main, [pod for pod in pods if pod["metadata"]["labels"].get(JOB_LABEL) == key]))
        return sorted(statuses, key=lambda status: status.created)

    def clean_up(self) -> list[str]:
        """Remove jobs that ended, and services and runtimes whose job is gone."""
        removed, keys = [], set()
        for main in self._mains():
            key = main["metadata"]["labels"][JOB_LABEL]
            if observe(main, []).state.ended:
                self.cluster.delete(main)
                removed.append(key)
            keys.add(key)
        for resource in (SERVICES, RUNTIMES) if "trainjob" in self.cluster.renderings() else (SERVICES,):
            for left in self.cluster.collection(resource)[0]:
                if left["metadata"]["labels"][JOB_LABEL] not in keys:
                    self.cluster.delete(left)
                    removed.append(left["metadata"]["name"])
        return removed

    def find(self, key: str) -> KubernetesHandle:
        """A job by its name.

        Raises:
            JobFailed: there is none.
        """
        for main in self._mains():
            if main["metadata"]["labels"][JOB_LABEL] == key:
                folder = Path(main["metadata"].get("annotations", {}).get(FOLDER, "."))
                identity = main["metadata"].get("annotations", {}).get(DIGEST, "")
                job = JobSpec(key, "", (), processes=1, folder=folder, identity=identity)
                return KubernetesHandle(self, job, Rendered(self._rendering_of(main), main), main, name=key)
        raise JobFailed("no such job", where=key, remedy="omnimri jobs list")

    def stop(self) -> None:
        """End the watches; jobs go on."""
        for mirror in self._mirrors.values():
            mirror.stop()

    # ---- used by handles

    def mirror(self, resource: Resource) -> Mirror:
        """The watch over a kind of object, started when first asked for."""
        with self._lock:
            if resource not in self._mirrors:
                self._mirrors[resource] = Mirror(self.cluster, resource, self._changed)
            mirror = self._mirrors[resource]
        mirror.current.wait()
        if mirror.fault is not None:
            raise mirror.fault
        return mirror

    @contextlib.contextmanager
    def listening(self, key: str) -> Iterator[threading.Event]:
        """An event that is set whenever something of the job changes."""
        event = threading.Event()
        with self._lock:
            self._listeners.setdefault(key, []).append(event)
        try:
            yield event
        finally:
            with self._lock:
                self._listeners[key].remove(event)

    def _changed(self, key: str) -> None:
        with self._lock:
            events = list(self._listeners.get(key, []))
        for event in events:
            event.set()

    # ---- making

    def _mains(self) -> list[Object]:
        return [main for name in self.cluster.renderings() for main in self.cluster.collection(MAIN[name])[0]
                if not _made_by_another_controller(main)]  # fmt: skip

    @staticmethod
    def _rendering_of(main: Object) -> RenderingName:
        return next(name for name, resource in MAIN.items() if resource.kind == main["kind"])

    def _existing(self, rendered: Rendered) -> Object | None:
        """The job as it is there already; what failed or is being deleted is waited out first."""
        name = rendered.main["metadata"]["name"]
        found = self.cluster.get(MAIN[rendered.rendering], name)
        if found is None:
            return None
        found.setdefault("kind", rendered.main["kind"])
        if found["metadata"].get("labels", {}).get(MANAGED) != MANAGER:
            raise JobFailed("something of this name exists that OmniMRI did not make", where=name, remedy="rename or remove it")
        if observe(found, []).state is JobState.failed or found["metadata"].get("deletionTimestamp"):
            self.remove(found)
            return None
        return found

    def _create(self, rendered: Rendered) -> Object:
        try:
            for thing in rendered.before:
                self.cluster.apply(thing)
            return {**self.cluster.apply(rendered.main), "kind": rendered.main["kind"]}
        except ApiException as error:
            found = self.cluster.get(MAIN[rendered.rendering], rendered.main["metadata"]["name"])
            if (
                error.status in (CONFLICT, UNPROCESSABLE)
                and found is not None
                and found["metadata"].get("labels", {}).get(MANAGED) == MANAGER
            ):
                return {**found, "kind": rendered.main["kind"]}  # another process was first: it is the same job
            raise _refused(error, rendered.main) from None

    def _own(self, rendered: Rendered, main: Object) -> None:
        """Apply what belongs to the job, owned by it: whoever deletes the job deletes all of it."""
        owner = {
            "apiVersion": rendered.main["apiVersion"], "kind": rendered.main["kind"], "name": main["metadata"]["name"],
            "uid": main["metadata"]["uid"], "controller": False, "blockOwnerDeletion": False,
        }  # fmt: skip
        for thing in (*rendered.before, *rendered.after):
            try:
                self.cluster.apply({**thing, "metadata": {**thing["metadata"], "ownerReferences": [owner]}})
            except ApiException as error:
                if error.status != CONFLICT:
                    raise _refused(error, thing) from None

    def remove(self, main: Object) -> None:
        """Delete a job with all its pods, and wait until they are gone."""
        resource = MAIN[self._rendering_of(main)]
        key, uid = main["metadata"]["labels"][JOB_LABEL], main["metadata"]["uid"]
        with self.listening(key) as changed:
            mirror = self.mirror(resource)
            self.cluster.delete(main)
            while True:
                changed.clear()
                left = [thing for thing in mirror.of(key) if thing["metadata"]["uid"] == uid]
                if not left:  # deleted in the foreground: its pods went before it
                    found = self.cluster.get(resource, main["metadata"]["name"])
                    if found is None or found["metadata"]["uid"] != uid:
                        return
                changed.wait(CONFIRM_S)
                self.mirror(resource)


@dataclass
class KubernetesHandle:
    """A job on the cluster."""

    launcher: KubernetesLauncher
    job: JobSpec
    rendered: Rendered
    main: Object
    name: str = ""
    _followers: dict[str, tuple[Follower, KeptLog]] = field(default_factory=dict)
    _told: str = ""
    _mourned: set[str] = field(default_factory=set)
    _said_at: float = 0.0
    _confirmed_at: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> str:
        """Its name."""
        return self.name or self.job.key

    def status(self) -> JobStatus:
        """Where it is now."""
        pods, _ = self.launcher.cluster.collection(PODS, f"{JOB_LABEL}={self.key}")
        main = self.launcher.cluster.get(MAIN[self.rendered.rendering], self.key)
        return _status(self.key, main, pods) if main else JobStatus(self.key, JobState.gone)

    def wait(self) -> None:
        """Wait for success; after an eviction, a preemption or a lost machine that ended the job, submit it again.

        Ctrl-C cancels the job. A process that ends otherwise leaves it running, and the next one finds it.

        Raises:
            JobFailed: with what happened, the last lines of the log and what to do.
        """
        resumed = 0
        try:
            with self.launcher.listening(self.key) as changed:
                while True:
                    observation = self._until_end(changed)
                    if observation.state is JobState.succeeded:
                        self._drain()
                        self._write_log()
                        return
                    failure = observation.failure
                    if failure is None or failure.kind not in RESUMABLE or resumed == self.job.resumptions:
                        raise self._failed(observation)
                    resumed += 1
                    say(f"{self.job.name}: {failure.what}; going on from its last checkpoint ({resumed} of {self.job.resumptions})")
                    self._again()
        except KeyboardInterrupt:
            self.cancel()
            raise
        finally:
            for follower, log in self._followers.values():
                follower.stop()
                log.close()

    def cancel(self) -> None:
        """Delete the job with all that was made for it, and wait until its processes have stopped; nothing else is touched."""
        self.launcher.remove(self.main)

    def logs(self) -> str:
        """The kept log; where there is none (another machine waited for it), what the cluster still has."""
        kept = "\n".join(self._kept())
        return kept or "\n".join(self.stream(follow=False))

    def stream(self, follow: bool = True) -> Iterator[str]:
        """Lines of all pods as the cluster has them, each after its rank; with ``follow``, until the job ends."""
        lines: queue.Queue[str | None] = queue.Queue()
        followers: dict[str, Follower] = {}
        nodes = _status(self.key, self.main, []).nodes
        processes = int((re.findall(r"--processes=(\d+)", json.dumps(self.main)) or ["1"])[0])

        def begin(pod: Object) -> None:
            followers[pod["metadata"]["uid"]] = Follower(
                self.launcher.cluster, pod, lambda: not follow or self._ended(pod),
                lambda line: lines.put(prefixed(line, index_of(pod), nodes, processes)),
            )  # fmt: skip
            followers[pod["metadata"]["uid"]].start()

        def attend() -> None:
            try:
                with self.launcher.listening(self.key) as changed:
                    ended = False
                    while not ended:
                        changed.clear()
                        observation, pods = self._observe()
                        for pod in pods:
                            if pod["metadata"]["uid"] not in followers and pod["status"].get("phase") in STARTED:
                                begin(pod)
                        ended = not follow or observation.state.ended
                        if not ended:
                            changed.wait(CONFIRM_S)
                for follower in followers.values():
                    follower.join()
            finally:
                lines.put(None)

        threading.Thread(target=attend, daemon=True).start()
        yield from iter(lines.get, None)

    # ---- waiting

    def _until_end(self, changed: threading.Event) -> Observation:
        """Sleep until something changes; return when the job has ended, or when what keeps it from starting has lasted too long."""
        begun, trouble, since = time.monotonic(), None, 0.0
        while True:
            changed.clear()
            observation, pods = self._observe()
            self._keep_logs(pods)
            self._tell_lost(pods)
            self._tell(observation)
            if observation.state.ended:
                return observation
            now = time.monotonic()
            found = observation.trouble
            if observation.state is JobState.pending and not pods and now - begun > min(NO_PODS_S, self.job.pending_limit_s):
                found = self._refused_pods() or found
            if found is None or trouble is None or found.kind is not trouble.kind:
                since = now
            trouble = found
            if trouble is not None and now - since >= self._limit(trouble):
                self.cancel()
                return Observation(JobState.failed, failure=trouble)
            wake = since + self._limit(trouble) - now if trouble else NO_PODS_S + 1 if not pods else None
            changed.wait(wake)

    def _limit(self, trouble: Failure) -> float:
        """How long a trouble may last, seconds."""
        if trouble.kind is FailureKind.unschedulable:
            return self.job.pending_limit_s
        if trouble.kind is FailureKind.image and not any(reason in trouble.what for reason in HOPELESS_IMAGE):
            return self.job.image_limit_s
        return 0.0 if trouble.kind is FailureKind.image else min(self.job.image_limit_s, NO_PODS_S)

    def _observe(self) -> tuple[Observation, list[Object]]:
        """The job as the watches show it. Before it is called gone, the server is asked."""
        resource, uid = MAIN[self.rendered.rendering], self.main["metadata"]["uid"]
        seen = [thing for thing in self.launcher.mirror(resource).of(self.key) if thing["metadata"]["uid"] == uid]
        mirror = self.launcher.mirror(PODS)
        pods = [*mirror.departed(self.key), *mirror.of(self.key)]
        if seen:
            self._confirmed_at = 0.0
            main: Object | None = seen[0]
        elif time.monotonic() - self._confirmed_at > CONFIRM_S:
            self._confirmed_at = time.monotonic()
            main = self.launcher.cluster.get(resource, self.main["metadata"]["name"])
            main = main if main and main["metadata"]["uid"] == uid else None
        else:
            main = self.main  # just made: the watch does not know it yet
        return observe(main, pods), pods

    def _refused_pods(self) -> Failure | None:
        """Why no pod was made, as the events tell: quota, admission, a missing service account."""
        events, _ = self.launcher.cluster.collection(EVENTS, selector="", fields="type=Warning")
        ours = [event for event in events if event.get("involvedObject", {}).get("name", "").startswith(self.key)]
        if not ours:
            return None
        message = ours[-1].get("message", "")
        if "exceeded quota" in message:
            return Failure(FailureKind.unschedulable, message, "wait for other jobs, lower nodes or memory, or raise the quota")
        return Failure(FailureKind.configuration, message, "see the events: kubectl events --for job/" + self.key)

    def _tell_lost(self, pods: list[Object]) -> None:
        """Say of every pod once that its machine was taken away; the cluster replaces it, and torchrun lets the new one in."""
        for pod in pods:
            kind, uid = disruption(pod), pod["metadata"]["uid"]
            if kind is not None and uid not in self._mourned:
                self._mourned.add(uid)
                failure = failure_of(pod)
                say(f"{self.job.name}: {failure.what if failure else kind}; training goes on from its last checkpoint")

    def _tell(self, observation: Observation) -> None:
        text = f"{self.job.name}: {observation.state}" + (f": {observation.detail}" if observation.detail else "")
        if text != self._told:
            self._told = text
            say(text)

    def _failed(self, observation: Observation) -> JobFailed:
        self._drain()
        self._write_log()
        if observation.state is JobState.gone:
            return JobFailed("was removed by somebody else", where=self.job.name, remedy=GO_ON)
        failure = observation.failure or Failure(FailureKind.program, "failed", "see the log")
        if failure.kind in RESUMABLE:
            return JobFailed(f"{failure.what}, {self.job.resumptions + 1} times", where=self.job.name, remedy=GO_ON)
        if failure.kind is not FailureKind.program:
            return JobFailed(failure.what, where=self.job.name, remedy=failure.remedy)
        tail = "\n".join(self._kept()[-SHOWN_LINES:])
        return JobFailed(f"{failure.what}\n{tail}", where=self.job.name, remedy=f"the whole log: {self._log_file}")

    def _again(self) -> None:
        """The same job, from its last checkpoint."""
        self._drain()
        self.launcher.remove(self.main)
        handle = self.launcher.submit(self.job)
        self.main, self._confirmed_at = handle.main, time.monotonic()

    # ---- logs

    @property
    def _log_file(self) -> Path:
        return self.job.folder / f"{self.job.name}.log"

    @property
    def _log_folder(self) -> Path:
        return self.job.folder / "logs"

    def _keep_logs(self, pods: list[Object]) -> None:
        """Follow every pod that has begun to write."""
        for pod in pods:
            uid = pod["metadata"]["uid"]
            if uid in self._followers or disruption(pod) or pod.get("status", {}).get("phase") not in STARTED:
                continue
            log = KeptLog(self._log_folder, pod)
            follower = _KeepingFollower(self.launcher.cluster, pod, log, self)
            self._followers[uid] = (follower, log)
            follower.start()

    def _ended(self, pod: Object) -> bool:
        """Whether a pod will write nothing more."""
        now = [one for one in self.launcher.mirror(PODS).of(self.key) if one["metadata"]["uid"] == pod["metadata"]["uid"]]
        return not now or now[0]["status"].get("phase") in ("Succeeded", "Failed")

    def _drain(self) -> None:
        """Let the followers read what is left. The server is asked for the pods: their watch may be behind that of the job."""
        self._keep_logs(self.launcher.cluster.collection(PODS, f"{JOB_LABEL}={self.key}")[0])
        until = time.monotonic() + DRAIN_S
        for follower, _ in self._followers.values():
            follower.join(max(until - time.monotonic(), 0.1))

    def _kept(self) -> list[str]:
        return list(merged(self._log_folder, self.job.nodes, self.job.processes_per_node))

    def _write_log(self) -> None:
        lines = self._kept()
        if lines:
            self._log_file.write_text("\n".join(lines) + "\n")

    def _progress(self, index: int, line: str) -> None:
        """Show rank 0's progress now and then."""
        text = line.partition(" ")[2].removeprefix("rank 0: ")
        if text.startswith(f"{self.job.name} ") and time.monotonic() - self._said_at > SAY_EVERY_S:
            self._said_at = time.monotonic()
            say(text)


class _KeepingFollower(Follower):
    """A follower that writes the kept log, once no other process does."""

    def __init__(self, cluster: Cluster, pod: Object, log: KeptLog, handle: KubernetesHandle) -> None:
        super().__init__(cluster, pod, lambda: handle._ended(pod), self._write)
        self.log, self.handle = log, handle

    def run(self) -> None:
        """Wait for one's turn, go on where the file ends."""
        pauses = self.cluster.patience.pauses()
        while not self.log.mine():
            if self.ended() or self._halt.wait(next(pauses)):
                return
        self.place = self.log.place()
        super().run()

    def _write(self, line: str) -> None:
        self.log.write(line)
        self.handle._progress(index_of(self.pod), line)


def _status(key: str, main: Object, pods: list[Object]) -> JobStatus:
    observation = observe(main, pods)
    detail = observation.failure.what if observation.failure else observation.detail
    spec = main.get("spec", {})
    nodes = spec.get("completions") or spec.get("trainer", {}).get("numNodes") or 1
    if "replicatedJobs" in spec:
        nodes = spec["replicatedJobs"][0]["template"]["spec"]["completions"]
    return JobStatus(key, observation.state, detail, nodes, main["metadata"].get("creationTimestamp") or "")


def _made_by_another_controller(main: Object) -> bool:
    """Whether a Job belongs to a JobSet, or a JobSet to a TrainJob: they carry our labels too."""
    return any(owner.get("controller") for owner in main["metadata"].get("ownerReferences") or [])


def _refused(error: ApiException, thing: Object) -> JobFailed:
    try:
        message = json.loads(error.body or "{}").get("message", "")
    except ValueError:
        message = str(error.reason)
    where = f"{thing['kind']} {thing['metadata']['name']}"
    if error.status == CONFLICT:
        return JobFailed(
            f"another manager owns a field: {message}", where=where, remedy="remove it: omnimri jobs cancel, or kubectl delete"
        )
    return JobFailed(
        f"the API server refuses it ({error.status}): {message}", where=where, remedy="check the settings under kubernetes"
    )
