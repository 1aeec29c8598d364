"""Wait for a Kubernetes job: stream progress, resubmit after node loss, raise a diagnosed error."""

from __future__ import annotations

import json
import queue
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from components.errors import JobFailed
from components.launching.job import JobSpec, JobState, JobStatus
from components.launching.kubernetes.api_client import Cluster, report
from components.launching.kubernetes.failures import (
    FINISHED_PHASES,
    PERMANENT_IMAGE_REASONS,
    RESUMABLE,
    RESUME_HINT,
    Failure,
    FailureKind,
    Observation,
    diagnose_failure,
    disruption_kind,
    node_index,
    observe,
    pod_phase,
)
from components.launching.kubernetes.job_log import STARTED_PHASES, JobLog
from components.launching.kubernetes.job_watch import Informers
from components.launching.kubernetes.manifests import EVENTS, JOB_LABEL, MAIN_RESOURCES, PODS, RenderedJob
from components.launching.kubernetes.pod_logs import LogFollower, prefix_rank

Object = dict[str, Any]
TAIL_LINES = 15
MISSING_PODS_S = 30.0
"""Time without pods after which the events are searched for the reason."""
CONFIRM_INTERVAL_S = 30.0
"""Interval at which the API server is asked whether a job that the informer does not know still exists."""
DIAGNOSIS_TIMEOUT_S = 10.0
"""Maximum waiting time for the final status of the pods of a failed job."""
DIAGNOSIS_INTERVAL_S = 1.0
"""Longest interval between two lists of the pods of a failed job."""


class JobController(Protocol):
    """The operations of a launcher that a handle needs."""

    cluster: Cluster
    informers: Informers

    def submit(self, job: JobSpec) -> KubernetesHandle:
        """Start a job, or attach to it if it runs already."""

    def remove(self, main: Object) -> None:
        """Delete a job with all its pods, and wait until they no longer exist."""


