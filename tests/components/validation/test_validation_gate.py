"""A good corpus passes; every planted defect is reported by the rule that is meant for it, at the row where it was planted."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from components.curation.corpus import QUARANTINE, Corpus
from components.curation.store import ArrayName
from components.curation.table_rows import InstructionRecord, SplitRecord, VolumeRecord
from components.errors import BadInput, GateRefused
from components.files import read_json
from components.phi_patterns import IDENTIFYING
from components.provenance import digest
from components.validation import validate, validation_inputs
from components.validation.dataframes import build_dataframes
from components.validation.drift import measure_drift, profile_corpus
from components.validation.rules import DRIFTS, rules
from components.validation.validation_gate import ValidationReport, run_rules
from tests.helpers.corpora import tiny_corpus
from tests.helpers.defects import (
    DEFECTS,
    DRIFTED,
    PIXEL_DEFECTS,
    Defect,
    Tables,
    Victim,
    as_markdown,
    rules_as_markdown,
)

PAGE = Path(__file__).parents[3] / "docs" / "text-and-validation.md"
ARRAYS: tuple[ArrayName, ...] = ("voxels", "labels", "kspace")
PERSONAL = ("Doe", "1970", "0012345678", "example.org", "Miller")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


def _seen(corpus: Corpus, tables: Tables) -> Corpus:
    """A corpus of these rows, whatever is wrong with them."""
    seen = Corpus(corpus.root, corpus.summary)
    seen.__dict__.update(
        volumes={one.volume_id: one for one in tables.volumes},
        descriptions={one.volume_id: one for one in tables.descriptions},
        instructions=tables.instructions,
        splits={one.patient_id: one.split for one in tables.splits},
    )
    return seen


class Cohort:
    """A good corpus with a patient of its own (two volumes) for every defect, copied from the patients of the tiny corpus."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus, self.tables = corpus, Tables([], [], [], [], [])
        self.victims: dict[str, Victim] = {}

    def add(self, defect: Defect, number: int) -> None:
        """The next patient: a copy of one who has what the defect needs."""
        patient, volume_id = self._model(defect)
        renamed = f"p{0xA00000 + number:012x}"
        for volume in [one for one in self.corpus.volumes.values() if one.patient_id == patient]:
            new = digest(volume.volume_id, number)[:32]
            for name in ARRAYS:
                if self.corpus.store.has(volume.volume_id, name):
                    self.corpus.store.write(new, name, self.corpus.store.read(volume.volume_id, name))
            asked = [one for one in self.corpus.instructions if one.volume_id == volume.volume_id]
            if volume.volume_id == volume_id:
                first = next(i for i, one in enumerate(asked) if self._asks(defect, one))
                self.victims[defect.name] = Victim(
                    len(self.tables.volumes), len(self.tables.descriptions), len(self.tables.instructions) + first
                )
            changes = {"volume_id": new, "patient_id": renamed}
            self.tables.volumes.append(volume.model_copy(update={**changes, "content_md5": digest(new)[:32]}))
            self.tables.descriptions.append(self.corpus.descriptions[volume.volume_id].model_copy(update={"volume_id": new}))
            self.tables.instructions += [
                one.model_copy(update={**changes, "sample_id": digest(one.sample_id, number)[:32]}) for one in asked
            ]
        self.tables.splits.append(SplitRecord(patient_id=renamed, split=self.corpus.splits[patient]))

    def _asks(self, defect: Defect, one: InstructionRecord) -> bool:
        return one.task == defect.task and (defect.task != "detection" or bool(one.boxes))

    def _model(self, defect: Defect) -> tuple[str, str]:
        """(Patient, volume) of the tiny corpus with a lesion on one side, if asked for, and an instruction of the task."""
        for volume in self.corpus.volumes.values():
            sides = [one.side for one in self.corpus.descriptions[volume.volume_id].measures if one.lesion]
            sided = sides in (["left"], ["right"])
            asked = any(one.volume_id == volume.volume_id and self._asks(defect, one) for one in self.corpus.instructions)
            if asked and (not defect.lesion or (volume.lesion and sided)):
                return volume.patient_id, volume.volume_id
        raise AssertionError(f"no volume to plant '{defect.name}' in")

    def key(self, defect: Defect) -> str:
        """The id of the row that the defect's rule must report."""
        victim, table = self.victims[defect.name], defect.rule.partition(".")[0]
        if table == "splits":
            return self.tables.splits[-1].patient_id
        if table == "instructions":
            return self.tables.instructions[victim.instruction].sample_id
        return self.tables.volumes[victim.volume].volume_id


