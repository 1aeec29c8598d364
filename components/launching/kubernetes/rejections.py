"""Messages with which an API server, its admission plugins and the scheduler refuse an object: what is missing, and the remedy."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kubernetes.utils.quantity import parse_quantity

_QUOTA = re.compile(
    r"exceeded quota: (?P<name>[^,]+), requested: (?P<requested>\S+), used: (?P<used>\S+), limited: (?P<limited>\S+)"
)
_AUTHORIZER = re.compile(r"\bcannot \w+ (resource|path)\b")
_UNDECLARED = "field not declared in schema|failed to create typed patch object"
_TOO_LARGE = "etcdserver: request is too large|message larger than max"
_MISSING = (
    (r'persistentvolumeclaim "[^"]+" (not found|is being deleted)', "create the claim, or correct kubernetes.volumes"),
    (r'(secret|configmap) "[^"]+" not found|references non-existent secret key', "create it, or correct kubernetes.secrets"),
    (r"unbound immediate PersistentVolumeClaims", "check the storage class of the claims in kubernetes.volumes"),
    (
        r"(?i)resource ?claim(template)?\b.*(not found|not created|does not exist)",
        "create it, or correct kubernetes.resource_claims",
    ),
    (r'serviceaccount "[^"]+" not found', "apply k8s/base/rbac.yaml, or correct kubernetes.service_account"),
    (r"no PriorityClass with name", "create the PriorityClass, or correct kubernetes.priority"),
    (r'namespaces? "[^"]+" not found', "create the namespace, or correct kubernetes.namespace"),
    (r"RuntimeClass .*not found", "create the RuntimeClass, or correct kubernetes.runtime_class"),
)
_REFUSED = (
    (
        r"admission webhook .* denied the request|ValidatingAdmissionPolicy .* denied request",
        "a policy of the cluster forbids it: ask its administrator, or change the settings",
    ),
    (_UNDECLARED, "update the CustomResourceDefinitions (JobSet, Kubeflow Trainer), or use kubernetes.rendering=job"),
    (_TOO_LARGE, "shorten kubernetes.environment, annotations and labels: an object may have 1.5 MiB"),
    (r"because it is being terminated", "the namespace is being deleted: create it again when it is gone"),
    (r"violates PodSecurity", "the namespace enforces a Pod Security Standard: ask its administrator"),
    (r"(maximum|minimum) \S+ usage per", "change kubernetes.cpu, memory or scratch to what the LimitRange allows"),
)


@dataclass(frozen=True)
class QuotaMessage:
    """Message of a ResourceQuota that refuses a pod: by resource, the pod's request and the limit of the namespace."""

    requested: dict[str, str]
    limited: dict[str, str]

    def excess(self, nodes: int) -> str:
        """Return the resources of which a job with so many nodes needs more than the quota allows in all, or an empty string."""
        parts = [
            f"{nodes} x {amount} {name} of {self.limited[name]}"
            for name, amount in self.requested.items()
            if name in self.limited and parse_quantity(amount) * nodes > parse_quantity(self.limited[name])
        ]
        return ", ".join(parts)


@dataclass(frozen=True)
class Rejection:
    """A refusal: remedy, whether an object that it names does not exist, whether permission is missing, and the quota."""

    remedy: str
    missing: bool = False
    forbidden: bool = False
    quota: QuotaMessage | None = None


def classify_rejection(message: str) -> Rejection:
    """Return what a message of the API server, an admission plugin or the scheduler means."""
    quota = _QUOTA.search(message)
    if quota is not None:
        parsed = QuotaMessage(_parse_amounts(quota["requested"]), _parse_amounts(quota["limited"]))
        return Rejection(
            "wait for other jobs, lower kubernetes.nodes, cpu, memory or gpus_per_node, or raise the quota", quota=parsed
        )
    for pattern, remedy in _MISSING:
        if re.search(pattern, message):
            return Rejection(remedy, missing=True)
    for pattern, remedy in _REFUSED:
        if re.search(pattern, message):
            return Rejection(remedy)
    if _AUTHORIZER.search(message):
        return Rejection("apply k8s/base/rbac.yaml, or request the verbs in the table of docs/kubernetes.md", forbidden=True)
    return Rejection("check the settings under kubernetes; see the events of the namespace: kubectl get events")


def is_final(message: str) -> bool:
    """Return whether repeating a request fails again although its status is 500, which usually passes.

    Server-side apply answers so for a field that the installed CustomResourceDefinition does not declare or of which it has another
    type, and etcd for an object that is too large.
    """
    return re.search(f"{_UNDECLARED}|{_TOO_LARGE}", message) is not None


def _parse_amounts(text: str) -> dict[str, str]:
    """Parse ``requests.cpu=4,pods=1``."""
    return {name: amount for name, _, amount in (item.partition("=") for item in text.split(","))}
