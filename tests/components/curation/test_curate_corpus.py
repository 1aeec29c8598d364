"""Incremental curation does the least work, and its result never differs from that of a curation from scratch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from components.catalog import DatasetCard
from components.curation import curate, curation_inputs
from components.curation.corpus import Corpus
from components.curation.curate_corpus import CurationTarget, VolumeJob, run_in_processes
from components.curation.overview import overview
from components.curation.slice_table import NO, YES
from components.curation.table_rows import CurationReport
from components.curation.verify import verify
from components.errors import BadInput
from components.ingestion import ingest
from components.ingestion.withdrawal import patients_of, withdraw
from components.settings import CurationSettings
from tests.helpers.datasets import KEY, tiny_card, tree, write_cohort, write_patient
from tests.helpers.workers import start_at_once

SETTINGS = CurationSettings(matrix=32, pixel_mm=6.75, slices_per_volume=2, workers=1)


class Workspace:
    """A source folder and the corpus that is curated from it."""

    def __init__(self, root: Path) -> None:
        self.root, self.source, self.data, self.out = root, root / "source", root / "data", root / "curated"
        self.curated_ids: list[str] = []

    def run(self, jobs: list[VolumeJob], target: CurationTarget) -> None:
        self.curated_ids += [job.volume_id for job in jobs]
        run_in_processes(jobs, target)

    def update(self, settings: CurationSettings = SETTINGS, ingest_first: bool = True) -> CurationReport:
        """Ingest and curate."""
        self.curated_ids = []
        if ingest_first:
            ingest(tiny_card(), self.source, self.data, KEY)
        return curate(self.data, [tiny_card()], self.out, settings, self.run)

    def from_scratch(self, settings: CurationSettings = SETTINGS) -> dict[str, bytes]:
        """Curate the same data into an empty folder."""
        fresh = self.root / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        curate(self.data, [tiny_card()], fresh, settings)
        return tree(fresh)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path)
    write_cohort(workspace.source, 7)
    assert workspace.update().volumes_new == 7
    return workspace


def test_worker_processes_curate_the_same_bytes(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    start_at_once(monkeypatch)
    assert workspace.from_scratch(SETTINGS.model_copy(update={"workers": 2})) == tree(workspace.out)


def test_unchanged_sources_change_nothing(workspace: Workspace) -> None:
    before = {path: path.stat().st_mtime_ns for path in workspace.out.rglob("*")}
    report = workspace.update()
    assert (report.volumes_new, report.volumes_reused, workspace.curated_ids) == (0, 7, [])
    assert before == {path: path.stat().st_mtime_ns for path in workspace.out.rglob("*")}


def test_a_changed_image_recurates_its_own_volume_only(workspace: Workspace) -> None:
    write_patient(workspace.source, 3, seed=99)
    report = workspace.update()
    assert (report.volumes_new, report.volumes_removed, len(workspace.curated_ids)) == (1, 1, 1)
    assert tree(workspace.out) == workspace.from_scratch()


def test_a_new_patient_curates_one_volume(workspace: Workspace) -> None:
    write_patient(workspace.source, 7)
    report = workspace.update()
    assert (report.volumes_total, report.volumes_new, report.volumes_removed) == (8, 1, 0)
    assert tree(workspace.out) == workspace.from_scratch()


def test_a_removed_patient_disappears_from_store_and_tables(workspace: Workspace) -> None:
    removed = next(v for v in Corpus.open(workspace.out).volumes.values() if v.lesion)
    [folder] = [path for path in workspace.source.iterdir() if _pseudonym(workspace, path) == removed.patient_id]
    shutil.rmtree(folder)
    report = workspace.update()
    assert (report.volumes_total, report.volumes_new, report.volumes_removed, workspace.curated_ids) == (6, 0, 1, [])
    everything = b"".join(path.name.encode() + path.read_bytes() for path in workspace.out.rglob("*") if path.is_file())
    assert removed.volume_id.encode() not in everything and removed.patient_id.encode() not in everything
    assert tree(workspace.out) == workspace.from_scratch()


def test_the_corpus_is_removed_when_the_last_patient_withdraws(workspace: Workspace) -> None:
    withdraw(workspace.data, {name: frozenset(patients) for name, patients in patients_of(workspace.data).items()})
    with pytest.raises(BadInput, match="no ingested series"):
        workspace.update(ingest_first=False)
    assert not workspace.out.exists()


def _pseudonym(workspace: Workspace, folder: Path) -> str:
    from components.ingestion.deidentification.pseudonyms import Pseudonyms

    return Pseudonyms(KEY, tiny_card().id).patient(folder.name)


def test_a_renamed_patient_changes_rows_but_no_voxel(workspace: Workspace) -> None:
    before = {name: content for name, content in tree(workspace.out).items() if name.startswith("store/")}
    old = workspace.source / "sub-02"
    for path in list((old / "anat").iterdir()):
        path.rename(path.with_name(path.name.replace("sub-02", "sub-77")))
    old.rename(workspace.source / "sub-77")
    report = workspace.update()
    assert (report.volumes_new, report.volumes_removed, workspace.curated_ids) == (0, 0, [])
    assert before == {name: content for name, content in tree(workspace.out).items() if name.startswith("store/")}
    patients = {volume.patient_id for volume in Corpus.open(workspace.out).volumes.values()}
    assert _pseudonym(workspace, workspace.source / "sub-77") in patients and _pseudonym(workspace, old) not in patients
    assert tree(workspace.out) == workspace.from_scratch()


def test_another_split_recurates_no_volume(workspace: Workspace) -> None:
    other = SETTINGS.model_copy(update={"split_seed": 5, "accelerations": (8,), "slices_per_volume": 3})
    workspace.update(other)
    assert workspace.curated_ids == []
    assert tree(workspace.out) == workspace.from_scratch(other)


def test_a_finer_grid_recurates_every_volume(workspace: Workspace) -> None:
    finer = SETTINGS.model_copy(update={"matrix": 64, "pixel_mm": 3.375})
    assert workspace.update(finer).volumes_new == 7
    assert len(list(workspace.out.rglob("*.voxels.b2nd"))) == 7


def test_descriptive_fields_of_a_card_change_no_volume(workspace: Workspace) -> None:
    workspace.curated_ids = []
    card = tiny_card().model_copy(update={"rights": "Read the licence.", "doi": "10.1/x"})
    curate(workspace.data, [card], workspace.out, SETTINGS, workspace.run)
    assert workspace.curated_ids == []
    relabeled = card.model_copy(update={"label_map": {**card.label_map, 3: "metastasis"}})
    curate(workspace.data, [relabeled], workspace.out, SETTINGS, workspace.run)
    assert len(workspace.curated_ids) == 7


def test_the_same_image_in_two_datasets_counts_once(workspace: Workspace) -> None:
    other = tiny_card().model_copy(update={"id": "other-brains"})
    ingest(other, workspace.source, workspace.data, KEY)
    report = curate(workspace.data, [tiny_card(), other], workspace.out, SETTINGS)
    assert (report.volumes_total, report.volumes_duplicate) == (7, 7)
    assert {volume.dataset_id for volume in Corpus.open(workspace.out).volumes.values()} == {"other-brains"}
    again = curate(workspace.data, [tiny_card()], workspace.out, SETTINGS)
    assert (again.volumes_total, again.volumes_duplicate) == (7, 0)
    assert tree(workspace.out) == workspace.from_scratch()


def test_files_of_a_killed_run_are_removed(workspace: Workspace) -> None:
    intact = tree(workspace.out)
    volume = next(iter(Corpus.open(workspace.out).volumes))
    folder = workspace.out / "store" / volume[:2] / volume[2:4]
    (folder / f"{volume}.json").unlink()
    (folder / f".{volume}.voxels.b2nd.01234567.tmp").write_bytes(b"half")
    (workspace.out / ".volumes.parquet.01234567.tmp").write_bytes(b"half")
    (workspace.out / "corpus.json").unlink()
    workspace.update()
    assert workspace.curated_ids == [volume] and tree(workspace.out) == intact


def test_tables_that_were_modified_are_not_reused(workspace: Workspace) -> None:
    intact = tree(workspace.out)
    write_patient(workspace.source, 7)
    (workspace.out / "descriptions.parquet").write_bytes(b"nonsense")
    workspace.update()
    shutil.rmtree(workspace.source / "sub-07")
    workspace.update()
    assert tree(workspace.out) == intact


def test_a_damaged_sidecar_is_reported_by_name(workspace: Workspace) -> None:
    volume = next(iter(Corpus.open(workspace.out).volumes))
    (workspace.out / "store" / volume[:2] / volume[2:4] / f"{volume}.json").write_text("{")
    (workspace.out / "corpus.json").unlink()
    with pytest.raises(BadInput, match=f"{volume}.json: missing or damaged"):
        workspace.update()


def test_the_slice_table_records_content_and_lesions(workspace: Workspace) -> None:
    corpus = Corpus.open(workspace.out)
    slices = corpus.slices
    assert len(slices) == sum(volume.slices for volume in corpus.volumes.values()) == corpus.summary["counts"]["slices"]
    lesions = {slices.volume_ids[volume] for volume in slices.volume[slices.lesion == YES]}
    assert lesions == {name for name, volume in corpus.volumes.items() if volume.lesion}
    assert all(slices.shows[slices.lesion == NO])
    assert 0 < len(slices.with_content()) <= len(slices)


def test_instructions_about_findings_are_balanced(workspace: Workspace) -> None:
    detections = [row for row in Corpus.open(workspace.out).instructions if row.task == "detection"]
    for split in {row.split for row in detections}:
        positive = [bool(row.boxes) for row in detections if row.split == split]
        assert sum(positive) * 2 == len(positive) > 0


def test_the_overview_counts_patients_volumes_slices_and_lesions(workspace: Workspace) -> None:
    corpus = Corpus.open(workspace.out)
    shares = overview(workspace.out)
    assert sum(share.volumes for share in shares) == 7 and sum(share.patients for share in shares) == 7
    for share in shares:
        volumes = [volume for volume in corpus.volumes.values() if volume.split == share.split]
        assert share.slices == sum(volume.slices for volume in volumes)
        assert (share.lesions > 0) == any(volume.lesion for volume in volumes)


def test_damaged_files_in_the_store_are_reported_and_recurated(workspace: Workspace) -> None:
    intact = tree(workspace.out)
    assert verify(workspace.out).faults == ()
    first, second = sorted(workspace.out.rglob("*.voxels.b2nd"))[:2]
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 4
    first.write_bytes(content)
    second.unlink()
    verification = verify(workspace.out)
    assert [fault.file for fault in verification.faults] == [first.name, second.name] and not verification.repaired
    assert "slice" in verification.faults[0].what and verification.faults[1].what == "missing"
    assert verify(workspace.out, repair=True).repaired
    assert workspace.update().volumes_new == 2
    assert tree(workspace.out) == intact and verify(workspace.out).faults == ()


def _changed_inputs(workspace: Workspace, before: dict[str, str], cards: list[DatasetCard]) -> set[str]:
    after = curation_inputs(workspace.data, cards, SETTINGS).by_name()
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


def test_every_card_field_that_reaches_the_corpus_is_an_input(workspace: Workspace) -> None:
    before = curation_inputs(workspace.data, [tiny_card()], SETTINGS).by_name()
    edits = {"name": "Another name", "tasks": (), "patients": 99, "volumes": 99, "label_map": {3: "metastasis"}, "anatomy": "knee"}
    for field, value in edits.items():
        edited = tiny_card().model_copy(update={field: value})
        assert _changed_inputs(workspace, before, [edited]) == {f"card of {edited.id}"}, field
    assert (
        _changed_inputs(workspace, before, [tiny_card().model_copy(update={"rights": "Other rights.", "notes": "A note."})])
        == set()
    )


def test_an_edit_of_an_informative_figure_rewrites_the_corpus(workspace: Workspace) -> None:
    edited = tiny_card().model_copy(update={"patients": 99})
    curate(workspace.data, [edited], workspace.out, SETTINGS, workspace.run)
    assert Corpus.open(workspace.out).summary["datasets"][edited.id]["patients"] == 99


def test_the_inputs_are_those_of_the_corpus_until_the_data_change(workspace: Workspace) -> None:
    inputs = curation_inputs(workspace.data, [tiny_card()], SETTINGS)
    assert Corpus.open(workspace.out).summary["inputs"] == inputs.digest
    write_patient(workspace.source, 3, seed=99)
    ingest(tiny_card(), workspace.source, workspace.data, KEY)
    assert _changed_inputs(workspace, inputs.by_name(), [tiny_card()]) == {f"data of {tiny_card().id}"}
    more_workers = SETTINGS.model_copy(update={"workers": 2})
    assert curation_inputs(workspace.data, [tiny_card()], more_workers) == curation_inputs(workspace.data, [tiny_card()], SETTINGS)


def test_a_dataset_that_is_not_ingested_has_an_empty_digest(tmp_path: Path) -> None:
    inputs = curation_inputs(tmp_path / "data", [tiny_card()], SETTINGS)
    assert inputs.data == {tiny_card().id: ""} and inputs.by_name()[f"data of {tiny_card().id}"] == ""
