"""A corpus follows its sources with the least work, and never differs from one made from nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from components.curation import curate
from components.curation.corpus import Corpus
from components.curation.curate_corpus import Job, Place, in_processes
from components.curation.overview import overview
from components.curation.slice_table import NO, YES
from components.curation.table_rows import CurationReport
from components.curation.verify import verify
from components.errors import BadInput
from components.ingestion import ingest
from components.ingestion.withdrawal import patients_of, withdraw
from components.settings import CurationSettings
from tests.helpers.datasets import KEY, tiny_card, tree, write_cohort, write_patient

SETTINGS = CurationSettings(matrix=32, pixel_mm=6.75, slices_per_volume=2, workers=1)


class Bench:
    """A source folder and the corpus that follows it."""

    def __init__(self, root: Path) -> None:
        self.root, self.source, self.data, self.out = root, root / "source", root / "data", root / "curated"
        self.made: list[str] = []

    def run(self, jobs: list[Job], place: Place) -> None:
        self.made += [job.volume_id for job in jobs]
        in_processes(jobs, place)

    def update(self, settings: CurationSettings = SETTINGS, read: bool = True) -> CurationReport:
        """Ingest and curate."""
        self.made = []
        if read:
            ingest(tiny_card(), self.source, self.data, KEY)
        return curate(self.data, [tiny_card()], self.out, settings, self.run)

    def from_nothing(self, settings: CurationSettings = SETTINGS) -> dict[str, bytes]:
        """The corpus that the same data give in an empty folder."""
        fresh = self.root / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        curate(self.data, [tiny_card()], fresh, settings)
        return tree(fresh)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    write_cohort(bench.source, 7)
    assert bench.update().volumes_new == 7
    return bench


def test_nothing_changed_makes_nothing(bench: Bench) -> None:
    before = {path: path.stat().st_mtime_ns for path in bench.out.rglob("*")}
    report = bench.update()
    assert (report.volumes_new, report.volumes_reused, bench.made) == (0, 7, [])
    assert before == {path: path.stat().st_mtime_ns for path in bench.out.rglob("*")}


def test_a_changed_image_costs_its_own_volume(bench: Bench) -> None:
    write_patient(bench.source, 3, seed=99)
    report = bench.update()
    assert (report.volumes_new, report.volumes_removed, len(bench.made)) == (1, 1, 1)
    assert tree(bench.out) == bench.from_nothing()


def test_a_new_patient_costs_one_volume(bench: Bench) -> None:
    write_patient(bench.source, 7)
    report = bench.update()
    assert (report.volumes_total, report.volumes_new, report.volumes_removed) == (8, 1, 0)
    assert tree(bench.out) == bench.from_nothing()


def test_a_removed_patient_disappears_from_store_and_tables(bench: Bench) -> None:
    gone = next(v for v in Corpus.open(bench.out).volumes.values() if v.lesion)
    [folder] = [path for path in bench.source.iterdir() if _pseudonym(bench, path) == gone.patient_id]
    shutil.rmtree(folder)
    report = bench.update()
    assert (report.volumes_total, report.volumes_new, report.volumes_removed, bench.made) == (6, 0, 1, [])
    everything = b"".join(path.name.encode() + path.read_bytes() for path in bench.out.rglob("*") if path.is_file())
    assert gone.volume_id.encode() not in everything and gone.patient_id.encode() not in everything
    assert tree(bench.out) == bench.from_nothing()


def test_the_last_patient_takes_the_corpus_along(bench: Bench) -> None:
    withdraw(bench.data, {name: frozenset(patients) for name, patients in patients_of(bench.data).items()})
    with pytest.raises(BadInput, match="no ingested series"):
        bench.update(read=False)
    assert not bench.out.exists()


def _pseudonym(bench: Bench, folder: Path) -> str:
    from components.ingestion.deidentification.pseudonyms import Pseudonyms

    return Pseudonyms(KEY, tiny_card().id).patient(folder.name)


def test_a_renamed_patient_costs_rows_but_no_voxel(bench: Bench) -> None:
    before = {name: content for name, content in tree(bench.out).items() if name.startswith("store/")}
    old = bench.source / "sub-02"
    for path in list((old / "anat").iterdir()):
        path.rename(path.with_name(path.name.replace("sub-02", "sub-77")))
    old.rename(bench.source / "sub-77")
    report = bench.update()
    assert (report.volumes_new, report.volumes_removed, bench.made) == (0, 0, [])
    assert before == {name: content for name, content in tree(bench.out).items() if name.startswith("store/")}
    patients = {volume.patient_id for volume in Corpus.open(bench.out).volumes.values()}
    assert _pseudonym(bench, bench.source / "sub-77") in patients and _pseudonym(bench, old) not in patients
    assert tree(bench.out) == bench.from_nothing()


def test_another_split_costs_no_voxel(bench: Bench) -> None:
    other = SETTINGS.model_copy(update={"split_seed": 5, "accelerations": (8,), "slices_per_volume": 3})
    bench.update(other)
    assert bench.made == []
    assert tree(bench.out) == bench.from_nothing(other)


def test_a_finer_grid_makes_every_volume_anew(bench: Bench) -> None:
    finer = SETTINGS.model_copy(update={"matrix": 64, "pixel_mm": 3.375})
    assert bench.update(finer).volumes_new == 7
    assert len(list(bench.out.rglob("*.voxels.b2nd"))) == 7


def test_words_for_people_in_a_card_change_no_volume(bench: Bench) -> None:
    bench.made = []
    card = tiny_card().model_copy(update={"rights": "Read the licence.", "doi": "10.1/x"})
    curate(bench.data, [card], bench.out, SETTINGS, bench.run)
    assert bench.made == []
    named = card.model_copy(update={"label_map": {**card.label_map, 3: "metastasis"}})
    curate(bench.data, [named], bench.out, SETTINGS, bench.run)
    assert len(bench.made) == 7


def test_the_same_image_in_two_datasets_counts_once(bench: Bench) -> None:
    other = tiny_card().model_copy(update={"id": "other-brains"})
    ingest(other, bench.source, bench.data, KEY)
    report = curate(bench.data, [tiny_card(), other], bench.out, SETTINGS)
    assert (report.volumes_total, report.volumes_duplicate) == (7, 7)
    assert {one.dataset_id for one in Corpus.open(bench.out).volumes.values()} == {"other-brains"}
    again = curate(bench.data, [tiny_card()], bench.out, SETTINGS)
    assert (again.volumes_total, again.volumes_duplicate) == (7, 0)
    assert tree(bench.out) == bench.from_nothing()


def test_what_a_killed_run_left_is_swept_up(bench: Bench) -> None:
    whole = tree(bench.out)
    volume = next(iter(Corpus.open(bench.out).volumes))
    folder = bench.out / "store" / volume[:2] / volume[2:4]
    (folder / f"{volume}.json").unlink()
    (folder / f".{volume}.voxels.b2nd.01234567.tmp").write_bytes(b"half")
    (bench.out / ".volumes.parquet.01234567.tmp").write_bytes(b"half")
    (bench.out / "corpus.json").unlink()
    bench.update()
    assert bench.made == [volume] and tree(bench.out) == whole


def test_tables_that_somebody_touched_are_not_trusted(bench: Bench) -> None:
    whole = tree(bench.out)
    write_patient(bench.source, 7)
    (bench.out / "descriptions.parquet").write_bytes(b"nonsense")
    bench.update()
    shutil.rmtree(bench.source / "sub-07")
    bench.update()
    assert tree(bench.out) == whole


def test_a_damaged_sidecar_is_named(bench: Bench) -> None:
    volume = next(iter(Corpus.open(bench.out).volumes))
    (bench.out / "store" / volume[:2] / volume[2:4] / f"{volume}.json").write_text("{")
    (bench.out / "corpus.json").unlink()
    with pytest.raises(BadInput, match=f"{volume}.json: missing or damaged"):
        bench.update()


def test_slices_say_what_they_show(bench: Bench) -> None:
    corpus = Corpus.open(bench.out)
    slices = corpus.slices
    assert len(slices) == sum(volume.slices for volume in corpus.volumes.values()) == corpus.summary["counts"]["slices"]
    lesions = {slices.volume_ids[volume] for volume in slices.volume[slices.lesion == YES]}
    assert lesions == {name for name, volume in corpus.volumes.items() if volume.lesion}
    assert all(slices.shows[slices.lesion == NO])
    assert 0 < len(slices.that_show()) <= len(slices)


def test_instructions_about_findings_are_balanced(bench: Bench) -> None:
    found = [one for one in Corpus.open(bench.out).instructions if one.task == "detection"]
    for split in {one.split for one in found}:
        here = [bool(one.boxes) for one in found if one.split == split]
        assert sum(here) * 2 == len(here) > 0


def test_the_corpus_in_numbers(bench: Bench) -> None:
    corpus = Corpus.open(bench.out)
    shares = overview(bench.out)
    assert sum(share.volumes for share in shares) == 7 and sum(share.patients for share in shares) == 7
    for share in shares:
        volumes = [volume for volume in corpus.volumes.values() if volume.split == share.split]
        assert share.slices == sum(volume.slices for volume in volumes)
        assert (share.lesions > 0) == any(volume.lesion for volume in volumes)


def test_what_is_damaged_in_the_store_is_named_and_made_again(bench: Bench) -> None:
    whole = tree(bench.out)
    assert verify(bench.out).faults == ()
    first, second = sorted(bench.out.rglob("*.voxels.b2nd"))[:2]
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 4
    first.write_bytes(content)
    second.unlink()
    found = verify(bench.out)
    assert [fault.file for fault in found.faults] == [first.name, second.name] and not found.repaired
    assert "slice" in found.faults[0].what and found.faults[1].what == "missing"
    assert verify(bench.out, repair=True).repaired
    assert bench.update().volumes_new == 2
    assert tree(bench.out) == whole and verify(bench.out).faults == ()
