"""Faults of the machine are told from faults of an input."""

from __future__ import annotations

import errno
import gzip
import os
import sqlite3
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pydicom
import pytest

from components.errors import BadInput, MachineFault
from components.ingestion.quarantine import rejection_of
from components.machine_faults import (
    FAULTS,
    causes,
    find_machine_fault,
    find_system_fault,
    find_write_fault,
    own_file,
    program_error,
    raise_machine_fault,
)
from tests.helpers.faulty_files import FaultyDisk


@pytest.mark.parametrize("number", sorted(FAULTS), ids=errno.errorcode.get)
def test_the_kernel_reports_a_fault_by_its_number(number: int) -> None:
    fault = find_system_fault(OSError(number, "text", "/source/Doe^Jane.nii"), "dataset")
    assert fault is not None and fault.exit_code == 1
    what, remedy = FAULTS[number]
    assert str(fault) == f"dataset: {what} ({remedy})"


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EISDIR, errno.EINVAL, errno.EEXIST, None], ids=str)
def test_other_numbers_and_none_are_no_fault_of_the_machine(number: int | None) -> None:
    assert find_machine_fault(OSError("Expected 100 bytes, got 7") if number is None else OSError(number, "text")) is None


def test_a_fault_is_found_behind_the_errors_that_it_caused() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    for hide in (False, True):
        try:
            try:
                raise full
            except OSError as error:
                raise ValueError("cannot save") from (None if hide else error)
        except ValueError as error:
            fault = find_system_fault(error)
        assert fault is not None and "no space" in fault.what
    loop = ValueError()
    loop.__cause__ = KeyError()
    loop.__cause__.__cause__ = loop
    assert len(list(causes(loop))) == 2 and find_machine_fault(loop) is None


@pytest.mark.parametrize("error, what", [(MemoryError(), "out of memory"), (BrokenProcessPool(), "worker process was killed")])
def test_want_of_memory_is_a_fault_of_the_machine(error: Exception, what: str) -> None:
    fault = find_system_fault(error)
    assert fault is not None and what in fault.what


def test_an_input_that_claims_more_than_memory_holds_is_at_fault_itself() -> None:
    """One damaged header must not end the ingestion of all other files."""
    try:
        try:
            raise MemoryError
        except MemoryError as error:
            raise ValueError("cannot read") from error
    except ValueError as error:
        claimed = error
    raise_machine_fault(claimed)
    assert "more voxels than fit in memory" in rejection_of(claimed).reason
    while_writing = program_error(MemoryError(), "writing", "file")
    with pytest.raises(MachineFault, match="out of memory"):
        raise_machine_fault(while_writing)


@pytest.mark.parametrize("kind", [ImportError, SystemError, NameError, AssertionError, ModuleNotFoundError, UnboundLocalError])
def test_a_bug_or_a_missing_package_is_no_fault_of_the_input(kind: type[Exception]) -> None:
    assert find_system_fault(kind("x")) is None
    with pytest.raises(MachineFault, match=f"{kind.__name__}.*report this error"):
        raise_machine_fault(kind("x"), "dataset")


def test_a_fault_keeps_its_own_text() -> None:
    fault = MachineFault("changed while it was read", where="file", remedy="run it again")
    assert find_machine_fault(fault, "elsewhere") is fault
    with pytest.raises(MachineFault, match="changed while") as raised:
        raise_machine_fault(fault)
    assert raised.value is fault


@pytest.mark.parametrize("kind", ["nifti", "gzip", "dicom", "hdf5", "text"])
def test_what_libraries_raise_for_damaged_files_is_no_fault_of_the_machine(kind: str, tmp_path: Path) -> None:
    path = tmp_path / {"nifti": "a.nii", "gzip": "a.nii.gz", "dicom": "a.dcm", "hdf5": "a.h5", "text": "a.json"}[kind]
    nib.save(nib.Nifti1Image(np.arange(4096, dtype=np.int16).reshape(16, 16, 16), np.eye(4)), tmp_path / "b.nii")  # type: ignore[attr-defined]
    content = (tmp_path / "b.nii").read_bytes()
    if kind == "hdf5":
        with h5py.File(path, "w") as file:
            file["kspace"] = np.arange(4096)
        content = path.read_bytes()
    path.write_bytes((gzip.compress(content) if kind == "gzip" else b"\xff" + content if kind == "text" else content)[:-900])
    with pytest.raises(Exception) as raised:
        if kind in {"nifti", "gzip"}:
            np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
        elif kind == "dicom":
            pydicom.dcmread(path)
        elif kind == "hdf5":
            h5py.File(path)["kspace"][()]
        else:
            path.read_text()
    raise_machine_fault(raised.value)


def test_a_refused_input_stays_a_refused_input() -> None:
    raise_machine_fault(BadInput("another modality", where="file 3 of 9", remedy="remove it"))


def test_a_failure_that_no_input_can_cause_is_a_fault_of_the_program() -> None:
    error = program_error(KeyError("Doe^Jane"), "writing", "a/b.nii.gz")
    assert str(error).startswith("a/b.nii.gz: writing failed: KeyError") and "Doe" not in str(error)
    assert "no space" in program_error(OSError(errno.ENOSPC, ""), "writing", "a").what


def test_only_own_files_are_named(tmp_path: Path) -> None:
    ours, theirs = OSError(errno.EIO, "", str(tmp_path / "data" / "a")), OSError(errno.EIO, "", os.fsencode("/source/Doe"))
    assert own_file(ours, tmp_path / "data") == str(tmp_path / "data" / "a")
    assert own_file(theirs, tmp_path / "data") == own_file(ours, tmp_path / "dat") == own_file(ValueError()) == ""


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (sqlite3.OperationalError("database or disk is full"), "no space left"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "read-only"),
        (RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos: No space left on device"), "no space left"),
    ],
)
def test_libraries_in_other_languages_report_a_full_disk_by_text(error: Exception, fault: str) -> None:
    found = find_system_fault(error)
    assert found is not None and fault in found.what
    assert find_system_fault(ValueError(str(error))) is None  # an input may contain the words


def test_a_folder_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    assert find_write_fault(tmp_path) is None and not list(tmp_path.iterdir())
    with FaultyDisk(tmp_path, errno.ENOSPC, lasting=True).mounted():
        fault = find_write_fault(tmp_path)
    assert fault is not None and "no space left" in fault.what and str(tmp_path) in fault.where
