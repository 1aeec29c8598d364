"""Kubernetes API server for tests. kmock serves HTTP, and parses and records the requests; this module adds what it lacks.

Added: an authorizer (the launcher's role), resource versions, watches that start at a version and time out (410 if the history has
expired), label selectors, server-side apply with an owner for each field, preconditions, foreground deletion along owner
references, graceful deletion of pods, evictions with disruption budgets, pod logs, injected faults, watches that can be paused.
"""

from __future__ import annotations

import asyncio
import copy
import datetime
import json
import ssl
import threading
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import kmock
import yaml
from aiohttp import web
from kubernetes import client

from components.provenance import REPOSITORY

Object = dict[str, Any]
Key = tuple[str, str]  # plural, name
CLUSTER_KINDS = {
    "v1/pods": "Pod",
    "v1/services": "Service",
    "v1/events": "Event",
    "scheduling.k8s.io/v1beta1/podgroups": "PodGroup",
    "scheduling.x-k8s.io/v1alpha1/podgroups": "PodGroup",
    "scheduling.volcano.sh/v1beta1/podgroups": "PodGroup",
    "kueue.x-k8s.io/v1beta2/workloads": "Workload",
    "batch/v1/jobs": "Job",
    "jobset.x-k8s.io/v1alpha2/jobsets": "JobSet",
    "trainer.kubeflow.org/v1alpha1/trainjobs": "TrainJob",
    "trainer.kubeflow.org/v1alpha1/trainingruntimes": "TrainingRuntime",
}
CUSTOM_PLURALS = ("jobsets", "trainjobs", "trainingruntimes")
SCHEMAS = REPOSITORY / "tests" / "k8s" / "schemas"
NAMESPACE = "omnimri"
CUSTOM_GROUPS = ("jobset.x-k8s.io", "trainer.kubeflow.org", "kueue.x-k8s.io")
"""Groups that a cluster serves unless a test says otherwise, beside those of Kubernetes 1.36."""
BUILT_IN_GROUPS = ("batch",)
VERBS = {"LIST": "list", "WATCH": "watch", "FETCH": "get", "UPDATE": "patch", "DELETE": "delete", "CREATE": "create"}
ACCOUNT = "system:serviceaccount:omnimri:pipeline"
TRACKING = "batch.kubernetes.io/job-tracking"
"""Finalizer of the pods of a Job: they are removed only when the Job controller has counted them."""
Grant = tuple[str, str, str]  # group, resource, verb
Path = tuple[str, ...]


@cache
def role_grants() -> frozenset[Grant]:
    """Return what the launcher's role in k8s/base/rbac.yaml permits."""
    roles = yaml.safe_load_all((REPOSITORY / "k8s" / "base" / "rbac.yaml").read_text())
    (role,) = [thing for thing in roles if thing["kind"] == "Role" and thing["metadata"]["name"] == "launcher"]
    return frozenset(
        (g, r, v) for rule in role["rules"] for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]
    )


