"""A withdrawn patient's files are deleted from every version in every store, or what may remain is named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from components.errors import BadInput, JobFailed
from components.ingestion import ingest, list_series
from components.ingestion.deidentification.pseudonyms import Pseudonyms
from components.ingestion.manifest import MANIFEST
from components.ingestion.staging import staged_target
from components.ingestion.withdrawal import WITHDRAWN as WITHDRAWN_LIST
from components.ingestion.withdrawal import patients_of, withdrawals
from components.versioning import DataRepository
from components.versioning.dvc_store import open_dvc
from flows.cli.data import app
from tests.helpers.datasets import KEY, tiny_card, write_cohort, write_patient
from tests.helpers.mlflow_store import create_store

CARD = tiny_card().id
PLANTED = "sub-02"
PATIENT = Pseudonyms(KEY, CARD).patient(PLANTED)
WITHDRAWN = {CARD: frozenset({PATIENT})}


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *words], cwd=root, check=True, capture_output=True)


def open_repository(root: Path) -> DataRepository:
    return DataRepository(root, root / "data")


@dataclass
class Site:
    """A repository of three versions, each with another image of the planted patient, and its remote."""

    root: Path
    remote: Path
    digests: list[str]
    images: set[bytes]

    @property
    def repository(self) -> DataRepository:
        return open_repository(self.root)

    def clone(self, name: str) -> DataRepository:
        clone = self.root.parent / name
        git(self.root.parent, "clone", "-q", str(self.root), name)
        return open_repository(clone)

    def traces(self, *folders: Path) -> list[Path]:
        """Return the files below folders whose content is one of the planted images."""
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        return [path for path in files if path.read_bytes() in self.images]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions, committed and pushed to a remote outside of the checkout; built once, copied for each test."""
    folder = tmp_path_factory.mktemp("published")
    root, source = folder / "one", write_cohort(folder / "source", 4)
    root.mkdir()
    git(root, "init", "-q")
    with open_dvc(root, "data") as dvc, dvc.config.edit() as config:
        (folder / "remote").mkdir()
        config["remote"]["local"]["url"] = str(folder / "remote")
    for seed in (2, 52, 53):
        write_patient(source, 2, seed=seed)
        ingest(tiny_card(), source, root / "data", KEY)
        open_repository(root).snapshot()
        (folder / "images").mkdir(exist_ok=True)
        for image in (root / "data" / CARD / PATIENT).rglob("*.nii*"):
            shutil.copy(image, folder / "images" / f"{seed}-{image.name}")
        git(root, "add", "data.dvc", ".dvc/config", ".gitignore")
        git(root, "commit", "-qm", f"version {seed}")
    return folder


@pytest.fixture
def site(published: Path, tmp_path: Path) -> Site:
    folder = tmp_path / "site"
    shutil.copytree(published, folder, symlinks=True)
    with open_dvc(folder / "one", "data") as dvc, dvc.config.edit() as config:
        config["remote"]["local"]["url"] = str(folder / "remote")
    git(folder / "one", "commit", "-qam", "remote")
    images = {path.read_bytes() for path in (folder / "images").iterdir()}
    shutil.rmtree(folder / "images")
    root = folder / "one"
    history = subprocess.run(["git", "log", "--format=%H", "--", "data.dvc"], cwd=root, capture_output=True, text=True).stdout
    digests = [open_repository(root).resolve(commit) for commit in history.split()]
    return Site(root, folder / "remote", digests, images)


def test_a_purge_deletes_every_version_from_cache_and_remote(site: Site, tmp_path: Path) -> None:
    assert len(site.images) >= 4 and site.traces(site.root / ".dvc", site.remote)
    result = site.repository.withdraw(WITHDRAWN, purge=True)
    assert result.unproven == () and result.versions == set(site.digests) and result.purged == len(site.images)
    assert not site.traces(site.root, site.remote)
    exported = tmp_path / "exported"
    site.repository.export_version(site.digests[-1], exported)
    assert len(list_series(exported, CARD)) == 3
    with pytest.raises(BadInput, match="purged"):
        site.repository.checkout(site.digests[-1])


