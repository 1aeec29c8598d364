"""Render a job as Kubernetes objects in one of three ways: JobSet, Indexed Job with a headless Service, or Kubeflow TrainJob.

All renderings share one pod template.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kubernetes.utils.quantity import parse_quantity

from components.errors import BadInput
from components.launching.job import JobSpec
from components.launching.kubernetes import pod_entrypoint

RenderingName = Literal["jobset", "job", "trainjob"]
Object = dict[str, Any]

MANAGER = "omnimri"
"""Field manager, and value of the label ``app.kubernetes.io/managed-by`` on every object that OmniMRI creates."""
MANAGED_BY_LABEL, JOB_LABEL = "app.kubernetes.io/managed-by", "omnimri.dev/job"
DIGEST_ANNOTATION, FOLDER_ANNOTATION = "omnimri.dev/digest", "omnimri.dev/folder"
EXCLUDED_ANNOTATION, NODES_ANNOTATION = "omnimri.dev/excluded-machines", "omnimri.dev/nodes"
SELECTOR = f"{MANAGED_BY_LABEL}={MANAGER},{JOB_LABEL}"
CONTAINER = REPLICATED_JOB = "node"
"""Name of the container and of the JobSet's only Job. Kubeflow Trainer (2.1 and later) demands this name of the container."""
USER_ID = 10001
POD_FIELDS = {
    "POD_IP": "status.podIP",
    pod_entrypoint.JOB_UID: "metadata.labels['batch.kubernetes.io/controller-uid']",
    pod_entrypoint.JOBSET_UID: "metadata.labels['jobset.sigs.k8s.io/jobset-uid']",
}
"""Environment variables of a pod that hold its own fields; a label that a pod lacks is an empty text."""
OWN_MOUNTS = (Path("/dev/shm"), Path("/tmp"))  # noqa: S108


