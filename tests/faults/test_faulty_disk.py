"""Faults of the machine at the writes of ingestion, curation and versioning: ENOSPC, EIO and EACCES.

After each, the command ends with status 1 and names the fault, no input is blamed, the last version is in place, and the next run
completes with the same bytes as an undisturbed one. A fault that a library works around (DVC copies where it cannot link) must not
change the result. The default suite tries a sample of the operations, the slow one all.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from components.curation import curate
from components.curation.corpus import SUMMARY
from components.file_switch import FileSwitch
from components.ingestion import ingest
from components.ingestion.manifest import MANIFEST, QUARANTINE
from components.machine_faults import FAULTS
from components.provenance import REPOSITORY, file_md5
from components.settings import CurationSettings
from components.versioning import DataRepository
from flows.cli import main, run_log
from tests.helpers.datasets import KEY, tiny_card, tree, write_cohort, write_patient
from tests.helpers.faulty_files import FaultyDisk, resize_disk, small_disk

SETTINGS = CurationSettings(matrix=32, pixel_mm=6.75, slices_per_volume=2, workers=1)
FAULTY = [(errno.ENOSPC, True), (errno.EIO, False), (errno.EACCES, False)]
"""Error, and whether it lasts: a full disk stays full."""
Stage = Callable[[Path], object]
Command = Callable[[Callable[[], object]], tuple[int, str]]


def ingest_stage(root: Path) -> None:
    ingest(tiny_card(), root / "source", root / "data", KEY)


def curate_stage(root: Path) -> None:
    curate(root / "data", [tiny_card()], root / "curated", SETTINGS)


def version_stage(root: Path) -> None:
    DataRepository(root, root / "data").snapshot()


@dataclass(frozen=True)
class Update:
    """One stage of an update.

    Attributes:
        stage: the stage.
        before, after: folder of the state before the stage, and after an undisturbed run of it.
        folder: what the stage writes, relative to both.
    """

    stage: Stage
    before: Path
    after: Path
    folder: str

    def count(self, number: int, scratch: Path) -> int:
        """Return how many operations of the stage can meet an error."""
        shutil.copytree(self.before, scratch, symlinks=True)
        with FaultyDisk(scratch, number, at=1_000_000).mounted() as disk:
            self.stage(scratch)
        shutil.rmtree(scratch)
        return len(disk.met)


@pytest.fixture(scope="module")
def updates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Update]:
    """Return the three stages of an update that replaces a patient, removes one and adds one."""
    folder = tmp_path_factory.mktemp("updates")
    write_cohort(folder / "0" / "source", 2)
    for stage in (ingest_stage, curate_stage, version_stage):
        stage(folder / "0")
    source = folder / "0" / "source"
    shutil.rmtree(source / "sub-01")
    write_patient(source, 0, seed=77)
    write_patient(source, 2)
    states = [folder / "0"]
    for number, stage in enumerate((ingest_stage, curate_stage, version_stage), start=1):
        states.append(shutil.copytree(states[-1], folder / str(number), symlinks=True))
        stage(states[-1])
    return {
        "ingest": Update(ingest_stage, states[0], states[1], "data"),
        "curate": Update(curate_stage, states[1], states[2], "curated"),
        "version": Update(version_stage, states[2], states[3], "data"),
    }


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Return a function that runs a stage as a command: the exit status and the message of ``omnimri``."""
    monkeypatch.setattr(run_log, "enable", lambda: None)
    monkeypatch.setattr(main, "set_defaults", lambda home: None)

    def run(stage: Callable[[], object]) -> tuple[int, str]:
        monkeypatch.setattr(main, "app", stage)
        capsys.readouterr()
        try:
            main.main()
        except SystemExit as end:
            return int(end.code or 0), capsys.readouterr().err
        return 0, ""

    yield run


def disturb(update: Update, command: Command, root: Path, number: int, lasting: bool, at: int) -> bool:
    """Disturb a stage at one operation, check what it leaves, and run it again; return whether the disturbed run failed."""
    shutil.copytree(update.before, root, symlinks=True)
    disk = FaultyDisk(root, number, at, lasting)
    with disk.mounted():
        status, message = command(lambda: update.stage(root))
    assert disk.failed, "the operations changed between two runs"
    label = f"{os.strerror(number)} at operation {at}, {disk.met[at]}"
    if status:
        assert status == 1, f"{label}: {message}"
        assert FAULTS[number][0] in message and "Traceback" not in message, f"{label}: {message}"
        check_blames_no_input(message, update, root)
        require_last_version(update, root, label)
    else:
        require_equal(update, root, label)
    assert command(lambda: update.stage(root)) == (0, ""), label
    require_equal(update, root, label)
    shutil.rmtree(root)
    return bool(status)


