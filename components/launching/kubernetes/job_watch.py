"""Informers: local copies of the objects of all jobs in a namespace, kept current by one watch for each kind of object."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from kubernetes.client.exceptions import ApiException

from components.launching.kubernetes.api_client import CONNECTION_ERRORS, Cluster, HistoryExpired, close_stream, report
from components.launching.kubernetes.api_errors import error_message, retry_after_s
from components.launching.kubernetes.failures import FailureKind
from components.launching.kubernetes.manifests import JOB_LABEL, PODS, Object, Resource
from components.launching.kubernetes.pod_failures import diagnose_failure
from components.launching.kubernetes.pod_fields import node_count


class Informers:
    """The informers of a namespace, each started at its first use, and the subscribers of each job."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._informers: dict[Resource, Informer] = {}
        self._subscribers: dict[str, list[threading.Event]] = {}
        self._lock = threading.Lock()

    def get(self, resource: Resource) -> Informer:
        """Return the informer of a kind of object after its first list.

        Raises:
            JobFailed: 403, or no response within the limit; raised to every caller.
        """
        with self._lock:
            if resource not in self._informers:
                self._informers[resource] = Informer(self.cluster, resource, self.notify)
            informer = self._informers[resource]
        informer.synced.wait()
        if informer.error is not None:
            raise informer.error
        return informer

    @contextlib.contextmanager
    def subscribe(self, key: str) -> Iterator[threading.Event]:
        """Yield an event that is set whenever an object of the job changes."""
        event = threading.Event()
        with self._lock:
            self._subscribers.setdefault(key, []).append(event)
        try:
            yield event
        finally:
            with self._lock:
                self._subscribers[key].remove(event)

    def stop(self) -> None:
        """End all watches."""
        for informer in self._informers.values():
            informer.stop()

    def notify(self, key: str) -> None:
        """Wake everyone who is subscribed to a job."""
        with self._lock:
            events = list(self._subscribers.get(key, []))
        for event in events:
            event.set()


class Informer:
    """Local copy of all objects of one kind that carry our labels, kept current by one watch.

    Calls ``on_change(key)`` for the job that a changed object belongs to. An unreachable API server is an error only after
    :attr:`RetryPolicy.give_up_s`.
    """

    def __init__(self, cluster: Cluster, resource: Resource, on_change: Callable[[str], None]) -> None:
        self.cluster, self.resource, self.on_change = cluster, resource, on_change
        self.error: BaseException | None = None
        self.synced = threading.Event()  # the first list is complete
        self._objects: dict[str, Object] = {}
        self._by_job: dict[str, dict[str, Object]] = {}
        self._failed: dict[str, list[Object]] = {}
        self._lock, self._stop, self._response = threading.Lock(), threading.Event(), None
        self._thread = threading.Thread(target=self._run, name=f"watch-{resource.plural}", daemon=True)
        self._thread.start()

    def objects_of(self, key: str) -> list[Object]:
        """Return the objects of a job."""
        with self._lock:
            return list(self._by_job.get(key, {}).values())

    def failed_pods_of(self, key: str) -> list[Object]:
        """Return the last version of the job's deleted pods whose failure the program did not cause itself."""
        with self._lock:
            return list(self._failed.get(key, []))

    def stop(self) -> None:
        """End the watch."""
        self._stop.set()
        close_stream(self._response)

    def _store(self, thing: Object) -> None:
        trimmed = _trim(thing)
        uid, key = trimmed["metadata"]["uid"], _job_key(trimmed)
        self._objects[uid] = trimmed
        self._by_job.setdefault(key, {})[uid] = trimmed

    def _remove(self, thing: Object) -> None:
        uid, key = thing["metadata"]["uid"], _job_key(thing)
        self._objects.pop(uid, None)
        failure = diagnose_failure(thing) if self.resource is PODS else None
        if failure is not None and failure.kind not in (FailureKind.program, FailureKind.stopped):
            self._failed.setdefault(key, []).append(_trim(thing))
        self._by_job.get(key, {}).pop(uid, None)
        if not self._by_job.get(key, True):
            del self._by_job[key]

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                version = self._list()
                self._watch(version)
        except BaseException as error:
            if not self._stop.is_set():
                self.error = error
                self.synced.set()
                for key in list(self._by_job):
                    self.on_change(key)

    def _list(self) -> str:
        """Replace the local copy by a fresh list and return the version of the collection."""
        items, version = self.cluster.list_objects(self.resource)
        with self._lock:
            keys = set(self._by_job)
            self._objects, self._by_job = {}, {}
            for item in items:
                self._store(item)
            keys |= set(self._by_job)
        self.synced.set()
        for key in keys:
            self.on_change(key)
        return version

    def _watch(self, version: str) -> None:
        """Apply events until the history expires; then the caller must list again."""
        retry, failing_since = self.cluster.retry, None
        pauses = retry.pauses()
        path = self.resource.path(self.cluster.namespace)
        while not self._stop.is_set():
            try:
                for event in self.cluster.watch(self.resource, version, self._set_response):
                    version = event["object"]["metadata"].get("resourceVersion", version)
                    if failing_since is not None:
                        report("the API server responds again")
                    pauses, failing_since = retry.pauses(), None
                    if event["type"] != "BOOKMARK":
                        self._handle(event)
                failing_since = None  # the server ended the watch after its timeout
                continue
            except HistoryExpired:
                return
            except (ApiException, *CONNECTION_ERRORS) as error:
                if _needs_list(error):
                    return
                fault, requested_s = self.cluster.describe_transient(error, "watch", path), retry_after_s(error)
            if self._stop.is_set():
                return
            if failing_since is None:
                failing_since = time.monotonic()
            elif time.monotonic() - failing_since > retry.give_up_s:
                raise self.cluster.unresponsive_error(fault)
            self._stop.wait(max(next(pauses), min(requested_s, retry.max_pause_s)))

    def _set_response(self, response: Any) -> None:
        self._response = response

    def _handle(self, event: Object) -> None:
        thing = event["object"]
        with self._lock:
            if event["type"] == "DELETED":
                self._remove(thing)
            else:
                self._store(thing)
        self.on_change(_job_key(thing))


def _needs_list(error: Exception) -> bool:
    """Return whether a watch cannot continue from its version: expired, or newer than etcd, which was restored from a backup."""
    if not isinstance(error, ApiException):
        return False
    return error.status == HTTPStatus.GONE or "Too large resource version" in error_message(error)


def _job_key(thing: Object) -> str:
    return str(thing["metadata"].get("labels", {}).get(JOB_LABEL, ""))


def _trim(thing: Object) -> Object:
    """Keep only the fields that :func:`observe` needs: two hundred waiting jobs then fit into a few megabytes."""
    metadata = {
        key: thing["metadata"].get(key) for key in ("name", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp")
    }
    metadata |= {key: thing["metadata"].get(key) or {} for key in ("labels", "annotations")}
    metadata["finalizers"] = thing["metadata"].get("finalizers") or []
    spec = {key: thing["spec"][key] for key in ("suspend", "nodeName") if key in thing.get("spec", {})}
    if thing.get("kind") != PODS.kind:
        spec["completions"] = node_count(thing)
    return {"kind": thing.get("kind"), "metadata": metadata, "spec": spec, "status": thing.get("status") or {}}
