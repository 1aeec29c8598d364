"""A source folder is listed as ``find -L`` lists it; what cannot be read is counted; our own folders are no source."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from components.errors import BadInput
from components.ingestion.source_listing import LOCKED_FILE, SourceListing, is_pointer, refuse_own_folders


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_files_have_the_order_and_number_of_find(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("b/Zo\u00eb.dcm", "b.dcm", "B/x", "a b/1.nii", "a/2.nii"):
        touch(source / name)
    touch(Path(os.fsdecode(os.fsencode(source) + b"/Fran\xe7ois.dcm")))
    touch(tmp_path / "elsewhere" / "3.nii")
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    listing = SourceListing(source)
    found = subprocess.run(
        "find -L . -type f -print0 | LC_ALL=C sort -z", shell=True, cwd=source, capture_output=True, check=True
    ).stdout.split(b"\0")[:-1]
    assert [b"./" + os.fsencode(path.relative_to(source)) for path in listing] == found
    assert listing.linked_folders == [source / "linked"]
    entry = listing.quarantine_entry([source / "a/2.nii", source / "a b/1.nii"], LOCKED_FILE)
    assert entry.path == f"file {found.index(b'./a b/1.nii') + 1} and 1 more of {len(found)}, *.nii"
    assert "Zo" not in listing.quarantine_entry([source / "b/Zo\u00eb.dcm"], LOCKED_FILE).path


def test_every_entry_that_cannot_be_read_is_listed_by_kind_and_number(tmp_path: Path) -> None:
    source = tmp_path / "source"
    touch(source / "one.nii")
    (source / "gone.nii").symlink_to("nowhere")
    (source / "annexed.nii.gz").symlink_to(".git/annex/objects/aa/bb/SHA256E-s1--0.nii.gz")
    (source / "self").symlink_to("self")
    (source / "up").symlink_to(source)
    os.mkfifo(source / "pipe")
    listing = SourceListing(source)
    entries, excluded = listing.unreached_entries(lambda path: path.name == "pipe")
    assert list(listing) == [source / "one.nii"] and excluded == 1
    assert {entry.kind for entry in entries} == {"inaccessible"}
    reasons = {entry.path: entry.reason for entry in entries}
    assert set(reasons) == {"link 1 of 3, *.gz", "link 2 of 3, *.nii", "link 3 of 3", "looping link 1 of 1"}
    assert "git-annex" in reasons["link 1 of 3, *.gz"] and reasons["link 2 of 3, *.nii"] == "a link to nothing"


def test_pointers_to_content_that_was_not_fetched_are_recognized() -> None:
    assert is_pointer(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    assert is_pointer(b"/annex/objects/SHA256E-s1--0.nii.gz\n")
    assert not is_pointer(b"\x5c\x01\0\0")


@pytest.mark.parametrize("place", ["data", "data/a/b", ".", "to-data", "to-data/a", "to-root"])
def test_a_source_in_above_or_equal_to_our_own_folder_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "data" / "a" / "b").mkdir(parents=True)
    (tmp_path / "to-data").symlink_to("data")
    (tmp_path / "to-root").symlink_to(tmp_path)
    with pytest.raises(BadInput, match="contain each other"):
        refuse_own_folders(tmp_path / place, [tmp_path / "data"])


def test_a_source_beside_our_own_folder_is_accepted(tmp_path: Path) -> None:
    for name in ("data", "database", "home/sources/demo"):
        (tmp_path / name).mkdir(parents=True)
    refuse_own_folders(tmp_path / "database", [tmp_path / "data", tmp_path / "not there yet"])
    refuse_own_folders(tmp_path / "home/sources/demo", [tmp_path / "home"], allowed=tmp_path / "home/sources")
    with pytest.raises(BadInput, match="target of a link"):
        refuse_own_folders(tmp_path / "database", [tmp_path / "data"], links=[tmp_path / "data"])
