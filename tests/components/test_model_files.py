"""Registered versions: addresses that MLflow can load, and files of stores on other machines."""

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from components import model_files
from components.errors import JobFailed, MachineFault
from components.home import Home
from components.model_files import WEIGHTS_TAG, artifacts_of, is_on_this_machine, loadable_address, resolve_model, weights_digest
from components.tracking import local_versions
from components.tracking.local_versions import LocalVersion


@pytest.mark.parametrize("name", ["home", "a b?#ü", "b%41"])
def test_a_version_below_a_path_with_a_percent_sign_is_reached_through_a_link(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow would read ``%41`` as A; any other path needs no link."""
    folder = tmp_path / name / "m-1" / "artifacts"
    folder.mkdir(parents=True)
    (folder / "MLmodel").touch()
    version = LocalVersion("omnimri", "1", folder, "")
    monkeypatch.setattr(local_versions, "find_local_version", lambda *_: version)
    with loadable_address("models:/omnimri/1", "sqlite://") as address:
        if "%" in name:
            assert "%" not in address and (Path(address) / "MLmodel").samefile(folder / "MLmodel")
        else:
            assert address == "models:/omnimri/1"
    assert "%" not in name or not Path(address).exists()
    assert (folder / "MLmodel").is_file()


@pytest.fixture
def far_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Register version 1 of a model in a store that says its artifacts are on another machine; return the downloads from there."""
    monkeypatch.setenv("OMNIMRI_HOME", str(tmp_path / "home"))
    saved = tmp_path / "far" / "model"
    saved.mkdir(parents=True)
    for name in ("config.json", "preprocessing.json", "model.safetensors"):
        (saved / name).write_text("{}")
    downloads: list[str] = []

    def download(address: str, dst_path: str) -> str:
        """Copy, as MLflow does from a server."""
        downloads.append(address)
        return str(shutil.copytree(saved, Path(dst_path), dirs_exist_ok=True))

    version = SimpleNamespace(name="omnimri", version="1", tags={WEIGHTS_TAG: weights_digest(saved)})
    monkeypatch.setattr(model_files, "is_on_this_machine", lambda _: False)
    monkeypatch.setattr(model_files, "_registered_version", lambda model: version if model.startswith("models:/") else None)
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download)
    monkeypatch.setattr(mlflow, "set_tracking_uri", lambda _: None)  # it would outlive the test, in the environment, too
    monkeypatch.setattr("components.tracking.relocation.has_store", lambda _: True)
    monkeypatch.setattr("components.tracking.local_versions.find_local_version", lambda *_: None)
    return downloads


def test_a_version_of_another_machine_is_downloaded_once(far_store: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was damaged since then is downloaded again, before anything is read from it."""
    first = resolve_model("models:/omnimri/1", "http://far")
    assert first == resolve_model("models:/omnimri/1", "http://far") and first.parent.parent == Home.open().downloads
    assert far_store == ["models:/omnimri/1"]
    (first / "model.safetensors").write_text("{")
    assert (resolve_model("models:/omnimri/1", "http://far") / "model.safetensors").read_text() == "{}"
    assert len(far_store) == 2


def test_a_damaged_download_is_refused_and_not_kept(far_store: list[str], tmp_path: Path) -> None:
    """When the store has been repaired, the version is downloaded again."""
    stored = tmp_path / "far" / "model" / "model.safetensors"
    stored.write_text("damaged")
    with pytest.raises(JobFailed, match="differ from those that were evaluated"):
        resolve_model("models:/omnimri@staging", "http://far")
    stored.write_text("{}")
    assert (resolve_model("models:/omnimri@staging", "http://far") / "model.safetensors").read_text() == "{}"
    assert far_store == 2 * ["models:/omnimri/1"], "an alias may move between two calls"


def test_a_home_that_cannot_be_written_keeps_no_copy(far_store: list[str], tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file in place of the folder")
    assert not resolve_model("models:/omnimri/1", "http://far").is_relative_to(tmp_path / "home")


def test_a_full_disk_is_not_called_a_lost_file(far_store: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", full)
    with pytest.raises(MachineFault, match="no space left"):
        resolve_model("models:/omnimri/1", "http://far")


def test_a_model_of_a_run_is_read_from_a_copy_that_the_process_deletes(
    far_store: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only evaluated versions are sure to be the same later on."""
    monkeypatch.setattr(model_files.tempfile, "tempdir", str(tmp_path))
    kept = []
    monkeypatch.setattr(model_files.atexit, "register", lambda *arguments, **options: kept.append((arguments, options)))
    folder = resolve_model("runs:/1/model", "http://far")
    assert folder.is_relative_to(tmp_path) and not Home.open().downloads.exists()
    [((delete, *arguments), options)] = kept
    delete(*arguments, **options)
    assert not folder.exists()


def test_artifacts_of_another_machine_are_deleted_after_use(
    far_store: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with artifacts_of("models:/m-1") as folder:
        assert (folder / "config.json").is_file()
    assert not folder.exists()


def test_files_of_this_machine_are_read_in_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert is_on_this_machine(tmp_path.as_uri()) and not is_on_this_machine("https://far/artifacts")
    with artifacts_of(tmp_path.as_uri()) as folder:
        assert folder.samefile(tmp_path)


def test_mlflow_loads_the_copy_that_is_kept_of_a_version_of_another_machine(far_store: list[str]) -> None:
    with loadable_address("models:/omnimri/1", "http://far") as address:
        assert Path(address) == resolve_model("models:/omnimri/1", "http://far") and len(far_store) == 1
