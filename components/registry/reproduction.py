"""Reproduction: build a version again from its recorded commit, data version and settings, and compare the weights bit by bit.

The recorded code runs through its own command line in separate processes, so that nothing of this checkout takes part. Weights
should be identical with the same packages on the same kind of processor; another processor may round differently.
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
from components.model_files import resolve_model
from components.provenance import REPOSITORY, git_environment
from components.registry.lineage import load_version_settings
from components.registry.model_version import own_cards
from components.registry.registration import show_version

COMMAND = (sys.executable, "-m", "flows.cli")
OWN_VARIABLES = ("PREFECT_", "MLFLOW_", "OMNIMRI_")
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Reproduction:
    """Comparison of a version with its reproduction.

    Attributes:
        equal: all tensors are bitwise identical.
        tensors, differing: number of tensors, and of those that differ; largest: largest absolute difference of a weight.
        packages: (name, pinned, installed) of packages whose installed version is not the pinned one.
        withdrawn: number of series excluded because their patients have withdrawn.
        seconds: wall time by step.
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
    """Build a version again and compare.

    Args:
        keep: folder for checkout, data and runs; None = a temporary one, which is removed.

    Raises:
        BadInput: no such version, or its lineage does not identify a commit and a data version.
        JobFailed: the recorded code fails; the end of its output is in the message.
    """
    registered = show_version(version, home.tracking_uri, name)
    commit, data = registered.tags.get("git_commit", ""), registered.tags.get("data_digest", "")
    if not commit or commit == "unknown" or commit.endswith("+dirty"):
        raise BadInput(
            "the code of this version was not committed",
            where=f"{name} {registered.version}, commit {commit or 'not recorded'}",
            remedy="only versions trained from a committed checkout can be reproduced",
        )
    settings = load_version_settings(registered, home.tracking_uri)
    _require_same_cards(json.loads(registered.tags.get("cards", "{}")))
    if keep is not None:
        return _reproduce_in(registered.version, commit, data, settings, home, name, keep)
    with tempfile.TemporaryDirectory(prefix="omnimri-reproduce-") as folder:
        return _reproduce_in(registered.version, commit, data, settings, home, name, Path(folder))


def _reproduce_in(
    version: str, commit: str, data: str, settings: dict[str, Any], home: Home, name: str, folder: Path
) -> Reproduction:
    from components.versioning import DataRepository

    seconds: dict[str, float] = {}
    checkout, profile = folder / "checkout", folder / "settings.yaml"
    start = time.monotonic()
    _git("clone", "--quiet", "--shared", "--no-checkout", str(REPOSITORY), str(checkout))
    _git("-C", str(checkout), "checkout", "--quiet", "--detach", commit)
    seconds["checkout"] = time.monotonic() - start
    start = time.monotonic()
    layout = DataRepository(home.data.parent, home.data).export_version(data, checkout / "data")
    seconds["data"] = time.monotonic() - start
    profile.write_text(json.dumps(settings))  # JSON is YAML
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(OWN_VARIABLES)}
    environment = {
        **inherited,
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
    tensors, differing, largest = compare_weights(ours, Path(stages[-1]["model_dir"]) / WEIGHTS)
    return Reproduction(
        version,
        commit,
        data,
        differing == 0,
        tensors,
        differing,
        largest,
        unmet_pins(checkout / "constraints.txt"),
        layout.withdrawn.series,
        {step: round(value, 1) for step, value in seconds.items()},
    )


def _require_same_cards(recorded: Mapping[str, str]) -> None:
    """Check that the user's own cards, which the commit does not contain, are those that the version was built with.

    Raises:
        BadInput: one is missing or differs.
    """
    present = own_cards(recorded)
    if differing := sorted(card for card, md5 in recorded.items() if present.get(card) != md5):
        remedy = "restore them as they were when the version was trained: omnimri lineage VERSION shows their MD5"
        raise BadInput("own dataset cards are missing or differ", where=", ".join(differing), remedy=remedy)


def compare_weights(first: Path, second: Path) -> tuple[int, int, float]:
    """Return the number of tensors of two safetensors files, of those that differ in any bit, and the largest difference."""
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


def unmet_pins(lock: Path) -> tuple[tuple[str, str, str], ...]:
    """Return (name, pinned, installed) of the pins that this environment does not meet."""
    unmet = []
    for line in lock.read_text().splitlines() if lock.exists() else ():
        name, pinned, version = line.partition("#")[0].strip().partition("==")
        if not pinned:
            continue
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = "none"
        if installed.partition("+")[0] != version.partition("+")[0].partition(";")[0].strip():
            unmet.append((name, version, installed))
    return tuple(unmet)


def _git(*words: str) -> None:
    try:
        done = subprocess.run(["git", *words], env=git_environment(), capture_output=True, text=True)
    except FileNotFoundError:
        raise BadInput("git is not installed", where="PATH", remedy="install git; it checks out the recorded code") from None
    if done.returncode:
        error_lines = done.stderr.strip().splitlines() or ["failed"]
        raise BadInput(
            f"git: {error_lines[-1]}", where=" ".join(words[-2:]), remedy="fetch the commit into this checkout: git fetch"
        )


def _run(checkout: Path, environment: Mapping[str, str], *words: str) -> Any:
    """Run a command of the recorded code and return its JSON output."""
    done = subprocess.run([*COMMAND, *words], cwd=checkout, env=dict(environment), capture_output=True, text=True)
    if done.returncode:
        raise JobFailed(
            f"`omnimri {words[0]}` of the recorded code failed: {' '.join(done.stderr.split())[-600:]}",
            where=str(checkout),
            remedy="omnimri reproduce --keep FOLDER keeps all files there",
        )
    return json.loads(done.stdout.strip().splitlines()[-1])
