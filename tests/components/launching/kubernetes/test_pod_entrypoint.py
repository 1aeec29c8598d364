"""Command line and preconditions of a pod."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from components.launching.elastic_agent import RestartPolicy
from components.launching.kubernetes import pod_entrypoint
from components.provenance import REPOSITORY
from tests.helpers.fake_cluster import wait_until


def options(processes: int = 1) -> argparse.Namespace:
    return argparse.Namespace(
        nodes=2,
        processes=processes,
        meeting="first.jobs.omnimri.svc:29400",
        identity="a",
        restarts=3,
        grace=120,
        folder=Path("x"),
        job=["m", "x"],
    )


def test_only_the_first_node_hosts_the_rendezvous_and_each_passes_its_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "")
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "")
    for index in (0, 1):
        command = pod_entrypoint.build_torchrun_options(options(), index, f"10.0.0.{index}")
        assert f"--rdzv-conf=is_host={int(index == 0)},join_timeout=2592000,last_call_timeout=1" in command
        assert f"--local-addr=10.0.0.{index}" in command and "--rdzv-endpoint=first.jobs.omnimri.svc:29400" in command
        assert "--tee=3" in command  # torchrun names the rank of each line: it sorts the nodes by address, not by index


def test_torchrun_gives_the_processes_the_grace_period_of_the_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.launcher.api import LaunchConfig

    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "")
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "")
    monkeypatch.setenv("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", "")
    monkeypatch.delenv("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE")
    assert "--tee=3" in pod_entrypoint.build_torchrun_options(options(8), 0, "")
    assert LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1).shutdown_timeout == 115


def test_a_host_name_is_waited_for_until_the_timeout() -> None:
    assert pod_entrypoint.wait_for_dns("localhost") and not pod_entrypoint.wait_for_dns("no-such-host.invalid", timeout_s=0.0)


def test_a_job_file_that_the_pod_cannot_see_is_a_configuration_error(tmp_path: Path) -> None:
    command = pod_entrypoint.build_arguments(["module", str(tmp_path / "job.json")], 2, 1, "first:29400", "a", 3, 120, tmp_path)
    completed = subprocess.run(
        [sys.executable, "-m", pod_entrypoint.__name__, *command], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert completed.returncode == pod_entrypoint.BAD_CONFIGURATION and "kubernetes.volumes" in completed.stderr


def test_a_pod_stops_while_it_waits_for_the_name_of_node_0(tmp_path: Path) -> None:
    """The first process of a container ignores SIGTERM unless it handles it."""
    command = pod_entrypoint.build_arguments(["module"], 2, 1, "no-such-host.invalid:29400", "a", 3, 120, tmp_path)
    script = "import sys; from components.launching.kubernetes import pod_entrypoint as p; print('up', flush=True); "
    environment = {**os.environ, "JOB_COMPLETION_INDEX": "1"}
    arguments = [sys.executable, "-c", f"{script}sys.argv[1:] = {command}; sys.exit(p.main())"]
    process = subprocess.Popen(arguments, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    wait_until(lambda: signal.SIGTERM in handled_signals(process.pid))
    process.terminate()
    assert process.wait() == pod_entrypoint.STOPPED
    process.stdout.close()


def handled_signals(pid: int) -> set[int]:
    """Return the signals that a process handles, according to Linux."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:")]
    mask = int(line.split()[1], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


@pytest.mark.parametrize(("finished", "status"), [("result.finished", 0), ("uid-0.finished", 1)])
def test_a_pod_that_starts_after_the_others_have_finished_does_not_wait_for_them(
    finished: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / finished).touch()
    assert pod_entrypoint.run_node(options(), RestartPolicy(3, 2, 1, tmp_path, "uid"), 1) == status
    assert ("run again" in capsys.readouterr().err) == bool(status)
