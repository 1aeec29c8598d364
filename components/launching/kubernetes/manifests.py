"""A job as Kubernetes objects, three ways: JobSet, Indexed Job with a headless Service, Kubeflow TrainJob. One pod template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from components.errors import BadInput
from components.launching.job import JobSpec
from components.launching.kubernetes import pod_entrypoint

RenderingName = Literal["jobset", "job", "trainjob"]
Object = dict[str, Any]

MANAGER = "omnimri"
"""Field manager and value of the label ``app.kubernetes.io/managed-by``: what carries it is ours."""
MANAGED, JOB_LABEL, DIGEST, FOLDER = "app.kubernetes.io/managed-by", "omnimri.dev/job", "omnimri.dev/digest", "omnimri.dev/folder"
SELECTOR = f"{MANAGED}={MANAGER},{JOB_LABEL}"
CONTAINER, REPLICAS = "trainer", "node"
USER = 10001
KILLED = 137


@dataclass(frozen=True)
class Resource:
    """A kind of object and where the API server keeps it."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """As objects name it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str, name: str = "") -> str:
        """URL path of the collection, or of one object."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        return f"{root}/namespaces/{namespace}/{self.plural}" + (f"/{name}" if name else "")


PODS = Resource("", "v1", "pods", "Pod")
SERVICES = Resource("", "v1", "services", "Service")
EVENTS = Resource("", "v1", "events", "Event")
JOBS = Resource("batch", "v1", "jobs", "Job")
JOBSETS = Resource("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet")
TRAINJOBS = Resource("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob")
RUNTIMES = Resource("trainer.kubeflow.org", "v1alpha1", "trainingruntimes", "TrainingRuntime")
MAIN: dict[RenderingName, Resource] = {"jobset": JOBSETS, "job": JOBS, "trainjob": TRAINJOBS}
RESOURCES = {resource.kind: resource for resource in (PODS, SERVICES, JOBS, JOBSETS, TRAINJOBS, RUNTIMES)}


@dataclass(frozen=True)
class Rendered:
    """The objects of a job.

    Attributes:
        main: the one whose end is the job's end; it owns the others.
        before: what must be there before it; after: what follows it.
    """

    rendering: RenderingName
    main: Object
    before: tuple[Object, ...] = ()
    after: tuple[Object, ...] = ()

    @property
    def objects(self) -> tuple[Object, ...]:
        """All, in the order in which they are applied."""
        return (*self.before, self.main, *self.after)


def render(job: JobSpec, rendering: RenderingName, namespace: str) -> Rendered:
    """The objects that run a job.

    Raises:
        BadInput: processes do not divide by nodes, GPUs are shared, no image is named, or the nodes would not see the folder.
    """
    _check(job)
    return _RENDERINGS[rendering](job, namespace)


def _check(job: JobSpec) -> None:
    if job.processes % job.nodes:
        raise BadInput(
            f"{job.processes} processes do not divide over {job.nodes} nodes", where="training.processes", remedy="use a multiple"
        )
    if job.resources.gpus and job.resources.gpus != job.processes_per_node:
        raise BadInput(
            f"{job.processes_per_node} processes on each node need as many GPUs, not {job.resources.gpus}",
            where="kubernetes.gpus_per_node",
            remedy="one process for each GPU, or 0 GPUs to train on the CPU",
        )
    if not job.image:
        raise BadInput("no image is named", where="kubernetes.image", remedy="name the image that the Dockerfile makes")
    if not any(job.folder.is_relative_to(volume.path) for volume in job.volumes):
        raise BadInput(
            "the pods would not see this folder",
            where=str(job.folder),
            remedy="set OMNIMRI_HOME to a folder on a shared volume, and name its claim in kubernetes.volumes",
        )


def _labels(job: JobSpec) -> dict[str, str]:
    return {
        MANAGED: MANAGER,
        "app.kubernetes.io/part-of": "omnimri",
        "app.kubernetes.io/name": "training",
        "app.kubernetes.io/component": "training",
        JOB_LABEL: job.key,
    }


def _main_metadata(job: JobSpec, namespace: str) -> Object:
    labels = _labels(job)
    if job.queue:
        labels["kueue.x-k8s.io/queue-name"] = job.queue
    annotations = {DIGEST: job.identity, FOLDER: str(job.folder)}
    return {"name": job.key, "namespace": namespace, "labels": labels, "annotations": annotations}


def _indexed_job(job: JobSpec, namespace: str) -> Rendered:
    main = {
        "apiVersion": JOBS.api_version,
        "kind": JOBS.kind,
        "metadata": _main_metadata(job, namespace),
        "spec": {
            **_job_spec(job, namespace, host=f"{job.key}-0", subdomain=job.key),
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
    return Rendered("job", main, after=(service,))


def _jobset(job: JobSpec, namespace: str) -> Rendered:
    main = {
        "apiVersion": JOBSETS.api_version,
        "kind": JOBSETS.kind,
        "metadata": _main_metadata(job, namespace),
        "spec": {**_jobset_spec(job, namespace), "ttlSecondsAfterFinished": job.keep_s},
    }
    return Rendered("jobset", main)


def _trainjob(job: JobSpec, namespace: str) -> Rendered:
    runtime = {
        "apiVersion": RUNTIMES.api_version,
        "kind": RUNTIMES.kind,
        "metadata": {"name": job.key, "namespace": namespace, "labels": _labels(job)},
        "spec": {"mlPolicy": {"numNodes": job.nodes}, "template": {"spec": _jobset_spec(job, namespace, step="trainer")}},
    }
    main = {
        "apiVersion": TRAINJOBS.api_version,
        "kind": TRAINJOBS.kind,
        "metadata": _main_metadata(job, namespace),
        "spec": {
            "runtimeRef": {"apiGroup": RUNTIMES.group, "kind": RUNTIMES.kind, "name": job.key},
            "trainer": {"numNodes": job.nodes},
        },
    }
    return Rendered("trainjob", main, before=(runtime,))


_RENDERINGS: dict[RenderingName, Callable[[JobSpec, str], Rendered]] = {
    "job": _indexed_job,
    "jobset": _jobset,
    "trainjob": _trainjob,
}


def _jobset_spec(job: JobSpec, namespace: str, step: str = "") -> Object:
    """A JobSet of one Indexed Job. A job that its own policy ended stays ended; anything else starts all nodes anew."""
    template: Object = {"spec": _job_spec(job, namespace, host=f"{job.key}-{REPLICAS}-0-0", subdomain=None, service=job.key)}
    template["metadata"] = {"labels": {**_labels(job), **({"trainer.kubeflow.org/trainjob-ancestor-step": step} if step else {})}}
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": job.key},
        "failurePolicy": {
            "maxRestarts": job.restarts,
            "rules": [
                {"name": "hopeless", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy", "DeadlineExceeded"]}
            ],
        },
        "replicatedJobs": [{"name": REPLICAS, "replicas": 1, "template": template}],
    }


def _job_spec(job: JobSpec, namespace: str, host: str, subdomain: str | None, service: str = "") -> Object:
    """An Indexed Job: a pod for each node, replaced under the same index and name."""
    meeting = f"{host}.{subdomain or service}.{namespace}.svc:{pod_entrypoint.PORT}"
    return {
        "completionMode": "Indexed",
        "completions": job.nodes,
        "parallelism": job.nodes,
        "backoffLimit": job.restarts,
        "activeDeadlineSeconds": job.time_limit_s,
        "podReplacementPolicy": "Failed",
        # In this order: a disruption counts for nothing, however the container ended.
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": CONTAINER,
                        "operator": "In",
                        "values": [pod_entrypoint.BAD_CONFIGURATION, KILLED],
                    },
                },
            ]
        },
        "template": _pod_template(job, meeting, subdomain),
    }


def _pod_template(job: JobSpec, meeting: str, subdomain: str | None) -> Object:
    gpus = job.resources.gpus
    spec: Object = {
        "restartPolicy": "Never",
        "serviceAccountName": job.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": job.grace_s,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": {
            "podAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 100,
                        "podAffinityTerm": {
                            "labelSelector": {"matchLabels": {JOB_LABEL: job.key}},
                            "topologyKey": "topology.kubernetes.io/zone",
                        },
                    }
                ]
            }
        },
        "containers": [_container(job, meeting)],
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": job.resources.shared_memory}},
            {"name": "scratch", "emptyDir": {"sizeLimit": job.resources.scratch}},
            *({"name": v.claim, "persistentVolumeClaim": {"claimName": v.claim}} for v in job.volumes),
        ],
    }
    if subdomain:
        spec["subdomain"] = subdomain
    if gpus:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if job.node_selector:
        spec["nodeSelector"] = dict(job.node_selector)
    if job.priority:
        spec["priorityClassName"] = job.priority
    if job.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in job.pull_secrets]
    return {"metadata": {"labels": _labels(job)}, "spec": spec}


def _container(job: JobSpec, meeting: str) -> Object:
    amounts = {"cpu": job.resources.cpu, "memory": job.resources.memory, "ephemeral-storage": job.resources.scratch}
    if job.resources.gpus:
        amounts["nvidia.com/gpu"] = str(job.resources.gpus)
    words = pod_entrypoint.arguments(
        [job.module, *job.arguments], job.nodes, job.processes_per_node, meeting, job.key, job.restarts, job.grace_s
    )
    container: Object = {
        "name": CONTAINER,
        "image": job.image,
        "command": ["python", "-m", pod_entrypoint.__name__],
        "args": words,
        "env": [
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            *({"name": name, "value": value} for name, value in sorted(_environment(job).items())),
        ],
        "resources": {"requests": dict(amounts), "limits": dict(amounts)},
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
            *({"name": volume.claim, "mountPath": str(volume.path)} for volume in job.volumes),
        ],
    }
    if job.secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in job.secrets]
    return container


def _environment(job: JobSpec) -> dict[str, str]:
    """Caches go to the scratch volume; threads follow the CPU limit; NCCL says what is wrong and gives up on a dead peer."""
    cores = max(int(float(job.resources.cpu.removesuffix("m")) / (1000 if job.resources.cpu.endswith("m") else 1)), 1)
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