def check_blames_no_input(message: str, update: Update, root: Path) -> None:
    """Require that neither the message nor the quarantine tells the user to obtain the input again."""
    assert "export" not in message and "download" not in message
    name = f"data/{tiny_card().id}/{QUARANTINE}"
    if (root / name).exists():
        assert (root / name).read_bytes() in {(state / name).read_bytes() for state in (update.before, update.after)}


def require_last_version(update: Update, root: Path, label: str) -> None:
    """Require that the last version, or the complete new one, is in place, after recovery by the next writer."""
    if update.folder == "curated":
        switch, decisive = FileSwitch(root / "curated", SUMMARY), SUMMARY
    else:
        switch, decisive = FileSwitch(root / "data" / tiny_card().id, MANIFEST), MANIFEST
    switch.recover()
    folder = switch.root.relative_to(root)
    versions = [state / folder for state in (update.before, update.after)]
    current = next(one for one in versions if (one / decisive).read_bytes() == (switch.root / decisive).read_bytes())
    for name, content in tree(current).items():
        obsolete = name.startswith("store/") and not (update.after / folder / name).exists()
        assert obsolete or (switch.root / name).read_bytes() == content, f"{label}: {name}"
    pins = {(state / "data.dvc").read_bytes() for state in (update.before, update.after)}
    assert (root / "data.dvc").read_bytes() in pins, label


def require_equal(update: Update, root: Path, label: str) -> None:
    """Require the result of an undisturbed run."""
    expected, actual = tree(update.after / update.folder), tree(root / update.folder)
    assert actual.keys() == expected.keys(), label
    assert [name for name in expected if actual[name] != expected[name]] == [], label
    assert (root / "data.dvc").read_bytes() == (update.after / "data.dvc").read_bytes(), label
    if update.stage is version_stage:
        remote = ".omnimri/dvc-remote"
        stored = {name: content for name, content in tree(root / remote).items() if not name.endswith(".tmp")}
        assert stored == tree(update.after / remote), label
        for path in (root / ".dvc" / "cache" / "files" / "md5").rglob("*"):
            if path.is_file() and path.suffix != ".tmp":  # DVC leaves those of objects that it could not complete
                assert path.parent.name + path.name.removesuffix(".dir") == file_md5(path), label


SAMPLES = {"ingest": 7, "curate": 5, "version": 4}
"""Operations per error that the default suite tries."""


@pytest.mark.parametrize("number, lasting", FAULTY, ids=["ENOSPC", "EIO", "EACCES"])
@pytest.mark.parametrize("name", ["ingest", "curate", "version"])
def test_a_fault_at_some_operations(
    updates: dict[str, Update], name: str, number: int, lasting: bool, tmp_path: Path, command: Command
) -> None:
    update = updates[name]
    total = update.count(number, tmp_path / "counted")
    chosen = sorted({round(index * (total - 1) / (SAMPLES[name] - 1)) for index in range(SAMPLES[name])})
    assert sum(disturb(update, command, tmp_path / str(at), number, lasting, at) for at in chosen) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=["ENOSPC", "EIO", "EACCES"])
@pytest.mark.parametrize("lasting", [True, False], ids=["lasting", "once"])
@pytest.mark.parametrize("name", ["ingest", "curate", "version"])
def test_a_fault_at_every_operation(
    updates: dict[str, Update], name: str, number: int, lasting: bool, tmp_path: Path, command: Command
) -> None:
    total = updates[name].count(number, tmp_path / "counted")
    failed = sum(disturb(updates[name], command, tmp_path / str(at), number, lasting, at) for at in range(total))
    # The faults took effect. DVC completes after many a single fault; the other steps hardly after any.
    assert failed > (0 if name == "version" else total // 2)


def used_kib(disk: Path) -> int:
    """Return the used space of a disk."""
    status = os.statvfs(disk)
    return (status.f_blocks - status.f_bfree) * status.f_frsize // 1024


def fill(update: Update, command: Command, disk: Path, free_kib: int) -> bool:
    """Run a stage on a real disk with so much free space, check what it leaves, run it with more; return whether it failed."""
    with small_disk(disk, 16 * 1024):
        root = shutil.copytree(update.before, disk / "root", symlinks=True)
        resize_disk(disk, used_kib(disk) + free_kib)
        label = f"{free_kib} KiB free"
        status, message = command(lambda: update.stage(root))
        if status:
            assert status == 1 and FAULTS[errno.ENOSPC][0] in message, f"{label}: {message}"
            check_blames_no_input(message, update, root)
            require_last_version(update, root, label)
        else:
            require_equal(update, root, label)
        resize_disk(disk, 16 * 1024)
        assert command(lambda: update.stage(root)) == (0, ""), label
        require_equal(update, root, label)
    return bool(status)


@pytest.mark.parametrize("name", ["ingest", "curate", "version"])
def test_a_full_disk(updates: dict[str, Update], name: str, tmp_path: Path, command: Command) -> None:
    assert fill(updates[name], command, tmp_path, 0)
    for free_kib in (24, 32, 48):  # may suffice: then the result must be complete
        fill(updates[name], command, tmp_path, free_kib)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["ingest", "curate", "version"])
