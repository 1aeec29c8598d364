"""Checks of Kubernetes objects: strict schema validation, the Pod Security Standard "restricted", and the rules of this project."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from kubernetes.utils.quantity import parse_quantity
from kubernetes_validate.utils import all_versions, major_minor

from components.provenance import REPOSITORY

Object = dict[str, Any]
SCHEMAS = Path(__file__).parents[1] / "k8s" / "schemas"
NEWEST = tuple(dict.fromkeys(major_minor(version) for version in all_versions()))[-3:]
VOLUME_TYPES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


@cache
def kustomize(folder: str) -> tuple[Object, ...]:
    """Render an overlay offline and return its objects."""
    kubectl = Path(sys.executable).with_name("kubectl")
    completed = subprocess.run([kubectl, "kustomize", str(REPOSITORY / folder)], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    return tuple(yaml.load_all(completed.stdout, Loader=yaml.CSafeLoader))


@cache
def _custom_validators() -> dict[tuple[str, str], Any]:
    """Return the validators of custom resources by API version and kind; unknown fields are errors, as in strict validation."""
    validators = {}
    for path in SCHEMAS.glob("*.json"):
        crd = json.loads(path.read_text())
        for version, schema in crd["versions"].items():
            validators[f"{crd['group']}/{version}", crd["kind"]] = jsonschema.Draft7Validator(_strict(schema))
    return validators


def _strict(schema: Any) -> Any:
    """Return a schema that forbids unknown fields in objects with named fields and accepts both types for ``int-or-string``."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string") is True:
        strict["type"] = ["integer", "string"]
        strict.pop("anyOf", None)
    return strict


def schema_faults(thing: Object, version: str) -> list[str]:
    """Return the violations of the schema of the object's kind in a minor version of Kubernetes."""
    return _schema_faults(json.dumps(thing, sort_keys=True), version)


@cache
def _schema_faults(text: str, version: str) -> list[str]:
    thing = json.loads(text)  # overlays share most objects; the cache validates each once
    validator = _custom_validators().get((thing["apiVersion"], thing["kind"]))
    if validator is not None:
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(thing)]
    try:
        kubernetes_validate.validate(thing, version, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return [str(getattr(error, "message", error))]
    return []


def pod_specs(thing: Any) -> Iterator[Object]:
    """Yield every pod spec inside an object at any depth."""
    if isinstance(thing, dict):
        if "containers" in thing:
            yield thing
        else:
            for value in thing.values():
                yield from pod_specs(value)
    elif isinstance(thing, list):
        for value in thing:
            yield from pod_specs(value)


def security_faults(pod: Object) -> list[str]:
    """Return the violations of the Pod Security Standard "restricted" (1.25 and later) in a pod spec."""
    faults = []
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            faults.append(field)
    for volume in pod.get("volumes", []):
        faults += [f"volume {volume['name']}: {kind}" for kind in volume.keys() - {"name"} if kind not in VOLUME_TYPES]
    pod_context = pod.get("securityContext", {})
    faults += [f"sysctl {item['name']}" for item in pod_context.get("sysctls", [])]
    for container in [*pod.get("initContainers", []), *pod["containers"], *pod.get("ephemeralContainers", [])]:
        own, name = container.get("securityContext", {}), container["name"]
        effective = {**pod_context, **own}
        if own.get("privileged"):
            faults.append(f"{name}: privileged")
        if own.get("allowPrivilegeEscalation") is not False:
            faults.append(f"{name}: allowPrivilegeEscalation")
        if effective.get("runAsNonRoot") is not True:
            faults.append(f"{name}: runAsNonRoot")
        if effective.get("runAsUser") == 0:
            faults.append(f"{name}: runs as root")
        if effective.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            faults.append(f"{name}: seccompProfile")
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []):
            faults.append(f"{name}: capabilities are not dropped")
        if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            faults.append(f"{name}: capabilities are added")
        if own.get("procMount", "Default") != "Default":
            faults.append(f"{name}: procMount")
        for field in ("seLinuxOptions", "windowsOptions"):
            if {"user", "role", "hostProcess"} & effective.get(field, {}).keys():
                faults.append(f"{name}: {field}")
        faults += [f"{name}: hostPort" for port in container.get("ports", []) if port.get("hostPort")]
    return faults


def _is_on_disk(volume: Object) -> bool:
    return "emptyDir" in volume and volume["emptyDir"].get("medium") != "Memory"


def project_faults(pod: Object) -> list[str]:
    """Return the violations of this project's rules: read-only root file systems, and limits for CPU, memory and volumes."""
    faults = []
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            faults.append(f"{container['name']}: readOnlyRootFilesystem")
        resources = container.get("resources", {})
        for field in ("cpu", "memory"):
            if not (resources.get("requests", {}).get(field) and resources.get("limits", {}).get(field)):
                faults.append(f"{container['name']}: no {field} request and limit")
    if pod.get("enableServiceLinks") is not False:
        faults.append("enableServiceLinks")
    disk = [parse_quantity(v["emptyDir"].get("sizeLimit", "0")) for v in pod.get("volumes", []) if _is_on_disk(v)]
    limits = [c.get("resources", {}).get("limits", {}).get("ephemeral-storage", "0") for c in pod["containers"]]
    if sum(disk) > sum(map(parse_quantity, limits)):  # the kubelet evicts a pod whose volumes exceed its limit
        faults.append("volumes on disk exceed the limit of ephemeral-storage")
    faults += [
        f"volume {v['name']}: no size limit" for v in pod.get("volumes", []) if "emptyDir" in v and "sizeLimit" not in v["emptyDir"]
    ]
    return faults