@pytest.fixture(scope="module")
def cohort(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    copy = tmp_path_factory.mktemp("cohort") / "corpus"
    shutil.copytree(corpus.root, copy)
    made = Cohort(Corpus(copy, corpus.summary))
    for number, defect in enumerate(DEFECTS):
        made.add(defect, number)
    return made


@pytest.fixture(scope="module")
def spoilt(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, set[str]], dict[str, str], Path]:
    """(Rule -> rows it reports, defect -> row it must be reported at, project) of a cohort with every defect planted."""
    assert build_dataframes(_seen(cohort.corpus, cohort.tables))["volumes"]["shape_in_store"].all()
    tables = Tables(*(list(part) for part in vars(cohort.tables).values()))
    for defect in DEFECTS:
        defect.plant(tables, cohort.victims[defect.name])
    for volume_id in tables.missing_arrays:
        cohort.corpus.store.remove(volume_id)
    keys = {defect.name: cohort.key(defect) for defect in DEFECTS}
    keys |= {defect.name: tables.splits[-1].patient_id for defect in DEFECTS if defect.rule.startswith("splits.")}
    project = tmp_path_factory.mktemp("spoilt")
    report, quarantine = run_rules(corpus_digest="spoilt", tables=build_dataframes(_seen(cohort.corpus, tables)), project=project)
    assert not report.passed
    found: dict[str, set[str]] = {}
    for rows in quarantine.values():
        for key, names in rows.items():
            for name in names:
                found.setdefault(name, set()).add(key)
    for table in report.tables:
        for failure in (*table.failures, *table.left_out):
            found.setdefault(f"{failure.table}.{failure.rule}", set()).update(failure.examples)
    return found, keys, project


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name.replace(" ", "-"))
def test_every_planted_defect_is_caught_by_its_rule(
    defect: Defect, spoilt: tuple[dict[str, set[str]], dict[str, str], Path]
) -> None:
    found, keys, _ = spoilt
    assert keys[defect.name] in found.get(defect.rule, set())


def test_a_slice_shown_at_two_accelerations_is_asked_about_twice(corpus: Corpus) -> None:
    asked = [one for one in corpus.instructions if one.task == "reconstruction"]
    faster = [one.model_copy(update={"sample_id": digest(one.sample_id)[:32], "acceleration": 8}) for one in asked]
    seen = _seen(corpus, Tables(list(corpus.volumes.values()), list(corpus.descriptions.values()), [*asked, *faster], [], []))
    assert asked and build_dataframes(seen)["instructions"]["question"].is_unique


def test_no_personal_text_reaches_results_or_data_docs(spoilt: tuple[dict[str, set[str]], dict[str, str], Path]) -> None:
    _, _, project = spoilt
    for path in project.rglob("*"):
        if path.suffix in (".json", ".html"):
            text = path.read_text()
            assert not [word for word in PERSONAL if re.search(rf"\b{re.escape(word)}\b", text)], path


def _of_volumes(change: Callable[[VolumeRecord], dict[str, Any]]) -> Callable[[Tables], None]:
    def drifted(tables: Tables) -> None:
        tables.volumes = [one.model_copy(update=change(one)) for one in tables.volumes]

    return drifted


def _only(keep: Callable[[VolumeRecord], bool]) -> Callable[[Tables], None]:
    def drifted(tables: Tables) -> None:
        tables.volumes = [one for one in tables.volumes if keep(one)]

    return drifted


def _larger_masks(tables: Tables) -> None:
    tables.descriptions = [
        one.model_copy(update={"measures": [m.model_copy(update={"volume_ml": 2 * m.volume_ml}) for m in one.measures]})
        for one in tables.descriptions
    ]


def _shorter(tables: Tables) -> None:
    tables.descriptions = [one.model_copy(update={"text": one.text[:40]}) for one in tables.descriptions]


def _without_segmentation(tables: Tables) -> None:
    tables.instructions = [one for one in tables.instructions if one.task != "segmentation"]


