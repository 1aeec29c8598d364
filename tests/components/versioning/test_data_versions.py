"""Older versions, interrupted transfers, and patients who withdraw."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.curation import curate
from components.curation.corpus import Corpus
from components.errors import BadInput, JobFailed
from components.ingestion import ingest, list_series
from components.ingestion.deidentification.pseudonyms import Pseudonyms
from components.ingestion.withdrawal import withdrawn_patients
from components.settings import CurationSettings
from components.versioning import DataRepository
from components.versioning.dvc_store import open_dvc
from tests.helpers.datasets import KEY, tiny_card, tree, write_cohort, write_patient

CARD = tiny_card().id


def pseudonym(number: int) -> str:
    return Pseudonyms(KEY, CARD).patient(f"sub-{number:02d}")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "source", 4)


@pytest.fixture
def repository(tmp_path: Path, source: Path) -> DataRepository:
    """Create a versioned dataset of four patients."""
    ingest(tiny_card(), source, tmp_path / "data", KEY)
    repository = DataRepository(tmp_path, tmp_path / "data")
    repository.snapshot()
    return repository


def ingest_again(repository: DataRepository, source: Path) -> None:
    ingest(tiny_card(), source, repository.data, KEY)


def test_status_counts_files_by_dataset(repository: DataRepository, source: Path) -> None:
    assert repository.status().clean and repository.status().pushed
    write_patient(source, 4)
    write_patient(source, 1, seed=50)
    shutil.rmtree(source / "sub-00")
    ingest_again(repository, source)
    [status] = repository.status().datasets
    assert (status.dataset_id, status.new, status.removed) == (CARD, 3, 3)  # image, labels and sidecar of a patient
    assert status.modified >= 3  # image, labels, manifest


def test_the_difference_lists_patients_and_series(repository: DataRepository, source: Path) -> None:
    first = repository.digest()
    assert repository.diff() == []
    write_patient(source, 4)
    write_patient(source, 1, seed=50)
    shutil.rmtree(source / "sub-00")
    ingest_again(repository, source)
    for differences in (repository.diff(), repository.push() and repository.diff(first)):
        [diff] = differences
        assert (diff.patients_new, diff.patients_removed) == ((pseudonym(4),), (pseudonym(0),))
        assert (len(diff.series_new), len(diff.series_changed), len(diff.series_removed)) == (1, 1, 1)


def test_checkout_restores_an_older_version_and_then_the_newer_one(repository: DataRepository, source: Path) -> None:
    old, before = repository.digest(), tree(repository.data)
    write_patient(source, 4)
    ingest_again(repository, source)
    new, after = repository.push().digest, tree(repository.data)
    assert repository.checkout(old[:8]).digest == old
    assert tree(repository.data) == before and repository.is_clean() and repository.digest() == old
    repository.checkout(new)
    assert tree(repository.data) == after


def test_changes_that_are_in_no_version_are_not_discarded_without_force(repository: DataRepository) -> None:
    (repository.data / CARD / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="changes that are in no version"):
        repository.checkout(repository.digest())
    repository.checkout(repository.digest(), force=True)
    assert not (repository.data / CARD / "notes.txt").exists()


def test_a_version_can_be_exported_beside_the_current_one(repository: DataRepository, source: Path, tmp_path: Path) -> None:
    old, before = repository.digest(), tree(repository.data)
    write_patient(source, 1, seed=50)
    ingest_again(repository, source)
    current = tree(repository.data)
    exported = tmp_path / "previous"
    assert repository.export_version(old, exported).files == len(before)
    assert tree(exported) == before and tree(repository.data) == current
    next(exported.rglob("*.nii")).write_bytes(b"damaged")
    assert repository.export_version(old, exported).files == 1  # resumes: only the damaged file is written
    assert tree(exported) == before
    (exported / "mine.txt").touch()
    with pytest.raises(BadInput, match="do not belong to this version"):
        repository.export_version(old, exported)


def test_a_git_revision_resolves_to_the_version_that_it_pins(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    repository = DataRepository(tmp_path, tmp_path / "data")
    digests = []
    for content in "ab":
        (tmp_path / "data" / "one").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "one" / "file").write_text(content)
        digests.append(repository.snapshot().digest)
        git("add", "data.dvc")
        git("commit", "-qm", content)
    assert repository.resolve("HEAD~1") == digests[0] != repository.resolve("HEAD") == digests[1]
    for unknown in ("HEAD~7", "--all", "0123456789abcdef"):
        with pytest.raises(BadInput, match="neither a data version nor a git revision"):
            repository.resolve(unknown)


def test_pull_fetches_missing_files_from_the_remote(repository: DataRepository) -> None:
    content = tree(repository.data)
    shutil.rmtree(repository.root / ".dvc" / "cache")
    shutil.rmtree(repository.data)
    repository.pull()
    assert tree(repository.data) == content


@pytest.mark.parametrize("deleted", [(".omnimri",), (".omnimri", ".dvc/cache")])
def test_a_deleted_remote_is_filled_again(repository: DataRepository, deleted: tuple[str, ...]) -> None:
    for folder in deleted:
        shutil.rmtree(repository.root / folder)
    repository.snapshot()
    assert repository.status().pushed
    content = tree(repository.data)
    for folder in (repository.root / ".dvc" / "cache", repository.data):
        shutil.rmtree(folder)
    repository.pull()
    assert tree(repository.data) == content


def test_a_remote_without_the_files_is_an_error(repository: DataRepository) -> None:
    for folder in (repository.root / ".dvc" / "cache", repository.root / ".omnimri" / "dvc-remote", repository.data):
        shutil.rmtree(folder)
    with pytest.raises(JobFailed, match="could not be transferred"):
        repository.pull()


TRANSFER = """
import sys
from pathlib import Path
from components.versioning import DataRepository, dvc_store
dvc_store.BATCH_SIZE = 20
root = Path(sys.argv[1])
print("ready", flush=True)
getattr(DataRepository(root, root / "data"), sys.argv[2])()
"""


def run_and_kill(root: Path, command: str, store: Path, objects: int) -> None:
    """Run push or pull in another process and kill it (SIGKILL) as soon as the store contains ``objects`` objects."""
    process = subprocess.Popen([sys.executable, "-c", TRANSFER, str(root), command], stdout=subprocess.PIPE)
    while process.poll() is None and len(list(store.glob("**/??/*"))) < objects:
        time.sleep(0.002)
    process.kill()
    process.wait()


def count_intact_objects(folder: Path) -> int:
    """Return the number of objects in a store; the md5 of each must equal its name."""
    objects = [path for path in folder.glob("**/??/*") if path.is_file() and len(path.name.removesuffix(".dir")) == 30]
    for path in objects:
        assert hashlib.md5(path.read_bytes()).hexdigest() == path.parent.name + path.name.removesuffix(".dir")
    return len(objects)


def test_push_and_pull_resume_after_a_kill(tmp_path: Path) -> None:
    (tmp_path / "data" / "many").mkdir(parents=True)
    for number in range(120):
        (tmp_path / "data" / "many" / f"{number}.bin").write_bytes(f"{number}".encode() * 2000)
    repository = DataRepository(tmp_path, tmp_path / "data")
    with open_dvc(repository.root, "data") as dvc:
        dvc.add([str(repository.data)])
    remote, cache = tmp_path / ".omnimri" / "dvc-remote", tmp_path / ".dvc" / "cache"
    run_and_kill(tmp_path, "push", remote, 30)
    assert 0 < count_intact_objects(remote) < 121 and not repository.status().pushed
    repository.push()
    assert count_intact_objects(remote) == 121 and repository.status().pushed
    content = tree(repository.data)
    shutil.rmtree(cache)
    shutil.rmtree(repository.data)
    run_and_kill(tmp_path, "pull", cache, 30)
    assert 0 < count_intact_objects(cache) < 121
    repository.pull()
    assert tree(repository.data) == content


def test_a_withdrawn_patient_is_removed_and_stays_excluded(repository: DataRepository, source: Path, tmp_path: Path) -> None:
    settings = CurationSettings(matrix=32, pixel_mm=6.75, slices_per_volume=2, workers=1)
    curate(repository.data, [tiny_card()], tmp_path / "curated", settings)
    old, patient = repository.digest(), pseudonym(2)
    result = repository.withdraw({CARD: frozenset({patient})})
    assert (result.removed.series, result.removed.files, result.unproven) == (1, 3, ()) and result.digest != old
    ingest_again(repository, source)  # the source still contains them
    assert withdrawn_patients(repository.data, CARD) == {patient} and repository.is_clean()
    assert patient not in {series.patient_id for series in list_series(repository.data, CARD)}
    curate(repository.data, [tiny_card()], tmp_path / "curated", settings)
    assert len(Corpus.open(tmp_path / "curated").volumes) == 3
    traces = [path for path in (tmp_path / "curated").rglob("*") if path.is_file() and patient.encode() in path.read_bytes()]
    assert traces == []
    assert repository.export_version(old, tmp_path / "old").withdrawn.series == 1
    assert not list((tmp_path / "old").rglob(f"*{patient}*"))
    assert repository.checkout(old).withdrawn.series == 1
    assert withdrawn_patients(repository.data, CARD) == {patient} and not list(repository.data.rglob(f"*{patient}*"))
