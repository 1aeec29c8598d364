"""What a pod becomes."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from components.launching.kubernetes import pod_entrypoint
from components.provenance import REPOSITORY


def options(processes: int = 1) -> argparse.Namespace:
    return argparse.Namespace(
        nodes=2, processes=processes, meeting="first.jobs.omnimri.svc:29400", identity="a", restarts=3, grace=120, job=["m", "x"]
    )


def test_only_the_first_node_hosts_the_meeting_and_each_gives_its_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "")
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "")
    for index in (0, 1):
        words = pod_entrypoint.torchrun(options(), index, f"10.0.0.{index}")
        assert f"--rdzv-conf=is_host={int(index == 0)},join_timeout=1800,last_call_timeout=1" in words
        assert f"--local-addr=10.0.0.{index}" in words and "--rdzv-endpoint=first.jobs.omnimri.svc:29400" in words
        assert words[-3:] == ["-m", "m", "x"] and "--tee=3" not in words


def test_processes_have_the_pods_grace_for_their_checkpoint_and_torchrun_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.launcher.api import LaunchConfig

    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "")
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "")
    monkeypatch.setenv("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", "")
    monkeypatch.delenv("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE")
    assert "--tee=3" in pod_entrypoint.torchrun(options(8), 0, "")
    assert LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1).shutdown_timeout == 115


def test_a_name_is_waited_for_and_given_up() -> None:
    assert pod_entrypoint.wait_for_name("localhost") and not pod_entrypoint.wait_for_name("no-such-host.invalid", patience_s=0.0)


def test_a_description_that_the_pod_cannot_see_is_a_configuration_error(tmp_path: Path) -> None:
    words = pod_entrypoint.arguments(["module", str(tmp_path / "job.json")], 2, 1, "first:29400", "a", 3, 120)
    done = subprocess.run([sys.executable, "-m", pod_entrypoint.__name__, *words], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == pod_entrypoint.BAD_CONFIGURATION and "kubernetes.volumes" in done.stderr
