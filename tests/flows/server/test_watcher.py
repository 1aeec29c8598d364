"""Changes are announced once, after they have settled, and never lost."""

from __future__ import annotations

import tempfile
from itertools import count, pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from components.home import Home
from components.versioning.source_state import SourceState
from flows.server.watcher import Watcher


def observe(state: str, name: str = "cohort") -> list[SourceState]:
    return [SourceState("folder", name, state)]


def test_the_first_observation_is_no_change(tmp_path: Path) -> None:
    watcher = Watcher.open(Home(tmp_path, tmp_path / "data"), quiet_s=10)
    assert watcher.settled_changes(observe("a"), 0) == watcher.settled_changes(observe("a"), 100) == []


def test_a_running_copy_is_not_announced(tmp_path: Path) -> None:
    watcher = Watcher.open(Home(tmp_path, tmp_path / "data"), quiet_s=10)
    watcher.settled_changes(observe("a"), 0)
    for second, state in ((1, "b"), (9, "c"), (18, "d")):
        assert watcher.settled_changes(observe(state), second) == []
    assert watcher.settled_changes(observe("d"), 27) == []
    assert watcher.settled_changes(observe("d"), 28) == observe("d")


def test_a_change_that_is_reverted_is_not_announced(tmp_path: Path) -> None:
    watcher = Watcher.open(Home(tmp_path, tmp_path / "data"), quiet_s=10)
    watcher.settled_changes(observe("a"), 0)
    watcher.settled_changes(observe("b"), 5)
    assert watcher.settled_changes(observe("a"), 6) == watcher.settled_changes(observe("a"), 60) == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_no_change_is_lost_and_none_is_announced_twice(story: list[tuple[str, bool, bool]]) -> None:
    """For any sequence of states, of a server that does not answer, and of a watcher that is killed and restarted."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder), Path(folder) / "data")
        watcher = Watcher.open(home, quiet_s=1)
        watcher.settled_changes(observe("a"), 0)
        announced, clock = ["a"], count(1)

        def look(state: str, away: bool = False) -> None:
            for _ in range(2):  # long enough to settle
                for source in watcher.settled_changes(observe(state), next(clock)):
                    if not away:
                        watcher.mark_announced(source)
                        announced.append(source.state)

        for state, away, killed in story:
            if killed:
                watcher = Watcher.open(home, quiet_s=1)
            look(state, away)
        look(story[-1][0])
        assert announced[-1] == story[-1][0]
        assert all(before != after for before, after in pairwise(announced))
