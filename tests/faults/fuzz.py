"""Fuzz the readers with damaged files: each must be read, or rejected with a reason, in limited time and memory, without a crash.

python -m tests.faults.fuzz --inputs 20000      # writes tests/faults/results.csv
python -m tests.faults.fuzz --first 20000       # resume

Valid files of every kind are mutated (flipped, removed or duplicated bytes, replaced numbers and texts of headers), and bombs are
built (headers that declare more data than the file contains, streams that decompress to more than the memory). Each input is
ingested as a dataset of one file and read as curation reads it, and is also read alone as ``omnimri predict`` reads it. Workers are
processes with limits: 1 GiB beyond the libraries, 5 s of CPU time per input; the parent detects workers that die or hang.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import multiprocessing
import os
import random
import resource
import signal
import struct
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.csv")
LIMIT_S, LIMIT_BYTES = 5.0, 2**30
PATIENCE_S = 30.0
"""Limits are CPU seconds, so that a busy machine causes no failure; the wall clock detects a worker that waits forever."""
KEY = b"fuzzing key of thirty-two bytes.."
COUNTS = ("inputs", "read", "refused", "failed")
Mutation = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Seed:
    """A valid file.

    Attributes:
        kind: for the table.
        name: its place in a dataset folder.
        others: files beside it that make it a dataset, by name.
    """

    kind: str
    name: str
    content: bytes
    card: str
    others: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Outcome of one input.

    Attributes:
        result: ``read``, ``refused`` (with a reason), or a failure: ``crashed``, ``hung``, ``memory``, ``no reason``.
        reason: the message to the user.
    """

    result: str
    reason: str
    seconds: float


def seeds(folder: Path) -> list[Seed]:
    """Good files: DICOM plain, compressed, bare, enhanced, with labels; NIfTI-1 and -2 plain and packed, sidecars; HDF5; CSV."""
    import nibabel as nib
    import numpy as np
    from pydicom.data import get_testdata_file

    from components.catalog import load_card
    from components.samples import build_sample
    from tests.helpers.datasets import write_patient

    found = []
    build_sample(load_card("synthetic-brain-kspace"), folder / "kspace", patients=2)
    build_sample(load_card("synthetic-brain-dicom"), folder / "dicom", patients=1)
    write_patient(folder / "nifti", 0)
    kspace = sorted((folder / "kspace").rglob("*.h5"))[1]
    table = (folder / "kspace" / "annotations.csv").read_bytes()
    card = "synthetic-brain-kspace"
    found.append(Seed("HDF5", kspace.name, kspace.read_bytes(), card, (("annotations.csv", table),)))
    found.append(Seed("CSV", "annotations.csv", table, card, ((kspace.name, kspace.read_bytes()),)))
    for name in (
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_bigendian.dcm",
    ):
        path = get_testdata_file(name, download=False)
        if path is not None:
            found.append(Seed("DICOM", "image.dcm", Path(str(path)).read_bytes(), "pydicom-samples"))
    slices = sorted((folder / "dicom").rglob("S1I*.dcm"))
    others = tuple((path.name, path.read_bytes()) for path in slices[1:3])
    found.append(Seed("DICOM", slices[0].name, slices[0].read_bytes(), "synthetic-brain-dicom", others))
    segmentation = next((folder / "dicom").rglob("SEG.dcm"))
    series = tuple((path.name, path.read_bytes()) for path in slices)
    found.append(Seed("DICOM SEG", "SEG.dcm", segmentation.read_bytes(), "synthetic-brain-dicom", series))
    image = next((folder / "nifti").rglob("*_T1w.nii"))
    label, sidecar = image.with_name("sub-00_dseg.nii"), image.with_name("sub-00_T1w.json")
    within = {path: f"sub-00/anat/{path.name}" for path in (image, label, sidecar)}

    def beside(path: Path) -> tuple[tuple[str, bytes], ...]:
        return tuple((name, other.read_bytes()) for other, name in within.items() if other != path)

    for kind, path in (("NIfTI", image), ("NIfTI labels", label), ("JSON", sidecar)):
        found.append(Seed(kind, within[path], path.read_bytes(), "synthetic-brain-nifti", beside(path)))
    found.append(Seed("NIfTI gz", f"{within[image]}.gz", gzip.compress(image.read_bytes(), 1), "synthetic-brain-nifti"))
    found += _odd_seeds(folder / "odd")
    second = nib.Nifti2Image(np.asarray(nib.load(image).dataobj), np.diag([6.75, 6.75, 12, 1]))  # type: ignore[attr-defined]
    found.append(Seed("NIfTI", within[image], second.to_bytes(), "synthetic-brain-nifti"))
    return found


