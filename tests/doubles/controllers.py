"""Controllers of a cluster for tests: TrainJob -> JobSet -> Job -> pods, failure policies, deletion along owner references.

They reconcile all objects after every change, and implement the behavior of the real controllers that the launcher can observe:
pods are created one by one and each may be refused, failed pods are replaced after a delay, and a job's final condition follows the
interim one when its pods have ended. The times of Kubernetes are scaled: see :class:`Controllers`.
"""

from __future__ import annotations

import asyncio
import copy
import secrets
import time
from typing import Any

from tests.doubles.admission import Admission
from tests.doubles.apiserver import TRACKING, Object, RunningServer, condition

INDEX = "batch.kubernetes.io/job-completion-index"
FINISHED_PHASES = ("Succeeded", "Failed")


def has_condition(thing: Object, kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in thing.get("status", {}).get("conditions", []))


def find_condition(thing: Object, kind: str) -> Object:
    return next(c for c in thing["status"]["conditions"] if c["type"] == kind)


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
    """Reconcile loop in the API server's event loop.

    Attributes:
        backoff_s: delay before a failed pod is replaced (10 s in Kubernetes), doubled with each failure. A refused pod waits five
            times as long.
        absent: plurals of custom resources whose controller does not run.
        finalized: plurals of kinds whose objects a finalizer keeps for ``finalizer_s`` after their deletion.
        admit_jobs: False = new jobs are suspended, as by Kueue.
        admission: policies that each new pod meets.
        create_limit: number of pods that the Job controller creates for a job; None = as many as it has nodes.
    """

    def __init__(self, server: RunningServer, backoff_s: float = 0.01) -> None:
        self.server, self.api, self.backoff_s = server, server.api, backoff_s
        self.job_failures: dict[str, int] = {}
        self.admit_jobs = True
        self.absent: set[str] = set()
        self.finalized: set[str] = set()
        self.finalizer_s = 0.2
        self.admission = Admission()
        self.create_limit: int | None = None
        self._not_before: dict[str, float] = {}  # by UID of the Job: time at which it may create pods again
        self._deadlines: dict[str, float] = {}  # by UID of the Job

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
            now_s = time.monotonic()
            due = [moment - now_s for moment in self._not_before.values() if moment > now_s]
            async with self.api.changed:
                if seen == self.api.store.version:
                    try:
                        await asyncio.wait_for(self.api.changed.wait(), min(due, default=None))
                    except TimeoutError:
                        seen = -1

    def all(self, plural: str) -> list[Object]:
        return [thing for (p, _), thing in list(self.api.store.objects.items()) if p == plural]

    async def reconcile(self) -> None:
        for trainjob in self.all("trainjobs"):
            if "trainjobs" not in self.absent:
                await self._trainjob(trainjob)
        for jobset in self.all("jobsets"):
            if "jobsets" not in self.absent:
                await self._jobset(jobset)
        pods: dict[str, list[Object]] = {}
        for pod in self.all("pods"):
            for reference in pod["metadata"].get("ownerReferences", []):
                pods.setdefault(reference["uid"], []).append(pod)
        for job in self.all("jobs"):
            await self._job(job, pods.get(job["metadata"]["uid"], []))
        await self._collect_garbage()

    async def set_condition(self, plural: str, thing: Object, kind: str, reason: str = "", message: str = "") -> None:
        thing.setdefault("status", {}).setdefault("conditions", []).append(condition(kind, reason, message))
        await self.api.put(plural, thing)

    # ---- custom resources

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
            spec = copy.deepcopy(runtime["spec"]["template"]["spec"])
            containers = spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
            assert [c["name"] for c in containers] == ["node"], "the webhook of Trainer 2.1 demands a container of this name"
            metadata = {"name": name, "labels": {}, "ownerReferences": [controller_reference(trainjob)]}
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
            template["spec"]["template"]["metadata"]["labels"]["jobset.sigs.k8s.io/jobset-uid"] = jobset["metadata"]["uid"]
            metadata = {"name": name, "labels": template["metadata"]["labels"], "ownerReferences": [controller_reference(jobset)]}
            await self.api.put("jobs", {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": template["spec"]})
        elif has_condition(job, "Complete"):
            await self.set_condition("jobsets", jobset, "Completed", "AllJobsCompleted")
        elif has_condition(job, "Failed") and not job["metadata"].get("deletionTimestamp"):
            await self._end_or_restart(jobset, job)

    async def _end_or_restart(self, jobset: Object, job: Object) -> None:
        """Apply the failure policy of a JobSet to its failed Job; the JobSet does not repeat the Job's reason."""
        reason = find_condition(job, "Failed")["reason"]
        policy, restarts = jobset["spec"]["failurePolicy"], jobset.get("status", {}).get("restarts", 0)
        first = f"(first failed job: {job['metadata']['name']})"
        rule = next((rule for rule in policy["rules"] if reason in rule["onJobFailureReasons"]), {"action": "RestartJobSet"})
        if rule["action"] == "FailJobSet":
            message = f"jobset failed due to FailJobSet failure policy action {first}"
            await self.set_condition("jobsets", jobset, "Failed", "FailJobSetFailurePolicyAction", message)
        elif restarts >= policy["maxRestarts"]:
            message = f"jobset failed due to reaching max number of restarts {first}"
            await self.set_condition("jobsets", jobset, "Failed", "ReachedMaxRestarts", message)
        else:
            jobset.setdefault("status", {})["restarts"] = restarts + 1
            await self.api.put("jobsets", jobset)
            await self.api.mark_deleted("jobs", job)

    # ---- jobs

    async def _job(self, job: Object, pods: list[Object]) -> None:
        if job["metadata"].get("deletionTimestamp"):
            await self._release(pods)
            return
        if has_condition(job, "Complete") or has_condition(job, "Failed"):
            return
        if not self.admit_jobs and "suspend" not in job["spec"]:
            job["spec"]["suspend"] = True
            await self.api.put("jobs", job)
        if job["spec"].get("suspend"):
            await self._stop(pods)
            return
        await self._apply_deadline(job)
        if not (has_condition(job, "FailureTarget") or has_condition(job, "SuccessCriteriaMet")):
            await self._count_failures(job, pods)
            await self._create_or_complete(job, pods)
        await self._finish(job, pods)

    async def _apply_deadline(self, job: Object) -> None:
        """End a job whose ``activeDeadlineSeconds`` have passed since it was first seen unsuspended."""
        uid, limit_s = job["metadata"]["uid"], job["spec"]["activeDeadlineSeconds"]
        due = self._deadlines.setdefault(uid, time.monotonic() + limit_s)
        if time.monotonic() < due:
            self._not_before.setdefault(f"{uid} deadline", due)
        elif not (has_condition(job, "FailureTarget") or has_condition(job, "SuccessCriteriaMet")):
            message = "Job was active longer than specified deadline"
            await self.set_condition("jobs", job, "FailureTarget", "DeadlineExceeded", message)

    async def _count_failures(self, job: Object, pods: list[Object]) -> None:
        """Count each failed pod once, as its finalizer shows, and apply the pod failure policy."""
        uid = job["metadata"]["uid"]
        for pod in pods:
            if pod["status"]["phase"] != "Failed" or TRACKING not in pod["metadata"]["finalizers"]:
                continue
            pod["metadata"]["finalizers"].remove(TRACKING)
            await self.api.put("pods", pod)
            action = self.failure_policy_action(job, pod)
            if action == "FailJob":
                message = f"Container node for pod omnimri/{pod['metadata']['name']} failed with exit code matching FailJob rule"
                await self.set_condition("jobs", job, "FailureTarget", "PodFailurePolicy", message)
                return
            self.job_failures[uid] = self.job_failures.get(uid, 0) + (action == "Count")
            delay = self.backoff_s * 2 ** min(self.job_failures[uid], 6)
            self._not_before[uid] = time.monotonic() + delay
        if self.job_failures.get(uid, 0) > job["spec"]["backoffLimit"]:
            message = "Job has reached the specified backoff limit"
            await self.set_condition("jobs", job, "FailureTarget", "BackoffLimitExceeded", message)

    async def _create_or_complete(self, job: Object, pods: list[Object]) -> None:
        if has_condition(job, "FailureTarget"):
            return
        succeeded = {pod["metadata"]["labels"][INDEX] for pod in pods if pod["status"]["phase"] == "Succeeded"}
        active = {pod["metadata"]["labels"][INDEX] for pod in pods if pod["status"]["phase"] not in FINISHED_PHASES}
        policy = job["spec"].get("successPolicy", {"rules": [{"succeededCount": job["spec"]["completions"]}]})
        if len(succeeded) >= policy["rules"][0]["succeededCount"]:
            await self.set_condition("jobs", job, "SuccessCriteriaMet", "CompletionsReached")
            return
        if time.monotonic() < self._not_before.get(job["metadata"]["uid"], 0.0):
            return
        for index in list(map(str, range(job["spec"]["completions"])))[: self.create_limit]:
            if index not in succeeded | active and not await self.create_pod(job, index):
                self._not_before[job["metadata"]["uid"]] = time.monotonic() + 5 * self.backoff_s
                return

    async def _finish(self, job: Object, pods: list[Object]) -> None:
        """Stop the pods of a job with an interim condition, and add the final one when all have ended."""
        for interim, final in (("FailureTarget", "Failed"), ("SuccessCriteriaMet", "Complete")):
            if has_condition(job, interim):
                await self._stop(pods)
                if all(pod["status"]["phase"] in FINISHED_PHASES for pod in pods):
                    await self._release(pods)
                    cause = find_condition(job, interim)
                    await self.set_condition("jobs", job, final, cause["reason"], cause["message"])

    async def _stop(self, pods: list[Object]) -> None:
        for pod in pods:
            if pod["status"]["phase"] not in FINISHED_PHASES:
                await self.api.mark_deleted("pods", pod)

    async def _release(self, pods: list[Object]) -> None:
        """Remove the Job controller's finalizer."""
        for pod in pods:
            if TRACKING in pod["metadata"].get("finalizers", []):
                pod["metadata"]["finalizers"].remove(TRACKING)
                await self.api.put("pods", pod)

    @staticmethod
    def failure_policy_action(job: Object, pod: Object) -> str:
        (terminated,) = [c.get("state", {}).get("terminated") for c in pod["status"].get("containerStatuses", [])] or [None]
        for rule in job["spec"]["podFailurePolicy"]["rules"]:
            if any(has_condition(pod, entry["type"]) for entry in rule.get("onPodConditions", [])):
                return str(rule["action"])
            if terminated and terminated["exitCode"] and terminated["exitCode"] in rule.get("onExitCodes", {}).get("values", []):
                return str(rule["action"])
        return "Count"

    async def create_pod(self, job: Object, index: str) -> bool:
        """Create a pod unless admission refuses it; then record the event that the Job controller records."""
        template = copy.deepcopy(job["spec"]["template"])
        name = f"{job['metadata']['name']}-{index}"
        labels = {**template["metadata"]["labels"], INDEX: index, "batch.kubernetes.io/controller-uid": job["metadata"]["uid"]}
        spec = {**template["spec"], "hostname": name}
        spec["containers"][0].setdefault("env", []).append({"name": "JOB_COMPLETION_INDEX", "value": index})
        metadata = {
            **template["metadata"],
            "name": f"{name}-{secrets.token_hex(2)}",
            "labels": labels,
            "finalizers": [TRACKING],
            "ownerReferences": [controller_reference(job)],
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}
        refusal = self.admission.refuse(pod, self.all("pods"))
        if refusal is not None:
            await self.api.record_event(job, "FailedCreate", f"Error creating: {refusal}")
            return False
        await self.api.put("pods", pod)
        return True

    # ---- interface for tests

    def orphan(self, plural: str, name: str) -> None:
        """Delete an object as ``kubectl delete --cascade=orphan`` does: its dependents lose their owner and stay."""

        async def delete() -> None:
            owner = self.api.store.objects[plural, name]
            dependents = [(kind, thing) for (kind, _), thing in self.api.store.objects.items() if owned_by(thing, owner)]
            for _, thing in dependents:
                thing["metadata"].update(ownerReferences=[], finalizers=[])
            await self.api.remove(plural, name)
            for kind, thing in dependents:
                await self.api.put(kind, thing)

        self.server.run(delete())

    # ---- deletion

    async def _collect_garbage(self) -> None:
        """Delete marked objects after their dependents, and objects whose owner no longer exists."""
        existing_uids = {thing["metadata"]["uid"] for thing in self.api.store.objects.values()}
        for (plural, name), thing in list(self.api.store.objects.items()):
            owners = thing["metadata"].get("ownerReferences", [])
            if owners and not any(reference["uid"] in existing_uids for reference in owners):
                is_kept = plural == "pods" or plural in self.finalized
                await (self.api.mark_deleted(plural, thing) if is_kept else self.api.remove(plural, name))
                await self._release([thing] if plural == "pods" else [])
            if not thing["metadata"].get("deletionTimestamp"):
                continue
            dependents = [(key, other) for key, other in list(self.api.store.objects.items()) if owned_by(other, thing)]
            for (kind, _), other in dependents:
                await self.api.mark_deleted(kind, other)
            if plural == "pods":
                if thing["status"]["phase"] in FINISHED_PHASES and not thing["metadata"].get("finalizers"):
                    await self.api.remove(plural, name)
            elif plural in self.finalized and not self._has_passed(f"{thing['metadata']['uid']} finalizer", self.finalizer_s):
                continue
            elif not [1 for (kind, _), _ in dependents if kind in ("jobs", "jobsets", "pods")]:
                await self.api.remove(plural, name)

    def _has_passed(self, event: str, delay_s: float) -> bool:
        """Return whether a delay has passed since the event was first asked for; the loop wakes up at its end."""
        return time.monotonic() >= self._not_before.setdefault(event, time.monotonic() + delay_s)


def set_pod_status(pod: Object, phase: str, **state: Any) -> None:
    """Set the phase of a pod and the state of its container."""
    container = {"name": "node", "image": pod["spec"]["containers"][0]["image"], "state": state}
    pod["status"] = {**pod["status"], "phase": phase, "containerStatuses": [container]}