DRIFTERS: dict[str, Callable[[Tables], None]] = {
    "half of the volumes lost": _only(lambda one: int(one.volume_id[:8], 16) % 2 == 0),
    "all T2-weighted images lost": _only(lambda one: one.sequence != "T2-weighted"),
    "another scanner's field strength": _of_volumes(lambda one: {"field_strength_t": 1.5}),
    "patients moved from training to test": _of_volumes(lambda one: {"split": "test"}),
    "lesions vanished": _of_volumes(lambda one: {"lesion": False}),
    "repetition times doubled": _of_volumes(lambda one: {"repetition_time_ms": 9_000.0}),
    "echo times in another unit": _of_volumes(lambda one: {"echo_time_ms": (one.echo_time_ms or 1.0) / 1000}),
    "a much older cohort": _of_volumes(lambda one: {"age_years": 85.0}),
    "intensities a thousand times larger": _of_volumes(lambda one: {"intensity_scale": one.intensity_scale * 1000}),
    "images with half the contrast": _of_volumes(lambda one: {"voxel_deviation": one.voxel_deviation / 2}),
    "masks twice as large": _larger_masks,
    "descriptions cut short": _shorter,
    "no instructions of one kind": _without_segmentation,
}


def test_every_drift_is_caught_by_its_rule_and_no_change_is_none(cohort: Cohort, tmp_path: Path) -> None:
    """Every change is a row of one table, so that Great Expectations runs once."""
    before = profile_corpus(_seen(cohort.corpus, cohort.tables))
    rows = [measure_drift(before, before).assign(dataset_id="nothing changed")]
    for name, change in DRIFTERS.items():
        tables = Tables(*(list(part) for part in vars(cohort.tables).values()))
        change(tables)
        rows.append(measure_drift(before, profile_corpus(_seen(cohort.corpus, tables))).assign(dataset_id=name))
    table = pd.concat(rows)
    report, _ = run_rules("drifted", {"drift": table}, tmp_path)
    assert DRIFTERS.keys() == DRIFTED.keys() and len(DRIFTED) == len(DRIFTS)
    limits = {f"drift.{column}_as_before": (column, limit) for column, (_, limit) in DRIFTS.items()}
    for name, rule in DRIFTED.items():
        column, limit = limits[rule]
        assert float(table.loc[table.dataset_id == name, column].iloc[0]) > limit, name
    (checked,) = report.tables
    assert {f"drift.{failure.rule}" for failure in checked.failures} == set(DRIFTED.values())
    assert all("nothing changed" not in failure.examples for failure in checked.failures)
    assert (table.loc[table.dataset_id == "nothing changed", list(DRIFTS)] == 0).all(axis=None)


def test_at_least_forty_kinds_are_planted_and_every_one_names_a_rule_that_exists() -> None:
    names = {rule.title for found in rules().values() for rule in found}
    assert {defect.rule for defect in (*DEFECTS, *PIXEL_DEFECTS)} | set(DRIFTED.values()) <= names
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS) >= 40


def test_the_table_of_the_documentation_is_up_to_date() -> None:
    assert as_markdown() in PAGE.read_text(), "python -m tests.helpers.defects prints it"
    assert rules_as_markdown() in PAGE.read_text()


def _validate(own: Corpus, **options: Any) -> ValidationReport:
    return validate(own.root, own.root.parent / "gx", **options)


@pytest.fixture(scope="module")
def accepted(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, ValidationReport]:
    """The tiny corpus, accepted once, with its project beside it."""
    folder = tmp_path_factory.mktemp("accepted")
    shutil.copytree(corpus.root, folder / "corpus")
    own = Corpus.open(folder / "corpus")
    return own, _validate(own)


@pytest.fixture
def own(accepted: tuple[Corpus, ValidationReport], tmp_path: Path) -> Corpus:
    """The same in a folder of this test's own."""
    shutil.copytree(accepted[0].root.parent, tmp_path / "own")
    return Corpus.open(tmp_path / "own" / "corpus")


def test_a_good_corpus_passes_is_not_validated_twice_and_nothing_is_left_out(accepted: tuple[Corpus, ValidationReport]) -> None:
    own, first = accepted
    first.require()
    assert {one.table: one.rows for one in first.tables}["volumes"] == len(own.volumes)
    assert not any(one.failures or one.left_out for one in first.tables) and not first.quarantined
    assert first.data_docs.is_file() and "volumes" in first.data_docs.read_text()
    again = _validate(own)
    assert again.reused and not first.reused and again == first
    pages = "".join(path.read_text() for path in first.data_docs.parent.rglob("*.html"))
    assert "The echo time is one of MRI, in milliseconds." in pages, "Data Docs speak of images, not of columns"


def test_the_inputs_of_validation_are_the_tables_and_the_code(own: Corpus, tmp_path: Path) -> None:
    inputs = validation_inputs(own.root)
    assert inputs.corpus == own.tables_digest
    assert read_json(own.root.parent / "gx" / "report.json")["identity"] == inputs.digest
    assert validation_inputs(tmp_path / "nothing").corpus == ""