def _odd_seeds(folder: Path) -> list[Seed]:
    """Good files of less usual kinds: DICOM bare, deflated, enhanced and structure set; ISMRMRD; MetaImage."""
    import numpy as np
    import SimpleITK

    from tests.helpers import dicom_files
    from tests.helpers.real_world.dicom_series import transcode, voxels, write_stack
    from tests.helpers.real_world.kspace_files import write_raw

    def seed(kind: str, path: Path, card: str = "pydicom-samples", others: tuple[Path, ...] = ()) -> Seed:
        return Seed(kind, path.name, path.read_bytes(), card, tuple((other.name, other.read_bytes()) for other in others))

    images = write_stack(folder / "image", "s", voxels(3))
    (deflated,) = write_stack(folder / "deflated", "d", voxels(1))
    transcode(deflated, "deflated")
    bare = folder / "bare.dcm"
    content = images[0].read_bytes()
    bare.write_bytes(content[144 + int.from_bytes(content[140:144], "little") :])
    frames = [{"plane": plane, "offset": 4.0 * place} for place, plane in enumerate(voxels(3))]
    enhanced = dicom_files.write_enhanced(folder / "enhanced.dcm", frames)
    outline = np.array([[-26.0, -16, 14], [-20, -16, 14], [-20, -10, 14], [-26, -10, 14]])
    structures = dicom_files.write_structure_set(folder / "rt.dcm", {"lesion": [outline]}, series_uid=None)
    write_raw(folder / "raw.h5")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels(3)), str(folder / "image.mha"))
    return [
        seed("DICOM bare", bare),
        seed("DICOM deflated", deflated),
        seed("DICOM enhanced", enhanced),
        seed("DICOM RTSTRUCT", structures, "synthetic-brain-dicom", tuple(images)),
        seed("ISMRMRD", folder / "raw.h5", "synthetic-brain-kspace"),
        seed("MetaImage", folder / "image.mha", "nibabel-samples"),
    ]


def flip(content: bytes, rng: random.Random) -> bytes:
    """Change one to thirty bytes, most often in the first 2 KiB, where headers are."""
    broken = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        place = rng.randrange(min(len(broken), 2048) if rng.random() < 0.7 else len(broken))
        broken[place] = rng.choice([broken[place] ^ (1 << rng.randrange(8)), 0, 255, rng.randrange(256)])
    return bytes(broken)


def cut(content: bytes, rng: random.Random) -> bytes:
    """Cut off the end."""
    return content[: rng.randrange(len(content))]


def lose(content: bytes, rng: random.Random) -> bytes:
    """Remove or duplicate a range of bytes."""
    start = rng.randrange(len(content))
    stop = min(start + rng.choice([1, 2, 8, 100, 4000]), len(content))
    return content[:start] + (content[stop:] if rng.random() < 0.5 else content[start:stop] + content[start:])


def number(content: bytes, rng: random.Random) -> bytes:
    """Set a 16- or 32-bit word of the header to an extreme number: sizes, counts, offsets, types."""
    broken = bytearray(content)
    form = rng.choice(["<H", ">H", "<I", ">I", "<f"])
    value: Any = rng.choice([0, 1, 0x7FFF, 0x8000, 0xFFFF]) if form[1] == "H" else rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1])
    packed = struct.pack(form, float("nan") if form == "<f" else value)
    place = rng.randrange(max(min(len(broken), 1024) - len(packed), 1))
    broken[place : place + len(packed)] = packed
    return bytes(broken)


def text(content: bytes, rng: random.Random) -> bytes:
    """Replace a range of bytes by text that parsers often mishandle."""
    piece = rng.choice(
        [b"NaN", b"1e999", b"-1", b"\xff\xfe", b"[" * 5000, b"{", b'"', b"\0\0\0\0", b"9" * 400, b"\\ISO 2022", b",,,,,\n"]
    )
    place = rng.randrange(len(content))
    return content[:place] + piece + content[place + len(piece) * rng.randrange(2) :]


MUTATIONS: dict[str, Mutation] = {"flip": flip, "cut": cut, "lose": lose, "number": number, "text": text}


