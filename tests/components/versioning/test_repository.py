"""A DVC repository around a folder."""

from pathlib import Path

import pytest

from components.errors import BadInput
from components.versioning import DataRepository


@pytest.fixture
def repository(tmp_path: Path) -> DataRepository:
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    (data / "a" / "one.txt").write_text("one")
    return DataRepository(tmp_path, data)


def test_a_version_has_a_digest_that_follows_the_content(repository: DataRepository) -> None:
    first = repository.snapshot()
    assert first.changed and first.files == 1 and first.digest == repository.digest() and repository.clean()
    (repository.data / "two.txt").write_text("two")
    assert not repository.clean()
    second = repository.snapshot()
    assert second.changed and second.files == 2 and second.digest != first.digest
    (repository.data / "two.txt").unlink()
    assert repository.snapshot().digest == first.digest


def test_nothing_changed_leaves_the_pin_alone(repository: DataRepository) -> None:
    repository.snapshot()
    before = repository.pin.stat().st_mtime_ns
    assert not repository.snapshot().changed
    assert repository.pin.stat().st_mtime_ns == before


def test_the_content_is_in_the_local_remote(repository: DataRepository) -> None:
    repository.snapshot()
    stored = [path for path in (repository.root / ".omnimri" / "dvc-remote").rglob("*") if path.is_file()]
    assert "one" in [path.read_text() for path in stored]


def test_no_data_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="omnimri ingest"):
        DataRepository(tmp_path, tmp_path / "data").snapshot()
    with pytest.raises(BadInput, match="omnimri ingest"):
        DataRepository(tmp_path, tmp_path / "data").digest()
