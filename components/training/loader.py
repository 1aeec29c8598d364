"""Batches in the order of the steps, made ahead of time by processes of their own where the settings ask for them."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from components.training.batches import BatchMaker

AHEAD = 2
"""Steps that each process prepares before they are asked for."""


def batches(maker: BatchMaker, steps: Iterable[int], workers: int, pin: bool = False) -> Generator[list[Any]]:
    """Micro-batches of each step, the same whoever makes them.

    Args:
        workers: processes beside this one. They pay where training runs on a GPU; on a CPU they take the cores that compute.
        pin: put batches into page-locked memory, for a GPU.
    """
    if not workers:
        for step in steps:
            made = maker[step]
            yield [batch.pin_memory() for batch in made] if pin else made
        return
    # Forked: the corpus is shared, not copied. These processes touch neither the GPU nor the process group.
    yield from DataLoader(
        maker,  # type: ignore[arg-type]
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        prefetch_factor=AHEAD,
        pin_memory=pin,
        collate_fn=_as_made,
        worker_init_fn=_on_its_own,
        multiprocessing_context="fork",
    )


def _as_made(micro_batches: list[Any]) -> list[Any]:
    return micro_batches


def _on_its_own(worker: int) -> None:
    """One thread, and files that the process before the fork does not read from, too. Whoever asks a whole group of processes to
    stop (Ctrl-C, a batch system) asks the one that trains: it still needs the batches of its last step."""
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, signal.SIG_IGN)
    torch.set_num_threads(1)
    maker: Any = get_worker_info().dataset  # type: ignore[union-attr]
    maker.samples.store.close_all()
