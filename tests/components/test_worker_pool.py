"""Worker processes start when the work is long, and change nothing else."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from components.worker_pool import WorkerPool


def process_and_square(number: int) -> tuple[int, int]:
    return os.getpid(), number * number


def test_short_work_stays_in_the_calling_process() -> None:
    with ExitStack() as stack:
        results = list(WorkerPool(2, stack, chunk=1)(process_and_square, range(50), "squaring"))
    assert results == [(os.getpid(), number * number) for number in range(50)]


@pytest.mark.parametrize("chunk", [1, 3])
def test_long_work_goes_on_in_processes_in_the_same_order(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.worker_pool.START_AFTER_S", 0.0)
    with ExitStack() as stack:
        pool = WorkerPool(2, stack, chunk)
        first, second = (list(pool(process_and_square, range(20), "squaring")) for _ in range(2))
        few = list(pool(process_and_square, range(1), "squaring"))
    assert [square for _, square in first] == [number * number for number in range(20)]
    assert os.getpid() not in {process for process, _ in [*first, *second, *few]} and len(few) == 1


def test_an_error_ends_the_work_where_it_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.worker_pool.START_AFTER_S", 0.0)
    with ExitStack() as stack, pytest.raises(TypeError):
        list(WorkerPool(2, stack, chunk=1)(process_and_square, ["a", *range(9)], "squaring"))
