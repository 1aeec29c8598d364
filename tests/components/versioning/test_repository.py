"""Pinning a folder in DVC: digests, unchanged pins, the default remote."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from components.errors import BadInput
from components.home import Home
from components.provenance import git_environment
from components.versioning import DataRepository
from flows.cli.preflight import check_pin
from tests.helpers.datasets import tree


@pytest.fixture
def repository(tmp_path: Path) -> DataRepository:
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    (data / "a" / "one.txt").write_text("one")
    return DataRepository(tmp_path, data)


def test_the_digest_of_a_version_follows_the_content(repository: DataRepository) -> None:
    first = repository.snapshot()
    assert first.changed and first.files == 1 and first.digest == repository.digest() and repository.is_clean()
    (repository.data / "two.txt").write_text("two")
    assert not repository.is_clean()
    second = repository.snapshot()
    assert second.changed and second.files == 2 and second.digest != first.digest
    (repository.data / "two.txt").unlink()
    assert repository.snapshot().digest == first.digest


def test_an_unchanged_folder_does_not_rewrite_the_pin(repository: DataRepository) -> None:
    repository.snapshot()
    modified = repository.pin.stat().st_mtime_ns
    assert not repository.snapshot().changed
    assert repository.pin.stat().st_mtime_ns == modified


def test_a_snapshot_pushes_the_content_to_the_default_remote(repository: DataRepository) -> None:
    repository.snapshot()
    stored = [path for path in (repository.root / ".omnimri" / "dvc-remote").rglob("*") if path.is_file()]
    assert "one" in [path.read_text() for path in stored]


@pytest.mark.parametrize("name", ["data", "data [1] *?"])
def test_what_lies_beside_the_data_is_neither_read_nor_in_the_way(tmp_path: Path, name: str) -> None:
    """As on a scratch disk, with other people's folders and broken pins; files of an unfinished ingestion belong to no version."""
    (tmp_path / "other" / "deep").mkdir(parents=True)
    for broken in (tmp_path / "other" / "deep" / "theirs.dvc", tmp_path / "theirs.dvc"):
        broken.write_text("outs: 3")
    folders = [tmp_path / name, tmp_path / f"{name}-2"]
    for number, data in enumerate(folders):
        (data / ".incoming").mkdir(parents=True)
        (data / ".incoming" / "part").write_text("unfinished")
        (data / "scan.txt").write_text(f"scan {number}")
        assert DataRepository(tmp_path, data).snapshot().files == 1
    for number, data in enumerate(folders):
        (data / "scan.txt").write_text("changed")
        repository = DataRepository(tmp_path, data)
        assert not repository.is_clean()
        repository.checkout(repository.digest(), force=True)
        assert (data / "scan.txt").read_text() == f"scan {number}" and repository.is_clean()
    for once in (tmp_path / ".dvcignore").read_text().splitlines():
        assert (tmp_path / ".dvcignore").read_text().splitlines().count(once) == 1


def test_a_repository_of_other_data_keeps_them(tmp_path: Path) -> None:
    """DVC versions another folder there already: only unfinished files are excluded."""
    from dvc.repo import Repo

    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "table.csv").write_text("1")
    with Repo.init(str(tmp_path), no_scm=True) as theirs:
        theirs.add([str(tmp_path / "theirs")])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scan.txt").write_text("scan")
    DataRepository(tmp_path, tmp_path / "data").snapshot()
    with Repo(str(tmp_path), config={"core": {"no_scm": True}}) as theirs:
        assert len(theirs.index.stages) == 2 and not theirs.status()


@pytest.mark.parametrize("kind", ["file", "list"])
def test_an_object_that_the_remote_has_in_part_is_sent_again(repository: DataRepository, kind: str) -> None:
    """As a full disk leaves it where it can neither be written nor removed."""
    (repository.data / "two.txt").write_text("two")
    remote, saved = repository.root / ".omnimri" / "dvc-remote", repository.snapshot()
    stored = {path: path.read_bytes() for path in remote.rglob("*") if path.is_file()}
    (list_file,) = (path for path in stored if path.suffix == ".dir")
    cut = list_file if kind == "list" else next(path for path in stored if path.read_bytes() == b"two")
    for path in {cut, list_file}:
        path.unlink()
    cut.touch()
    assert repository.snapshot().digest == saved.digest
    assert {path: path.read_bytes() for path in remote.rglob("*") if path.is_file()} == stored


