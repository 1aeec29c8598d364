"""Every line is stored exactly once, wherever reading breaks."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from kubernetes import client

from components.errors import JobFailed
from components.launching.kubernetes.api_client import Cluster
from components.launching.kubernetes.pod_logs import LogFile, LogFollower, ReadPosition, merge_logs
from tests.doubles.apiserver import NAMESPACE


def add_timestamps(seconds: list[float]) -> list[str]:
    ordered = sorted(seconds)
    return [f"2026-11-24T10:00:{int(s):02d}.{round(s % 1 * 1e9) % 10**9:09d}Z line {n}" for n, s in enumerate(ordered)]


@given(
    st.lists(st.sampled_from([0.0, 0.5, 0.5, 1.0, 1.25, 2.0, 2.999999999, 3.0]), min_size=1, max_size=30),
    st.lists(st.integers(0, 30), max_size=6),
)
def test_reads_that_break_anywhere_yield_every_line_once(seconds: list[float], cuts: list[int]) -> None:
    lines, position, stored = add_timestamps(seconds), ReadPosition(), []
    for cut in [*cuts, len(lines)]:
        position.rewind()
        response = [line for line in lines if line[:19] >= position.since[:19]]  # a kubelet compares whole seconds
        stored += [line for line in response[: cut if cut < len(lines) else None] if position.advance(line)]
    assert stored == lines


def test_timestamps_of_any_precision_sort() -> None:
    position = ReadPosition()
    assert (
        position.advance("2026-11-24T10:00:00Z a")
        and position.advance("2026-11-24T10:00:00.5Z b")
        and position.advance("2026-11-24T10:00:00.51Z c")
    )
    assert not ReadPosition(["2026-11-24T10:00:00.51Z c"]).advance("2026-11-24T10:00:00.5Z b")


def test_an_incomplete_line_of_a_killed_process_is_read_again(tmp_path: Path) -> None:
    pod = {"metadata": {"name": "p", "labels": {}}}
    (tmp_path / "0.p.log").write_text("2026-11-24T10:00:00.1Z whole\n2026-11-24T10:00:00.2Z ha")
    log = LogFile(tmp_path, pod)
    assert log.try_lock() and not LogFile(tmp_path, pod).try_lock()
    position = log.recover_position()
    position.rewind()
    for line in ("2026-11-24T10:00:00.1Z whole", "2026-11-24T10:00:00.2Z half"):
        if position.advance(line):
            log.write(line)
    log.close()
    assert list(merge_logs(tmp_path, 1, 1)) == ["whole", "half"]


def test_lines_of_several_pods_are_merged_in_order_and_those_without_a_rank_name_their_node(tmp_path: Path) -> None:
    (tmp_path / "0.a.log").write_text("2026-11-24T10:00:00.1Z one\n2026-11-24T10:00:00.3Z three\n")
    (tmp_path / "1.b.log").write_text("2026-11-24T10:00:00.2Z two\n")
    assert list(merge_logs(tmp_path, 2, 1)) == ["node 0: one", "node 1: two", "node 0: three"]
    (tmp_path / "1.b.log").write_text("2026-11-24T10:00:00.2Z rank 9: two\n")
    assert list(merge_logs(tmp_path, 2, 8)) == ["node 0: one", "rank 9: two", "node 0: three"]


@given(
    st.lists(
        st.sampled_from(["unable to retrieve container logs for containerd://8ea1", "failed to try resolving symlinks", "2026", ""])
    )
)
def test_a_message_without_a_timestamp_moves_no_position(messages: list[str]) -> None:
    position = ReadPosition(["2026-11-24T10:00:00.5Z a"])
    assert not any(map(position.advance, messages))
    assert position.since == "2026-11-24T10:00:00Z" and position.advance("2026-11-24T10:00:00.6Z b")


def test_the_local_time_of_a_node_is_compared_as_universal_time() -> None:
    position = ReadPosition(["2026-11-24T01:30:00.5+02:00 a"])
    assert position.since == "2026-11-23T23:30:00Z"
    assert position.advance("2026-11-23T23:30:00.6Z b") and not position.advance("2026-11-24T01:30:00.1+02:00 c")


def test_a_watch_that_has_failed_ends_the_reading_without_a_traceback() -> None:
    def is_finished() -> bool:
        raise JobFailed("not allowed to watch pods", where="permissions", remedy="apply the role")

    cluster = Cluster(client.ApiClient(client.Configuration(host="http://127.0.0.1:1")), NAMESPACE)
    follower = LogFollower(cluster, {"metadata": {"name": "p"}}, is_finished, lambda line: None)
    follower.run()
    assert "not allowed to watch pods" in follower.fault
