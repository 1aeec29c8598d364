"""``omnimri jobs list``: names and commands stay whole on a terminal of any width."""

from __future__ import annotations

from components.launching import JobState, JobStatus
from flows.cli.jobs import format_jobs


def test_neither_a_long_name_nor_a_command_is_broken() -> None:
    command = "kubectl taint nodes machine-1 node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
    key = "multimodal-pretraining-with-a-long-na-0123456789"
    lines = format_jobs(
        [JobStatus(key, JobState.pending, command, 4, "2026-11-28T12:00:00Z"), JobStatus("a-0", JobState.running, "", 1)]
    )
    assert lines[0].startswith(f"{key}  pending ") and lines[0].endswith("4 nodes  2026-11-28T12:00:00Z")
    assert lines[1] == f"    {command}" and lines[2].split()[:2] == ["a-0", "running"]
    assert format_jobs([]) == ["no jobs"]