def bombs() -> list[tuple[str, Seed]]:
    """Inputs that promise, or unpack to, more than there is memory for."""
    import h5py
    import nibabel as nib
    import numpy as np
    from pydicom import dcmread
    from pydicom.data import get_testdata_file

    found = []
    for shape in ((32767, 32767, 32767), (30000, 30000, 1), (2000, 2000, 2000, 50), (1, 1, 1), (-5, 4, 4)):
        header = nib.Nifti1Header()
        header.set_data_dtype(np.float64)
        header["dim"][: len(shape) + 1] = (len(shape), *shape)
        header["vox_offset"], header["magic"], header["sform_code"] = 352, b"n+1", 1
        header["srow_x"], header["srow_y"], header["srow_z"] = (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)
        plain = header.binaryblock + b"\0" * 4
        found.append((f"NIfTI of {shape}", Seed("NIfTI bomb", "a/image.nii", plain + b"\0" * 64, "nibabel-samples")))
        found.append((f"gz of {shape}", Seed("gz bomb", "a/image.nii.gz", gzip.compress(plain + b"\0" * 64), "nibabel-samples")))
    header["dim"][:5] = (4, 1024, 1024, 512, 1)
    zeros = gzip.compress(header.binaryblock + b"\0" * (4 + 2**29), 6)
    found.append(("gz, 4 GiB promised, 512 MiB of zeros", Seed("gz bomb", "a/image.nii.gz", zeros, "nibabel-samples")))
    nested = gzip.compress(b"\0" * 2**28 * 4, 9)
    found.append(("gz of zeros, 1 GiB", Seed("gz bomb", "a/zeros.nii.gz", nested, "nibabel-samples")))
    sound = Path(str(get_testdata_file("MR_small.dcm", download=False))).read_bytes()
    packed = gzip.compress(sound + b"\0" * 2**28, 1)
    found.append(("gz of DICOM, 256 MiB", Seed("DICOM bomb", "a.dcm.gz", packed, "pydicom-samples")))
    with tempfile.TemporaryDirectory() as folder:
        for place, (shape, filled) in enumerate(
            (((100_000, 100_000, 100), False), ((400, 1024, 1024), True), ((2**20, 2**20, 2**10), False))
        ):
            path = Path(folder) / f"{place}.h5"
            with h5py.File(path, "w") as file:
                file.create_dataset("kspace", shape, "complex64", chunks=(1, 1024, 1024) if filled else True, compression="gzip")
            found.append((f"HDF5 of {shape}", Seed("HDF5 bomb", "image.h5", path.read_bytes(), "synthetic-brain-kspace")))
    for rows, frames in ((65535, 1), (65535, 1000), (64, 2**31 - 1)):
        dataset = dcmread(str(get_testdata_file("MR_small.dcm", download=False)))
        dataset.Rows = dataset.Columns = rows
        if frames > 1:
            dataset.NumberOfFrames = frames
        with tempfile.NamedTemporaryFile() as file:
            dataset.save_as(file.name)
            found.append(
                (
                    f"DICOM of {rows} x {rows} x {frames}",
                    Seed("DICOM bomb", "a.dcm", Path(file.name).read_bytes(), "pydicom-samples"),
                )
            )
    return found


