"""Launch jobs on a Kubernetes cluster: submit each job once, find it again, list jobs, and delete what finished jobs leave.

:mod:`components.launching.kubernetes.job_handle` waits for jobs, :mod:`components.launching.kubernetes.job_watch` watches them.
"""

from __future__ import annotations

import datetime
import time
from http import HTTPStatus
from pathlib import Path
from typing import Literal

from kubernetes.client.exceptions import ApiException

from components.errors import JobFailed
from components.launching.job import JobSpec, JobState, JobStatus
from components.launching.kubernetes.admission import explain_queue
from components.launching.kubernetes.api_client import Cluster, report
from components.launching.kubernetes.api_errors import PERMISSIONS, error_message
from components.launching.kubernetes.job_handle import KubernetesHandle
from components.launching.kubernetes.job_watch import Informers
from components.launching.kubernetes.manifests import (
    COSCHEDULING_GROUPS,
    DIGEST_ANNOTATION,
    FOLDER_ANNOTATION,
    JOB_LABEL,
    JOBS,
    JOBSETS,
    MAIN_RESOURCES,
    MANAGED_BY_LABEL,
    MANAGER,
    POD_GROUPS,
    PODS,
    RUNTIMES,
    SERVICES,
    VOLCANO_GROUPS,
    WORKLOADS,
    Object,
    RenderedJob,
    RenderingName,
    Resource,
    render,
    resource_of,
)
from components.launching.kubernetes.observation import build_status, observe, observe_deletion
from components.launching.kubernetes.pod_failures import UNREACHABLE_MARGIN_S
from components.launching.kubernetes.pod_fields import FINISHED_PHASES, pod_phase
from components.launching.kubernetes.rejections import classify_rejection

CONFIRM_INTERVAL_S = 30.0
"""Interval at which the API server is asked whether an object still exists while it is being deleted."""
ORPHAN_LIMIT_S = 30.0
"""Maximum waiting time for pods of an earlier job that nobody has asked to stop."""


