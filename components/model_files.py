"""Saved models: find the folder that a name stands for, and verify its files before they are used.

The digest of a model covers weights, configuration and tokenizer.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import BadInput, JobFailed
from components.files import atomic_directory, read_json
from components.home import Home
from components.locks import claim
from components.machine_faults import find_system_fault
from components.provenance import SHORT, digest
from components.verified_files import cached_md5, is_sealed, seal

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

PREPROCESSING = "preprocessing.json"
"""File of a model folder with the grid that images are resampled to, and the structures that the model knows."""
WEIGHTS_TAG = "weights_digest"
"""Tag of a registered version: digest of the model that was evaluated."""
DIGEST = "weights_digest.json"
"""File with the same digest beside the registered weights, below ``about``."""
logger = logging.getLogger(__name__)
_LIST_MODELS = "omnimri models list shows the registered versions"


def weights_digest(model_dir: Path) -> str:
    """Return the digest of a saved model: weights, configuration, tokenizer.

    Raises:
        BadInput: the folder was not written by ``save_pretrained``.
    """
    if not (model_dir / "config.json").is_file() or not list(model_dir.glob("*.safetensors")):
        raise BadInput("no saved model", where=str(model_dir), remedy="name a folder with config.json and model.safetensors")
    sums = cached_md5(path for path in sorted(model_dir.iterdir()) if path.is_file())
    return digest([(path.name, md5) for path, md5 in sums.items()])


def resolve_model(model: str | Path, tracking_uri: str) -> Path:
    """Return the folder of a model. The files of a registered version are verified against its digest.

    Args:
        model: a folder, which is returned unchanged, or an MLflow URI, e.g. ``models:/omnimri@staging`` or ``models:/omnimri/3``.

    Raises:
        BadInput: the folder contains no saved model, or MLflow has no such model.
        JobFailed: the files of a registered version are lost, or differ from those that were evaluated.
    """
    if not str(model).startswith(("models:/", "runs:/")):
        folder = Path(model)
        if not (folder / "config.json").is_file():
            remedy = "name a folder of save_pretrained, or e.g. models:/omnimri@staging"
            raise BadInput("no saved model", where=str(model), remedy=remedy)
        return folder
    from components.tracking.local_versions import find_local_version
    from components.tracking.relocation import has_store, relocate_if_moved

    if not has_store(tracking_uri):
        raise BadInput("no model has been registered here yet", where=str(model), remedy="omnimri run registers one")
    relocate_if_moved(tracking_uri)
    local = find_local_version(str(model), WEIGHTS_TAG, tracking_uri, Home.open())
    if local is None:
        return _ask_mlflow(str(model), tracking_uri)
    return _verified_folder(str(model), local.folder, local.tag, f"{local.name} version {local.number}")


@contextmanager
def loadable_address(model: str, tracking_uri: str) -> Iterator[str]:
    """Yield an address from which MLflow can load a registered version; it is valid while the context is open.

    MLflow decodes ``%41`` in the paths of local files, too (3.17): a version below such a path is reached through a link.
    """
    from components.tracking.local_versions import find_local_version

    local = find_local_version(model, WEIGHTS_TAG, tracking_uri, Home.open())
    if local is None:  # MLflow would leave a copy of a version of another machine behind
        yield _loadable(model, tracking_uri)
        return
    if "%" not in str(local.folder):
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="omnimri-version-") as folder:
        link = Path(folder) / "versions"
        link.symlink_to(local.folder.parent, target_is_directory=True)
        yield str(link / local.folder.name)


def _loadable(model: str, tracking_uri: str) -> str:
    """Return a model's address, or the folder of the copy of a version of another machine; MLflow itself reports a lost one."""
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri)
    try:
        return model if is_on_this_machine(model) else str(_fetch(model, _registered_version(model)))
    except (MlflowException, OSError):
        return model


def _ask_mlflow(model: str, tracking_uri: str) -> Path:
    """Return the verified folder of a model that MLflow's store or server names."""
    import mlflow
    from mlflow.exceptions import MlflowException

    from components.tracking.histories import require_not_renamed

    mlflow.set_tracking_uri(tracking_uri)
    version = _registered_version(model)
    try:
        local = _fetch(model, version)
    except (MlflowException, OSError) as error:
        if fault := find_system_fault(error, where=model):
            raise fault from None
        if version is None:
            if model.startswith("models:/"):
                require_not_renamed(mlflow.MlflowClient(), re.split("[/@]", model.removeprefix("models:/"))[0])
            raise BadInput("MLflow has no such model", where=model, remedy=_LIST_MODELS) from None
        raise lost_files(model) from None
    weights = "" if version is None else version.tags.get(WEIGHTS_TAG, "")
    return _verified_folder(model, local, weights, "" if version is None else f"{version.name} version {version.version}")


