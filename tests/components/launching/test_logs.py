"""A line is kept once, whatever the reading went through."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from components.launching.kubernetes.pod_logs import KeptLog, Place, merged


def stamped(seconds: list[float]) -> list[str]:
    whole = sorted(seconds)
    return [f"2026-11-24T10:00:{int(s):02d}.{round(s % 1 * 1e9) % 10**9:09d}Z line {n}" for n, s in enumerate(whole)]


@given(
    st.lists(st.sampled_from([0.0, 0.5, 0.5, 1.0, 1.25, 2.0, 2.999999999, 3.0]), min_size=1, max_size=30),
    st.lists(st.integers(0, 30), max_size=6),
)
def test_readings_that_break_anywhere_give_every_line_once(seconds: list[float], cuts: list[int]) -> None:
    lines, place, kept = stamped(seconds), Place(), []
    for cut in [*cuts, len(lines)]:
        place.again()
        answer = [line for line in lines if line[:19] >= place.since[:19]]  # as a kubelet selects
        kept += [line for line in answer[: cut if cut < len(lines) else None] if place.new(line)]
    assert kept == lines


def test_time_stamps_of_any_precision_sort() -> None:
    place = Place()
    assert place.new("2026-11-24T10:00:00Z a") and place.new("2026-11-24T10:00:00.5Z b") and place.new("2026-11-24T10:00:00.51Z c")
    assert not Place(["2026-11-24T10:00:00.51Z c"]).new("2026-11-24T10:00:00.5Z b")


def test_half_a_line_of_a_killed_process_is_read_again(tmp_path: Path) -> None:
    pod = {"metadata": {"name": "p", "labels": {}}}
    (tmp_path / "0.p.log").write_text("2026-11-24T10:00:00.1Z whole\n2026-11-24T10:00:00.2Z ha")
    log = KeptLog(tmp_path, pod)
    assert log.mine() and not KeptLog(tmp_path, pod).mine()
    place = log.place()
    place.again()
    for line in ("2026-11-24T10:00:00.1Z whole", "2026-11-24T10:00:00.2Z half"):
        if place.new(line):
            log.write(line)
    log.close()
    assert list(merged(tmp_path, 1, 1)) == ["whole", "half"]


def test_lines_of_several_pods_come_in_order_after_their_rank(tmp_path: Path) -> None:
    (tmp_path / "0.a.log").write_text("2026-11-24T10:00:00.1Z one\n2026-11-24T10:00:00.3Z three\n")
    (tmp_path / "1.b.log").write_text("2026-11-24T10:00:00.2Z two\n")
    assert list(merged(tmp_path, 2, 1)) == ["rank 0: one", "rank 1: two", "rank 0: three"]
    (tmp_path / "1.b.log").write_text("2026-11-24T10:00:00.2Z rank 9: two\n")
    assert list(merged(tmp_path, 2, 8)) == ["node 0: one", "rank 9: two", "node 0: three"]
