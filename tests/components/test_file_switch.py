"""Several files are replaced together, or not at all."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from components.errors import JobFailed
from components.file_switch import RECORD, REPLACED, FileSwitch, is_switching, require_switched
from tests.helpers.datasets import tree
from tests.helpers.faulty_files import KILL, OPERATIONS, FaultyDisk, Killed

OLD = {"a/one": b"old", "a/two": b"old", "three": b"old", "manifest": b"old"}
NEW = {"a/one": b"new", "b/c/four": b"new", "three": b"new", "manifest": b"new"}
AFTER = OLD | NEW
"""A switch removes no file that it does not replace."""


def prepare(root: Path) -> FileSwitch:
    switch = FileSwitch(root, "manifest")
    for folder, files in ((root, OLD), (switch.incoming, NEW)):
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    return switch


def commit(switch: FileSwitch) -> None:
    switch.commit([name for name in NEW if name != "manifest"])


def version(root: Path) -> dict[str, bytes]:
    """Return the files of the folder, without those of the switch."""
    return {name: content for name, content in tree(root).items() if not name.startswith(".")}


def count(folder: Path, number: int) -> int:
    """Return how many operations of a switch can meet an error."""
    with FaultyDisk(folder, number, at=1_000_000).mounted() as disk:
        commit(prepare(folder))
    shutil.rmtree(folder)
    return len(disk.met) - operations_of_preparing(folder, number)


def operations_of_preparing(folder: Path, number: int) -> int:
    with FaultyDisk(folder, number, at=1_000_000).mounted() as disk:
        prepare(folder)
    shutil.rmtree(folder)
    return len(disk.met)


def test_a_switch_replaces_and_adds(tmp_path: Path) -> None:
    switch = prepare(tmp_path)
    commit(switch)
    assert version(tmp_path) == AFTER and tree(switch.incoming) == {} and not is_switching(tmp_path)
    assert not (tmp_path / REPLACED).exists()
    switch.recover()
    assert version(tmp_path) == AFTER


def test_a_kill_at_any_step_leaves_the_old_or_the_new_files(tmp_path: Path) -> None:
    total, seen = count(tmp_path / "counted", KILL), []
    assert total > 10
    for at in range(total):
        root = tmp_path / str(at)
        switch = prepare(root)
        with pytest.raises(Killed), FaultyDisk(root, KILL, at, lasting=True).mounted():
            commit(switch)
        if is_switching(root):
            with pytest.raises(JobFailed, match="run omnimri ingest again"):
                require_switched(root, "omnimri ingest")
        switch.recover()
        seen.append(version(root))
        assert seen[-1] in (OLD, AFTER) and not is_switching(root)
        if seen[-1] == OLD:
            commit(switch)  # what was staged is still staged
        assert version(root) == AFTER
    assert seen == sorted(seen, key=lambda files: files == AFTER)
    assert OLD in seen and AFTER in seen


def test_a_kill_during_a_recovery_is_recovered(tmp_path: Path) -> None:
    total = count(tmp_path / "counted", KILL)
    for at in range(total):
        for second in range(40):
            root = tmp_path / f"{at}-{second}"
            switch = prepare(root)
            with pytest.raises(Killed), FaultyDisk(root, KILL, at, lasting=True).mounted():
                commit(switch)
            try:
                with FaultyDisk(root, KILL, second, lasting=True).mounted():
                    switch.recover()
            except Killed:
                switch.recover()
                assert version(root) in (OLD, AFTER) and not is_switching(root)
                shutil.rmtree(root)
                continue
            shutil.rmtree(root)
            break


@pytest.mark.parametrize("lasting", [True, False], ids=["lasting", "once"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_an_error_at_any_step_leaves_the_old_or_the_new_files(tmp_path: Path, number: int, lasting: bool) -> None:
    for at in range(count(tmp_path / "counted", number)):
        root = tmp_path / str(at)
        switch = prepare(root)
        with FaultyDisk(root, number, at, lasting).mounted() as disk:
            try:
                commit(switch)
                completed = True
            except OSError as error:
                assert error.errno == number
                completed = False
        if not lasting and (root / RECORD).exists():
            assert disk.met[at] in OPERATIONS[number]  # in the recovery itself; the next writer repeats it
        switch.recover()
        assert version(root) == AFTER if completed else version(root) in (OLD, AFTER)
        if version(root) == OLD:
            commit(switch)
        assert version(root) == AFTER and not is_switching(root)
