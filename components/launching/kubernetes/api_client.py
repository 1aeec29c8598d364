"""The Kubernetes API over the official client: plain objects in and out, server-side apply, watches, patience.

What can pass by itself (429, 5xx, timeouts, broken connections) is tried again with growing pauses; what cannot is said at once,
with the remedy. Objects are dictionaries throughout, so that every kind is handled alike and a watch of thousands costs little.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.connection import HTTPConnection

from components.errors import JobFailed
from components.launching.kubernetes.manifests import MAIN, MANAGER, RESOURCES, SELECTOR, RenderingName, Resource

Object = dict[str, Any]
TRANSIENT = frozenset({0, 408, 429, 500, 502, 503, 504})
BROKEN = (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)
KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]
GONE, CONFLICT, UNAUTHORIZED, FORBIDDEN, NOT_FOUND, UNPROCESSABLE = 410, 409, 401, 403, 404, 422


@dataclass(frozen=True)
class Patience:
    """How long to wait for what, seconds.

    Attributes:
        first, factor, longest: pauses between tries of a request; each is shortened by up to a half, at random.
        limit: time after which an API server that does not answer is given up. A job outlives it: the next run finds it again.
        connect, read: limits of one request.
        watch: length of a watch before it is opened anew.
    """

    first: float = 1.0
    factor: float = 2.0
    longest: float = 30.0
    limit: float = 900.0
    connect: float = 10.0
    read: float = 30.0
    watch: float = 300.0

    def pauses(self) -> Iterator[float]:
        """The pauses, one after the other."""
        pause = self.first
        while True:
            yield pause * random.uniform(0.5, 1.0)  # noqa: S311  (spreads the clients, protects nothing)
            pause = min(pause * self.factor, self.longest)


class Expired(Exception):
    """The watched history is no longer kept (410): list again."""


def say(text: str) -> None:
    """Tell the user, on standard error."""
    print(text, file=sys.stderr, flush=True)


class Cluster:
    """One namespace of a cluster."""

    def __init__(self, api: client.ApiClient, namespace: str, patience: Patience | None = None) -> None:
        self.api, self.namespace, self.patience = api, namespace, patience or Patience()
        # A log may be silent for as long as a step takes; the kernel notices within a minute that the other end is dead.
        self.api.rest_client.pool_manager.connection_pool_kw["socket_options"] = [
            *HTTPConnection.default_socket_options,
            *KEEP_ALIVE,
        ]

    @classmethod
    def connect(cls, namespace: str, context: str | None = None, patience: Patience | None = None) -> Cluster:
        """By the pod's service account inside a cluster, by the kubeconfig (``KUBECONFIG``, ``~/.kube/config``) outside.

        Raises:
            JobFailed: neither is there, or the kubeconfig has no such context.
        """
        configuration = client.Configuration()
        try:
            if context is None:
                config.load_incluster_config(client_configuration=configuration)
            else:
                config.load_kube_config(context=context, client_configuration=configuration)
        except config.ConfigException:
            try:
                config.load_kube_config(context=context, client_configuration=configuration)
            except config.ConfigException as error:
                raise JobFailed(
                    f"no cluster is configured: {error}",
                    where="kubernetes",
                    remedy="set KUBECONFIG or kubernetes.context, or run inside the cluster",
                ) from None
        configuration.retries = False  # ours know which errors pass by themselves
        configuration.connection_pool_maxsize = 512
        return cls(client.ApiClient(configuration), namespace, patience)

    # ---- requests

    def request(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        body: Object | None = None,
        content: str = "application/json",
        verb: str = "",
    ) -> Object:
        """One request, tried until it is answered.

        Raises:
            ApiException: an answer that trying again does not change, 403 excepted.
            JobFailed: forbidden, a certificate that is not trusted, or no answer within the limit.
        """
        begun, told = time.monotonic(), False
        for pause in self.patience.pauses():
            try:
                response = self._send(method, path, query, body, content, (self.patience.connect, self.patience.read))
                return dict(json.loads(response.data or b"{}"))
            except ApiException as error:
                if error.status == FORBIDDEN:
                    raise forbidden(error, verb or method, path) from None
                if error.status == UNAUTHORIZED:
                    raise self.unknown() from None
                if "CERTIFICATE_VERIFY_FAILED" in str(error.reason):
                    raise self.untrusted() from None
                if error.status not in TRANSIENT:
                    raise
                fault, asked = f"answers {error.status}", float((error.headers or {}).get("Retry-After") or 0)
            except BROKEN as error:
                fault, asked = f"does not answer ({type(error).__name__})", 0.0
            if time.monotonic() - begun > self.patience.limit:
                raise self.given_up(fault)
            if not told:
                say(f"the API server {fault}; trying again")
                told = True
            time.sleep(max(pause, min(asked, self.patience.longest)))
        raise AssertionError("the pauses do not end")

    def _send(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None,
        body: Object | None,
        content: str,
        limit: tuple[float, float | None],
    ) -> Any:
        return self.api.call_api(
            path,
            method,
            query_params=list((query or {}).items()),
            body=body,
            auth_settings=["BearerToken"],
            header_params={"Accept": "application/json", "Content-Type": content},
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=limit,
        )

    def unknown(self) -> JobFailed:
        """What a 401 is to the user."""
        return JobFailed(
            "the API server does not know us (401)",
            where=self.api.configuration.host,
            remedy="log in again, or renew the kubeconfig; jobs that run go on, and are found again",
        )

    def untrusted(self) -> JobFailed:
        """What a certificate of another authority is to the user: trying again would not change it."""
        return JobFailed(
            "the API server's certificate is not one of the cluster's authority",
            where=self.api.configuration.host,
            remedy="check certificate-authority of the kubeconfig, or the pod's ca.crt; nothing was sent",
        )

    def given_up(self, fault: str) -> JobFailed:
        """What an API server is that did not answer within the limit."""
        return JobFailed(
            f"the API server {fault}, for {self.patience.limit / 60:.0f} min",
            where=self.api.configuration.host,
            remedy="run again when it answers: jobs that run go on without it, and are found again",
        )

    def renderings(self) -> list[RenderingName]:
        """What this cluster can run, best first, by the API groups that it serves."""
        groups = {group["name"] for group in self.request("GET", "/apis", verb="get").get("groups", [])}
        order: list[RenderingName] = ["jobset", "job", "trainjob"]
        return [name for name in order if name == "job" or MAIN[name].group in groups]

    def get(self, resource: Resource, name: str) -> Object | None:
        """An object, or None."""
        try:
            return self.request("GET", resource.path(self.namespace, name), verb="get")
        except ApiException as error:
            if error.status == NOT_FOUND:
                return None
            raise

    def apply(self, thing: Object) -> Object:
        """Server-side apply: the object becomes what ``thing`` says about it. Trying again is safe.

        Raises:
            ApiException: 409, another manager owns a field; 422, a field cannot change.
        """
        path = RESOURCES[thing["kind"]].path(self.namespace, thing["metadata"]["name"])
        query = {"fieldManager": MANAGER}
        return self.request("PATCH", path, query=query, body=thing, content="application/apply-patch+yaml", verb="patch")

    def delete(self, thing: Object) -> None:
        """Delete exactly this object (not another that took its name), and what it owns before it."""
        resource = RESOURCES[thing["kind"]]
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": thing["metadata"]["uid"]}}
        try:
            self.request("DELETE", resource.path(self.namespace, thing["metadata"]["name"]), body=body, verb="delete")
        except ApiException as error:
            if error.status not in (NOT_FOUND, CONFLICT):  # it is gone, or another object has its name
                raise

    def collection(self, resource: Resource, selector: str = SELECTOR, fields: str = "") -> tuple[list[Object], str]:
        """Objects and the version of the collection."""
        query = {"labelSelector": selector, "fieldSelector": fields}
        answer = self.request(
            "GET", resource.path(self.namespace), query={key: value for key, value in query.items() if value}, verb="list"
        )
        return [{**item, "kind": resource.kind} for item in answer.get("items") or []], answer["metadata"].get(
            "resourceVersion", ""
        )

    # ---- streams

    def watch(self, resource: Resource, version: str, opened: Callable[[Any], None]) -> Iterator[Object]:
        """Events since ``version``, until the server ends the watch.

        Args:
            opened: gets the response, so that another thread can close it.

        Raises:
            Expired, ApiException, one of :data:`BROKEN`
        """
        seconds = self.patience.watch * random.uniform(0.8, 1.0)  # noqa: S311  (clients must not all come back at once)
        query = {
            "labelSelector": SELECTOR,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": max(int(seconds), 1),
        }
        path = resource.path(self.namespace)
        response = self._send("GET", path, query, None, "application/json", (self.patience.connect, seconds + self.patience.read))
        opened(response)
        try:
            for line in _lines(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    if event["object"].get("code") == GONE:
                        raise Expired
                    raise ApiException(status=event["object"].get("code", 500), reason=event["object"].get("message", ""))
                event["object"].setdefault("kind", resource.kind)
                yield event
        finally:
            response.close()

    def log(self, pod: str, container: str, since: str, follow: bool, opened: Callable[[Any], None]) -> Iterator[str]:
        """Whole lines of a container's log, each with its time stamp.

        Raises:
            ApiException, one of :data:`BROKEN`; what a broken connection cut off is not yielded.
        """
        query = {"container": container, "timestamps": "true", "follow": str(follow).lower()}
        query.update({"sinceTime": since} if since else {})
        path = RESOURCES["Pod"].path(self.namespace, pod) + "/log"
        # A training step may be silent for long: a dead connection is found by the kernel's keep-alive, not by a read limit.
        response = self._send(
            "GET", path, query, None, "application/json", (self.patience.connect, None if follow else self.patience.read)
        )
        opened(response)
        try:
            yield from (line.decode(errors="replace") for line in _lines(response))
        finally:
            response.close()


def _lines(response: Any) -> Iterator[bytes]:
    rest = b""
    for chunk in response.stream(65536, decode_content=False):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line)


def forbidden(error: ApiException, verb: str, path: str) -> JobFailed:
    """What a 403 is to the user: a quota, or a permission."""
    try:
        message = json.loads(error.body or "{}").get("message", "")
    except ValueError:
        message = str(error.body)
    if "exceeded quota" in message:
        return JobFailed(message, where="quota", remedy="wait for other jobs, lower kubernetes.nodes or memory, or raise the quota")
    return JobFailed(
        f"may not {verb} {path}: {message}",
        where="permissions",
        remedy="apply k8s/base/rbac.yaml, or ask for the verbs of the table in docs/kubernetes.md",
    )


def hang_up(response: Any) -> None:
    """Close a stream that another thread is reading, so that its read returns."""
    line = getattr(getattr(response, "connection", None), "sock", None)
    if line is not None:
        with contextlib.suppress(OSError):
            line.shutdown(socket.SHUT_RDWR)
