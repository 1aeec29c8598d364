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
from tests.helpers.datasets import KEY, tiny_card, tree, write_cohort, write_patient

CARD = tiny_card().id


def pseudonym(number: int) -> str:
    return Pseudonyms(KEY, CARD).patient(f"sub-{number:02d}")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "source", 4)


@pytest.fixture
def repository(tmp_path: Path, source: Path) -> DataRepository:
    """A versioned dataset of four patients."""
    ingest(tiny_card(), source, tmp_path / "data", KEY)
    repository = DataRepository(tmp_path, tmp_path / "data")
    repository.snapshot()
    return repository


def follow(repository: DataRepository, source: Path) -> None:
    ingest(tiny_card(), source, repository.data, KEY)


def test_status_counts_files_by_dataset(repository: DataRepository, source: Path) -> None:
    assert repository.status().clean and repository.status().pushed
    write_patient(source, 4)
    write_patient(source, 1, seed=50)
    shutil.rmtree(source / "sub-00")
    follow(repository, source)
    [changed] = repository.status().datasets
    assert (changed.dataset_id, changed.new, changed.removed) == (CARD, 3, 3)  # image, labels and sidecar of a patient
    assert changed.modified >= 3  # image, labels, manifest


def test_the_difference_is_told_in_patients_and_series(repository: DataRepository, source: Path) -> None:
    first = repository.digest()
    assert repository.diff() == []
    write_patient(source, 4)
    write_patient(source, 1, seed=50)
    shutil.rmtree(source / "sub-00")
    follow(repository, source)
    for difference in (repository.diff(), repository.push() and repository.diff(first)):
        [one] = difference
        assert (one.patients_new, one.patients_removed) == ((pseudonym(4),), (pseudonym(0),))
        assert (len(one.series_new), len(one.series_changed), len(one.series_removed)) == (1, 1, 1)


def test_an_older_version_comes_back_and_the_newer_again(repository: DataRepository, source: Path) -> None:
    old, before = repository.digest(), tree(repository.data)
    write_patient(source, 4)
    follow(repository, source)
    new, after = repository.push().digest, tree(repository.data)
    assert repository.checkout(old[:8]).digest == old
    assert tree(repository.data) == before and repository.clean() and repository.digest() == old
    repository.checkout(new)
    assert tree(repository.data) == after


def test_changes_that_no_version_holds_are_not_given_up_unasked(repository: DataRepository) -> None:
    (repository.data / CARD / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="changes that no version holds"):
        repository.checkout(repository.digest())
    repository.checkout(repository.digest(), force=True)
    assert not (repository.data / CARD / "notes.txt").exists()


def test_two_versions_lie_side_by_side(repository: DataRepository, source: Path, tmp_path: Path) -> None:
    old, before = repository.digest(), tree(repository.data)
    write_patient(source, 1, seed=50)
    follow(repository, source)
    now = tree(repository.data)
    beside = tmp_path / "previous"
    assert repository.lay_out(old, beside).files == len(before)
    assert tree(beside) == before and tree(repository.data) == now
    next(beside.rglob("*.nii")).write_bytes(b"damaged")
    assert repository.lay_out(old, beside).files == 1  # goes on: only what is not right is written
    assert tree(beside) == before
    (beside / "mine.txt").touch()
    with pytest.raises(BadInput, match="not of this version"):
        repository.lay_out(old, beside)


def test_a_git_revision_names_the_version_that_it_pins(tmp_path: Path) -> None:
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
    for nonsense in ("HEAD~7", "--all", "0123456789abcdef"):
        with pytest.raises(BadInput, match="neither a data version nor a git revision"):
            repository.resolve(nonsense)


def test_what_is_not_here_is_fetched_from_the_remote(repository: DataRepository) -> None:
    whole = tree(repository.data)
    shutil.rmtree(repository.root / ".dvc" / "cache")
    shutil.rmtree(repository.data)
    repository.pull()
    assert tree(repository.data) == whole


@pytest.mark.parametrize("gone", [(".omnimri",), (".omnimri", ".dvc/cache")])
def test_a_remote_that_was_deleted_is_filled_again(repository: DataRepository, gone: tuple[str, ...]) -> None:
    for folder in gone:
        shutil.rmtree(repository.root / folder)
    repository.snapshot()
    assert repository.status().pushed
    whole = tree(repository.data)
    for folder in (repository.root / ".dvc" / "cache", repository.data):
        shutil.rmtree(folder)
    repository.pull()
    assert tree(repository.data) == whole


def test_a_remote_without_the_files_is_named(repository: DataRepository) -> None:
    for folder in (repository.root / ".dvc" / "cache", repository.root / ".omnimri" / "dvc-remote", repository.data):
        shutil.rmtree(folder)
    with pytest.raises(JobFailed, match="could not be moved"):
        repository.pull()


