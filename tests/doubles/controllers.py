"""Controllers of a cluster for tests: TrainJob -> JobSet -> Job -> pods, failure policies, deletion along owner references.

They reconcile all objects after every change, and implement the behavior of the real controllers that the launcher can observe.
"""

from __future__ import annotations

import asyncio
import copy
import secrets
from typing import Any

from tests.doubles.apiserver import Object, RunningServer, now

INDEX = "batch.kubernetes.io/job-completion-index"
FINISHED_PHASES = ("Succeeded", "Failed")


def has_condition(thing: Object, kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in thing.get("status", {}).get("conditions", []))


def owned_by(thing: Object, owner: Object) -> bool:
    return any(reference["uid"] == owner["metadata"]["uid"] for reference in thing["metadata"].get("ownerReferences", []))


def controller_reference(owner: Object) -> Object:
    metadata = owner["metadata"]
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


class Controllers:
    """Reconcile loop in the API server's event loop."""

    def __init__(self, server: RunningServer) -> None:
        self.server, self.api = server, server.api
        self.counted_pods: set[str] = set()
        self.job_failures: dict[str, int] = {}
        self.admit_jobs = True
        """False: new jobs are suspended, as by Kueue."""

    def __enter__(self) -> Controllers:
        self._task = asyncio.run_coroutine_threadsafe(self._run(), self.server.loop)
        return self

    def __exit__(self, *_: object) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        seen = -1
        while True:
            while seen != self.api.store.version:
                seen = self.api.store.version
                await self.reconcile()
            async with self.api.changed:
                if seen == self.api.store.version:
                    await self.api.changed.wait()

    def all(self, plural: str) -> list[Object]:
        return [thing for (p, _), thing in list(self.api.store.objects.items()) if p == plural]

    async def reconcile(self) -> None:
        for trainjob in self.all("trainjobs"):
            await self._trainjob(trainjob)
        for jobset in self.all("jobsets"):
            await self._jobset(jobset)
        pods: dict[str, list[Object]] = {}
        for pod in self.all("pods"):
            for reference in pod["metadata"]["ownerReferences"]:
                pods.setdefault(reference["uid"], []).append(pod)
        for job in self.all("jobs"):
            await self._job(job, pods.get(job["metadata"]["uid"], []))
        await self._collect_garbage()

    async def set_condition(self, plural: str, thing: Object, kind: str, reason: str = "", message: str = "") -> None:
        thing.setdefault("status", {}).setdefault("conditions", []).append(
            {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now()}
        )
        await self.api.put(plural, thing)

    async def _trainjob(self, trainjob: Object) -> None:
        name = trainjob["metadata"]["name"]
        jobset = self.api.store.objects.get(("jobsets", name))
        if jobset is None:
            if (
                trainjob["metadata"].get("deletionTimestamp")
                or has_condition(trainjob, "Failed")
                or has_condition(trainjob, "Complete")
            ):
                return
            runtime = self.api.store.objects["trainingruntimes", trainjob["spec"]["runtimeRef"]["name"]]
            metadata = {"name": name, "labels": {}, "ownerReferences": [controller_reference(trainjob)]}
            spec = copy.deepcopy(runtime["spec"]["template"]["spec"])
            await self.api.put(
                "jobsets", {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata, "spec": spec}
            )
            return
        for jobset_condition, trainjob_condition in (("Completed", "Complete"), ("Failed", "Failed")):
            if has_condition(jobset, jobset_condition) and not has_condition(trainjob, trainjob_condition):
                await self.set_condition("trainjobs", trainjob, trainjob_condition, "JobSet" + jobset_condition)

    async def _jobset(self, jobset: Object) -> None:
        if jobset["metadata"].get("deletionTimestamp") or has_condition(jobset, "Completed") or has_condition(jobset, "Failed"):
            return
        (replicated,) = jobset["spec"]["replicatedJobs"]
        name = f"{jobset['metadata']['name']}-{replicated['name']}-0"
        job = self.api.store.objects.get(("jobs", name))
        if job is None:
            template = copy.deepcopy(replicated["template"])
            template["spec"]["template"]["spec"]["subdomain"] = jobset["spec"]["network"]["subdomain"]
            metadata = {"name": name, "labels": template["metadata"]["labels"], "ownerReferences": [controller_reference(jobset)]}
            await self.api.put("jobs", {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": template["spec"]})
        elif has_condition(job, "Complete"):
            await self.set_condition("jobsets", jobset, "Completed", "AllJobsCompleted")
        elif has_condition(job, "Failed") and not job["metadata"].get("deletionTimestamp"):
            reason = job["status"]["conditions"][-1]["reason"]
            policy, restarts = jobset["spec"]["failurePolicy"], jobset.get("status", {}).get("restarts", 0)
            if any(reason in rule["onJobFailureReasons"] and rule["action"] == "FailJobSet" for rule in policy["rules"]):
                await self.set_condition("jobsets", jobset, "Failed", "FailJobSetFailurePolicyAction")
            elif restarts >= policy["maxRestarts"]:
                await self.set_condition("jobsets", jobset, "Failed", "ReachedMaxRestarts")
            else:
                jobset.setdefault("status", {})["restarts"] = restarts + 1
                await self.api.put("jobsets", jobset)
                await self._mark_deleted("jobs", job)

    async def _job(self, job: Object, pods: list[Object]) -> None:
        if job["metadata"].get("deletionTimestamp") or has_condition(job, "Complete"):
            return
        if not self.admit_jobs and "suspend" not in job["spec"]:
            job["spec"]["suspend"] = True
            await self.api.put("jobs", job)
        if has_condition(job, "Failed") or job["spec"].get("suspend"):
            for pod in pods:
                if pod["status"]["phase"] not in FINISHED_PHASES:
                    await self._mark_deleted("pods", pod)
            return
        uid, limit = job["metadata"]["uid"], job["spec"]["backoffLimit"]
        for pod in pods:
            if pod["status"]["phase"] == "Failed" and pod["metadata"]["uid"] not in self.counted_pods:
                self.counted_pods.add(pod["metadata"]["uid"])
                action = self.failure_policy_action(job, pod)
                if action == "FailJob":
                    await self.set_condition(
                        "jobs", job, "Failed", "PodFailurePolicy", f"{pod['metadata']['name']} matches FailJob"
                    )
                    return
                self.job_failures[uid] = self.job_failures.get(uid, 0) + (action == "Count")
        if self.job_failures.get(uid, 0) > limit:
            await self.set_condition("jobs", job, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
            return
        succeeded = {pod["metadata"]["labels"][INDEX] for pod in pods if pod["status"]["phase"] == "Succeeded"}
        active = {pod["metadata"]["labels"][INDEX] for pod in pods if pod["status"]["phase"] not in FINISHED_PHASES}
        if len(succeeded) == job["spec"]["completions"]:
            await self.set_condition("jobs", job, "Complete", "CompletionsReached")
            return
        for index in map(str, range(job["spec"]["completions"])):
            if index not in succeeded | active:
                await self.create_pod(job, index)

    @staticmethod
    def failure_policy_action(job: Object, pod: Object) -> str:
        (terminated,) = [c.get("state", {}).get("terminated") for c in pod["status"].get("containerStatuses", [])] or [None]
        for rule in job["spec"]["podFailurePolicy"]["rules"]:
            if any(has_condition(pod, condition["type"]) for condition in rule.get("onPodConditions", [])):
                return str(rule["action"])
            if terminated and terminated["exitCode"] in rule.get("onExitCodes", {}).get("values", []):
                return str(rule["action"])
        return "Count"

    async def create_pod(self, job: Object, index: str) -> None:
        template = copy.deepcopy(job["spec"]["template"])
        name = f"{job['metadata']['name']}-{index}"
        labels = {**template["metadata"]["labels"], INDEX: index}
        spec = {**template["spec"], "hostname": name}
        spec["containers"][0].setdefault("env", []).append({"name": "JOB_COMPLETION_INDEX", "value": index})
        metadata = {"name": f"{name}-{secrets.token_hex(2)}", "labels": labels, "ownerReferences": [controller_reference(job)]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}
        await self.api.put("pods", pod)

    # ---- deletion

    async def _mark_deleted(self, plural: str, thing: Object) -> None:
        if not thing["metadata"].get("deletionTimestamp"):
            thing["metadata"]["deletionTimestamp"] = now()
            await self.api.put(plural, thing)

    async def _collect_garbage(self) -> None:
        """Delete marked objects after their dependents, and objects whose owner no longer exists."""
        existing_uids = {thing["metadata"]["uid"] for thing in self.api.store.objects.values()}
        for (plural, name), thing in list(self.api.store.objects.items()):
            owners = thing["metadata"].get("ownerReferences", [])
            if owners and not any(reference["uid"] in existing_uids for reference in owners):
                await (self._mark_deleted(plural, thing) if plural == "pods" else self.api.remove(plural, name))
            if not thing["metadata"].get("deletionTimestamp"):
                continue
            dependents = [(key, other) for key, other in list(self.api.store.objects.items()) if owned_by(other, thing)]
            for (kind, _), other in dependents:
                await self._mark_deleted(kind, other)
            if plural == "pods":
                if thing["status"]["phase"] in FINISHED_PHASES:  # the kubelet has stopped its containers
                    await self.api.remove(plural, name)
            elif not [1 for (kind, _), _ in dependents if kind in ("jobs", "jobsets", "pods")]:
                await self.api.remove(plural, name)


def set_pod_status(pod: Object, phase: str, **state: Any) -> None:
    """Set the phase of a pod and the state of its container."""
    container = {"name": "trainer", "image": pod["spec"]["containers"][0]["image"], "state": state}
    pod["status"] = {**pod["status"], "phase": phase, "containerStatuses": [container]}