def now(micro: bool = False, after_s: float = 0.0) -> str:
    stamp = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=after_s)
    return stamp.strftime("%Y-%m-%dT%H:%M:%S.%f000Z" if micro else "%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Fault:
    """Fault of the next ``times`` requests that ``matches`` selects: an HTTP status, a connection reset, or a delay."""

    matches: Callable[[kmock.Request], bool]
    times: int
    status: int = 0
    message: str = "injected"
    retry_after: str = ""
    reset: bool = False
    delay_s: float = 0.0


@dataclass
class Store:
    """The stored objects and their history."""

    objects: dict[Key, Object] = field(default_factory=dict)
    history: list[tuple[int, str, Object]] = field(default_factory=list)  # version, plural, event
    version: int = 0
    oldest: int = 0
    """Versions below this one have expired."""


class ApiServer(kmock.KubernetesScaffold):
    """HTTP request handling; all methods run in the server's event loop."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.store, self.faults, self.logs, self.streams = Store(), [], {}, set()
        self.cut_logs_after: list[int] = []
        """Number of bytes after which each of the next log requests is reset."""
        self.paused_watches: set[str] = set()
        """Plurals of the kinds whose watches deliver no events."""
        self.grants: frozenset[Grant] = role_grants()
        self.starting = False
        """True: the server has not read its roles yet and refuses everything (kubernetes issue 121635)."""
        self.undeclared_fields: set[str] = set()
        """Fields that the installed CustomResourceDefinitions do not declare: objects with them are refused."""
        self.log_poll_s = 0.01
        self.log_message = ""
        """Message that the kubelet sends with status 200 after the lines of a log, without timestamp and line feed."""
        self.message_times = 0
        """Number of log requests that end with the message."""
        self.changed = asyncio.Condition()

    async def _handle(self, request: kmock.Request) -> web.StreamResponse:
        raw = request._raw_request
        for fault in self.faults:
            if fault.times > 0 and fault.matches(request):
                fault.times -= 1
                return await self._fail(fault, raw)
        if request.subresource == "eviction":  # sent by an administrator
            return await self._evict(request.name)
        if raw.path.startswith("/openapi/v3/apis/"):
            return self._forbid(request) or self._schema(raw.path.removeprefix("/openapi/v3/apis/"))
        if request.resource is None or request.action is None or request.resource.plural is None:
            return self._forbid(request) or await super()._handle(request)
        plural, name = request.resource.plural, request.name
        refusal = self._forbid(request)
        if refusal is not None:
            return refusal
        if request.subresource == "log":
            return await self._log(request)
        if request.action is kmock.action.WATCH:
            return await self._watch(request)
        if request.action is kmock.action.LIST:
            version = "/".join(filter(None, (request.resource.group, request.resource.version)))
            listed = [thing for (kind, _), thing in self.store.objects.items() if kind == plural]
            listed = [thing for thing in listed if thing.get("apiVersion", version) == version]  # two groups have a PodGroup
            items = [thing for thing in listed if matches_selectors(thing, request.params)]
            return web.json_response({"metadata": {"resourceVersion": str(self.store.version)}, "items": items})
        if request.action is kmock.action.FETCH:
            thing = self.store.objects.get((plural, name))
            return web.json_response(thing) if thing else status(404, "NotFound", f'{plural} "{name}" not found')
        if request.action is kmock.action.UPDATE:
            return await self._apply(plural, name, json.loads(request.body), request)
        if request.action is kmock.action.DELETE:
            return await self._delete(plural, name, request)
        return status(405, "MethodNotAllowed", "not implemented by this test server")

    def _schema(self, group_version: str) -> web.Response:
        """Serve the schemas of a group and version, without the fields that are not declared."""
        group, _, version = group_version.partition("/")
        documents = [json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")]
        schemas = {d["kind"]: d["versions"][version] for d in documents if d["group"] == group and version in d["versions"]}
        text = json.dumps({"openapi": "3.0.0", "components": {"schemas": schemas}})
        for name in self.undeclared_fields:
            text = text.replace(f'"{name}":', '"other":')
        return web.Response(text=text, content_type="application/json")

    def _forbid(self, request: kmock.Request) -> web.Response | None:
        """Return the authorizer's refusal, or None. Every account may read the API's groups."""
        resource = request.resource
        if resource is None or resource.plural is None:
            path = request._raw_request.path
            return status(403, "Forbidden", f'forbidden: User "{ACCOUNT}" cannot get path "{path}"') if self.starting else None
        plural = "/".join(filter(None, (resource.plural, request.subresource)))
        verbs = [VERBS[request.action.value]]
        if verbs == ["patch"] and (resource.plural, request.name) not in self.store.objects:
            verbs.append("create")  # server-side apply of a new object
        for verb in verbs:
            if self.starting or (resource.group, plural, verb) not in self.grants:
                place = f'in API group "{resource.group}" in the namespace "{NAMESPACE}"'
                return status(
                    403, "Forbidden", f'{plural} is forbidden: User "{ACCOUNT}" cannot {verb} resource "{plural}" {place}'
                )
        return None

    async def _fail(self, fault: Fault, raw: web.BaseRequest) -> web.StreamResponse:
        if fault.reset:
            raw.transport.abort()
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        response = status(fault.status or 500, "Injected", fault.message)
        if fault.retry_after:
            response.headers["Retry-After"] = fault.retry_after
        return response

    # ---- objects

    async def _apply(self, plural: str, name: str, body: Object, request: kmock.Request) -> web.StreamResponse:
        assert request.headers["Content-Type"] == "application/apply-patch+yaml" and request.params["fieldManager"]
        existing, manager = self.store.objects.get((plural, name)), request.params["fieldManager"]
        applied = leaves({k: v for k, v in body.items() if k != "status"})
        owners = field_owners(existing) if existing else {}
        conflicts = [
            (owners[path], ".".join(path))
            for path, value in applied.items()
            if existing and owners.get(path, manager) != manager and leaves(existing).get(path) != value
        ]
        if conflicts:
            text = ", ".join(f'conflict with "{owner}": .{path}' for owner, path in conflicts)
            return status(409, "Conflict", f"Apply failed with {len(conflicts)} conflict(s): {text}")
        undeclared = [name for name in self.undeclared_fields if plural in CUSTOM_PLURALS and f'"{name}":' in json.dumps(body)]
        if undeclared:
            text = f"failed to create typed patch object: .spec.template.spec.{undeclared[0]}: field not declared in schema"
            return status(500, "InternalError", text)
        if existing and plural in ("jobs", "jobsets", "trainjobs") and without_defaults(existing["spec"]) != body["spec"]:
            return status(422, "Invalid", "spec.template: Invalid value: field is immutable")
        merged = copy.deepcopy(existing or {"metadata": {}})
        for path in [path for path, owner in owners.items() if owner == manager and path not in applied]:
            remove_path(merged, path)  # an owner that no longer applies a field removes it
        for path, value in applied.items():
            set_path(merged, path, value)
        kept = [[list(path), owner] for path, owner in owners.items() if owner != manager]
        merged["metadata"]["managedFields"] = [*kept, *([list(path), manager] for path in applied)]
        if merged == existing:
            return web.json_response(existing)
        stored = await self.put(plural, merged)
        return web.json_response(stored, status=200 if existing else 201)

    async def put(self, plural: str, thing: Object) -> Object:
        """Create or replace."""
        metadata = thing["metadata"]
        existing = self.store.objects.get((plural, metadata["name"]))
        metadata.setdefault("namespace", NAMESPACE)
        if existing is None:
            metadata.update(uid=str(uuid.uuid4()), creationTimestamp=metadata.get("creationTimestamp") or now())
        self.store.version += 1
        metadata["resourceVersion"] = str(self.store.version)
        self.store.objects[plural, metadata["name"]] = thing
        await self._publish("MODIFIED" if existing else "ADDED", plural, thing)
        return thing

    async def record_event(self, thing: Object, reason: str, message: str, kind: str = "Warning") -> None:
        """Record an event about an object; the same one again only changes its count and time."""
        name = f"{thing['metadata']['name']}.{reason.lower()}"
        existing = self.store.objects.get(("events", name), {})
        event = {
            "kind": "Event",
            "type": kind,
            "metadata": {"name": name},
            "reason": reason,
            "involvedObject": {"kind": thing["kind"], "name": thing["metadata"]["name"], "uid": thing["metadata"]["uid"]},
            "message": message,
            "count": existing.get("count", 0) + 1,
            "lastTimestamp": now(),
        }
        await self.put("events", {**event, "metadata": existing.get("metadata", event["metadata"])})

    async def remove(self, plural: str, name: str) -> None:
        """Remove an object immediately."""
        thing = self.store.objects.pop((plural, name), None)
        if thing is None:
            return
        self.store.version += 1
        thing["metadata"]["resourceVersion"] = str(self.store.version)
        await self._publish("DELETED", plural, thing)

    async def _publish(self, kind: str, plural: str, thing: Object) -> None:
        self.store.history.append((self.store.version, plural, {"type": kind, "object": copy.deepcopy(thing)}))
        async with self.changed:
            self.changed.notify_all()

    async def _delete(self, plural: str, name: str, request: kmock.Request) -> web.StreamResponse:
        thing = self.store.objects.get((plural, name))
        if thing is None:
            return status(404, "NotFound", f'{plural} "{name}" not found')
        options = json.loads(request.body or b"{}")
        expected_uid = options.get("preconditions", {}).get("uid")
        if expected_uid and expected_uid != thing["metadata"]["uid"]:
            return status(409, "Conflict", "the UID in the precondition does not match")
        assert options["propagationPolicy"] == "Foreground"
        await self.mark_deleted(plural, thing)  # tests.doubles.controllers completes the deletion
        return web.json_response(thing)

    async def mark_deleted(self, plural: str, thing: Object) -> None:
        """Set ``deletionTimestamp``: that of a running pod is the end of its grace period."""
        if not thing["metadata"].get("deletionTimestamp"):
            grace_s = thing["spec"].get("terminationGracePeriodSeconds", 30) if plural == "pods" else 0
            thing["metadata"].update(deletionTimestamp=now(after_s=grace_s), deletionGracePeriodSeconds=grace_s)
            await self.put(plural, thing)

    async def _evict(self, name: str) -> web.StreamResponse:
        """Serve the Eviction API: refuse what a disruption budget forbids, else delete the pod as disrupted."""
        pod = self.store.objects.get(("pods", name))
        if pod is None:
            return status(404, "NotFound", f'pods "{name}" not found')
        budgets = [thing for (plural, _), thing in self.store.objects.items() if plural == "poddisruptionbudgets"]
        for budget in budgets:
            labels = budget["spec"]["selector"]["matchLabels"]
            if labels.items() <= pod["metadata"]["labels"].items() and self._disruptions_allowed(budget, pod) < 1:
                return status(429, "TooManyRequests", "Cannot evict pod as it would violate the pod's disruption budget.")
        await self.disrupt(pod, "EvictionByEvictionAPI", "Eviction API: evicting")
        return status(201, "Created", "evicted")

    def _disruptions_allowed(self, budget: Object, pod: Object) -> int:
        """Return how many pods a budget lets go. ``maxUnavailable`` needs the scale of a controller, which a Job does not have.

        A pod that is not healthy goes under ``unhealthyPodEvictionPolicy: AlwaysAllow``, and otherwise only if the others suffice.
        """
        owners = [owner["kind"] for owner in pod["metadata"].get("ownerReferences", [])]
        if "maxUnavailable" in budget["spec"] and "Job" in owners:
            return 0  # condition SyncFailed: jobs.batch does not implement the scale subresource
        labels = budget["spec"]["selector"]["matchLabels"].items()
        pods = [thing for (plural, _), thing in self.store.objects.items() if plural == "pods"]
        expected = [thing for thing in pods if labels <= thing["metadata"]["labels"].items()]
        healthy = sum(thing["status"]["phase"] == "Running" for thing in expected)
        spec = budget["spec"]
        if pod["status"]["phase"] != "Running" and spec.get("unhealthyPodEvictionPolicy") == "AlwaysAllow":
            return 1
        needed = len(expected) - int(spec["maxUnavailable"]) if "maxUnavailable" in spec else int(spec.get("minAvailable", 0))
        return healthy - needed

    async def disrupt(self, pod: Object, reason: str, message: str) -> None:
        """Add the condition DisruptionTarget and delete the pod; its kubelet then stops it, unless the machine is off."""
        conditions = [*pod["status"].get("conditions", []), condition("DisruptionTarget", reason, message)]
        pod["status"]["conditions"] = conditions
        await self.mark_deleted("pods", pod)

    # ---- streams

    @contextmanager
    def _streaming(self, raw: web.BaseRequest) -> Iterator[None]:
        transport = raw.transport
        self.streams.add(transport)
        try:
            yield
        finally:
            self.streams.discard(transport)

    async def _watch(self, request: kmock.Request) -> web.StreamResponse:
        plural, raw = request.resource.plural, request._raw_request
        position = int(request.params.get("resourceVersion") or 0)
        if position < self.store.oldest:
            return status(410, "Expired", "too old resource version")
        deadline = time.monotonic() + float(request.params.get("timeoutSeconds", 300))
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(raw)
        with self._streaming(raw):
            while (remaining := deadline - time.monotonic()) > 0:
                if position < self.store.oldest:
                    expired = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}
                    await response.write(json.dumps(expired).encode() + b"\n")
                    break
                if plural not in self.paused_watches:
                    position = await self._send_events(response, request, position)
                async with self.changed:
                    is_current = self.store.version <= position and self.store.oldest <= position
                    if is_current or plural in self.paused_watches:
                        with suppress(TimeoutError):
                            await asyncio.wait_for(self.changed.wait(), min(remaining, 0.5))
        await response.write_eof()
        return response

    async def _send_events(self, response: web.StreamResponse, request: kmock.Request, position: int) -> int:
        """Send the events after a version and return the new position."""
        start = bisect_right(self.store.history, position, key=lambda entry: entry[0])
        for version, plural, event in self.store.history[start:]:
            if version > position:
                if plural == request.resource.plural and matches_selectors(event["object"], request.params):
                    await response.write(json.dumps(event).encode() + b"\n")
                position = version
        return position

    async def _log(self, request: kmock.Request) -> web.StreamResponse:
        assert request.params["timestamps"] == "true" and request.params["container"] == "node"
        pod = self.store.objects.get(("pods", request.name))
        if pod is None:
            return status(404, "NotFound", f'pods "{request.name}" not found')
        if pod["status"]["phase"] == "Pending":
            return status(400, "BadRequest", "container is waiting to start")
        since, sent = request.params.get("sinceTime", "")[:19], 0
        cut_after = self.cut_logs_after.pop(0) if self.cut_logs_after else None
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request._raw_request)
        with self._streaming(request._raw_request):
            position = 0
            while True:
                lines = self.logs.setdefault(request.name, [])
                phase = self.store.objects.get(("pods", request.name), {}).get("status", {}).get("phase")
                finished = phase in (None, "Succeeded", "Failed")
                for line in lines[position:]:
                    if line[:19] >= since:
                        data = line.encode() + b"\n"
                        if cut_after is not None and sent + len(data) > cut_after:
                            await response.write(data[: cut_after - sent])
                            await asyncio.sleep(0.01)
                            request._raw_request.transport.abort()
                            return response
                        await response.write(data)
                        sent += len(data)
                position = len(lines)
                if self.message_times and position:
                    self.message_times -= 1
                    await response.write(self.log_message.encode())
                    break
                if (finished and position == len(self.logs[request.name])) or request.params["follow"] == "false":
                    break
                await asyncio.sleep(self.log_poll_s)
        await response.write_eof()
        return response


def condition(kind: str, reason: str = "", message: str = "", value: str = "True") -> Object:
    return {"type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": now()}


def leaves(thing: Object, prefix: Path = ()) -> dict[Path, Any]:
    """Return the fields of an object that managers own: everything below its mappings; lists are atomic."""
    found: dict[Path, Any] = {}
    for key, value in thing.items():
        path = (*prefix, key)
        if path == ("metadata", "managedFields"):
            continue
        if isinstance(value, dict) and value:
            found |= leaves(value, path)
        else:
            found[path] = value
    return found


def field_owners(thing: Object) -> dict[Path, str]:
    """Return the manager of each field; an object that a test stored belongs to kubectl."""
    managed = thing["metadata"].get("managedFields")
    if managed is None:
        return dict.fromkeys(leaves({k: v for k, v in thing.items() if k == "spec"}), "kubectl")
    return {tuple(path): manager for path, manager in managed}


def set_path(thing: Object, path: Path, value: Any) -> None:
    for key in path[:-1]:
        thing = thing.setdefault(key, {})
    thing[path[-1]] = copy.deepcopy(value)


def remove_path(thing: Object, path: Path) -> None:
    for key in path[:-1]:
        thing = thing.get(key, {})
    thing.pop(path[-1], None)


def status(code: int, reason: str, message: str) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code}
    return web.json_response(body, status=code)


def matches_selectors(thing: Object, params: Any) -> bool:
    labels = thing["metadata"].get("labels") or {}
    for term in filter(None, params.get("labelSelector", "").split(",")):
        name, equals, value = term.partition("=")
        if name not in labels or (equals and labels[name] != value):
            return False
    for term in filter(None, params.get("fieldSelector", "").split(",")):
        name, _, value = term.partition("=")
        field: Any = thing
        for part in name.split("."):
            field = field.get(part, {})
        if str(field) != value:
            return False
    return True


def without_defaults(spec: Object) -> Object:
    """Return the spec as it was applied: the controllers in tests.doubles set only ``suspend``."""
    return {key: value for key, value in spec.items() if key != "suspend"}


class RunningServer:
    """An :class:`ApiServer` on a free port in a thread of its own; over TLS if a certificate is given.

    Args:
        crds: groups of custom resources that the server serves. newer: a group and the only version in which it is served.
    """

    def __init__(
        self,
        *,
        crds: tuple[str, ...] = CUSTOM_GROUPS,
        tls: ssl.SSLContext | None = None,
        newer: tuple[str, str] | None = None,
    ) -> None:
        self.newer = newer
        self.loop = asyncio.new_event_loop()
        self.tls, self.crds, self._ready, self._stop = tls, crds, threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> RunningServer:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        self.loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self.api = ApiServer()
        for address, kind in CLUSTER_KINDS.items():
            if address.count("/") == 1 or address.partition("/")[0] in (*self.crds, *BUILT_IN_GROUPS):
                group, _, plural = address.split("/") if address.count("/") == 2 else ("", *address.split("/"))
                if self.newer and self.newer[0] == group:
                    address = f"{group}/{self.newer[1]}/{plural}"
                self.api.resources[address] = {"kind": kind, "namespaced": True}
        async with self.api:
            self.runner = web.ServerRunner(web.Server(self.api), shutdown_timeout=0.1)
            await self.runner.setup()
            site = web.TCPSite(self.runner, "127.0.0.1", 0, ssl_context=self.tls)
            await site.start()
            self.port = site._server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._stop.wait()
            self.api.faults.clear()
            for transport in list(self.api.streams):
                transport.abort()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await self.runner.cleanup()

    # ---- interface for tests, which run in other threads

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine in the server's event loop and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def client(self) -> client.ApiClient:
        configuration = client.Configuration(host=self.url)
        configuration.retries = False
        return client.ApiClient(configuration)

    def objects(self, plural: str) -> list[Object]:
        return [thing for (p, _), thing in list(self.api.store.objects.items()) if p == plural]

    def put(self, plural: str, thing: Object) -> Object:
        return self.run(self.api.put(plural, thing))

    def requests(self) -> list[kmock.Request]:
        return list(self.api.requests) if hasattr(self.api, "requests") else list(self.api._requests)

    def inject_fault(self, matches: Callable[[kmock.Request], bool], times: int = 1, **fields: Any) -> Fault:
        """Let the next matching requests fail; ``fields`` as in :class:`Fault`."""
        fault = Fault(matches, times, **fields)
        self.api.faults.append(fault)
        return fault

    def expire_history(self) -> None:
        """Expire the history as etcd's compaction does: open watches end with 410."""

        async def expire() -> None:
            self.api.store.version += 1
            self.api.store.oldest = self.api.store.version
            self.api.store.history.clear()
            async with self.api.changed:
                self.api.changed.notify_all()

        self.run(expire())

    def abort_streams(self) -> None:
        """Reset all open watches and log streams."""
        self.loop.call_soon_threadsafe(lambda: [transport.abort() for transport in list(self.api.streams)])

    def pause_watch(self, plural: str) -> None:
        """Deliver no further events of a kind on watches; lists and single objects stay current."""

        async def pause() -> None:
            self.api.paused_watches.add(plural)

        self.run(pause())

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Refuse every request, as a server that has started and has not read its roles yet."""
        self.api.starting = True
        yield
        self.api.starting = False

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        """Close the port and reset open connections for the length of the block."""

        async def close() -> None:
            for site in list(self.runner.sites):
                await site.stop()
            for transport in list(self.api.streams):
                transport.abort()
            for connection in list(self.runner.server.connections):
                connection.force_close()

        async def reopen() -> None:
            await web.TCPSite(self.runner, "127.0.0.1", self.port, reuse_address=True, ssl_context=self.tls).start()

        self.run(close())
        yield
        self.run(reopen())
