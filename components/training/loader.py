"""Loading of batches in the order of the steps, ahead of time in worker processes if the settings request them."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from components.processes import STOP_SIGNALS
from components.training.batches import StageBatches

PREFETCHED_STEPS = 2
"""Steps that each worker prepares in advance."""


def load_batches(batches: StageBatches, steps: Iterable[int], workers: int, pin: bool = False) -> Generator[list[Any]]:
    """Yield the micro-batches of each step, the same for any number of workers.

    Args:
        batches: Micro-batches by step.
        steps: Steps to load, in this order.
        workers: Worker processes. They pay off if training runs on a GPU; on a CPU they take the cores that compute.
        pin: Copy batches into page-locked memory, for a GPU.
    """
    if not workers:
        for step in steps:
            micro_batches = batches[step]
            yield [batch.pin_memory() for batch in micro_batches] if pin else micro_batches
        return
    # Forked: the corpus is shared, not copied. Workers use neither the GPU nor the process group.
    yield from DataLoader(
        batches,  # type: ignore[arg-type]
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        prefetch_factor=PREFETCHED_STEPS,
        pin_memory=pin,
        collate_fn=_identity,
        worker_init_fn=_init_worker,
        multiprocessing_context="fork",
    )


def _identity(micro_batches: list[Any]) -> list[Any]:
    return micro_batches


def _init_worker(worker: int) -> None:
    """Worker init: one thread, reopen store files after fork, ignore requests to stop so that the trainer can finish its step.

    Ctrl-C and batch systems send the signal to the whole process group; the trainer still needs the batches of its last step.
    """
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    batches: Any = get_worker_info().dataset  # type: ignore[union-attr]
    batches.samples.store.close_all()