def test_a_cut_file_of_locks_does_not_block_the_next_version(repository: DataRepository) -> None:
    """DVC writes it in place: a full disk or a kill leaves it empty."""
    repository.snapshot()
    (repository.root / ".dvc" / "tmp" / "rwlock").write_text("")
    (repository.data / "two.txt").write_text("two")
    assert repository.snapshot().files == 2


def test_a_cut_object_of_the_cache_is_stored_again(repository: DataRepository) -> None:
    """A disk that failed while DVC cloned the file leaves it empty, and protected like a complete one."""
    repository.snapshot()
    (repository.data / "two.txt").write_text("two")
    digest = hashlib.md5(b"two", usedforsecurity=False).hexdigest()
    cut = repository.root / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]
    cut.parent.mkdir(exist_ok=True)
    cut.touch(0o444)
    assert repository.snapshot().files == 2 and cut.read_text() == "two"
    (stored,) = repository.root.glob(f".omnimri/dvc-remote/files/md5/{digest[:2]}/{digest[2:]}")
    assert stored.read_text() == "two"


def test_missing_data_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="omnimri ingest"):
        DataRepository(tmp_path, tmp_path / "data").snapshot()
    with pytest.raises(BadInput, match="omnimri ingest"):
        DataRepository(tmp_path, tmp_path / "data").digest()


def test_an_unpacked_archive_is_versioned_without_git(repository: DataRepository) -> None:
    """It has ``.dvc/config`` but no ``.git``; a repository around it is not asked, and not changed."""
    subprocess.run(["git", "init", "--quiet", str(repository.root.parent)], check=True, env=git_environment())
    repository.snapshot()
    config = repository.root / ".dvc" / "config"
    config.write_text("".join(line for line in config.read_text().splitlines(keepends=True) if "no_scm" not in line))
    (repository.data / "two.txt").write_text("two")
    assert repository.snapshot().changed and repository.is_clean()
    assert not (repository.root / ".gitignore").exists()


def test_a_revision_without_git_is_a_sentence(repository: DataRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    repository.snapshot()
    (repository.root / ".git").mkdir()
    monkeypatch.setenv("PATH", str(repository.root))
    with pytest.raises(BadInput, match="git is not installed"):
        repository.resolve("HEAD~1")


@pytest.mark.parametrize("name", ["a b", "ümlaut", "a#b", "a?b", "50%41"])
def test_a_repository_of_any_name_can_be_moved(repository: DataRepository, tmp_path: Path, name: str) -> None:
    """The new place has the remote; nothing is written to the old one."""
    root = tmp_path / name / "first"
    shutil.copytree(repository.data, root / "data")
    DataRepository(root, root / "data").snapshot()
    moved = root.rename(root.with_name("second"))
    (moved / "data" / "two.txt").write_text("two")
    moved_repository = DataRepository(moved, moved / "data")
    assert moved_repository.snapshot().changed and moved_repository.status().pushed
    assert [path.name for path in moved.parent.iterdir()] == ["second"]


OTHER = "outs:\n- md5: 0123456789abcdef0123456789abcdef.dir\n  path: {}\n  nfiles: {}\n"
DAMAGED_PINS = {
    "conflict markers": "<<<<<<< ours\nouts:\n=======\n>>>>>>> theirs\n",
    "empty": "\n",
    "another folder": OTHER.format("images", 3),
    "a folder elsewhere": "wdir: ..\n" + OTHER.format("data", 3),
    "a number that is none": OTHER.format("data", "null"),
    "a list": "[]\n",
    "text": "hello",
    "a folder itself": None,
}


@pytest.mark.parametrize("kind", DAMAGED_PINS)
def test_a_damaged_or_foreign_pin_is_told_before_anything_is_read_and_costs_nothing(repository: DataRepository, kind: str) -> None:
    repository.snapshot()
    if (content := DAMAGED_PINS[kind]) is None:
        repository.pin.unlink()
        repository.pin.mkdir()
    else:
        repository.pin.write_text(content)
    before = tree(repository.data)
    for command in (repository.status, repository.digest, repository.pull, repository.snapshot, repository.diff):
        with pytest.raises(BadInput, match=r"data\.dvc"):
            command()
    with pytest.raises(BadInput, match=r"data\.dvc"):
        check_pin(Home(repository.root / "home", repository.data))
    assert tree(repository.data) == before
