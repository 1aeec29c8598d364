"""Access to the Kubernetes API through the official client: server-side apply, lists, watches, log streams, retries.

Transient failures (429, 5xx, timeouts, broken connections) are retried with exponential backoff; all others are raised at once with
a remedy. Objects are plain dictionaries, so that every kind is handled alike and a watch of thousands of objects stays cheap.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.connection import HTTPConnection

from components.errors import JobFailed
from components.launching.kubernetes.api_errors import PERMISSIONS, PermissionHistory, error_message, forbidden_error, retry_after_s
from components.launching.kubernetes.manifests import (
    MAIN_RESOURCES,
    MANAGER,
    PODS,
    SELECTOR,
    Object,
    RenderingName,
    Resource,
    resource_of,
)
from components.launching.kubernetes.rejections import is_final
from components.progress import show_status

TRANSIENT_STATUSES = frozenset({0, 408, 429, 500, 502, 503, 504})
MAX_MESSAGE_CHARACTERS = 300
CONNECTION_ERRORS = (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)
KEEP_ALIVE_OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff and timeouts of requests to the API server, in seconds.

    Attributes:
        initial_pause_s, factor, max_pause_s: pauses between attempts; each is multiplied by a random number from 0.5 to 1.
        give_up_s: time after which an API server that does not respond is given up. The job keeps running; the next run finds it.
        connect_timeout_s, read_timeout_s: timeouts of one request.
        watch_s: duration of a watch before it is reopened.
        forbidden_s: time for which a 403 is retried if the request was permitted before, or after an outage: an API server that
            starts refuses everything until it has read its roles (kubernetes issue 121635). A 401 is retried for that time after an
            outage: until the server has read the service accounts, it rejects their tokens.
    """

    initial_pause_s: float = 1.0
    factor: float = 2.0
    max_pause_s: float = 30.0
    give_up_s: float = 900.0
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    watch_s: float = 300.0
    forbidden_s: float = 30.0

    def pauses(self) -> Iterator[float]:
        """Yield the pauses between attempts without end."""
        pause = self.initial_pause_s
        while True:
            yield pause * random.uniform(0.5, 1.0)  # noqa: S311  (spreads the load of many clients; not security-relevant)
            pause = min(pause * self.factor, self.max_pause_s)


TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)(?: |$)")
"""Time at the start of a line of a log (RFC 3339)."""


class LogUnreadable(Exception):
    """The node sent a message in place of a log: a text without a timestamp, with status 200."""


class HistoryExpired(Exception):
    """The API server no longer keeps the watched versions (410); the objects must be listed again."""


def report(text: str) -> None:
    """Show the user what the cluster does now."""
    show_status(text)


