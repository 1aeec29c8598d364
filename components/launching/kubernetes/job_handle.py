"""Wait for a Kubernetes job: stream progress, resubmit after node loss, raise a diagnosed error."""

from __future__ import annotations

import json
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from components.errors import JobFailed
from components.launching.job import JobSpec, JobState, JobStatus, program_lines
from components.launching.kubernetes.admission import SILENT_CONTROLLER_S, diagnose_queue, explain_queue
from components.launching.kubernetes.api_client import Cluster, report
from components.launching.kubernetes.blocker_timer import PATIENT, BlockerTimer, earliest
from components.launching.kubernetes.failures import (
    HOPELESS,
    OF_THE_MACHINE,
    REPLACED,
    RESUMABLE,
    RESUME_HINT,
    Failure,
    FailureKind,
)
from components.launching.kubernetes.job_log import STARTED_PHASES, JobLog
from components.launching.kubernetes.job_watch import Informers
from components.launching.kubernetes.manifests import (
    EVENTS,
    EXCLUDED_ANNOTATION,
    JOB_LABEL,
    JOBS,
    MAIN_RESOURCES,
    PODS,
    Object,
    RenderedJob,
)
from components.launching.kubernetes.observation import Observation, build_status, observe
from components.launching.kubernetes.pod_failures import (
    PERMANENT_IMAGE_REASONS,
    UNREACHABLE_MARGIN_S,
    diagnose_failure,
    diagnose_rejection,
    diagnose_stalled,
)
from components.launching.kubernetes.pod_fields import (
    FINISHED_PHASES,
    deletion_deadline,
    is_unconfirmed_loss,
    machine,
    node_count,
    node_index,
    pod_phase,
)
from components.launching.kubernetes.pod_logs import LogFollower, prefix_rank

