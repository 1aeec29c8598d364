"""The files of a stage's checkpoints: complete or not there, checked before they are used, kept by a rule.

Every checkpoint is a folder ``checkpoints/step-000100`` that counts once it holds ``manifest.json``, written last: by how many
processes it was written, and the SHA-256 of every file. ``checkpoint.json`` names the newest, after the curve of its steps is on
disk, too. One that fails its checksums is set aside, and the one before it is used.
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

from components.errors import JobFailed
from components.files import read_json, write_json

CHECKPOINT, MANIFEST = "checkpoint.json", "manifest.json"


def tag_of(step: int) -> str:
    """Folder of the checkpoint of so many finished steps."""
    return f"step-{step:06d}"


@dataclass(frozen=True)
class Checkpoints:
    """Those of one stage, seen by one process.

    Args:
        folder: of the stage, the same for all processes.
        rank, world: this process among those that train together.
        newest: how many are kept; every: and one every so many steps, for good (0 = none).
    """

    folder: Path
    rank: int = 0
    world: int = 1
    newest: int = 2
    every: int = 0

    @property
    def root(self) -> Path:
        """Folder of the folders."""
        return self.folder / "checkpoints"

    def make_room(self, step: int) -> None:
        """Remove what an ended process, perhaps one of other processes, may have left under this step's name."""
        if self.rank == 0:
            shutil.rmtree(self.root / tag_of(step), ignore_errors=True)
            (self.root / tag_of(step)).mkdir(parents=True)
        _together()

    def seal(self, step: int, facts: dict[str, Any]) -> None:
        """Declare complete what all processes have written: on disk, with its checksums. Each process reads a part of the files."""
        _together()
        place = self.root / tag_of(step)
        own = {str(path.relative_to(place)): _sha256(path, to_disk=True) for path in self._share(place)}
        parts: list[Any] = [own]
        if self.world > 1:
            parts = [None] * self.world
            dist.all_gather_object(parts, own)
        if self.rank == 0:
            files = {name: checksum for part in parts for name, checksum in part.items()}
            write_json(place / MANIFEST, {**facts, "step": step, "world": self.world, "files": files})
        _together()

    def name(self, step: int) -> None:
        """Make the checkpoint of ``step`` the one to go on from, and remove what the rule does not keep."""
        if self.rank == 0:
            write_json(self.folder / CHECKPOINT, {"tag": tag_of(step), "step": step})
            steps = self.complete()
            kept = set(steps[: self.newest]) | {one for one in steps if self.every and one and one % self.every == 0}
            for path in self.root.glob("*step-*"):  # what was made of old ones, or set aside, goes with them
                if path.name not in {tag_of(one) for one in kept}:
                    shutil.rmtree(path)
        _together()

    def complete(self) -> list[int]:
        """Steps of all complete checkpoints up to the named one, newest first."""
        named = self.folder / CHECKPOINT
        last = int(read_json(named)["step"]) if named.exists() else 0
        return sorted(
            (step for path in self.root.glob(f"step-*/{MANIFEST}") if (step := int(path.parent.name[5:])) <= last), reverse=True
        )

    def last_whole(self) -> int | None:
        """Step of the newest checkpoint whose files are those that were written; None where there never was one.

        Raises:
            JobFailed: there were some, and all are damaged.
        """
        steps = self.complete()
        for step in steps:
            damaged = self._damaged(step)
            if not damaged:
                return step
            if self.rank == 0:
                print(f"checkpoint {tag_of(step)} is damaged ({', '.join(damaged)}): going on from the one before", flush=True)
                (self.root / tag_of(step)).rename(self.root / f"damaged-{tag_of(step)}")
            _together()
        if steps:
            raise JobFailed("every checkpoint is damaged", where=str(self.root), remedy="remove this stage's folder and run again")
        return None

    def manifest(self, step: int) -> dict[str, Any]:
        """What was noted when the checkpoint was sealed."""
        manifest: dict[str, Any] = read_json(self.root / tag_of(step) / MANIFEST)
        return manifest

    def universal(self, step: int) -> str:
        """The checkpoint in DeepSpeed's form for any number of processes, made of it where it is not there; its folder's name."""
        name = f"universal-{tag_of(step)}"
        if self.rank == 0 and not (self.root / name).exists():
            from deepspeed.checkpoint.ds_to_universal import main as convert

            temporary = self.root / f".{name}"
            shutil.rmtree(temporary, ignore_errors=True)
            folders = {"input_folder": str(self.root / tag_of(step)), "output_folder": str(temporary)}
            ways = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
            with redirect_stdout(StringIO()):
                convert(Namespace(**folders, **ways, inject_missing_state=False))
            temporary.rename(self.root / name)
        _together()
        return name

    def _share(self, place: Path) -> list[Path]:
        files = sorted(path for path in place.rglob("*") if path.is_file() and path.name != MANIFEST)
        return files[self.rank :: self.world]

    def _damaged(self, step: int) -> list[str]:
        """Files of a checkpoint that are missing or other than written, on all processes."""
        place, files = self.root / tag_of(step), self.manifest(step)["files"]
        own = [
            name
            for name in sorted(files)[self.rank :: self.world]
            if not (place / name).is_file() or _sha256(place / name) != files[name]
        ]
        parts: list[Any] = [own]
        if self.world > 1:
            parts = [None] * self.world
            dist.all_gather_object(parts, own)
        return sorted(name for part in parts for name in part)


def _sha256(path: Path, to_disk: bool = False) -> str:
    with path.open("rb") as stream:
        if to_disk:
            os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _together() -> None:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        if torch.cuda.is_available():
            dist.barrier(device_ids=[torch.cuda.current_device()])
        else:
            dist.barrier()