@dataclass
class KubernetesHandle:
    """Handle of a job on a cluster."""

    launcher: JobController
    job: JobSpec
    rendered: RenderedJob
    main: Object
    name: str = ""
    _last_reported: str = ""
    _reported_lost: set[str] = field(default_factory=set)
    _confirmed_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.log = JobLog(self.launcher.informers, self.job, self.key)

    @property
    def key(self) -> str:
        """Unique name of the job."""
        return self.name or self.job.key

    def status(self) -> JobStatus:
        """Return the current status, read from the API server."""
        main = self.launcher.cluster.get(MAIN_RESOURCES[self.rendered.rendering], self.key)
        if main is None:
            return JobStatus(self.key, JobState.deleted)
        return build_status(self.key, main, self._list_pods())  # pods after the job: they explain a failure

    def wait(self) -> None:
        """Wait until the job succeeds; resubmit it after an eviction, a preemption or a lost machine that ended it.

        Ctrl-C cancels the job. If the process ends in any other way, the job keeps running and the next process attaches to it.

        Raises:
            JobFailed: with the diagnosis, the last lines of the log and a remedy.
        """
        resumptions = 0
        try:
            with self.launcher.informers.subscribe(self.key) as changed:
                while True:
                    observation = self._wait_until_finished(changed)
                    if observation.state is JobState.succeeded:
                        self._save_log()
                        return
                    failure = observation.failure
                    if failure is None or failure.kind not in RESUMABLE or resumptions == self.job.resumptions:
                        raise self._to_error(observation)
                    resumptions += 1
                    attempt = f"({resumptions} of {self.job.resumptions})"
                    report(f"{self.job.name}: {failure.message}; resuming from its last checkpoint {attempt}")
                    self._resubmit()
        except KeyboardInterrupt:
            self.cancel()
            raise
        finally:
            self.log.close()

    def cancel(self) -> None:
        """Delete the job with all its objects, and wait until its processes have stopped; other jobs are not affected."""
        self.launcher.remove(self.main)

    def logs(self) -> str:
        """Return the stored log; if there is none (another machine waited for the job), the log that the cluster still has."""
        stored = "\n".join(self.log.lines())
        return stored or "\n".join(self.stream(follow=False))

    def stream(self, follow: bool = True) -> Iterator[str]:
        """Yield the lines of all pods from the cluster, each prefixed with its rank; with ``follow``, until the job finishes."""
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._stream_pods, args=(lines, follow), daemon=True).start()
        yield from iter(lines.get, None)

    def _stream_pods(self, lines: queue.Queue[str | None], follow: bool) -> None:
        """Put the lines of all pods into a queue, and None after the last one."""
        followers: dict[str, LogFollower] = {}
        try:
            with self.launcher.informers.subscribe(self.key) as changed:
                while True:
                    changed.clear()
                    observation, pods = self._observe()
                    for pod in pods:
                        uid = pod["metadata"]["uid"]
                        if uid not in followers and pod_phase(pod) in STARTED_PHASES:
                            followers[uid] = self._open_follower(pod, lines, follow)
                            followers[uid].start()
                    if not follow or observation.state.finished:
                        break
                    changed.wait(CONFIRM_INTERVAL_S)
            for follower in followers.values():
                follower.join()
        finally:
            lines.put(None)

    def _open_follower(self, pod: Object, lines: queue.Queue[str | None], follow: bool) -> LogFollower:
        nodes = build_status(self.key, self.main, []).nodes
        processes = int((re.findall(r"--processes=(\d+)", json.dumps(self.main)) or ["1"])[0])
        return LogFollower(
            self.launcher.cluster,
            pod,
            lambda: not follow or self.log.is_finished(pod),
            lambda line: lines.put(prefix_rank(line, node_index(pod), nodes, processes)),
        )

    # ---- waiting

    def _wait_until_finished(self, changed: threading.Event) -> Observation:
        """Return when the job has finished, or when a failure that blocks its start has lasted too long."""
        started, blocker, blocked_since = time.monotonic(), None, 0.0
        while True:
            changed.clear()
            observation, pods = self._observe()
            self.log.follow(pods)
            self._report_lost_pods(pods)
            self._report(observation)
            if observation.state is JobState.failed:
                return self._diagnose(changed)
            if observation.state.finished:
                return observation
            now, previous = time.monotonic(), blocker
            blocker = observation.blocker
            missing_pods_s = min(MISSING_PODS_S, self.job.pending_limit_s)
            if observation.state is JobState.pending and not pods and now - started > missing_pods_s:
                blocker = self._diagnose_missing_pods() or blocker
            if blocker is None or previous is None or blocker.kind is not previous.kind:
                blocked_since = now
            if blocker is None:
                changed.wait(None if pods else MISSING_PODS_S + 1)
                continue
            remaining_s = blocked_since + self._blocker_limit_s(blocker) - now
            if remaining_s <= 0:
                self.cancel()
                return Observation(JobState.failed, failure=blocker)
            changed.wait(remaining_s)

    def _blocker_limit_s(self, blocker: Failure) -> float:
        """Return how long a failure may block the start of the job, in seconds."""
        if blocker.kind is FailureKind.unschedulable:
            return self.job.pending_limit_s
        if blocker.kind is not FailureKind.image:
            return min(self.job.image_limit_s, MISSING_PODS_S)
        if any(reason in blocker.message for reason in PERMANENT_IMAGE_REASONS):
            return 0.0
        return self.job.image_limit_s

    def _observe(self) -> tuple[Observation, list[Object]]:
        """Derive the state of the job from the informers; return it with the pods."""
        pods = self._cached_pods()
        return observe(self._find_main(), pods), pods

    def _find_main(self) -> Object | None:
        """Return the main object from its informer. If it is missing there, ask the API server before calling the job deleted."""
        resource, uid = MAIN_RESOURCES[self.rendered.rendering], self.main["metadata"]["uid"]
        for thing in self.launcher.informers.get(resource).objects_of(self.key):
            if thing["metadata"]["uid"] == uid:
                self._confirmed_at = 0.0
                return thing
        if time.monotonic() - self._confirmed_at <= CONFIRM_INTERVAL_S:
            return self.main  # just created: the informer does not know it yet
        self._confirmed_at = time.monotonic()
        main = self.launcher.cluster.get(resource, self.main["metadata"]["name"])
        return main if main and main["metadata"]["uid"] == uid else None

    def _cached_pods(self) -> list[Object]:
        informer = self.launcher.informers.get(PODS)
        return [*informer.failed_pods_of(self.key), *informer.objects_of(self.key)]

    def _list_pods(self) -> list[Object]:
        return self.launcher.cluster.list_objects(PODS, f"{JOB_LABEL}={self.key}")[0]

    # ---- diagnosis

    def _diagnose(self, changed: threading.Event) -> Observation:
        """Return why the job failed, according to the pods that the API server lists now.

        The informers of jobs and pods are independent: the condition ``Failed`` of a job can arrive before the status of the pod
        that caused it. Waits at most :data:`DIAGNOSIS_TIMEOUT_S` for pods without a final status, unless the cause is known before.
        """
        deadline = time.monotonic() + DIAGNOSIS_TIMEOUT_S
        while True:
            changed.clear()
            listed = self._list_pods()
            pods = {pod["metadata"]["uid"]: pod for pod in [*self._cached_pods(), *listed]}  # a listed pod replaces its cached copy
            observation = observe(self._find_main(), list(pods.values()))
            failure, remaining_s = observation.failure, deadline - time.monotonic()
            cause_known = failure is None or failure.kind is not FailureKind.program
            all_finished = all(pod_phase(pod) in FINISHED_PHASES for pod in listed)
            if cause_known or all_finished or remaining_s <= 0:
                return observation
            changed.wait(min(remaining_s, DIAGNOSIS_INTERVAL_S))

    def _diagnose_missing_pods(self) -> Failure | None:
        """Return why no pod was created, according to the events: quota, admission, a missing service account."""
        events, _ = self.launcher.cluster.list_objects(EVENTS, selector="", fields="type=Warning")
        related = [event for event in events if event.get("involvedObject", {}).get("name", "").startswith(self.key)]
        if not related:
            return None
        message = related[-1].get("message", "")
        if "exceeded quota" in message:
            return Failure(FailureKind.unschedulable, message, "wait for other jobs, lower nodes or memory, or raise the quota")
        return Failure(FailureKind.configuration, message, "see the events: kubectl events --for job/" + self.key)

    def _to_error(self, observation: Observation) -> JobFailed:
        """Save the log and return the user-facing error for a job that did not succeed."""
        self._save_log()
        if observation.state is JobState.deleted:
            return JobFailed("was deleted by another process or user", where=self.job.name, remedy=RESUME_HINT)
        failure = observation.failure or Failure(FailureKind.program, "failed", "see the log")
        if failure.kind in RESUMABLE:
            return JobFailed(f"{failure.message}, {self.job.resumptions + 1} times", where=self.job.name, remedy=RESUME_HINT)
        if failure.kind is not FailureKind.program:
            return JobFailed(failure.message, where=self.job.name, remedy=failure.remedy)
        tail = "\n".join(self.log.lines()[-TAIL_LINES:])
        return JobFailed(f"{failure.message}\n{tail}", where=self.job.name, remedy=f"see the full log: {self.log.path}")

    # ---- actions

    def _report_lost_pods(self, pods: list[Object]) -> None:
        """Report each pod that lost its machine once; the cluster replaces it, and torchrun admits the replacement."""
        for pod in pods:
            kind, uid = disruption_kind(pod), pod["metadata"]["uid"]
            if kind is not None and uid not in self._reported_lost:
                self._reported_lost.add(uid)
                failure = diagnose_failure(pod)
                report(f"{self.job.name}: {failure.message if failure else kind}; training resumes from its last checkpoint")

    def _report(self, observation: Observation) -> None:
        """Report the state of the job if it has changed."""
        text = f"{self.job.name}: {observation.state}" + (f": {observation.detail}" if observation.detail else "")
        if text != self._last_reported:
            self._last_reported = text
            report(text)

    def _save_log(self) -> None:
        self.log.drain()
        self.log.write()

    def _resubmit(self) -> None:
        """Submit the same job again; it resumes from its last checkpoint."""
        self.log.drain()
        self.launcher.remove(self.main)
        handle = self.launcher.submit(self.job)
        self.main, self._confirmed_at = handle.main, time.monotonic()


def build_status(key: str, main: Object, pods: list[Object]) -> JobStatus:
    """Return a job as a row of the list of jobs."""
    observation = observe(main, pods)
    detail = observation.failure.message if observation.failure else observation.detail
    spec = main.get("spec", {})
    nodes = spec.get("completions") or spec.get("trainer", {}).get("numNodes") or 1
    if "replicatedJobs" in spec:
        nodes = spec["replicatedJobs"][0]["template"]["spec"]["completions"]
    return JobStatus(key, observation.state, detail, nodes, main["metadata"].get("creationTimestamp") or "")