class Cluster:
    """Client of one namespace of a cluster."""

    def __init__(self, api: client.ApiClient, namespace: str, retry: RetryPolicy | None = None) -> None:
        self.api, self.namespace, self.retry = api, namespace, retry or RetryPolicy()
        self._permissions = PermissionHistory(self.retry.forbidden_s)
        self._ahead = datetime.timedelta()  # by how much the server's clock is ahead of this machine's
        self._served: dict[str, set[str]] = {}  # plurals by path of group and version
        # A log stream may be silent for as long as a training step takes; keep-alive probes detect a dead peer within a minute.
        self.api.rest_client.pool_manager.connection_pool_kw["socket_options"] = [
            *HTTPConnection.default_socket_options,
            *KEEP_ALIVE_OPTIONS,
        ]

    @classmethod
    def connect(cls, namespace: str, context: str | None = None, retry: RetryPolicy | None = None) -> Cluster:
        """Connect with the pod's service account inside a cluster, else with the kubeconfig (``KUBECONFIG``, ``~/.kube/config``).

        Raises:
            JobFailed: neither is available, or the kubeconfig has no such context.
        """
        configuration = client.Configuration()
        try:
            if context is not None:
                raise config.ConfigException("a context of the kubeconfig is named")
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            try:
                config.load_kube_config(context=context, client_configuration=configuration)
                _reread_token_file(configuration, context)
            except config.ConfigException as error:
                raise JobFailed(
                    f"no cluster is configured: {error}",
                    where="kubernetes",
                    remedy="set KUBECONFIG or kubernetes.context, or run inside the cluster",
                ) from None
        configuration.retries = False  # request() retries itself: it knows which failures are transient
        configuration.connection_pool_maxsize = 512
        return cls(client.ApiClient(configuration), namespace, retry)

    # ---- requests

    def request(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
        verb: str = "",
    ) -> Object:
        """Send one request and retry transient failures until it succeeds.

        Args:
            verb: RBAC verb, for the message of a 403.

        Raises:
            ApiException: a failure that a retry does not fix, except 401 and 403.
            JobFailed: 401, 403, an untrusted certificate, or no response within :attr:`RetryPolicy.give_up_s`.
        """
        started, reported = time.monotonic(), False
        timeouts = (self.retry.connect_timeout_s, self.retry.read_timeout_s)
        for pause in self.retry.pauses():
            try:
                response = self._send(method, path, query, body, content_type, timeouts)
                self._permissions.record_success(verb or method, path)
                self._record_date(str(response.headers.get("Date") or ""))
                return dict(json.loads(response.data or b"{}"))
            except (ApiException, *CONNECTION_ERRORS) as error:
                fault, requested_s = self.describe_transient(error, verb or method, path), retry_after_s(error)
            if time.monotonic() - started > self.retry.give_up_s:
                raise self.unresponsive_error(fault)
            if not reported:
                report(f"the API server {fault}; retrying")
                reported = True
            time.sleep(max(pause, min(requested_s, self.retry.max_pause_s)))
        raise AssertionError("pauses() never ends")

    def _send(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None,
        body: Object | None,
        content_type: str,
        timeouts: tuple[float, float | None],
    ) -> Any:
        return self.api.call_api(
            path,
            method,
            query_params=list((query or {}).items()),
            body=body,
            auth_settings=["BearerToken"],
            header_params={"Accept": "application/json", "Content-Type": content_type},
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=timeouts,
        )

    def now(self) -> datetime.datetime:
        """Return the current time of the API server, with which all times in objects are to be compared."""
        return datetime.datetime.now(datetime.UTC) + self._ahead

    def _record_date(self, value: str) -> None:
        """Read the ``Date`` header of a response; it has a resolution of one second."""
        with contextlib.suppress(ValueError):
            self._ahead = parsedate_to_datetime(value) - datetime.datetime.now(datetime.UTC)

    # ---- errors

    def describe_transient(self, error: Exception, verb: str, path: str) -> str:
        """Describe a failure that a retry may fix; raise every other failure.

        Raises:
            JobFailed: 401, 403, or an untrusted certificate.
            ApiException: any other failure that a retry does not fix.
        """
        if not isinstance(error, ApiException):
            self._permissions.record_outage()
            return f"does not respond ({type(error).__name__})"
        if error.status == HTTPStatus.FORBIDDEN:
            refusal = forbidden_error(error, verb, path)
            if refusal.where != PERMISSIONS or not self._permissions.may_return(verb, path):
                raise refusal from None
            return "returned 403 for a request that it permitted before, or after an outage"
        if error.status == HTTPStatus.UNAUTHORIZED:
            if not self._permissions.is_after_outage():
                raise self.unauthorized_error() from None
            return "returned 401 after an outage"
        if "CERTIFICATE_VERIFY_FAILED" in str(error.reason):
            raise self.untrusted_certificate_error() from None
        message = error_message(error)
        if error.status not in TRANSIENT_STATUSES or is_final(message):
            raise error
        self._permissions.record_outage()
        return f"returned {error.status}" + (f" ({message[:MAX_MESSAGE_CHARACTERS]})" if message else "")

    def unauthorized_error(self) -> JobFailed:
        """Return the user-facing error for HTTP 401."""
        return JobFailed(
            "the API server rejects the credentials (401)",
            where=self.api.configuration.host,
            remedy="log in again, or renew the kubeconfig; running jobs continue and are found by the next run",
        )

    def untrusted_certificate_error(self) -> JobFailed:
        """Return the user-facing error for a certificate that the cluster's authority did not sign."""
        return JobFailed(
            "the API server's certificate is not signed by the cluster's certificate authority",
            where=self.api.configuration.host,
            remedy="check certificate-authority of the kubeconfig, or the pod's ca.crt; no request was sent",
        )

    def unresponsive_error(self, fault: str) -> JobFailed:
        """Return the user-facing error for an API server that did not respond within :attr:`RetryPolicy.give_up_s`."""
        return JobFailed(
            f"the API server {fault}, for {self.retry.give_up_s / 60:.0f} min",
            where=self.api.configuration.host,
            remedy="run again when it responds: running jobs continue without it and are found by the next run",
        )

    # ---- objects

    def supported_renderings(self) -> list[RenderingName]:
        """Return the renderings that the cluster supports, preferred one first: those whose kind it serves in our version."""
        preference: list[RenderingName] = ["jobset", "job", "trainjob"]
        return [name for name in preference if name == "job" or self.serves(MAIN_RESOURCES[name])]

    def serves(self, resource: Resource) -> bool:
        """Return whether the cluster serves a kind of object in this version; asked once."""
        group = f"/apis/{resource.group}/{resource.version}"
        if group not in self._served:
            try:
                listing = self.request("GET", group, verb="get").get("resources") or []
            except ApiException as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
                listing = []
            self._served[group] = {served["name"] for served in listing}
        return resource.plural in self._served[group]

    def has_field(self, resource: Resource, name: str) -> bool:
        """Return whether the served schema of a custom resource has a field of this name at any depth.

        Server-side apply refuses an object with a field that the installed CustomResourceDefinition does not declare.
        """
        try:
            schema = self.request("GET", f"/openapi/v3/apis/{resource.group}/{resource.version}", verb="get")
        except ApiException:
            return False
        except JobFailed as error:
            if error.where != PERMISSIONS:
                raise
            return False
        return f'"{name}":' in json.dumps(schema)

    def get(self, resource: Resource, name: str) -> Object | None:
        """Return an object, or None if it does not exist."""
        try:
            found = self.request("GET", resource.path(self.namespace, name), verb="get")
            return {"apiVersion": resource.api_version, "kind": resource.kind, **found}
        except ApiException as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    def apply(self, manifest: Object) -> Object:
        """Create or update an object by server-side apply, which is safe to retry; return the stored object.

        Raises:
            ApiException: 409, another manager owns a field; 422, a field is immutable.
        """
        path = resource_of(manifest).path(self.namespace, manifest["metadata"]["name"])
        query = {"fieldManager": MANAGER}
        return self.request("PATCH", path, query=query, body=manifest, content_type="application/apply-patch+yaml", verb="patch")

    def delete(self, target: Object) -> None:
        """Delete exactly this object (by UID, not a successor of the same name), after the objects that it owns."""
        path = resource_of(target).path(self.namespace, target["metadata"]["name"])
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": target["metadata"]["uid"]}}
        try:
            self.request("DELETE", path, body=body, verb="delete")
        except ApiException as error:
            if error.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):  # deleted already, or another object has its name
                raise

    def list_objects(self, resource: Resource, selector: str = SELECTOR, fields: str = "") -> tuple[list[Object], str]:
        """Return the current objects of a kind, and the version of the collection."""
        query = {"labelSelector": selector, "fieldSelector": fields}
        query = {key: value for key, value in query.items() if value}
        collection = self.request("GET", resource.path(self.namespace), query=query, verb="list")
        # The items of a list have neither.
        identity = {"apiVersion": resource.api_version, "kind": resource.kind}
        objects = [{**item, **identity} for item in collection.get("items") or []]
        return objects, collection["metadata"].get("resourceVersion", "")

    # ---- streams

    def watch(self, resource: Resource, version: str, on_open: Callable[[Any], None]) -> Iterator[Object]:
        """Yield the events since ``version`` until the server ends the watch.

        Args:
            on_open: receives the response, so that another thread can close it.

        Raises:
            HistoryExpired, ApiException, one of :data:`CONNECTION_ERRORS`
        """
        seconds = self.retry.watch_s * random.uniform(0.8, 1.0)  # noqa: S311  (clients must not all reconnect at once)
        query = {
            "labelSelector": SELECTOR,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": max(int(seconds), 1),
        }
        timeouts = (self.retry.connect_timeout_s, seconds + self.retry.read_timeout_s)
        response = self._send("GET", resource.path(self.namespace), query, None, "application/json", timeouts)
        self._permissions.record_success("watch", resource.path(self.namespace))
        on_open(response)
        try:
            for line in _iterate_lines(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    if event["object"].get("code") == HTTPStatus.GONE:
                        raise HistoryExpired
                    raise ApiException(status=event["object"].get("code", 500), reason=event["object"].get("message", ""))
                event["object"].setdefault("kind", resource.kind)
                yield event
        finally:
            response.close()

    def stream_log(self, pod: str, container: str, since: str, follow: bool, on_open: Callable[[Any], None]) -> Iterator[str]:
        """Yield complete lines of a container's log, each with its timestamp.

        A line that a broken connection cut off is not yielded.

        Raises:
            ApiException, one of :data:`CONNECTION_ERRORS`
            LogUnreadable: a line, or the text after the last line feed, has no timestamp. With status 200, kubelets report that a
                log has been removed ("unable to retrieve container logs for containerd://...") or cannot be followed.
        """
        query = {"container": container, "timestamps": "true", "follow": str(follow).lower()}
        query.update({"sinceTime": since} if since else {})
        path = PODS.path(self.namespace, pod) + "/log"
        # No read timeout while following: a training step may be silent for long. Keep-alive probes detect a dead connection.
        timeouts = (self.retry.connect_timeout_s, None if follow else self.retry.read_timeout_s)
        response = self._send("GET", path, query, None, "application/json", timeouts)
        on_open(response)
        try:
            for data, is_complete in _split_lines(response):
                line = data.decode(errors="replace")
                if TIMESTAMP.match(line) is None:
                    raise LogUnreadable(line[:MAX_MESSAGE_CHARACTERS])
                if is_complete:
                    yield line
        finally:
            response.close()


def _iterate_lines(response: Any) -> Iterator[bytes]:
    """Yield the non-empty lines of a stream that end with a line feed."""
    return (line for line, is_complete in _split_lines(response) if is_complete)


def _split_lines(response: Any) -> Iterator[tuple[bytes, bool]]:
    """Yield the non-empty lines of a stream, and for each one whether a line feed ends it."""
    remainder = b""
    for chunk in response.stream(65536, decode_content=False):
        *complete, remainder = (remainder + chunk).split(b"\n")
        yield from ((line, True) for line in complete if line)
    if remainder:
        yield remainder, False


def _reread_token_file(configuration: client.Configuration, context: str | None) -> None:
    """Read the ``tokenFile`` of a kubeconfig's user again for every request; the client itself reads it once.

    Tokens that a cluster issues are valid for an hour, and their file is replaced before.
    """
    merged = config.kube_config.KubeConfigMerger(config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION).config
    name = context or merged.safe_get("current-context")
    user = merged["contexts"].get_with_name(name)["context"].safe_get("user") if name else None
    entry: Any = merged["users"].get_with_name(user, safe=True) if user else None
    token_file = entry["user"].safe_get("tokenFile") if entry and "user" in entry else None
    if token_file and not entry["user"].safe_get("token"):
        path = Path(entry.path).parent / str(token_file)

        def refresh(current: client.Configuration) -> None:
            with contextlib.suppress(OSError):  # being replaced: the previous token is still valid
                current.api_key["authorization"] = f"Bearer {path.read_text().strip()}"

        configuration.refresh_api_key_hook = refresh


def close_stream(response: Any) -> None:
    """Close a stream that another thread is reading, so that its read returns."""
    connection_socket = getattr(getattr(response, "connection", None), "sock", None)
    if connection_socket is not None:
        with contextlib.suppress(OSError):
            connection_socket.shutdown(socket.SHUT_RDWR)