MANY = """
import sys
from pathlib import Path
from components.versioning import DataRepository, repository
repository.BATCH = 20
root = Path(sys.argv[1])
print("ready", flush=True)
getattr(DataRepository(root, root / "data"), sys.argv[2])()
"""


def interrupted(root: Path, what: str, grown: Path, files: int) -> None:
    """Run push or pull in another process and kill it (SIGKILL) when so many objects have arrived."""
    process = subprocess.Popen([sys.executable, "-c", MANY, str(root), what], stdout=subprocess.PIPE)
    while process.poll() is None and len(list(grown.glob("**/??/*"))) < files:
        time.sleep(0.002)
    process.kill()
    process.wait()


def whole(folder: Path) -> int:
    """How many objects there are; each must be what its name says."""
    objects = [path for path in folder.glob("**/??/*") if path.is_file() and len(path.name.removesuffix(".dir")) == 30]
    for path in objects:
        assert hashlib.md5(path.read_bytes()).hexdigest() == path.parent.name + path.name.removesuffix(".dir")
    return len(objects)


def test_push_and_pull_go_on_after_a_kill(tmp_path: Path) -> None:
    (tmp_path / "data" / "many").mkdir(parents=True)
    for number in range(120):
        (tmp_path / "data" / "many" / f"{number}.bin").write_bytes(f"{number}".encode() * 2000)
    repository = DataRepository(tmp_path, tmp_path / "data")
    with repository._opened() as opened:
        opened.add([str(repository.data)])
    remote, cache = tmp_path / ".omnimri" / "dvc-remote", tmp_path / ".dvc" / "cache"
    interrupted(tmp_path, "push", remote, 30)
    assert 0 < whole(remote) < 121 and not repository.status().pushed
    repository.push()
    assert whole(remote) == 121 and repository.status().pushed
    content = tree(repository.data)
    shutil.rmtree(cache)
    shutil.rmtree(repository.data)
    interrupted(tmp_path, "pull", cache, 30)
    assert 0 < whole(cache) < 121
    repository.pull()
    assert tree(repository.data) == content


def test_a_withdrawn_patient_is_gone_everywhere_and_stays_away(repository: DataRepository, source: Path, tmp_path: Path) -> None:
    settings = CurationSettings(matrix=32, pixel_mm=6.75, slices_per_volume=2, workers=1)
    curate(repository.data, [tiny_card()], tmp_path / "curated", settings)
    old, who = repository.digest(), pseudonym(2)
    removed, version = repository.withdraw({CARD: frozenset({who})})
    assert (removed.series, removed.files, version.changed) == (1, 3, True)
    follow(repository, source)  # the source still has them
    assert withdrawn_patients(repository.data, CARD) == {who} and repository.clean()
    assert who not in {one.patient_id for one in list_series(repository.data, CARD)}
    curate(repository.data, [tiny_card()], tmp_path / "curated", settings)
    assert len(Corpus.open(tmp_path / "curated").volumes) == 3
    traces = [path for path in (tmp_path / "curated").rglob("*") if path.is_file() and who.encode() in path.read_bytes()]
    assert traces == []
    assert repository.lay_out(old, tmp_path / "old").withdrawn.series == 1
    assert not list((tmp_path / "old").rglob(f"*{who}*"))
    assert repository.checkout(old).withdrawn.series == 1
    assert withdrawn_patients(repository.data, CARD) == {who} and not list(repository.data.rglob(f"*{who}*"))


def test_purging_deletes_their_files_from_every_version_and_nobody_elses(repository: DataRepository, tmp_path: Path) -> None:
    old, who = repository.digest(), {CARD: frozenset({pseudonym(2)})}
    theirs = [path.read_bytes() for path in repository.data.rglob("*") if path.is_file() and pseudonym(2) in str(path)]
    repository.withdraw(who)
    theirs = [content for content in theirs if content not in tree(repository.data).values()]  # a sidecar is like another's
    assert set(repository.holding(who)) == {old}
    assert repository.purge(who) == len(theirs) == 2
    for folder in (repository.root / ".dvc" / "cache", repository.root / ".omnimri" / "dvc-remote"):
        assert not [path for path in folder.rglob("*") if path.is_file() and path.read_bytes() in theirs]
    assert len(list_series(_laid(repository, old, tmp_path), CARD)) == 3
    with pytest.raises(BadInput, match="purged"):
        repository.checkout(old)


def _laid(repository: DataRepository, digest: str, tmp_path: Path) -> Path:
    repository.lay_out(digest, tmp_path / "laid")
    return tmp_path / "laid"