class KubernetesLauncher:
    """Launches jobs in one namespace. Two watches follow all jobs, whatever their number.

    Args:
        cluster: client of the namespace.
        rendering: kind of object that a job becomes; ``auto`` = the preferred one that the cluster supports.
    """

    def __init__(self, cluster: Cluster, rendering: RenderingName | Literal["auto"] = "auto") -> None:
        self.cluster, self._rendering = cluster, rendering
        self.informers = Informers(cluster)
        self._told_without_gang: set[str] = set()

    @property
    def rendering(self) -> RenderingName:
        """Kind of object that a job becomes on this cluster."""
        if self._rendering == "auto":
            self._rendering = self.cluster.supported_renderings()[0]
        return self._rendering

    def submit(self, job: JobSpec) -> KubernetesHandle:
        """Start a job, or attach to the existing job of the same key, so that a restarted process waits for the job it began.

        A job that failed before is deleted and started again. If two processes submit a job concurrently, both get the same job.

        Raises:
            BadInput: the job cannot be rendered.
            JobFailed: 403, no response, the cluster serves no such rendering or no queues, the name belongs to an object that
                OmniMRI did not create, or pods of a deleted job of this name still run.
        """
        rendered = self._render(job, self.rendering)
        existing = self._find_existing(rendered) or self._wait_for_orphans(rendered)
        if existing is None:
            self._check_queue(job)
            self._report_missing_gang(job)
        elif _rendering_of(existing) != rendered.rendering:  # submitted before JobSets were installed, or with other settings
            rendered = self._render(job, _rendering_of(existing))
        main = existing or self._create(rendered)
        try:
            self._apply_owned_objects(rendered, main)
        except JobFailed as error:  # an incomplete job would hold its machines without ever starting
            if existing is None and error.where != self.cluster.api.configuration.host:
                self.cluster.delete(main)
            raise
        return KubernetesHandle(self, job, rendered, main)

    def jobs(self) -> list[JobStatus]:
        """Return the status of every OmniMRI job in the namespace, newest last."""
        mains, inner_jobs = self._list_mains()
        jobs, pods = _by_job(inner_jobs), _by_job(self.cluster.list_objects(PODS)[0])  # after the jobs: pods explain a failure
        statuses = []
        for main in mains:
            key = main["metadata"]["labels"][JOB_LABEL]
            status = build_status(key, main, pods.get(key, []), jobs.get(key, []), self.cluster.now())
            statuses.append(explain_queue(self.cluster, main, status))
        return sorted(statuses, key=lambda status: status.created)

    def clean_up(self) -> list[str]:
        """Delete finished jobs, and services and runtimes whose job no longer exists; return their names."""
        removed, keys = [], set()
        for main in self._list_mains()[0]:
            key = main["metadata"]["labels"][JOB_LABEL]
            if observe(main, []).state.finished:
                self.cluster.delete(main)
                removed.append(key)
            keys.add(key)
        runtimes = (RUNTIMES,) if "trainjob" in self.cluster.supported_renderings() else ()
        native = next(filter(self.cluster.serves, POD_GROUPS), None)
        groups = filter(None, (native, *filter(self.cluster.serves, (COSCHEDULING_GROUPS, VOLCANO_GROUPS))))
        for resource in (SERVICES, *runtimes, *groups):
            for thing in self.cluster.list_objects(resource)[0]:
                # Another process may be about to create the job of a young one.
                is_old = self._age_s(thing) > self.cluster.retry.give_up_s
                if is_old and thing["metadata"]["labels"][JOB_LABEL] not in keys:
                    self.cluster.delete(thing)
                    removed.append(thing["metadata"]["name"])
        return removed

    def _age_s(self, thing: Object) -> float:
        return (self.cluster.now() - datetime.datetime.fromisoformat(thing["metadata"]["creationTimestamp"])).total_seconds()

    def find(self, key: str) -> KubernetesHandle:
        """Return the job with this key.

        Raises:
            JobFailed: there is none.
        """
        for main in self._list_mains()[0]:
            if main["metadata"]["labels"][JOB_LABEL] == key:
                annotations = main["metadata"].get("annotations", {})
                folder = Path(annotations.get(FOLDER_ANNOTATION, "."))
                job = JobSpec(key, "", (), processes=1, folder=folder, identity=annotations.get(DIGEST_ANNOTATION, ""))
                return KubernetesHandle(self, job, RenderedJob(_rendering_of(main), main), main, name=key)
        raise JobFailed("no such job", where=key, remedy="list the jobs: omnimri jobs list")

    def stop(self) -> None:
        """End the watches; jobs keep running."""
        self.informers.stop()

    def remove(self, main: Object) -> None:
        """Delete a job with all its pods, and wait until they no longer exist; report what the deletion waits for.

        A pod whose machine is off ends only when somebody confirms that: the report names pod, node and command.
        """
        resource = MAIN_RESOURCES[_rendering_of(main)]
        key, uid = main["metadata"]["labels"][JOB_LABEL], main["metadata"]["uid"]
        reporter = _DeletionReporter(self.cluster, key)
        with self.informers.subscribe(key) as changed:
            informer, pod_informer = self.informers.get(resource), self.informers.get(PODS)
            self.cluster.delete(main)
            while True:
                changed.clear()
                current = next((thing for thing in informer.objects_of(key) if thing["metadata"]["uid"] == uid), None)
                if current is None:  # foreground deletion: its pods were deleted before it
                    current = self.cluster.get(resource, main["metadata"]["name"])
                    if current is None or current["metadata"]["uid"] != uid:
                        return
                reporter.report(pod_informer.objects_of(key), current)
                changed.wait(min(CONFIRM_INTERVAL_S, UNREACHABLE_MARGIN_S))
                self.informers.get(resource)  # raises if the watch has failed

    # ---- creation

    def _render(self, job: JobSpec, rendering: RenderingName) -> RenderedJob:
        """Return the objects of a job, with the PodGroup that the cluster understands."""
        resource = MAIN_RESOURCES[rendering]
        if rendering not in self.cluster.supported_renderings():
            raise JobFailed(
                f"the cluster serves no {resource.kind} of {resource.api_version}",
                where=f"kubernetes.rendering={rendering}",
                remedy="install or update its controller (docs/kubernetes.md), or use kubernetes.rendering=auto",
            )
        return render(job, rendering, self.cluster.namespace, self._find_gang_resource(job, rendering))

    def _check_queue(self, job: JobSpec) -> None:
        """Check that Kueue is there to admit a job with a queue; without it the nodes would start at once, and one by one."""
        if job.placement.queue and not self.cluster.serves(WORKLOADS):
            raise JobFailed(
                f"the cluster has no Kueue that serves {WORKLOADS.api_version}: no queue would admit the job",
                where=f"kubernetes.queue={job.placement.queue}",
                remedy="install Kueue 0.16 or later and k8s/components/kueue, or run without a queue: kubernetes.queue=null",
            )

    def _find_gang_resource(self, job: JobSpec, rendering: RenderingName) -> Resource | None:
        """Return the kind of PodGroup that the job's scheduler understands and the cluster serves, or None."""
        if job.placement.queue or job.nodes == 1:
            return None
        scheduler = job.placement.scheduler or "default-scheduler"
        if scheduler == "default-scheduler":
            native = next(filter(self.cluster.serves, POD_GROUPS), None)
            templates = {"job": JOBS, "jobset": JOBSETS, "trainjob": RUNTIMES}[rendering]
            is_known = templates is JOBS or (native is not None and self.cluster.has_field(templates, "schedulingGroup"))
            return native if is_known else None
        return next(filter(self.cluster.serves, (VOLCANO_GROUPS if "volcano" in scheduler else COSCHEDULING_GROUPS,)), None)

    def _list_mains(self) -> tuple[list[Object], list[Object]]:
        """List the main objects of all jobs, and those that they control, which carry our labels, too: the Jobs of JobSets."""
        names = self.cluster.supported_renderings()
        objects = [thing for name in names for thing in self.cluster.list_objects(MAIN_RESOURCES[name])[0]]
        inner_jobs = [thing for thing in objects if _has_controller(thing) and thing["kind"] == JOBS.kind]
        return [thing for thing in objects if not _has_controller(thing)], inner_jobs

    def _find_existing(self, rendered: RenderedJob) -> Object | None:
        """Return the job if it exists already, in whatever rendering. Remove one that has failed or is being deleted.

        A job may have another rendering than new ones have: JobSets have been installed since, or the setting has changed.
        """
        name = rendered.main["metadata"]["name"]
        others = [rendering for rendering in self.cluster.supported_renderings() if rendering != rendered.rendering]
        for rendering in (rendered.rendering, *others):
            resource = MAIN_RESOURCES[rendering]
            existing = self._get_if_permitted(resource, name) if rendering in others else self.cluster.get(resource, name)
            if existing is None or _has_controller(existing):  # the JobSet of a TrainJob
                continue
            if not _is_ours(existing):
                if rendering == rendered.rendering:
                    remedy = "rename or delete it"
                    raise JobFailed("an object of this name exists that OmniMRI did not create", where=name, remedy=remedy)
            elif observe(existing, []).state is JobState.failed or existing["metadata"].get("deletionTimestamp"):
                self.remove(existing)
            else:
                return existing
        return None

    def _wait_for_orphans(self, rendered: RenderedJob) -> Object | None:
        """Wait for pods of a deleted job of this name, which would write the same checkpoints; return a job that appears meanwhile.

        Raises:
            JobFailed: nobody has asked these pods to stop (the job was deleted with ``--cascade=orphan``).
        """
        key, resource = rendered.main["metadata"]["name"], MAIN_RESOURCES[rendered.rendering]
        started, reporter = time.monotonic(), _DeletionReporter(self.cluster, key)
        while True:
            selector = f"{JOB_LABEL}={key}"
            pods = [pod for pod in self.cluster.list_objects(PODS, selector)[0] if pod_phase(pod) not in FINISHED_PHASES]
            jobs = [job for job in self.cluster.list_objects(JOBS, selector)[0] if not observe(job, []).state.finished]
            if not pods and not jobs:
                return None
            current = self.cluster.get(resource, key)
            if current is not None and _is_ours(current) and not _has_controller(current):
                return current
            reporter.report(pods)
            staying = [thing for thing in (*jobs, *pods) if not thing["metadata"].get("deletionTimestamp")]
            if staying and time.monotonic() - started >= ORPHAN_LIMIT_S:
                raise self._orphan_error(key, staying)
            time.sleep(min(1.0, ORPHAN_LIMIT_S))

    def _get_if_permitted(self, resource: Resource, name: str) -> Object | None:
        """Return an object, or None if it does not exist or this account may not read its kind: it has not created it either."""
        try:
            return self.cluster.get(resource, name)
        except JobFailed as error:
            if error.where != PERMISSIONS:
                raise
            return None

    def _orphan_error(self, key: str, things: list[Object]) -> JobFailed:
        """Return the error for pods and Jobs of a deleted job; it names what is to be deleted: a Job would replace deleted pods."""
        roots = {(root["kind"], root["metadata"]["name"]) for root in map(self._find_root, things)}
        kind = min((kind for kind, _ in roots), key=("TrainJob", "JobSet", "Job", "Pod").index)
        names = sorted(name for root_kind, name in roots if root_kind == kind)
        return JobFailed(
            f"{'pods' if kind == 'Pod' else f'a {kind}'} of an earlier job still "
            f"{'run' if kind == 'Pod' else 'runs'} and would write the same checkpoints: {', '.join(names)}",
            where=key,
            remedy=f"kubectl --namespace {self.cluster.namespace} delete {kind.lower()} {' '.join(names)}",
        )

    def _find_root(self, thing: Object) -> Object:
        """Return the outermost existing object that controls a pod or Job: its Job, JobSet or TrainJob, or the object itself."""
        while True:
            references = [owner for owner in thing["metadata"].get("ownerReferences") or [] if owner.get("controller")]
            resource = next((main for main in MAIN_RESOURCES.values() if references and main.kind == references[0]["kind"]), None)
            owner = self._get_if_permitted(resource, references[0]["name"]) if resource else None
            if owner is None or owner["metadata"]["uid"] != references[0]["uid"]:
                return thing
            thing = owner

    def _report_missing_gang(self, job: JobSpec) -> None:
        """Report once what happens to a job of several nodes that neither a queue nor a scheduler places as a whole."""
        is_told = job.nodes == 1 or job.placement.queue or job.key in self._told_without_gang
        if is_told or self._find_gang_resource(job, self.rendering) is not None:
            return
        self._told_without_gang.add(job.key)
        report(
            f"{job.name}: this cluster has no gang scheduling: its nodes start one by one, and are deleted unless all start "
            f"within {job.pending_limit_s / 60:.0f} min"
        )

    def _create(self, rendered: RenderedJob) -> Object:
        kind, name = rendered.main["kind"], rendered.main["metadata"]["name"]
        created: list[Object] = []
        try:
            created += [self._apply(prerequisite) for prerequisite in rendered.prerequisites]
            return {**self.cluster.apply(rendered.main), "kind": kind}
        except ApiException as error:
            existing = self.cluster.get(MAIN_RESOURCES[rendered.rendering], name)
            is_conflict = error.status in (HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY)
            if is_conflict and existing is not None and _is_ours(existing):
                return {**existing, "kind": kind}  # another process created the same job first
            for thing in created if existing is None else ():
                self.cluster.delete(thing)
            raise _rejection_error(error, rendered.main) from None

    def _apply(self, manifest: Object) -> Object:
        """Apply an object; wait first for the end of an earlier one of the same name that is being deleted.

        A finalizer (of Kubeflow Trainer, of PodGroups in use) keeps it for a while; what is applied to it would vanish with it.

        Raises:
            JobFailed: the finalizer has stayed longer than :attr:`RetryPolicy.give_up_s`.
        """
        started, name = time.monotonic(), f"{manifest['kind']} {manifest['metadata']['name']}"
        for pause in self.cluster.retry.pauses():
            stored = self.cluster.apply(manifest)
            if not stored["metadata"].get("deletionTimestamp"):
                break
            finalizers = ", ".join(stored["metadata"].get("finalizers") or []) or "none"
            if time.monotonic() - started > self.cluster.retry.give_up_s:
                raise JobFailed(
                    f"an earlier object of this name is still being deleted (finalizers: {finalizers})",
                    where=name,
                    remedy="start the controller of its finalizers, or remove them: kubectl edit",
                )
            time.sleep(pause)
        return stored

    def _apply_owned_objects(self, rendered: RenderedJob, main: Object) -> None:
        """Apply the other objects of the job with the job as their owner, so that deleting the job deletes all of them."""
        owner = {
            "apiVersion": rendered.main["apiVersion"],
            "kind": rendered.main["kind"],
            "name": main["metadata"]["name"],
            "uid": main["metadata"]["uid"],
            "controller": False,
            "blockOwnerDeletion": False,
        }
        for manifest in (*rendered.prerequisites, *rendered.dependents):
            try:
                self._apply({**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [owner]}})
            except ApiException as error:
                if error.status != HTTPStatus.CONFLICT or not self._is_own_object(manifest):
                    raise _rejection_error(error, manifest) from None

    def _is_own_object(self, manifest: Object) -> bool:
        """Return whether OmniMRI created the existing object of this name: another process applies the same one."""
        key = manifest["metadata"]["labels"][JOB_LABEL]
        own, _ = self.cluster.list_objects(resource_of(manifest), f"{MANAGED_BY_LABEL}={MANAGER},{JOB_LABEL}={key}")
        return any(thing["metadata"]["name"] == manifest["metadata"]["name"] for thing in own)


