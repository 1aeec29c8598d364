"""Files are verified before they are used; those that did not change are not read again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from components import verified_files
from components.provenance import file_md5
from components.verified_files import SEAL, VERIFIED, cached_md5, is_sealed, seal


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMNIMRI_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose content was read."""
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return file_md5(path)

    monkeypatch.setattr(verified_files, "file_md5", counted)
    return read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "finished"
    (folder / "model").mkdir(parents=True)
    for name in ("report.html", "model/weights"):
        (folder / name).write_bytes(bytes(1000))
    seal(folder)
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_in_silence(path: Path) -> None:
    """Change a bit and restore the time of modification, as a faulty disk or ``cp -p`` of a damaged copy would."""
    status = path.stat()
    flip(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut(path: Path) -> None:
    os.truncate(path, 10)


@pytest.mark.parametrize("name", ["report.html", "model/weights", SEAL])
@pytest.mark.parametrize("damage", [flip, flip_in_silence, cut, Path.unlink])
def test_a_damaged_folder_is_not_finished(folder: Path, name: str, damage: Callable[[Path], object]) -> None:
    assert is_sealed(folder)
    damage(folder / name)
    assert not is_sealed(folder)


def test_an_unsealed_folder_is_not_finished(tmp_path: Path) -> None:
    assert not is_sealed(tmp_path) and not is_sealed(tmp_path / "none")


def test_a_moved_folder_is_still_finished(folder: Path) -> None:
    moved = folder.rename(folder.with_name("moved"))
    assert is_sealed(moved) and not is_sealed(folder)


def test_unchanged_files_are_read_once(folder: Path, reads: list[Path]) -> None:
    assert is_sealed(folder) and len(reads) == 2
    assert is_sealed(folder) and len(reads) == 2
    flip_in_silence(folder / "report.html")
    assert not is_sealed(folder) and reads[2:] == [folder / "report.html"]


@pytest.mark.parametrize("content", ["", "[1]", '{"/x": 1}', "{"])
def test_a_damaged_cache_is_made_again(folder: Path, home: Path, content: str, reads: list[Path]) -> None:
    (home / VERIFIED).write_text(content)
    assert is_sealed(folder) and is_sealed(folder) and len(reads) == 2


def test_a_home_that_does_not_exist_is_not_created(folder: Path, home: Path) -> None:
    home.rmdir()
    assert cached_md5([folder / "report.html"]) == {folder / "report.html": file_md5(folder / "report.html")}
    assert not home.exists()
