"""Worker processes start when the work is long, and change nothing else."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from components.worker_pool import WorkerPool
from tests.helpers.workers import start_at_once


def process_and_square(number: int) -> tuple[int, int]:
    return os.getpid(), number * number


def test_short_work_stays_in_the_calling_process() -> None:
    with ExitStack() as stack:
        results = list(WorkerPool(2, stack, chunk=1)(process_and_square, range(50), "squaring"))
    assert results == [(os.getpid(), number * number) for number in range(50)]


@pytest.mark.parametrize(
    ("workers", "seconds", "left", "worth"),
    [
        (2, [0.1] * 12, 100, False),  # 10 s are left, of which two processes save 5
        (2, [0.1] * 12, 200, True),
        (2, [0.1] * 9, 200, False),  # not measured for a second
        (8, [0.1] * 12, 100, True),
        (1, [0.1] * 12, 10_000, False),
        (2, [10.0, *[0.1] * 12], 100, False),  # the first item imported libraries
        (2, [30.0, 30.0], 1, False),  # less than a chunk for each
    ],
)
def test_processes_start_where_they_save_more_than_their_imports_cost(
    workers: int, seconds: list[float], left: int, worth: bool
) -> None:
    with ExitStack() as stack:
        assert WorkerPool(workers, stack, chunk=1)._is_worth_it(seconds, left) is worth


@pytest.mark.parametrize("chunk", [1, 3])
def test_long_work_goes_on_in_processes_in_the_same_order(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    start_at_once(monkeypatch)
    with ExitStack() as stack:
        pool = WorkerPool(2, stack, chunk)
        first, second = (list(pool(process_and_square, range(20), "squaring")) for _ in range(2))
        few = list(pool(process_and_square, range(1), "squaring"))
    assert [square for _, square in first] == [number * number for number in range(20)]
    assert os.getpid() not in {process for process, _ in [*first, *second, *few]} and len(few) == 1


def test_an_error_ends_the_work_where_it_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    start_at_once(monkeypatch)
    with ExitStack() as stack, pytest.raises(TypeError):
        list(WorkerPool(2, stack, chunk=1)(process_and_square, ["a", *range(9)], "squaring"))