def inputs(good: list[Seed], count: int, seed: int, first: int = 0) -> Iterator[tuple[str, Seed, bytes]]:
    """(mutation, what was mutated, content): every bomb, unless we go on after some, then every seed and mutation in turn."""
    for name, bomb in bombs() if first == 0 else []:
        yield name, bomb, bomb.content
    names = list(MUTATIONS)
    for place in range(first, first + count):
        rng = random.Random(f"{seed}/{place}")
        one, name = good[place % len(good)], names[(place // len(good)) % len(names)]
        if one.kind == "DICOM SEG" and rng.random() < 0.75:
            one = good[0]  # a segmentation needs its whole series beside it: twenty times as much work as another
        yield name, one, MUTATIONS[name](one.content, rng)


def take_in(seed: Seed, content: bytes, folder: Path) -> Outcome:
    """Ingest a dataset of this file and read what came out; then read the file alone. Every refusal must have a reason."""
    from components.catalog import load_card
    from components.errors import MachineFault, OmniMRIError
    from components.ingestion import ingest, list_series, read_path, read_volume

    source, data = folder / "source", folder / "data"
    for name, body in (*seed.others, (seed.name, content)):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    started = time.process_time()
    card, reasons = load_card(seed.card), []
    steps: list[Callable[[], Any]] = [
        lambda: reasons.extend(one.reason for one in ingest(card, source, data, KEY).quarantined),
        lambda: [read_volume(data, one, card) for one in list_series(data, seed.card)],
        lambda: read_path(source / seed.name),
    ]
    for step in steps:
        try:
            step()
        except MachineFault as error:  # no damaged input may end the ingestion of all others
            return Outcome("no reason", f"machine fault: {error.what}", time.process_time() - started)
        except OmniMRIError as error:
            reasons.append(error.what)
        except BaseException as error:  # a panic of a library in Rust is no Exception
            where = traceback.extract_tb(error.__traceback__)
            ours = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in where if "/components/" in frame.filename]
            description = f"{type(error).__name__} at {' < '.join(reversed(ours))}"
            return Outcome("memory" if isinstance(error, MemoryError) else "no reason", description, time.process_time() - started)
    seconds = time.process_time() - started
    if seconds > LIMIT_S:
        return Outcome("hung", f"{seconds:.1f} s", seconds)
    if not all(reasons):
        return Outcome("no reason", "empty", seconds)
    return Outcome("refused" if reasons else "read", reasons[0] if reasons else "", seconds)


def _work(connection: Any) -> None:
    """Take in what the parent sends, until it sends None."""
    import components.ingestion.volume_reader  # noqa: F401
    from components.registries import FORMATS

    list(FORMATS.values())  # imports the libraries, whose memory must not count as that of the inputs

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, used + LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["OMP_NUM_THREADS"] = "1"
    connection.send("ready")
    while (job := connection.recv()) is not None:
        seed, content = job
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            connection.send(take_in(seed, content, Path(folder)))


class Worker:
    """A process that takes files in, watched; a new one takes its place when it dies or hangs."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.start()

    def start(self) -> None:
        """Start the process and wait until its libraries are loaded."""
        self.here, there = self.context.Pipe()
        self.process = self.context.Process(target=_work, args=(there,), daemon=True)
        self.process.start()
        there.close()
        assert self.here.recv() == "ready"

    def run(self, seed: Seed, content: bytes) -> Outcome:
        """Process one input."""
        started = time.monotonic()
        try:
            self.here.send((seed, content))
        except OSError:  # it died of the input before, after its answer
            return self._replaced(Outcome("crashed", "after its answer", 0.0))
        if not self.here.poll(PATIENCE_S):
            outcome = Outcome("hung", f"no answer in {PATIENCE_S:.0f} s", PATIENCE_S)
        else:
            try:
                outcome = self.here.recv()
                return outcome if isinstance(outcome, Outcome) else Outcome("crashed", "?", 0.0)
            except EOFError:
                self.process.join()
                code = self.process.exitcode or 0
                description = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                outcome = Outcome("crashed", description, time.monotonic() - started)
        return self._replaced(outcome)

    def _replaced(self, outcome: Outcome) -> Outcome:
        self.process.kill()
        self.process.join()
        self.start()
        return outcome

    def stop(self) -> None:
        """End the process."""
        self.here.send(None)
        self.process.join()


def campaign(count: int, seed: int = 0, keep: Path | None = None, first: int = 0) -> list[tuple[str, str, Outcome]]:
    """Run ``count`` mutated inputs, starting at ``first``, and all bombs: (kind, mutation, outcome).

    Args:
        keep: where the files go that readers failed on.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="fuzz-seeds-") as folder:
        good = seeds(Path(folder))
    worker = Worker()
    try:
        for place, (name, one, content) in enumerate(inputs(good, count, seed, first)):
            outcome = worker.run(one, content)
            found.append((one.kind, name, outcome))
            if keep is not None and outcome.result not in ("read", "refused"):
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{place:06d}-{outcome.result.replace(' ', '-')}-{Path(one.name).name}").write_bytes(content)
                print(place, one.kind, name, outcome, flush=True)
    finally:
        worker.stop()
    return found


def summary(found: list[tuple[str, str, Outcome]]) -> list[dict[str, Any]]:
    """Summarize by kind of file and mutation: how many were read, refused, or failed, the slowest, and the most common reasons."""
    rows = []
    keys = sorted({(kind, name if name in MUTATIONS else "bomb") for kind, name, _ in found})
    for kind, mutation in keys:
        here = [one for k, name, one in found if k == kind and (name if name in MUTATIONS else "bomb") == mutation]
        results = Counter(one.result for one in here)
        failed = len(here) - results["read"] - results["refused"]
        rows.append(
            {
                "kind": kind,
                "mutation": mutation,
                "inputs": len(here),
                "read": results["read"],
                "refused": results["refused"],
                "failed": failed,
                "slowest_s": round(max(one.seconds for one in here), 2),
            }
        )
    return rows


def added(rows: list[dict[str, Any]], before: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Merge the summaries of two parts of a campaign."""
    total = {(row["kind"], row["mutation"]): dict(row) for row in rows}
    for old in before:
        row = total.setdefault((old["kind"], old["mutation"]), {**old, **dict.fromkeys(COUNTS, 0), "slowest_s": 0.0})
        row.update({name: row[name] + int(old[name]) for name in COUNTS})
        row["slowest_s"] = max(row["slowest_s"], float(old["slowest_s"]))
    return [total[key] for key in sorted(total)]


def main() -> None:
    """Run a campaign and write its summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="go on from this input, adding to the results that are there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, default=Path(tempfile.gettempdir()) / "omnimri-fuzz", help="files that made readers fail"
    )
    arguments = parser.parse_args()
    found = campaign(arguments.inputs, arguments.seed, arguments.keep, arguments.first)
    rows = summary(found)
    if arguments.first:
        with RESULTS.open(newline="") as file:
            rows = added(rows, list(csv.DictReader(file)))
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(json.dumps(Counter(outcome.result for _, _, outcome in found), indent=1))
    print(json.dumps(Counter(outcome.reason for _, _, outcome in found if outcome.result == "refused").most_common(40), indent=1))


if __name__ == "__main__":
    main()
