"""The files of a stage's checkpoints: complete or ignored, verified before use, deleted by a rule.

Every checkpoint is a folder ``checkpoints/step-000100``, complete once it contains ``manifest.json``, written last: the number of
processes that wrote it, and the SHA-256 of every file. ``checkpoint.json`` names the newest one; it is written after the metrics of
its steps are on disk. A checkpoint that fails its checksums is set aside, and the previous one is used.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from argparse import Namespace
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from components.errors import BadInput, JobFailed
from components.files import read_json, write_json

CHECKPOINT, MANIFEST = "checkpoint.json", "manifest.json"


def checkpoint_tag(step: int) -> str:
    """Return the folder name of the checkpoint of ``step`` finished steps."""
    return f"step-{step:06d}"


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints of one stage, as one process sees them.

    Args:
        folder: Folder of the stage, the same for all processes.
        rank: This process among those that train together.
        world_size: Number of processes.
        newest: Number of newest checkpoints to keep.
        every: Steps between checkpoints that are never deleted; 0 = none.
    """

    folder: Path
    rank: int = 0
    world_size: int = 1
    newest: int = 2
    every: int = 0

    @property
    def root(self) -> Path:
        """Folder of the checkpoint folders."""
        return self.folder / "checkpoints"

    def clear(self, step: int) -> None:
        """Create the empty folder of a step's checkpoint, without what an interrupted process may have left there."""
        if self.rank == 0:
            shutil.rmtree(self.root / checkpoint_tag(step), ignore_errors=True)
            (self.root / checkpoint_tag(step)).mkdir(parents=True)
        _barrier()

    def seal(self, step: int, facts: dict[str, Any]) -> None:
        """Flush all files of a checkpoint to disk and write its manifest. Each process reads a share of the files."""
        _barrier()
        folder = self.root / checkpoint_tag(step)
        own = {str(path.relative_to(folder)): _sha256(path, flush=True) for path in self._own_files(folder)}
        files = {name: checksum for checksums in self._gather(own) for name, checksum in checksums.items()}
        if self.rank == 0:
            write_json(folder / MANIFEST, {**facts, "step": step, "world": self.world_size, "files": files})
        _barrier()

    def publish(self, step: int) -> None:
        """Make the checkpoint of ``step`` the newest one, and delete those that the rule does not keep."""
        if self.rank == 0:
            write_json(self.folder / CHECKPOINT, {"tag": checkpoint_tag(step), "step": step})
            steps = self.complete_steps()
            kept = {*steps[: self.newest], *(number for number in steps if self.every and number and number % self.every == 0)}
            for path in self.root.glob("*step-*"):  # converted and damaged checkpoints, too
                if path.name not in {checkpoint_tag(number) for number in kept}:
                    shutil.rmtree(path)
        _barrier()

    def complete_steps(self) -> list[int]:
        """Return the steps of all complete checkpoints up to the published one, newest first."""
        published = self.folder / CHECKPOINT
        last = int(read_json(published)["step"]) if published.exists() else 0
        steps = [int(path.parent.name[5:]) for path in self.root.glob(f"step-*/{MANIFEST}")]
        return sorted((step for step in steps if step <= last), reverse=True)

    def last_valid(self) -> int | None:
        """Return the step of the newest checkpoint whose files match their checksums; None where there never was one.

        Raises:
            JobFailed: there are checkpoints, and all are damaged.
        """
        steps = self.complete_steps()
        for step in steps:
            damaged = self._damaged_files(step)
            if not damaged:
                return step
            tag = checkpoint_tag(step)
            if self.rank == 0:
                print(f"checkpoint {tag} is damaged ({', '.join(damaged)}): resuming from the previous one", flush=True)
                (self.root / tag).rename(self.root / f"damaged-{tag}")
            _barrier()
        if steps:
            raise JobFailed("every checkpoint is damaged", where=str(self.root), remedy="remove this stage's folder and run again")
        return None

    def require_same_processes(self) -> None:
        """Refuse checkpoints of another number of processes; nothing is changed.

        Raises:
            BadInput: another number of processes wrote the newest checkpoint.
        """
        for step in self.complete_steps()[:1]:
            world = self.manifest(step)["world"]
            if world != self.world_size:
                raise BadInput(
                    f"training.processes was {world} when {checkpoint_tag(step)} was written, and is {self.world_size} now: "
                    "moments of 8 bits (training.optimizer_bits) resume on the same number of processes only",
                    where=str(self.folder),
                    remedy=f"run again with training.processes={world}, or remove this folder to start the stage anew",
                )

    def manifest(self, step: int) -> dict[str, Any]:
        """Return the manifest of a checkpoint."""
        manifest: dict[str, Any] = read_json(self.root / checkpoint_tag(step) / MANIFEST)
        return manifest

    def convert_to_universal(self, step: int) -> str:
        """Convert a checkpoint to DeepSpeed's universal format, for any number of processes, unless it exists; return its tag."""
        tag = f"universal-{checkpoint_tag(step)}"
        if self.rank == 0 and not (self.root / tag).exists():
            from deepspeed.checkpoint.ds_to_universal import main as convert

            temporary = self.root / f".{tag}"
            shutil.rmtree(temporary, ignore_errors=True)
            folders = {"input_folder": str(self.root / checkpoint_tag(step)), "output_folder": str(temporary)}
            options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
            with redirect_stdout(StringIO()):
                convert(Namespace(**folders, **options, inject_missing_state=False))
            temporary.rename(self.root / tag)
        _barrier()
        return tag

    def _own_files(self, folder: Path) -> list[Path]:
        """Return this process's share of a checkpoint's files."""
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
        return files[self.rank :: self.world_size]

    def _damaged_files(self, step: int) -> list[str]:
        """Return the names of a checkpoint's files that are missing or differ from their checksums, from all processes."""
        folder, files = self.root / checkpoint_tag(step), self.manifest(step)["files"]
        own = [
            name
            for name in sorted(files)[self.rank :: self.world_size]
            if not (folder / name).is_file() or _sha256(folder / name) != files[name]
        ]
        return sorted(name for names in self._gather(own) for name in names)

    def _gather(self, own: Any) -> list[Any]:
        """Return the value of every process, by rank."""
        gathered: list[Any] = [own]
        if self.world_size > 1:
            gathered = [None] * self.world_size
            dist.all_gather_object(gathered, own)
        return gathered


def _sha256(path: Path, flush: bool = False) -> str:
    with path.open("rb") as stream:
        if flush:
            os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _barrier() -> None:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        if torch.cuda.is_available():
            dist.barrier(device_ids=[torch.cuda.current_device()])
        else:
            dist.barrier()
