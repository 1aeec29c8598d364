"""Checks of the installation: packages, device, compiler, stores and servers, each with a remedy."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from components.assets import asset
from components.errors import BadInput, OmniMRIError
from components.home import Home
from components.provenance import git_commit
from components.tracking.relocation import former_roots
from components.versioning import DataRepository
from components.versioning.pin import Pin

MEMORY_NEEDED_GIB = 8
DISK_NEEDED_GIB = 5


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: subject of the check.
        state: ``ok``, ``warning`` (the demo runs without it) or ``fault`` (it does not).
        detail: version, size or address that was found.
        remedy: action to take; empty if none is needed.
    """

    name: str
    state: Literal["ok", "warning", "fault"]
    detail: str
    remedy: str = ""


def examine(home: Home) -> list[Finding]:
    """Run all checks. Nothing is changed."""
    return [
        _python(),
        _packages(),
        _import_names(),
        _device(),
        _kernels(),
        _compiler(),
        *_machine(home),
        _code(),
        _data_version(home),
        _tracking(home),
        *_location(home),
        _prefect(),
    ]


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if (3, 11) <= sys.version_info < (3, 13):
        return Finding("python", "ok", version)
    return Finding("python", "fault", version, "use Python 3.11 or 3.12: make install PYTHON=python3.11")


def _packages() -> Finding:
    """Compare the installed versions with the tested set."""
    lock = asset("constraints.txt")
    if not lock.exists():
        return Finding("packages", "warning", "constraints.txt is missing", "install OmniMRI again")
    pins = dict(line.split("==") for line in lock.read_text().split() if "==" in line)
    missing, other = [], []
    for name, pinned in pins.items():
        try:
            if importlib.metadata.version(name).split("+")[0] != pinned:
                other.append(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("packages", "fault", f"missing: {', '.join(missing[:8])}", "make install")
    if other:
        return Finding("packages", "warning", f"not the tested version: {', '.join(other[:8])}", "make install")
    return Finding("packages", "ok", f"{len(pins)} at their tested versions")


def _import_names() -> Finding:
    """Report other distributions that install a top-level package of ours: Hugging Face's ``kernels`` does."""
    owners = importlib.metadata.packages_distributions()
    for package in ("kernels", "flows", "components", "model_core"):
        others = sorted({owner for owner in owners.get(package, []) if owner.lower() != "omnimri"})
        if others:
            return Finding(
                "import names",
                "fault",
                f"the package {', '.join(others)} installs a module named {package!r}, which is also ours",
                f"pip uninstall {' '.join(others)}, or use an environment of its own for OmniMRI",
            )
    return Finding("import names", "ok", "no other package uses ours")


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("device", "ok", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, torch {torch.__version__}")
    return Finding("device", "ok", f"CPU, {os.cpu_count()} cores, torch {torch.__version__}")


def _kernels() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("kernels", "ok", f"triton {importlib.metadata.version('triton')}")
    return Finding("kernels", "ok", "PyTorch paths (no GPU)")


def _compiler() -> Finding:
    beside_python = str(Path(sys.executable).parent)
    missing = [tool for tool in ("g++", "ninja") if not shutil.which(tool) and not shutil.which(tool, path=beside_python)]
    if missing:
        return Finding(
            "compiler",
            "warning",
            f"missing: {', '.join(missing)}",
            "install a C++ compiler and ninja: DeepSpeed builds its CPU communication for several processes with them",
        )
    return Finding("compiler", "ok", "g++ and ninja")


def _machine(home: Home) -> list[Finding]:
    memory = psutil.virtual_memory().total / 2**30
    place = home.root
    while not place.exists():
        place = place.parent
    disk = shutil.disk_usage(place).free / 2**30
    return [
        Finding("memory", "ok", f"{memory:.0f} GiB")
        if memory >= MEMORY_NEEDED_GIB
        else Finding("memory", "warning", f"{memory:.0f} GiB", f"the demo needs {MEMORY_NEEDED_GIB} GiB"),
        Finding("disk", "ok", f"{disk:.0f} GiB free at {home.root}")
        if disk >= DISK_NEEDED_GIB
        else Finding("disk", "fault", f"{disk:.1f} GiB free at {home.root}", "free some, or set OMNIMRI_HOME to a larger disk"),
    ]


def _code() -> Finding:
    commit = git_commit()
    if commit == "unknown":
        remedy = "work in a git clone, or set OMNIMRI_COMMIT to the commit that this code was built from"
        return Finding("code", "warning", "no git commit: models trained with it cannot be promoted", remedy)
    if commit.endswith("+dirty"):
        return Finding("code", "ok", f"{commit} (commit the changes before training a model for production)")
    return Finding("code", "ok", commit)


def _location(home: Home) -> list[Finding]:
    """Report that the home was moved or copied since MLflow's store was written."""
    if not (former := former_roots(home)):
        return []
    remedy = "omnimri doctor --relocate (every command that uses the store does the same)"
    return [Finding("location", "warning", f"MLflow's store names {', '.join(former)}", remedy)]


def _data_version(home: Home) -> Finding:
    repository = DataRepository(home.data.parent, home.data)
    pin, folder = repository.pin.name, f"{home.data.name}/"
    try:
        pinned = Pin.read(repository.pin)
    except BadInput as error:
        return Finding("data", "fault", f"{error.where}: {error.what}", error.remedy)
    if pinned is None:
        return Finding("data", "warning", f"no {pin}", "omnimri run, or omnimri ingest DATASET PATH")
    if not home.data.exists():
        remedy = "omnimri run rebuilds the samples; omnimri data pull fetches the rest"
        return Finding("data", "warning", f"{pin} exists, {folder} does not", remedy)
    try:
        clean = repository.is_clean()
    except OmniMRIError as error:
        return Finding("data", "fault", f"{error.where}: {error.what}", error.remedy)
    if not clean:
        remedy = "omnimri data push pins it; omnimri data checkout HEAD --force restores the pinned version"
        return Finding("data", "warning", f"{folder} differs from {pin}", remedy)
    return Finding("data", "ok", f"{folder} matches {pin}")


def _tracking(home: Home) -> Finding:
    if home.tracking_uri.startswith("sqlite") and not (home.mlflow / "mlflow.db").exists():
        return Finding("mlflow", "warning", "no store yet", "the first omnimri run creates it")
    try:
        import mlflow

        mlflow.MlflowClient(home.tracking_uri).search_experiments(max_results=1)
    except Exception as error:
        return Finding(
            "mlflow", "fault", f"{home.tracking_uri} does not answer: {type(error).__name__}", "check MLFLOW_TRACKING_URI"
        )
    return Finding("mlflow", "ok", home.tracking_uri)


def _prefect() -> Finding:
    address = os.environ.get("PREFECT_API_URL")
    if not address:
        return Finding("prefect", "ok", "a temporary server for each run (set PREFECT_API_URL to use a running one)")
    import httpx

    try:
        httpx.get(f"{address}/health", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        return Finding(
            "prefect", "fault", f"{address} does not answer: {type(error).__name__}", "start it, or unset PREFECT_API_URL"
        )
    return Finding("prefect", "ok", address)