def test_a_clone_with_an_empty_cache_purges_the_remote_and_another_clone_learns_of_it(site: Site) -> None:
    clone = site.clone("two")
    clone.pull()  # its cache has the newest version only
    assert clone.withdraw(WITHDRAWN, purge=True).unproven == ()
    assert not site.traces(clone.root, site.remote)
    shutil.copy(clone.pin, site.repository.pin)  # as git pull would
    pulled = site.repository.pull()
    assert pulled.cached_withdrawn == len(site.images)
    assert site.repository.withdraw(withdrawals(site.repository.data), purge=True).unproven == ()
    assert not site.traces(site.root.parent)


def test_a_clone_before_its_first_pull_purges_and_does_not_pin_an_empty_version(site: Site) -> None:
    clone = site.clone("two")
    pin = clone.pin.read_text()
    with pytest.raises(BadInput, match="omnimri data pull"):
        clone.withdraw(WITHDRAWN)
    [sentence] = clone.withdraw(WITHDRAWN, purge=True).unproven
    assert "not recorded yet" in sentence and clone.pin.read_text() == pin and not clone.data.exists()
    assert not site.traces(clone.root, site.remote)


def test_a_remote_that_does_not_answer_is_named_and_the_cache_is_purged(site: Site) -> None:
    site.remote.rename(site.remote.with_name("unmounted"))
    unproven = site.repository.withdraw(WITHDRAWN, purge=True).unproven
    assert any(sentence.startswith("remote local: not readable") for sentence in unproven)
    assert not site.traces(site.root)