def test_a_disk_that_is_full_after_any_number_of_blocks(
    updates: dict[str, Update], name: str, tmp_path: Path, command: Command
) -> None:
    failed = [fill(updates[name], command, tmp_path, kib) for kib in range(0, 1024, 4)]
    assert failed[0] and not failed[-1]


@pytest.fixture
def six_patients(tmp_path: Path) -> Path:
    """Write six noisy volumes with masks, about 970 KiB once de-identified."""
    source, rng = tmp_path / "source", np.random.default_rng(0)
    for number in range(1, 7):
        anatomy = source / f"sub-{number:02d}" / "anat"
        anatomy.mkdir(parents=True)
        x, y, z = np.meshgrid(*[np.arange(side) for side in (48, 56, 20)], indexing="ij")
        image = np.rint(100 + 3 * x + 5 * y + 7 * z + rng.normal(0, 1, x.shape)).astype(np.int16)
        labels = np.zeros(x.shape, np.uint8)
        labels[10:20, 12:22, 5:10] = 1
        for kind, values in (("T1w", image), ("dseg", labels)):
            affine = np.diag([1.0, 1.0, 3.0, 1.0])
            nib.save(nib.Nifti1Image(values, affine), anatomy / f"sub-{number:02d}_{kind}.nii.gz")  # type: ignore[attr-defined]
    return source


def test_six_patients_on_a_disk_for_four(tmp_path: Path, six_patients: Path, command: Command) -> None:
    """The disk is full in a first ingestion, then in an update of it; nothing is quarantined, nothing removed."""
    with small_disk(tmp_path / "disk", 700):
        data = tmp_path / "disk" / "data"
        status, message = command(lambda: ingest(tiny_card(), six_patients, data, KEY))
        assert status == 1 and "no space left on the disk (free some space" in message
        assert not (data / tiny_card().id / QUARANTINE).exists() and not (data / tiny_card().id / MANIFEST).exists()
        last = sorted(six_patients.iterdir())[3:]
        for folder in last:
            shutil.move(folder, tmp_path / folder.name)
        assert command(lambda: ingest(tiny_card(), six_patients, data, KEY)) == (0, "")
        version = tree(data)
        for folder in sorted(six_patients.iterdir()):
            shutil.move(folder, tmp_path / folder.name)
        for folder in last:
            shutil.move(tmp_path / folder.name, six_patients)
        status, message = command(lambda: ingest(tiny_card(), six_patients, data, KEY))
        assert status == 1 and "no space left" in message
        assert version.items() <= tree(data).items()
        resize_disk(tmp_path / "disk", 4096)
        assert command(lambda: ingest(tiny_card(), six_patients, data, KEY)) == (0, "")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_on_a_full_disk(tmp_path: Path, six_patients: Path) -> None:
    """As a user meets it: the whole command in a process of its own, with Prefect's server, which takes half a minute."""
    with small_disk(tmp_path / "disk", 700):
        environment = os.environ | {"OMNIMRI_DATA": str(tmp_path / "disk/data"), "OMNIMRI_HOME": str(tmp_path / "home")}
        words = [sys.executable, "-m", "flows.cli", "ingest", tiny_card().id, str(six_patients)]
        done = subprocess.run(words, env=environment, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 1, done.stderr
        assert "error: " in done.stderr and "no space left on the disk" in done.stderr and "Traceback" not in done.stderr
        assert "export it again" not in done.stdout + done.stderr
        assert not (tmp_path / "disk/data" / tiny_card().id / QUARANTINE).exists()