def _fetch(model: str, version: ModelVersion | None) -> Path:
    """Return the files of a model: in place if they are on this machine, else a copy.

    The copy of an evaluated version stays in the home for later calls; any other copy is deleted when the process ends.
    """
    import mlflow

    if is_on_this_machine(model):
        return Path(mlflow.artifacts.download_artifacts(model))
    weights = "" if version is None else version.tags.get(WEIGHTS_TAG, "")
    if version is not None and weights and _can_write(Home.open().downloads):
        return _keep(version, weights)
    folder = Path(tempfile.mkdtemp(prefix="omnimri-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(mlflow.artifacts.download_artifacts(model, dst_path=str(folder)))


def _keep(version: ModelVersion, weights: str) -> Path:
    """Return the copy of an evaluated version in the home; download it where there is none. Files that differ are not kept."""
    import mlflow

    home, name = Home.open(), f"{version.name} version {version.version}"
    folder = home.downloads / digest(mlflow.get_tracking_uri(), version.name, version.version, weights)[:SHORT]
    with claim(home.locks / "downloads"):
        if not is_sealed(folder):
            logger.info("downloading %s from %s", name, mlflow.get_tracking_uri())
            with atomic_directory(folder) as temporary:
                address = f"models:/{version.name}/{version.version}"  # an alias may move in the meantime
                mlflow.artifacts.download_artifacts(address, dst_path=str(temporary / "files"))
                _verified_folder(address, temporary / "files", weights, name)
                seal(temporary)
    return folder / "files"


def _can_write(folder: Path) -> bool:
    """Return whether files can be written to a folder, which is created where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def is_on_this_machine(address: str) -> bool:
    """Return whether the artifacts of an MLflow URI are files of this machine, which MLflow hands out without a copy."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    repository = get_artifact_repository(address)
    while hasattr(repository, "repo"):  # of models:/ and runs:/: the one that holds the files
        repository = repository.repo
    return isinstance(repository, LocalArtifactRepository)


@contextmanager
def artifacts_of(address: str) -> Iterator[Path]:
    """Yield the folder of the artifacts of an MLflow URI: in place if on this machine, else a copy that is deleted afterwards.

    Raises:
        MlflowException: there are none.
    """
    import mlflow

    if is_on_this_machine(address):
        yield Path(mlflow.artifacts.download_artifacts(address))
        return
    with tempfile.TemporaryDirectory(prefix="omnimri-artifacts-") as folder:
        yield Path(mlflow.artifacts.download_artifacts(address, dst_path=folder))


def _verified_folder(model: str, artifacts: Path, weights: str, version: str) -> Path:
    """Return the folder of a model below its artifacts.

    Args:
        weights: digest of the evaluated model; "" = unknown.
        version: name and number of the registered version.
    """
    preprocessing_files = sorted(artifacts.rglob(PREPROCESSING))
    if not preprocessing_files:
        if weights:
            raise lost_files(model)
        raise BadInput("not a model of OmniMRI", where=model, remedy=_LIST_MODELS)
    folder = preprocessing_files[0].parent
    if not all(has_digest(folder, expected) for expected in (weights, _registered_digest(folder))):
        raise JobFailed(
            "the files differ from those that were evaluated",
            where=f"{version}, {folder}",
            remedy="restore them from a backup; omnimri rollback brings back an earlier version",
        )
    return folder


def _registered_digest(model_dir: Path) -> str:
    """Return the digest that was registered beside a model, which remains when somebody deletes the tag; "" where there is none."""
    path = model_dir.parent / "about" / DIGEST
    try:
        return str(read_json(path) or "damaged") if path.exists() else ""
    except ValueError:
        return "damaged"


def has_digest(model_dir: Path, expected: str) -> bool:
    """Return whether a model folder has an expected digest; every folder has the digest "", of models recorded without one."""
    try:
        return not expected or weights_digest(model_dir) == expected
    except BadInput:
        return False


def lost_files(model: str) -> JobFailed:
    """Return the error for a registered version whose files are not where MLflow's store says they are."""
    return JobFailed(
        "its files are lost",
        where=model,
        remedy="restore MLflow's artifacts from a backup; after a move of the home: omnimri doctor --relocate",
    )


def _registered_version(model: str) -> ModelVersion | None:
    """Return the registered version that ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS`` names; None where there is none."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.utils.models import _parse_model_uri

    client = mlflow.MlflowClient()
    try:
        parsed = _parse_model_uri(model)
        if parsed.alias is not None:
            return client.get_model_version_by_alias(str(parsed.name), parsed.alias)
        return client.get_model_version(str(parsed.name), parsed.version) if parsed.version is not None else None
    except MlflowException:
        return None