@pytest.mark.parametrize("fault", ["missing", "failing"])
def test_a_purge_without_git_deletes_what_it_knows_and_says_so(site: Site, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = site.root.parent / "tools"
    tools.mkdir()
    if fault == "failing":
        (tools / "git").write_text("#!/bin/sh\nexit 128\n")
        (tools / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    unproven = site.repository.withdraw(WITHDRAWN, purge=True).unproven
    assert any("git does not list earlier versions" in sentence for sentence in unproven)
    assert not site.traces(site.root, site.remote)


def test_a_damaged_pin_does_not_keep_the_files_from_being_deleted(site: Site) -> None:
    pin = site.repository.pin
    pin.write_text(f"<<<<<<< HEAD\n{pin.read_text()}=======\n{pin.read_text()}>>>>>>> theirs\n")
    unproven = site.repository.withdraw(WITHDRAWN, purge=True).unproven
    assert "conflict" in " ".join(unproven) and not site.traces(site.root, site.remote)


def test_a_lost_file_list_is_named_while_objects_of_it_may_remain(site: Site) -> None:
    oldest = site.digests[-1]
    for list_file in [*site.root.rglob(f"{oldest[2:]}.dir"), *site.remote.rglob(f"{oldest[2:]}.dir")]:
        list_file.unlink()
    unproven = site.repository.withdraw(WITHDRAWN, purge=True).unproven
    assert len(unproven) == 2 and all(oldest in sentence for sentence in unproven)  # in the cache, and in the remote
    remaining = {path.read_bytes() for path in site.traces(site.root, site.remote)}
    assert remaining and remaining < site.images


def test_remains_of_an_interrupted_transfer_are_deleted(site: Site) -> None:
    folder = next(path for path in (site.remote / "files" / "md5").iterdir() if path.is_dir())
    leftover = folder / ".Xy12.tmp"
    leftover.write_bytes(next(iter(site.images)))
    os.utime(leftover, (0, 0))
    assert site.repository.withdraw(WITHDRAWN, purge=True).unproven == () and not leftover.exists()


@pytest.mark.parametrize("damaged", [f"{CARD}/{MANIFEST}", WITHDRAWN_LIST])
@pytest.mark.parametrize("content", ["", '{"series": [', "[]"])
def test_damaged_lists_in_the_folder_do_not_keep_the_files_from_being_deleted(site: Site, damaged: str, content: str) -> None:
    pinned = site.repository.digest()
    (site.root / "data" / damaged).write_text(content)
    assert PATIENT in patients_of(site.root / "data")[CARD]
    [sentence] = site.repository.withdraw(WITHDRAWN, purge=True).unproven
    assert "damaged" in sentence and damaged in sentence and not site.traces(site.root.parent)
    assert site.repository.digest() == pinned, "a folder that does not record the withdrawal must not become a version"


def test_files_of_an_interrupted_ingestion_are_deleted(site: Site) -> None:
    staged = site.root / "data" / staged_target(f"{CARD}/{PATIENT}/image.nii")
    staged.parent.mkdir(parents=True)
    staged.write_bytes(next(iter(site.images)))
    assert site.repository.withdraw(WITHDRAWN, purge=True).unproven == () and not site.traces(site.root.parent)


def test_the_same_images_under_another_pseudonym_are_named(site: Site) -> None:
    shutil.copytree(site.root / "data" / CARD / PATIENT, site.root / "data" / "other" / "p00000000000f")
    site.repository.snapshot()
    [sentence] = site.repository.withdraw(WITHDRAWN, purge=True).unproven
    assert "other/p00000000000f" in sentence


def test_content_that_other_patients_share_remains_in_every_version(site: Site, tmp_path: Path) -> None:
    """All sidecars of the cohort but that of the patient's sex are equal."""
    site.repository.withdraw(WITHDRAWN, purge=True)
    for number, digest in enumerate(site.digests):
        site.repository.export_version(digest, tmp_path / str(number))


def test_three_versions_two_clones_a_remote_lost_artifacts_and_a_foreign_key(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole withdrawal as an operator meets it: the patient is found nowhere after it, and no other key brings him back."""
    home, clones = site.root.parent / "home", [site.clone("two"), site.clone("three")]
    for clone in clones:
        clone.pull()
    uri = f"sqlite:///{create_store(home / 'mlflow' / 'mlflow.db')}"
    client = MlflowClient(uri)
    client.create_registered_model("renamed outside")
    client.create_model_version("renamed outside", str(site.root.parent / "lost"), tags={"data_digest": site.digests[0]})

    def withdraw(*words: str, clone: DataRepository) -> dict[str, Any]:
        monkeypatch.setenv("OMNIMRI_HOME", str(home))
        monkeypatch.setenv("OMNIMRI_DATA", str(clone.data))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        done = CliRunner().invoke(app, ["withdraw", *words, "--json"])
        if done.exception is not None:
            raise done.exception
        return dict(json.loads(done.stdout))

    with pytest.raises(BadInput, match="another key"):  # the id in the source, and a key that is not that of the data
        (home / "pseudonym.key").write_bytes(bytes(32))
        withdraw(PLANTED, "--purge", clone=clones[0])
    for folder in (home / "evaluations" / "cut", home / "downloads" / "1" / "files" / "artifacts" / "about"):
        folder.mkdir(parents=True)
        (folder / "cohort.json").write_text('{"tiny')
    (clones[0].data / CARD / MANIFEST).write_text(json.dumps({"series": []})[:-3])
    with pytest.raises(JobFailed, match=r"(?s)traces may remain.*manifest.json.*downloads/1/files.*evaluations/cut"):
        withdraw(PATIENT, "--purge", clone=clones[0])
    assert not site.traces(clones[0].root, site.remote)
    shutil.rmtree(home / "evaluations")
    shutil.rmtree(home / "downloads")
    shutil.rmtree(clones[0].data / CARD)
    ingest(tiny_card(), site.root.parent / "source", clones[0].data, KEY)
    answer = withdraw(PATIENT, "--purge", clone=clones[0])
    assert answer["unproven"] == [] and set(answer["versions"]) == set(site.digests)
    assert [use["splits"] for use in answer["models"]] == [["unknown"]]
    for other in (clones[1], site.repository):
        shutil.copy(clones[0].pin, other.pin)  # as git pull would
        other.pull()
        assert withdraw("--purge", clone=other)["unproven"] == []
    assert not site.traces(site.root.parent)
    with pytest.raises(BadInput, match="another key"):
        ingest(tiny_card(), write_cohort(site.root.parent / "source again", 4), clones[0].data, bytes(32))
    ingest(tiny_card(), site.root.parent / "source again", clones[0].data, KEY)
    assert not any(series.patient_id == PATIENT for series in list_series(clones[0].data, CARD))