TAIL_LINES = 15
MISSING_PODS_S = 30.0
"""Time without a pod for every node after which the events are searched for the reason."""
LOOK_MARGIN_S = 1.0
"""Time after a limit at which the state is looked at, so that the limit has passed by every clock."""
MAX_LISTS = 8
"""Number of pods up to which the events of each one are listed separately."""
CONFIRM_INTERVAL_S = 30.0
"""Interval at which the API server is asked what no watch shows: whether a job still exists, and what a queue says."""
DIAGNOSIS_TIMEOUT_S = 10.0
"""Maximum waiting time for the final status of the pods of a failed job."""
DIAGNOSIS_INTERVAL_S = 1.0
"""Longest interval between two lists of the pods of a failed job."""
UNEXPLAINED = (FailureKind.program, FailureKind.killed, FailureKind.stopped)
"""Failures that the status of a pod does not explain: its log does, or the status of another pod."""
MACHINE_FAILURES = 2
"""Number of failures on one machine after which the job is submitted again without it."""
READMISSION_S = 120.0
"""Time without room on other machines after which avoided ones are used again."""


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
    _reported_unconfirmed: set[str] = field(default_factory=set)
    _machine_failures: Counter[str] = field(default_factory=Counter)
    _avoided: set[str] = field(default_factory=set)
    _readmitted: set[str] = field(default_factory=set)
    _resumptions: int = 0
    _events_look: tuple[bool, float, Failure | None] | None = None
    _confirmed_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.log = JobLog(self.launcher.informers, self.job, self.key, self.main["metadata"].get("creationTimestamp") or "")
        annotations = self.main["metadata"].get("annotations") or {}  # an earlier process may have avoided machines
        self._avoided = set(filter(None, annotations.get(EXCLUDED_ANNOTATION, "").split(",")))
        self._avoided -= set(self.job.placement.excluded_machines)

    @property
    def key(self) -> str:
        """Unique name of the job."""
        return self.name or self.job.key

    def status(self) -> JobStatus:
        """Return the current status, read from the API server."""
        main = self.launcher.cluster.get(MAIN_RESOURCES[self.rendered.rendering], self.main["metadata"]["name"])
        if main is None:
            return JobStatus(self.key, JobState.deleted)
        pods, inner_jobs = self._list_pods(), self._list_inner_jobs()  # after the job: they explain a failure
        status = build_status(self.key, main, pods, inner_jobs, self.launcher.cluster.now())
        return explain_queue(self.launcher.cluster, main, status)

    def wait(self) -> None:
        """Wait until the job succeeds; resubmit it after an eviction, a preemption or a lost machine that ended it.

        Ctrl-C cancels the job. If the process ends in any other way, the job keeps running and the next process attaches to it.

        Raises:
            JobFailed: with the diagnosis, the last lines of the log and a remedy.
        """
        try:
            with self.launcher.informers.subscribe(self.key) as changed:
                while True:
                    observation = self._wait_until_finished(changed)
                    if observation.state is JobState.succeeded:
                        self._save_log()
                        return
                    failure = observation.failure
                    if failure is None or failure.kind not in RESUMABLE or self._resumptions == self.job.resumptions:
                        raise self._to_error(observation)
                    self._resumptions += 1
                    attempt = f"({self._resumptions} of {self.job.resumptions})"
                    report(f"{self.job.name}: {failure.message}; resuming from its last checkpoint {attempt}")
                    self.log.drain()  # the logs of the pods go with them
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
                    if observation.state.finished:  # the informer of pods may be behind that of jobs
                        pods = self._list_pods()
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
                if follower.fault:
                    report(f"the log of {follower.pod['metadata']['name']} cannot be read ({follower.fault})")
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
        timer = BlockerTimer()
        while True:
            changed.clear()
            observation, pods = self._observe()
            self.log.follow(pods)
            self._report_lost_pods(pods)
            if observation.state is JobState.failed:
                return self._diagnose(changed)
            if observation.state.finished:
                return observation
            hopeless = next((failure for failure in map(diagnose_failure, pods) if failure and failure.kind in HOPELESS), None)
            if hopeless is not None:
                self.cancel()
                return Observation(JobState.failed, failure=hopeless)
            now = time.monotonic()
            if self._change_machines(observation, timer.blocked_s(observation.blocker, now)):
                timer = BlockerTimer()
                continue
            observation = self._add_hidden_blocker(observation, pods, timer.waited_s(observation, now))
            self._report(observation)
            timer.update(observation.blocker, now)
            remaining_s = timer.remaining_s(observation.blocker, self._blocker_limit_s(observation.blocker), now)
            if remaining_s is not None and remaining_s <= 0:
                self.cancel()
                return Observation(JobState.failed, failure=observation.blocker)
            changed.wait(earliest(remaining_s, self._next_look_s(observation, pods)))

    def _add_hidden_blocker(self, observation: Observation, pods: list[Object], waited_s: float) -> Observation:
        """Add what no pod shows: why pods are not created or do not start, why a queue does not admit the job, that nobody acts."""
        if observation.blocker is not None:
            return observation
        blocker: Failure | None = None
        if observation.state is JobState.queued:
            blocker = diagnose_queue(self.launcher.cluster, self.main)
        elif (observation.missing or observation.unstarted) and waited_s > min(MISSING_PODS_S, self.job.pending_limit_s):
            blocker = self._look_at_events(observation, pods, waited_s)
        if blocker is None:
            return observation
        patient = blocker.kind is FailureKind.quota and observation.state is JobState.queued
        return replace(observation, detail=blocker.message, blocker=None if patient else blocker)

    def _look_at_events(self, observation: Observation, pods: list[Object], waited_s: float) -> Failure | None:
        """Return why pods are missing or do not start, according to the events; looks once in :data:`MISSING_PODS_S`."""
        is_missing, now = bool(observation.missing), time.monotonic()
        if self._events_look is None or self._events_look[0] != is_missing or now - self._events_look[1] >= MISSING_PODS_S:
            cause = self._diagnose_missing_pods(waited_s, observation) if is_missing else self._diagnose_unstarted_pods(pods)
            self._events_look = (is_missing, now, cause)
        return self._events_look[2]

    def _next_look_s(self, observation: Observation, pods: list[Object]) -> float | None:
        """Return the time after which the state can change without any event; None = never."""
        if observation.missing or observation.unstarted or observation.state is JobState.queued:
            return MISSING_PODS_S + LOOK_MARGIN_S
        if self._avoided and observation.blocker is not None:
            return CONFIRM_INTERVAL_S
        now = self.launcher.cluster.now()
        due = [(deadline - now).total_seconds() + UNREACHABLE_MARGIN_S for deadline in map(deletion_deadline, pods) if deadline]
        return min((seconds + LOOK_MARGIN_S for seconds in due if seconds > 0), default=None)

    def _blocker_limit_s(self, blocker: Failure | None) -> float:
        """Return how long a failure may block the start of the job, in seconds; no failure: without limit."""
        if blocker is None or blocker.kind is FailureKind.unreachable:
            return float("inf")  # somebody must confirm that the machine is off; deleting the job would wait as well
        if blocker.kind is FailureKind.impossible:
            return 0.0
        if blocker.kind in PATIENT:
            has_run = self.log.covers_all_nodes  # a machine is under maintenance, or others took its quota
            return max(self.job.pending_limit_s, self.job.time_limit_s) if has_run else self.job.pending_limit_s
        if blocker.kind is not FailureKind.image:
            return min(self.job.image_limit_s, MISSING_PODS_S)
        if any(reason in blocker.message for reason in PERMANENT_IMAGE_REASONS):
            return 0.0
        return self.job.image_limit_s

    def _observe(self) -> tuple[Observation, list[Object]]:
        """Derive the state of the job from the informers; return it with the pods."""
        pods = self._cached_pods()
        return observe(self._find_main(), pods, now=self.launcher.cluster.now()), pods

    def _find_main(self) -> Object | None:
        """Return the main object from its informer. If it is missing there, ask the API server before calling the job deleted."""
        resource, uid = MAIN_RESOURCES[self.rendered.rendering], self.main["metadata"]["uid"]
        for thing in self.launcher.informers.get(resource).objects_of(self.key):
            if thing["metadata"]["uid"] == uid:
                self._confirmed_at = 0.0
                return thing
        if time.monotonic() - self._confirmed_at <= CONFIRM_INTERVAL_S:
            return self.main  # just created: the informer does not know it yet
        main = self.launcher.cluster.get(resource, self.main["metadata"]["name"])
        if main is None or main["metadata"]["uid"] != uid:
            return None  # whoever asks next is told the same
        self._confirmed_at = time.monotonic()
        return main

    def _cached_pods(self) -> list[Object]:
        """Return the pods of this job, and deleted ones that failed; those of an earlier job of the same name are left out."""
        informer, created = self.launcher.informers.get(PODS), self.main["metadata"].get("creationTimestamp") or ""
        failed = [pod for pod in informer.failed_pods_of(self.key) if (pod["metadata"].get("creationTimestamp") or "") >= created]
        return [*failed, *informer.objects_of(self.key)]

    def _list_pods(self) -> list[Object]:
        return self.launcher.cluster.list_objects(PODS, f"{JOB_LABEL}={self.key}")[0]

    def _list_inner_jobs(self) -> list[Object]:
        """List the Jobs of a JobSet or TrainJob; none if the job is a Job itself."""
        if self.rendered.rendering == "job":
            return []
        return self.launcher.cluster.list_objects(JOBS, f"{JOB_LABEL}={self.key}")[0]

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
            observation = observe(self._find_main(), list(pods.values()), self._list_inner_jobs())
            failure, remaining_s = observation.failure, deadline - time.monotonic()
            cause_known = failure is None or failure.kind not in UNEXPLAINED
            all_finished = all(pod_phase(pod) in FINISHED_PHASES for pod in listed)
            if cause_known or all_finished or remaining_s <= 0:
                return observation
            changed.wait(min(remaining_s, DIAGNOSIS_INTERVAL_S))

    def _diagnose_missing_pods(self, waited_s: float, observation: Observation) -> Failure | None:
        """Return why pods are missing, according to the events: quota, admission, a missing service account, no controller."""
        events, _ = self.launcher.cluster.list_objects(EVENTS, selector="", fields="type=Warning")
        # Events of an earlier job of this name stay for an hour.
        created = (self.main["metadata"].get("creationTimestamp") or "").removesuffix("Z")
        related = [
            event
            for event in events
            if event.get("involvedObject", {}).get("name", "").startswith(self.key)
            and "Creat" in event.get("reason", "")
            and _event_time(event) >= created
        ]
        if related:
            newest = max(related, key=_event_time)
            return diagnose_rejection(newest.get("message", ""), node_count(self.main))
        if waited_s > SILENT_CONTROLLER_S and not self._list_pods() and not (self._find_main() or {}).get("status"):
            kind = self.rendered.main["kind"]
            message = f"no controller acts on {kind} {self.key}"
            return Failure(FailureKind.unschedulable, message, f"start the controller of {kind}s, or use kubernetes.rendering=job")
        is_stopping = any(map(deletion_deadline, self._cached_pods()))  # such a pod is replaced when it has stopped
        if waited_s > SILENT_CONTROLLER_S and not is_stopping:
            remedy = f"kubectl describe {self.rendered.main['kind'].lower()} {self.key}"
            return Failure(FailureKind.stalled, f"{observation.detail}, and no event tells why", remedy)
        return None

    def _diagnose_unstarted_pods(self, pods: list[Object]) -> Failure | None:
        """Return why pods do not start, according to their events."""
        unstarted = [pod for pod in pods if pod_phase(pod) not in STARTED_PHASES]
        names = [pod["metadata"]["name"] for pod in unstarted]
        # The events of single pods are few; those of a namespace may be tens of thousands.
        selectors = [f"involvedObject.name={name}" for name in names] if len(names) <= MAX_LISTS else ["involvedObject.kind=Pod"]
        cluster = self.launcher.cluster
        events = [event for fields in selectors for event in cluster.list_objects(EVENTS, selector="", fields=fields)[0]]
        return diagnose_stalled(unstarted, sorted(events, key=_event_time))

    def _to_error(self, observation: Observation) -> JobFailed:
        """Save the log and return the user-facing error for a job that did not succeed."""
        self._save_log()
        if observation.state is JobState.deleted:
            return JobFailed("was deleted by another process or user", where=self.job.name, remedy=RESUME_HINT)
        failure = observation.failure or Failure(FailureKind.program, "failed", "see the log")
        if failure.kind in RESUMABLE:
            return JobFailed(f"{failure.message}, {self.job.resumptions + 1} times", where=self.job.name, remedy=failure.remedy)
        if failure.kind not in UNEXPLAINED:
            return JobFailed(failure.message, where=self.job.name, remedy=failure.remedy)
        tail = "\n".join(program_lines(self.log.lines())[-TAIL_LINES:])
        return JobFailed(f"{failure.message}\n{tail}", where=self.job.name, remedy=f"see the full log: {self.log.path}")

    # ---- actions

    def _report_lost_pods(self, pods: list[Object]) -> None:
        """Report each pod that lost its machine once, and count the failures of each machine.

        The cluster replaces the pod when it has ended, and torchrun admits the replacement.
        """
        for pod in pods:
            uid, failure = pod["metadata"]["uid"], diagnose_failure(pod)
            if machine(pod):
                self._machine_failures[machine(pod)] += 0  # a machine of the job
            if failure is None or uid in self._reported_lost:
                continue
            if is_unconfirmed_loss(pod):
                if uid not in self._reported_unconfirmed:
                    self._reported_unconfirmed.add(uid)
                    report(f"{self.job.name}: {failure.message}; it is replaced only when its machine confirms its end")
                continue
            self._reported_lost.add(uid)
            if failure.node and failure.kind in OF_THE_MACHINE:
                self._machine_failures[failure.node] += 1
            if failure.kind in REPLACED:
                report(f"{self.job.name}: {failure.message}; its replacement resumes from the last checkpoint")

    def _report(self, observation: Observation) -> None:
        """Report the state of the job if it has changed."""
        text = f"{self.job.name}: {observation.state}" + (f": {observation.detail}" if observation.detail else "")
        if text != self._last_reported:
            self._last_reported = text
            report(text)

    def _save_log(self) -> None:
        self.log.drain()
        self.log.write()

    def _change_machines(self, observation: Observation, blocked_s: float) -> bool:
        """Submit the job again without machines that failed repeatedly, or with them if there is no other room; return whether."""
        blocker = observation.blocker
        if self._find_bad_machines() and self._resumptions < self.job.resumptions:
            self._resumptions += 1
        elif self._avoided and blocker and blocker.kind is FailureKind.unschedulable and blocked_s >= READMISSION_S:
            report(f"{self.job.name}: no other machine has room: uses {', '.join(sorted(self._avoided))} again")
            self._readmitted |= self._avoided
            self._avoided.clear()
        else:
            return False
        self._resubmit()
        return True

    def _find_bad_machines(self) -> set[str]:
        """Return the machines that failed more often than any other of the job, and that the job does not avoid yet.

        Failures that all machines share, as those of a network, do not count against any of them.
        """
        counts = self._machine_failures
        failed = {
            name
            for name, count in counts.items()
            if count - min((others for other, others in counts.items() if other != name), default=0) >= MACHINE_FAILURES
        }
        return failed - self._avoided - self._readmitted - set(self.job.placement.excluded_machines)

    def _resubmit(self) -> None:
        """Submit the same job again, away from machines that failed repeatedly; it resumes from its last checkpoint."""
        self.launcher.remove(self.main)
        bad = self._find_bad_machines()
        if bad:
            self._avoided |= bad
            remedy = f"to use it again: omnimri jobs cancel {self.key}, run again; to avoid it always: kubernetes.excluded_machines"
            names = ", ".join(sorted(bad))
            report(f"{self.job.name}: avoids {names}, which failed {MACHINE_FAILURES} times, while this job exists ({remedy})")
        excluded = tuple(sorted({*self.job.placement.excluded_machines, *self._avoided}))
        handle = self.launcher.submit(replace(self.job, placement=replace(self.job.placement, excluded_machines=excluded)))
        self.main, self.rendered, self._confirmed_at = handle.main, handle.rendered, time.monotonic()


def _event_time(event: Object) -> str:
    """Return the time of an event's last occurrence."""
    series = event.get("series") or {}
    return str(event.get("lastTimestamp") or series.get("lastObservedTime") or event.get("eventTime") or "")
