"""Making a version again from what it says of itself: its commit in a new checkout, its data, its settings; then both are compared.

The old code is run by the old code's own command line, in processes of its own, so that nothing of this checkout has a part in it.
The comparison is to the bit, which the same packages on the same kind of processor should meet; another one may round otherwise.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import BadInput, JobFailed
from components.home import Home
from components.inference import resolve_model
from components.provenance import REPOSITORY
from components.registry.lineage import settings_of
from components.registry.registration import show_version
from components.versioning import DataRepository

COMMAND = (sys.executable, "-m", "flows.cli.main")
INHERITED = ("PREFECT_", "MLFLOW_", "OMNIMRI_")
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Reproduction:
    """A version beside the one that was made again.

    Attributes:
        equal: every tensor is the same to the bit.
        tensors, differing: how many there are, and how many differ; largest: difference of any weight.
        packages: those whose installed version is not the pinned one: (name, pinned, installed).
        withdrawn: series that were left out, since their patients have withdrawn.
        seconds: by step.
    """

    version: str
    git_commit: str
    data_digest: str
    equal: bool
    tensors: int
    differing: int
    largest: float
    packages: tuple[tuple[str, str, str], ...]
    withdrawn: int
    seconds: dict[str, float]


def reproduce(version: str, home: Home, name: str, keep: Path | None = None) -> Reproduction:
    """Make a version again and compare.

    Args:
        keep: folder for checkout, data and runs; none = a temporary one, which is removed.

    Raises:
        BadInput: no such version, or its lineage does not lead to one commit and one data version.
        JobFailed: the old code fails; its last words are in the message.
    """
    found = show_version(version, home.tracking_uri, name)
    commit, data = found.tags.get("git_commit", ""), found.tags.get("data_digest", "")
    if not commit or commit == "unknown" or commit.endswith("+dirty"):
        raise BadInput(
            "its code is in no commit",
            where=f"{name} {found.version}, commit {commit or 'not recorded'}",
            remedy="only what was trained from a committed checkout can be made again",
        )
    settings = settings_of(found, home.tracking_uri)
    if keep is not None:
        return _reproduced(found.version, commit, data, settings, home, name, keep)
    with tempfile.TemporaryDirectory(prefix="omnimri-reproduce-") as folder:
        return _reproduced(found.version, commit, data, settings, home, name, Path(folder))


def _reproduced(
    version: str, commit: str, data: str, settings: dict[str, Any], home: Home, name: str, folder: Path
) -> Reproduction:
    seconds: dict[str, float] = {}
    checkout, profile = folder / "checkout", folder / "settings.yaml"
    start = time.monotonic()
    _git("clone", "--quiet", "--shared", "--no-checkout", str(REPOSITORY), str(checkout))
    _git("-C", str(checkout), "checkout", "--quiet", "--detach", commit)
    seconds["checkout"] = time.monotonic() - start
    start = time.monotonic()
    laid = DataRepository(home.data.parent, home.data).lay_out(data, checkout / "data")
    seconds["data"] = time.monotonic() - start
    profile.write_text(json.dumps(settings))  # JSON is YAML
    clean = {key: value for key, value in os.environ.items() if not key.startswith(INHERITED)}
    environment = {
        **clean,
        "OMNIMRI_HOME": str(folder / "home"),
        "OMNIMRI_DATA": str(checkout / "data"),
        "OMNIMRI_CARDS": str(home.cards),
        "PYTHONPATH": str(checkout),
    }
    start = time.monotonic()
    _run(checkout, environment, "curate", "--profile", str(profile), "--json")
    seconds["curate"] = time.monotonic() - start
    start = time.monotonic()
    stages = _run(checkout, environment, "train", "--profile", str(profile), "--set", "launcher=local", "--json")
    seconds["train"] = time.monotonic() - start
    ours = resolve_model(f"models:/{name}/{version}", home.tracking_uri) / WEIGHTS
    tensors, differing, largest = compare(ours, Path(stages[-1]["model_dir"]) / WEIGHTS)
    return Reproduction(
        version,
        commit,
        data,
        differing == 0,
        tensors,
        differing,
        largest,
        other_packages(checkout / "constraints.txt"),
        laid.withdrawn.series,
        {step: round(value, 1) for step, value in seconds.items()},
    )


def compare(first: Path, second: Path) -> tuple[int, int, float]:
    """Two safetensors files: tensors, how many are not equal to the bit (or are in one alone), largest difference."""
    import torch
    from safetensors.torch import load_file

    ours, theirs = load_file(first), load_file(second)
    names, differing, largest = sorted(set(ours) | set(theirs)), 0, 0.0
    for name in names:
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
            differing, largest = differing + 1, float("inf")
        elif ours[name].dtype != theirs[name].dtype or not torch.equal(
            ours[name].flatten().view(torch.uint8),
            theirs[name].flatten().view(torch.uint8),  # a scalar has no view of its bytes
        ):
            differing += 1
            largest = max(largest, float((ours[name].double() - theirs[name].double()).abs().max()))
    return len(names), differing, largest


def other_packages(lock: Path) -> tuple[tuple[str, str, str], ...]:
    """Pins that this environment does not meet: (name, pinned, installed)."""
    found = []
    for line in lock.read_text().splitlines() if lock.exists() else ():
        name, pinned, wanted = line.partition("#")[0].strip().partition("==")
        if not pinned:
            continue
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = "none"
        if installed.partition("+")[0] != wanted.partition("+")[0].partition(";")[0].strip():
            found.append((name, wanted, installed))
    return tuple(found)


def _git(*words: str) -> None:
    done = subprocess.run(["git", *words], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["failed"]
        raise BadInput(f"git: {said[-1]}", where=" ".join(words[-2:]), remedy="this checkout must have the commit: git fetch")


def _run(checkout: Path, environment: Mapping[str, str], *words: str) -> Any:
    """A command of the old code; its JSON."""
    done = subprocess.run([*COMMAND, *words], cwd=checkout, env=dict(environment), capture_output=True, text=True)
    if done.returncode:
        raise JobFailed(
            f"the old code's `omnimri {words[0]}` failed: {' '.join(done.stderr.split())[-600:]}",
            where=str(checkout),
            remedy="omnimri reproduce --keep FOLDER leaves everything there",
        )
    return json.loads(done.stdout.strip().splitlines()[-1])