class _DeletionReporter:
    """Reports what the deletion of a job waits for, whenever that changes."""

    def __init__(self, cluster: Cluster, key: str) -> None:
        self.cluster, self.key, self._last = cluster, key, ""

    def report(self, pods: list[Object], main: Object | None = None) -> None:
        """Report the state of the pods and the finalizers of the job, unless it was reported before."""
        observation = observe_deletion(pods, self.cluster.now(), main)
        if observation.detail and observation.detail != self._last:
            self._last = observation.detail
            report(f"{self.key}: {observation.state}: {observation.detail}")


def _by_job(things: list[Object]) -> dict[str, list[Object]]:
    grouped: dict[str, list[Object]] = {}
    for thing in things:
        grouped.setdefault(thing["metadata"]["labels"].get(JOB_LABEL, ""), []).append(thing)
    return grouped


def _rendering_of(main: Object) -> RenderingName:
    return next(name for name, resource in MAIN_RESOURCES.items() if resource.kind == main["kind"])


def _is_ours(thing: Object) -> bool:
    return bool(thing["metadata"].get("labels", {}).get(MANAGED_BY_LABEL) == MANAGER)


def _has_controller(main: Object) -> bool:
    """Return whether another object controls this one, as a JobSet controls its Jobs and a TrainJob its JobSet."""
    return any(owner.get("controller") for owner in main["metadata"].get("ownerReferences") or [])


def _rejection_error(error: ApiException, manifest: Object) -> JobFailed:
    """Return the user-facing error for an object that the API server rejected."""
    message, where = error_message(error), f"{manifest['kind']} {manifest['metadata']['name']}"
    remedy = classify_rejection(message).remedy
    if error.status == HTTPStatus.CONFLICT:
        remedy = "delete it: omnimri jobs cancel, or kubectl delete"
        return JobFailed(f"another manager owns a field: {message}", where=where, remedy=remedy)
    return JobFailed(f"the API server rejects it ({error.status}): {message}", where=where, remedy=remedy)
