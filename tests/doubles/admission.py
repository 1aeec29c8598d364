"""Admission of pods for tests: the refusals of a real API server, in its words."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

from kubernetes.utils.quantity import parse_quantity

from tests.doubles.apiserver import Object
from tests.helpers.manifest_checks import security_faults


@dataclass
class Admission:
    """Objects and policies that the creation of a pod meets; None = not checked.

    Attributes:
        quota: hard limits of the namespace's ResourceQuota ``omnimri``, for example ``{"requests.cpu": "4", "pods": "1"}``.
        service_accounts, priority_classes: names that exist. restricted: enforce the Pod Security Standard "restricted".
        webhook: refusal of a validating webhook, if there is one.
    """

    quota: dict[str, str] = field(default_factory=dict)
    service_accounts: set[str] | None = None
    priority_classes: set[str] | None = None
    restricted: bool = True
    webhook: str = ""

    def refuse(self, pod: Object, existing: list[Object]) -> str | None:
        """Return the API server's refusal of a pod, or None, in the order of the real admission plugins."""
        spec, name = pod["spec"], pod["metadata"]["name"]
        prefix = f'pods "{name}" is forbidden: '
        priority, account = spec.get("priorityClassName"), spec["serviceAccountName"]
        if priority and self.priority_classes is not None and priority not in self.priority_classes:
            return f"{prefix}no PriorityClass with name {priority} was found"
        if self.service_accounts is not None and account not in self.service_accounts:
            return f'{prefix}error looking up service account omnimri/{account}: serviceaccount "{account}" not found'
        faults = security_faults(spec) if self.restricted else []
        if faults:
            return f'{prefix}violates PodSecurity "restricted:latest": {", ".join(faults)}'
        if self.webhook:
            return f'admission webhook "policy.example.org" denied the request: {self.webhook}'
        return self._refuse_for_quota(pod, existing, prefix)

    def _refuse_for_quota(self, pod: Object, existing: list[Object], prefix: str) -> str | None:
        running = [other for other in existing if other["status"]["phase"] not in ("Succeeded", "Failed")]
        over = [name for name, limit in self.quota.items() if usage([*running, pod], name) > parse_quantity(limit)]
        if not over:
            return None
        requested = ",".join(f"{name}={usage([pod], name)}" for name in over)
        used = ",".join(f"{name}={usage(running, name)}" for name in over)
        limited = ",".join(f"{name}={self.quota[name]}" for name in over)
        return f"{prefix}exceeded quota: omnimri, requested: {requested}, used: {used}, limited: {limited}"


def usage(pods: list[Object], name: str) -> Decimal:
    """Return how much of a quota's resource pods use: ``pods``, ``requests.<resource>`` or ``limits.<resource>``."""
    if name == "pods":
        return Decimal(len(pods))
    kind, _, resource = name.partition(".")
    containers = [container for pod in pods for container in pod["spec"]["containers"]]
    return sum((parse_quantity(c.get("resources", {}).get(kind, {}).get(resource, "0")) for c in containers), Decimal(0))
