"""Jobs as processes of this machine: what a user learns when one fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.errors import JobFailed, MachineFault
from components.launching import JobSpec, LocalLauncher
from tests.helpers.faulty_files import small_disk

FILL_DISK = """
import sys
try:
    with open(sys.argv[1], "wb") as stream:
        while True:
            stream.write(bytes(2**16))
finally:
    print("a traceback follows, and finds no room either")
"""


def test_a_full_disk_is_named_although_the_message_of_the_job_found_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "fill_disk.py").write_text(FILL_DISK)
    with small_disk(tmp_path / "disk", 512) as folder:
        job = JobSpec("stage", "fill_disk", (str(folder / "checkpoint"),), 1, folder)
        with pytest.raises(MachineFault, match="no space left on the disk") as fault:
            LocalLauncher().submit(job).wait()
        assert str(folder) in str(fault.value) and "resumes where it stopped" in str(fault.value)


def test_a_failed_job_shows_the_end_of_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "fail.py").write_text("raise SystemExit('out of patience')")
    with pytest.raises(JobFailed, match="out of patience"):
        LocalLauncher().submit(JobSpec("stage", "fail", (), 1, tmp_path / "stage")).wait()
