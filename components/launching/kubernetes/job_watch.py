"""What the jobs of a namespace are doing, known without asking: one watch for each kind of object, whatever the number of jobs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from kubernetes.client.exceptions import ApiException

from components.launching.kubernetes.api_client import (
    BROKEN,
    FORBIDDEN,
    GONE,
    TRANSIENT,
    UNAUTHORIZED,
    Cluster,
    Expired,
    Object,
    forbidden,
    hang_up,
    say,
)
from components.launching.kubernetes.failures import disruption
from components.launching.kubernetes.manifests import JOB_LABEL, PODS, Resource


class Watches:
    """The mirrors of a namespace, each started when it is first asked for, and who waits for which job."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._mirrors: dict[Resource, Mirror] = {}
        self._listeners: dict[str, list[threading.Event]] = {}
        self._lock = threading.Lock()

    def mirror(self, resource: Resource) -> Mirror:
        """The watch over a kind of object, its list known.

        Raises:
            JobFailed: forbidden, or no answer within the limit; raised to everybody who asks.
        """
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

    def stop(self) -> None:
        """End the watches."""
        for mirror in self._mirrors.values():
            mirror.stop()

    def _changed(self, key: str) -> None:
        with self._lock:
            events = list(self._listeners.get(key, []))
        for event in events:
            event.set()


class Mirror:
    """All objects of one kind that are ours, kept up to date by one watch, whatever their number.

    ``changed(key)`` is called for the job that an object belongs to. Losing the server is not an error until the limit of patience.
    """

    def __init__(self, cluster: Cluster, resource: Resource, changed: Callable[[str], None]) -> None:
        self.cluster, self.resource, self.changed = cluster, resource, changed
        self.fault: BaseException | None = None
        self.current = threading.Event()  # the list is known
        self._objects: dict[str, Object] = {}
        self._by_job: dict[str, dict[str, Object]] = {}
        self._departed: dict[str, list[Object]] = {}
        self._lock, self._stop, self._response = threading.Lock(), threading.Event(), None
        self._thread = threading.Thread(target=self._run, name=f"watch-{resource.plural}", daemon=True)
        self._thread.start()

    def of(self, key: str) -> list[Object]:
        """The objects of a job."""
        with self._lock:
            return list(self._by_job.get(key, {}).values())

    def departed(self, key: str) -> list[Object]:
        """Pods of a job that are gone because their machine was taken away, as they were last seen."""
        with self._lock:
            return list(self._departed.get(key, []))

    def stop(self) -> None:
        """End the watch."""
        self._stop.set()
        hang_up(self._response)

    def _keep(self, thing: Object) -> None:
        slim = _slim(thing)
        uid, key = slim["metadata"]["uid"], slim["metadata"].get("labels", {}).get(JOB_LABEL, "")
        self._objects[uid] = slim
        self._by_job.setdefault(key, {})[uid] = slim

    def _forget(self, thing: Object) -> None:
        uid, key = thing["metadata"]["uid"], thing["metadata"].get("labels", {}).get(JOB_LABEL, "")
        self._objects.pop(uid, None)
        if self.resource is PODS and disruption(thing):
            self._departed.setdefault(key, []).append(_slim(thing))
        self._by_job.get(key, {}).pop(uid, None)
        if not self._by_job.get(key, True):
            del self._by_job[key]

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                version = self._list()
                self._follow(version)
        except BaseException as error:
            if not self._stop.is_set():
                self.fault = error
                self.current.set()
                for key in list(self._by_job):
                    self.changed(key)

    def _list(self) -> str:
        items, version = self.cluster.collection(self.resource)
        with self._lock:
            keys = set(self._by_job)
            self._objects, self._by_job = {}, {}
            for item in items:
                self._keep(item)
            keys |= set(self._by_job)
        self.current.set()
        for key in keys:
            self.changed(key)
        return version

    def _follow(self, version: str) -> None:
        """Watch until the history is lost; then the caller lists again."""
        pauses, since = self.cluster.patience.pauses(), None
        while not self._stop.is_set():
            try:
                for event in self.cluster.watch(self.resource, version, self._opened):
                    version = event["object"]["metadata"].get("resourceVersion", version)
                    if since is not None:
                        say("the API server answers again")
                    pauses, since = self.cluster.patience.pauses(), None
                    if event["type"] != "BOOKMARK":
                        self._take(event)
                since = None  # ended by the server, as it should
                continue
            except Expired:
                return
            except ApiException as error:
                if error.status == GONE:
                    return
                if error.status == FORBIDDEN:
                    raise forbidden(error, "watch", self.resource.path(self.cluster.namespace)) from None
                if error.status == UNAUTHORIZED:
                    raise self.cluster.unknown() from None
                if error.status not in TRANSIENT:
                    raise
                fault = f"answers {error.status}"
            except BROKEN as error:
                fault = f"does not answer ({type(error).__name__})"
            if self._stop.is_set():
                return
            if since is None:
                since = time.monotonic()
            elif time.monotonic() - since > self.cluster.patience.limit:
                raise self.cluster.given_up(fault)
            self._stop.wait(next(pauses))

    def _opened(self, response: Any) -> None:
        self._response = response

    def _take(self, event: Object) -> None:
        with self._lock:
            (self._forget if event["type"] == "DELETED" else self._keep)(event["object"])
        self.changed(event["object"]["metadata"].get("labels", {}).get(JOB_LABEL, ""))


def _slim(thing: Object) -> Object:
    """What observing a job needs of an object; two hundred waiting jobs then fit into a few megabytes."""
    metadata = {
        key: thing["metadata"].get(key) for key in ("name", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp")
    }
    metadata |= {key: thing["metadata"].get(key) or {} for key in ("labels", "annotations")}
    spec = {key: thing["spec"][key] for key in ("suspend", "nodeName", "completions") if key in thing.get("spec", {})}
    return {"kind": thing.get("kind"), "metadata": metadata, "spec": spec, "status": thing.get("status") or {}}