@dataclass(frozen=True)
class Resource:
    """A kind of object and its location in the API."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """Value of ``apiVersion`` in objects of this kind."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str, name: str = "") -> str:
        """Return the URL path of the collection, or of one object."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        return f"{root}/namespaces/{namespace}/{self.plural}" + (f"/{name}" if name else "")


PODS = Resource("", "v1", "pods", "Pod")
SERVICES = Resource("", "v1", "services", "Service")
EVENTS = Resource("", "v1", "events", "Event")
JOBS = Resource("batch", "v1", "jobs", "Job")
JOBSETS = Resource("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet")
TRAINJOBS = Resource("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob")
RUNTIMES = Resource("trainer.kubeflow.org", "v1alpha1", "trainingruntimes", "TrainingRuntime")
WORKLOADS = Resource("kueue.x-k8s.io", "v1beta2", "workloads", "Workload")
POD_GROUPS = tuple(
    Resource("scheduling.k8s.io", version, "podgroups", "PodGroup") for version in ("v1beta1", "v1alpha3", "v1alpha2")
)
"""PodGroups of Kubernetes itself, newest version first: beta since 1.37, alpha in 1.36."""
COSCHEDULING_GROUPS = Resource("scheduling.x-k8s.io", "v1alpha1", "podgroups", "PodGroup")
"""PodGroups of the scheduler plugins (sigs.k8s.io/scheduler-plugins)."""
VOLCANO_GROUPS = Resource("scheduling.volcano.sh", "v1beta1", "podgroups", "PodGroup")
GANG_RESOURCES = (*POD_GROUPS, COSCHEDULING_GROUPS, VOLCANO_GROUPS)
MAIN_RESOURCES: dict[RenderingName, Resource] = {"jobset": JOBSETS, "job": JOBS, "trainjob": TRAINJOBS}
_RESOURCES = {
    (resource.api_version, resource.kind): resource
    for resource in (PODS, SERVICES, JOBS, JOBSETS, TRAINJOBS, RUNTIMES, *GANG_RESOURCES)
}


def resource_of(thing: Object) -> Resource:
    """Return the resource of an object, given its ``apiVersion`` and ``kind``."""
    return _RESOURCES[thing["apiVersion"], thing["kind"]]


@dataclass(frozen=True)
class RenderedJob:
    """The objects of a job.

    Attributes:
        main: object whose end is the end of the job; it owns the others.
        prerequisites: objects that must exist before it. dependents: objects that are applied after it.
    """

    rendering: RenderingName
    main: Object
    prerequisites: tuple[Object, ...] = ()
    dependents: tuple[Object, ...] = ()

    @property
    def objects(self) -> tuple[Object, ...]:
        """All objects in the order in which they are applied."""
        return (*self.prerequisites, self.main, *self.dependents)


def render(job: JobSpec, rendering: RenderingName, namespace: str, gang: Resource | None = None) -> RenderedJob:
    """Return the objects that run a job.

    Args:
        gang: kind of PodGroup with which the scheduler places all nodes or none. Not used with a queue: Kueue admits all nodes or
            none itself.

    Raises:
        BadInput: the number of processes is not a multiple of the number of nodes, processes would share GPUs, no image is named,
            two volumes have one path, or the job's folder is on no volume of the nodes.
    """
    _validate(job)
    rendered = _RENDERINGS[rendering](job, namespace)
    if gang is None or job.placement.queue or job.nodes == 1:
        return rendered
    template = _pod_template_of(rendered)
    if gang is COSCHEDULING_GROUPS:
        template["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"] = job.key
    elif gang is VOLCANO_GROUPS:
        template["metadata"].setdefault("annotations", {})["scheduling.k8s.io/group-name"] = job.key
    else:
        template["spec"]["schedulingGroup"] = {"podGroupName": job.key}
    return replace(rendered, prerequisites=(*rendered.prerequisites, _pod_group(job, namespace, gang)))


def _pod_group(job: JobSpec, namespace: str, gang: Resource) -> Object:
    """Return the PodGroup of a job; pods and group have the same priority."""
    spec: Object = {"schedulingPolicy": {"gang": {"minCount": job.nodes}}}
    if gang is COSCHEDULING_GROUPS:
        spec = {"minMember": job.nodes, "scheduleTimeoutSeconds": max(round(job.pending_limit_s), 1)}
    elif gang is VOLCANO_GROUPS:
        spec = {"minMember": job.nodes}
    if job.placement.priority and gang is not COSCHEDULING_GROUPS:
        spec["priorityClassName"] = job.placement.priority
    return {
        "apiVersion": gang.api_version,
        "kind": gang.kind,
        "metadata": {"name": job.key, "namespace": namespace, "labels": _labels(job)},
        "spec": spec,
    }


def _pod_template_of(rendered: RenderedJob) -> Object:
    """Return the pod template inside a rendered job."""
    spec: Object = (
        rendered.prerequisites[0]["spec"]["template"]["spec"] if rendered.rendering == "trainjob" else rendered.main["spec"]
    )
    if rendered.rendering != "job":
        spec = spec["replicatedJobs"][0]["template"]["spec"]
    template: Object = spec["template"]
    return template


def _validate(job: JobSpec) -> None:
    if job.processes % job.nodes:
        raise BadInput(
            f"{job.processes} processes cannot be divided evenly among {job.nodes} nodes",
            where="training.processes",
            remedy="use a multiple of the number of nodes",
        )
    if job.resources.gpus and job.resources.gpus != job.processes_per_node:
        raise BadInput(
            f"{job.processes_per_node} processes on each node need {job.processes_per_node} GPUs, not {job.resources.gpus}",
            where="kubernetes.gpus_per_node",
            remedy="use one process for each GPU, or 0 GPUs to train on the CPU",
        )
    if not job.image:
        raise BadInput("no image is named", where="kubernetes.image", remedy="set it to an image built from the Dockerfile")
    paths = Counter([*(volume.path for volume in job.volumes), *OWN_MOUNTS])
    repeated = [str(path) for path, count in paths.items() if count > 1]
    if repeated:
        raise BadInput("two volumes have this path", where=repeated[0], remedy="give each claim in kubernetes.volumes its own")
    if not any(job.folder.is_relative_to(volume.path) for volume in job.volumes):
        raise BadInput(
            "the pods cannot access this folder",
            where=str(job.folder),
            remedy="set OMNIMRI_HOME to a folder on a shared volume, and name its claim in kubernetes.volumes",
        )


def _labels(job: JobSpec) -> dict[str, str]:
    return {
        MANAGED_BY_LABEL: MANAGER,
        "app.kubernetes.io/part-of": "omnimri",
        "app.kubernetes.io/name": "training",
        "app.kubernetes.io/component": "training",
        JOB_LABEL: job.key,
    }


def _main_metadata(job: JobSpec, namespace: str) -> Object:
    labels = _labels(job)
    if job.placement.queue:
        labels["kueue.x-k8s.io/queue-name"] = job.placement.queue
    if job.placement.queue_priority:
        labels["kueue.x-k8s.io/priority-class"] = job.placement.queue_priority
    annotations = {DIGEST_ANNOTATION: job.identity, FOLDER_ANNOTATION: str(job.folder)}
    if job.placement.excluded_machines:
        annotations[EXCLUDED_ANNOTATION] = ",".join(job.placement.excluded_machines)
    if job.spare_nodes:
        annotations[NODES_ANNOTATION] = str(job.nodes)  # the object itself counts the spare nodes as well
    return {"name": job.key, "namespace": namespace, "labels": labels, "annotations": annotations}


def _indexed_job(job: JobSpec, namespace: str) -> RenderedJob:
    main = {
        "apiVersion": JOBS.api_version,
        "kind": JOBS.kind,
        "metadata": _main_metadata(job, namespace),
        "spec": {
            **_job_spec(job, namespace, host=f"{job.key}-0", subdomain=job.key),
            "backoffLimit": job.restarts * job.pods,  # it counts pods, and all nodes of a job fail together
            "ttlSecondsAfterFinished": job.keep_s,
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": SERVICES.kind,
        "metadata": {"name": job.key, "namespace": namespace, "labels": _labels(job)},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {JOB_LABEL: job.key},
            "ports": [{"name": "meeting", "port": pod_entrypoint.PORT, "targetPort": pod_entrypoint.PORT, "protocol": "TCP"}],
        },
    }
    return RenderedJob("job", main, dependents=(service,))


def _jobset(job: JobSpec, namespace: str) -> RenderedJob:
    main = {
        "apiVersion": JOBSETS.api_version,
        "kind": JOBSETS.kind,
        "metadata": _main_metadata(job, namespace),
        "spec": {**_jobset_spec(job, namespace), "ttlSecondsAfterFinished": job.keep_s},
    }
    return RenderedJob("jobset", main)


def _trainjob(job: JobSpec, namespace: str) -> RenderedJob:
    runtime = {
        "apiVersion": RUNTIMES.api_version,
        "kind": RUNTIMES.kind,
        "metadata": {"name": job.key, "namespace": namespace, "labels": _labels(job)},
        "spec": {"mlPolicy": {"numNodes": job.pods}, "template": {"spec": _jobset_spec(job, namespace, step="trainer")}},
    }
    main = {
        "apiVersion": TRAINJOBS.api_version,
        "kind": TRAINJOBS.kind,
        "metadata": _main_metadata(job, namespace),
        "spec": {
            "runtimeRef": {"apiGroup": RUNTIMES.group, "kind": RUNTIMES.kind, "name": job.key},
            "trainer": {"numNodes": job.pods},
        },
    }
    return RenderedJob("trainjob", main, prerequisites=(runtime,))


_RENDERINGS: dict[RenderingName, Callable[[JobSpec, str], RenderedJob]] = {
    "job": _indexed_job,
    "jobset": _jobset,
    "trainjob": _trainjob,
}


def _jobset_spec(job: JobSpec, namespace: str, step: str = "") -> Object:
    """Return the spec of a JobSet with one Indexed Job.

    A Job that its pod failure policy or its deadline ended is not restarted. A pod that was killed ends the Job, and the JobSet
    restarts all nodes, so that ``restarts`` counts rounds. The action RestartJobSetAndIgnoreMaxRestarts is not needed, since no
    disruption ends a Job; RestartJob is the same as RestartJobSet for a single Job, and older JobSets lack it.
    """
    template: Object = {"spec": _job_spec(job, namespace, host=f"{job.key}-{REPLICATED_JOB}-0-0", subdomain=None, service=job.key)}
    labels = _labels(job)
    if step:
        labels["trainer.kubeflow.org/trainjob-ancestor-step"] = step
    template["metadata"] = {"labels": labels}
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": job.key},
        "failurePolicy": {
            "maxRestarts": job.restarts,
            "rules": [
                {"name": "hopeless", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy", "DeadlineExceeded"]},
                {"name": "killed", "action": "RestartJobSet", "onJobFailureReasons": ["BackoffLimitExceeded"]},
            ],
        },
        "replicatedJobs": [{"name": REPLICATED_JOB, "replicas": 1, "template": template}],
    }


def _job_spec(job: JobSpec, namespace: str, host: str, subdomain: str | None, service: str = "") -> Object:
    """Return the spec of an Indexed Job: one pod for each node, replaced under the same index and host name."""
    rendezvous = f"{host}.{subdomain or service}.{namespace}.svc:{pod_entrypoint.PORT}"
    # A job is complete without the spare nodes: perhaps they have never found a machine.
    success = {"successPolicy": {"rules": [{"succeededCount": job.nodes}]}} if job.spare_nodes else {}
    return {
        "completionMode": "Indexed",
        "completions": job.pods,
        "parallelism": job.pods,
        **success,
        "backoffLimit": 0,
        "activeDeadlineSeconds": job.time_limit_s,
        "podReplacementPolicy": "Failed",
        # The order matters: a disruption is ignored, whatever the exit status of the container. Every other status, as 137, means
        # that the container was killed from outside: its node restarts, or its grace period is too short. That is counted.
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                _exit_code_rule("FailJob", pod_entrypoint.FINAL),
                _exit_code_rule("Ignore", pod_entrypoint.UNCOUNTED),
            ]
        },
        "template": _pod_template(job, rendezvous, subdomain),
    }


def _exit_code_rule(action: str, statuses: tuple[int, ...]) -> Object:
    codes = {"containerName": CONTAINER, "operator": "In", "values": sorted(statuses)}
    return {"action": action, "onExitCodes": codes}


def _pod_template(job: JobSpec, rendezvous: str, subdomain: str | None) -> Object:
    spec: Object = {
        "restartPolicy": "Never",
        "serviceAccountName": job.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": job.grace_s,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": _affinity(job),
        "containers": [_container(job, rendezvous)],
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": job.resources.shared_memory}},
            {"name": "scratch", "emptyDir": {"sizeLimit": job.resources.scratch}},
            *(
                {"name": f"shared-{number}", "persistentVolumeClaim": {"claimName": volume.claim}}
                for number, volume in enumerate(job.volumes)  # the name of a claim may be longer than that of a volume
            ),
        ],
    }
    if subdomain:
        spec["subdomain"] = subdomain
    spec |= {name: value for name, value in _optional_pod_fields(job).items() if value}
    annotations = {**job.placement.annotations, **_topology_annotations(job)}
    metadata: Object = {"labels": {**job.placement.labels, **_labels(job)}}
    return {"metadata": {**metadata, "annotations": annotations} if annotations else metadata, "spec": spec}


def _optional_pod_fields(job: JobSpec) -> Object:
    """Return the fields of a pod that only some settings need; empty ones are left out."""
    placement = job.placement
    gpu_toleration = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if job.resources.gpus else []
    spread = {
        "maxSkew": 1,
        "topologyKey": placement.spread,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {JOB_LABEL: job.key}},
    }
    return {
        "tolerations": [*gpu_toleration, *map(dict, placement.tolerations)],
        "nodeSelector": dict(placement.node_selector),
        "priorityClassName": placement.priority,
        "schedulerName": placement.scheduler,
        "runtimeClassName": placement.runtime_class,
        "topologySpreadConstraints": [spread] if placement.spread else [],
        "resourceClaims": [
            {"name": name, "resourceClaimTemplateName": template} for name, template in placement.resource_claims.items()
        ],
        "imagePullSecrets": [{"name": name} for name in job.pull_secrets],
    }


def _topology_annotations(job: JobSpec) -> dict[str, str]:
    """Return the annotation with which Kueue places all pods in one domain of a topology."""
    if not job.placement.queue or not job.placement.topology:
        return {}
    strictness = "required" if job.placement.topology_required else "preferred"
    return {f"kueue.x-k8s.io/podset-{strictness}-topology": job.placement.topology}


def _affinity(job: JobSpec) -> Object:
    """Return the affinity: nodes near each other, in the required topology domain, and on no excluded machine."""
    placement, selector = job.placement, {"labelSelector": {"matchLabels": {JOB_LABEL: job.key}}}
    near = {**selector, "topologyKey": placement.topology or "topology.kubernetes.io/zone"}
    affinity: Object = {
        "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": near}]}
    }
    if placement.topology and placement.topology_required and not placement.queue:
        affinity = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [near]}}
    if placement.excluded_machines:
        # By name, since the label of a node may differ or be absent, and by label, which cluster autoscalers understand.
        names = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in placement.excluded_machines]
        expression = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": list(placement.excluded_machines)}
        term = {"nodeSelectorTerms": [{"matchFields": names, "matchExpressions": [expression]}]}
        affinity["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": term}
    return affinity


def _container(job: JobSpec, rendezvous: str) -> Object:
    quantities = {"cpu": job.resources.cpu, "memory": job.resources.memory, "ephemeral-storage": job.resources.scratch}
    if job.resources.gpus:
        quantities["nvidia.com/gpu"] = str(job.resources.gpus)
    quantities |= {name: str(count) for name, count in job.placement.devices.items()}
    resources: Object = {"requests": dict(quantities), "limits": dict(quantities)}
    if job.placement.resource_claims:
        resources["claims"] = [{"name": name} for name in job.placement.resource_claims]
    arguments = pod_entrypoint.build_arguments(
        [job.module, *job.arguments],
        job.nodes,
        job.processes_per_node,
        rendezvous,
        job.key,
        job.restarts,
        job.grace_s,
        job.folder,
    )
    container: Object = {
        "name": CONTAINER,
        "image": job.image,
        "command": ["python", "-m", pod_entrypoint.__name__],
        "args": arguments,
        "env": [
            *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in POD_FIELDS.items()),
            *({"name": name, "value": value} for name, value in sorted(_environment(job).items())),
        ],
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
            {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108
            *({"name": f"shared-{number}", "mountPath": str(volume.path)} for number, volume in enumerate(job.volumes)),
        ],
    }
    if job.secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in job.secrets]
    return container


def _environment(job: JobSpec) -> dict[str, str]:
    """Return environment variables: caches on the scratch volume, threads by the CPU limit, NCCL warnings and error handling."""
    cores = max(int(parse_quantity(job.resources.cpu)), 1)
    common = {
        "HOME": "/tmp",  # noqa: S108
        "TRITON_CACHE_DIR": "/tmp/triton",  # noqa: S108
        "TORCH_EXTENSIONS_DIR": "/tmp/torch",  # noqa: S108
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(max(cores // job.processes_per_node, 1)),
    }
    if job.resources.gpus:
        common |= {"NCCL_DEBUG": "WARN", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
    return {**common, **job.environment}
