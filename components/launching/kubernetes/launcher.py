"""Jobs on a Kubernetes cluster: submit once, find again, list, clean up, leave nothing behind.

Waiting is :mod:`components.launching.kubernetes.job_handle`'s part, watching :mod:`components.launching.kubernetes.job_watch`'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from kubernetes.client.exceptions import ApiException

from components.errors import JobFailed
from components.launching.job import JobSpec, JobState, JobStatus
from components.launching.kubernetes.api_client import CONFLICT, UNPROCESSABLE, Cluster
from components.launching.kubernetes.failures import observe
from components.launching.kubernetes.job_handle import KubernetesHandle, status_of
from components.launching.kubernetes.job_watch import Watches
from components.launching.kubernetes.manifests import (
    DIGEST,
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
    render,
)

Object = dict[str, Any]
CONFIRM_S = 30.0
"""Time after which the server is asked whether what is being deleted is gone, should the watch not tell."""


class KubernetesLauncher:
    """Jobs in one namespace. However many are waited for, two watches follow them all.

    Args:
        cluster: where.
        rendering: the kind of object to make; ``auto`` = the best that the cluster serves.
    """

    def __init__(self, cluster: Cluster, rendering: RenderingName | Literal["auto"] = "auto") -> None:
        self.cluster, self._wanted = cluster, rendering
        self.watches = Watches(cluster)

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
            statuses.append(status_of(key, main, [pod for pod in pods if pod["metadata"]["labels"].get(JOB_LABEL) == key]))
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
        self.watches.stop()

    # ---- making

    def _mains(self) -> list[Object]:
        return [
            main
            for name in self.cluster.renderings()
            for main in self.cluster.collection(MAIN[name])[0]
            if not _made_by_another_controller(main)
        ]

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
            "apiVersion": rendered.main["apiVersion"],
            "kind": rendered.main["kind"],
            "name": main["metadata"]["name"],
            "uid": main["metadata"]["uid"],
            "controller": False,
            "blockOwnerDeletion": False,
        }
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
        with self.watches.listening(key) as changed:
            mirror = self.watches.mirror(resource)
            self.cluster.delete(main)
            while True:
                changed.clear()
                left = [thing for thing in mirror.of(key) if thing["metadata"]["uid"] == uid]
                if not left:  # deleted in the foreground: its pods went before it
                    found = self.cluster.get(resource, main["metadata"]["name"])
                    if found is None or found["metadata"]["uid"] != uid:
                        return
                changed.wait(CONFIRM_S)
                self.watches.mirror(resource)


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