def test_a_changed_corpus_is_measured_against_the_accepted_one(own: Corpus) -> None:
    accepted = read_json(own.root.parent / "gx" / "accepted.json")
    accepted["digest"] = "the version before"
    accepted["profile"]["tiny-brain"]["volumes"]["count"] = 40
    (own.root.parent / "gx" / "accepted.json").write_text(json.dumps(accepted))
    (own.root.parent / "gx" / "report.json").unlink()
    report = _validate(own)
    assert report.compared_with == "the version before"
    with pytest.raises(GateRefused, match=r"drift\.volumes_as_before fails in 1 rows, e\.g\. tiny-brain"):
        report.require()
    with pytest.raises(BadInput, match="no reason given"):
        _validate(own, accept_drift=" ")
    _validate(own, accept_drift="28 patients withdrew their consent").require()
    assert "withdrew" in read_json(own.root.parent / "gx" / "accepted.json")["reason"]


def test_rows_within_a_tolerance_are_left_out_and_the_rest_goes_on(cohort: Cohort, tmp_path: Path) -> None:
    """One volume of 160 with an echo time in seconds: 0.6 %, of 2 % allowed."""
    volumes = list(cohort.tables.volumes)
    volumes[3] = volumes[3].model_copy(update={"echo_time_ms": 0.09})
    tables = Tables(volumes, *list(vars(cohort.tables).values())[1:])
    seen = {name: table for name, table in build_dataframes(_seen(cohort.corpus, tables)).items() if name == "volumes"}
    seen["volumes"]["shape_in_store"] = True  # one was removed for a defect
    report, quarantine = run_rules("one", seen, tmp_path)
    assert report.passed and report.quarantined == {"volumes": 1}
    assert quarantine["volumes"] == {volumes[3].volume_id: ["volumes.echo_time_in_ms"]}


def test_what_is_in_quarantine_is_not_read_and_changes_the_digest(own: Corpus) -> None:
    volume_id, sample = next(iter(own.volumes)), own.instructions[0]
    content = {"digest": own.digest, "volumes": {volume_id: ["volumes.echo_time_in_ms"]}, "instructions": {sample.sample_id: ["x"]}}
    (own.root / QUARANTINE).write_text(json.dumps(content))
    left = Corpus.open(own.root)
    assert volume_id not in left.volumes and volume_id not in left.descriptions and left.digest != own.digest
    assert all(one.volume_id != volume_id and one.sample_id != sample.sample_id for one in left.instructions)
    assert Corpus.open(own.root, include_quarantined=True).digest == own.digest == left.tables_digest
    (own.root / QUARANTINE).write_text(json.dumps({**content, "digest": "of other tables"}))
    assert Corpus.open(own.root).volumes == own.volumes


def test_a_refusal_names_table_rule_rows_and_words_but_no_value(corpus: Corpus, tmp_path: Path) -> None:
    tables = {"volumes": build_dataframes(corpus)["volumes"]}
    tables["volumes"]["patient_is_pseudonym"] = [False, *tables["volumes"]["patient_is_pseudonym"][1:]]
    report, _ = run_rules("x", tables, tmp_path)
    with pytest.raises(GateRefused, match=r"volumes\.patient_is_a_pseudonym fails in 1 rows, e\.g\. [0-9a-f]{32}: The patient is"):
        report.require()


def test_an_empty_table_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    tables = {"instructions": build_dataframes(corpus)["instructions"].iloc[:0]}
    report, _ = run_rules("empty", tables, tmp_path)
    assert [(f.table, f.rule, f.column) for one in report.tables for f in one.failures] == [("instructions", "has_rows", "")]


@pytest.mark.parametrize(
    "text",
    [
        "born 03.02.1970",
        "born 3 Feb 1970",
        "1970-02-03",
        "19700203",
        "MRN 0012345678",
        "Doe^Jane",
        "a@b.org",
        "Dr. Miller",
        "Mrs Jones",
    ],
)
def test_identifying_text_is_recognised(text: str) -> None:
    assert re.search(IDENTIFYING, text)


@pytest.mark.parametrize(
    "text",
    ["lesion(012,034,256,300)", "18 mm, left", "1.4 of white matter", "4x acceleration", "T2*-weighted", "follow-up in 6 weeks"],
)
def test_ordinary_text_is_not(text: str) -> None:
    assert not re.search(IDENTIFYING, text)
