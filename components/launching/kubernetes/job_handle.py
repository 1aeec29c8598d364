"""A job on a cluster, waited for: told as it goes, gone on with after a lost machine, given up with the reason and the remedy."""

from __future__ import annotations

import json
import queue
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from components.errors import JobFailed
from components.launching.job import JobSpec, JobState, JobStatus
from components.launching.job_log import STARTED, JobLog
from components.launching.kubernetes.api_client import say
from components.launching.kubernetes.failures import (
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
from components.launching.kubernetes.manifests import EVENTS, JOB_LABEL, MAIN, PODS, Rendered
from components.launching.kubernetes.pod_logs import Follower, prefixed

if TYPE_CHECKING:
    from components.launching.kubernetes.launcher import KubernetesLauncher

Object = dict[str, Any]
SHOWN_LINES = 15
NO_PODS_S = 30.0
"""Time after which a job without pods is asked why."""
CONFIRM_S = 30.0
"""Time after which the server is asked whether a job that no watch shows is gone."""
GO_ON = "run again: it goes on from its last checkpoint"


@dataclass
class KubernetesHandle:
    """A job on the cluster."""

    launcher: KubernetesLauncher
    job: JobSpec
    rendered: Rendered
    main: Object
    name: str = ""
    _told: str = ""
    _mourned: set[str] = field(default_factory=set)
    _confirmed_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.log = JobLog(self.launcher.watches, self.job, self.key)

    @property
    def key(self) -> str:
        """Its name."""
        return self.name or self.job.key

    def status(self) -> JobStatus:
        """Where it is now."""
        pods, _ = self.launcher.cluster.collection(PODS, f"{JOB_LABEL}={self.key}")
        main = self.launcher.cluster.get(MAIN[self.rendered.rendering], self.key)
        return status_of(self.key, main, pods) if main else JobStatus(self.key, JobState.gone)

    def wait(self) -> None:
        """Wait for success; after an eviction, a preemption or a lost machine that ended the job, submit it again.

        Ctrl-C cancels the job. A process that ends otherwise leaves it running, and the next one finds it.

        Raises:
            JobFailed: with what happened, the last lines of the log and what to do.
        """
        resumed = 0
        try:
            with self.launcher.watches.listening(self.key) as changed:
                while True:
                    observation = self._until_end(changed)
                    if observation.state is JobState.succeeded:
                        self.log.drain()
                        self.log.write()
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
            self.log.close()

    def cancel(self) -> None:
        """Delete the job with all that was made for it, and wait until its processes have stopped; nothing else is touched."""
        self.launcher.remove(self.main)

    def logs(self) -> str:
        """The kept log; where there is none (another machine waited for it), what the cluster still has."""
        kept = "\n".join(self.log.lines())
        return kept or "\n".join(self.stream(follow=False))

    def stream(self, follow: bool = True) -> Iterator[str]:
        """Lines of all pods as the cluster has them, each after its rank; with ``follow``, until the job ends."""
        lines: queue.Queue[str | None] = queue.Queue()
        followers: dict[str, Follower] = {}
        nodes = status_of(self.key, self.main, []).nodes
        processes = int((re.findall(r"--processes=(\d+)", json.dumps(self.main)) or ["1"])[0])

        def begin(pod: Object) -> None:
            followers[pod["metadata"]["uid"]] = Follower(
                self.launcher.cluster,
                pod,
                lambda: not follow or self.log.ended(pod),
                lambda line: lines.put(prefixed(line, index_of(pod), nodes, processes)),
            )
            followers[pod["metadata"]["uid"]].start()

        def attend() -> None:
            try:
                with self.launcher.watches.listening(self.key) as changed:
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
            self.log.follow(pods)
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
        seen = [thing for thing in self.launcher.watches.mirror(resource).of(self.key) if thing["metadata"]["uid"] == uid]
        mirror = self.launcher.watches.mirror(PODS)
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
        self.log.drain()
        self.log.write()
        if observation.state is JobState.gone:
            return JobFailed("was removed by somebody else", where=self.job.name, remedy=GO_ON)
        failure = observation.failure or Failure(FailureKind.program, "failed", "see the log")
        if failure.kind in RESUMABLE:
            return JobFailed(f"{failure.what}, {self.job.resumptions + 1} times", where=self.job.name, remedy=GO_ON)
        if failure.kind is not FailureKind.program:
            return JobFailed(failure.what, where=self.job.name, remedy=failure.remedy)
        tail = "\n".join(self.log.lines()[-SHOWN_LINES:])
        return JobFailed(f"{failure.what}\n{tail}", where=self.job.name, remedy=f"the whole log: {self.log.path}")

    def _again(self) -> None:
        """The same job, from its last checkpoint."""
        self.log.drain()
        self.launcher.remove(self.main)
        handle = self.launcher.submit(self.job)
        self.main, self._confirmed_at = handle.main, time.monotonic()


def status_of(key: str, main: Object, pods: list[Object]) -> JobStatus:
    """A job as a line of a list."""
    observation = observe(main, pods)
    detail = observation.failure.what if observation.failure else observation.detail
    spec = main.get("spec", {})
    nodes = spec.get("completions") or spec.get("trainer", {}).get("numNodes") or 1
    if "replicatedJobs" in spec:
        nodes = spec["replicatedJobs"][0]["template"]["spec"]["completions"]
    return JobStatus(key, observation.state, detail, nodes, main["metadata"].get("creationTimestamp") or "")
