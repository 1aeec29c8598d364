"""A valid corpus passes; every planted defect is reported by its rule, at the row where it was planted."""

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
from components.curation.table_rows import InstructionRecord, SplitRecord, VolumeInstructionRecord, VolumeRecord
from components.errors import BadInput, GateRefused
from components.files import read_json
from components.phi_patterns import PHI_PATTERN
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
    Target,
    as_markdown,
    rules_as_markdown,
)

PAGE = Path(__file__).parents[3] / "docs" / "text-and-validation.md"
ARRAYS: tuple[ArrayName, ...] = ("voxels", "labels", "kspace")
PERSONAL = ("Doe", "1970", "0012345678", "example.org", "Miller")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


def _with_tables(corpus: Corpus, tables: Tables) -> Corpus:
    """Return a corpus with these rows, valid or not."""
    changed = Corpus(corpus.root, corpus.summary)
    changed.__dict__.update(
        volumes={row.volume_id: row for row in tables.volumes},
        descriptions={row.volume_id: row for row in tables.descriptions},
        instructions=tables.instructions,
        volume_instructions=tables.volume_instructions,
        splits={row.patient_id: row.split for row in tables.splits},
    )
    return changed


class Cohort:
    """A valid corpus with one patient (two volumes) for every defect, copied from the patients of the tiny corpus."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus, self.tables = corpus, Tables([], [], [], [], [], [])
        self.targets: dict[str, Target] = {}

    def add(self, defect: Defect, number: int) -> None:
        """Add a patient for a defect: a copy of one with the task and lesion that the defect needs."""
        patient, volume_id = self._find_source(defect)
        renamed = f"p{0xA00000 + number:012x}"
        ids = {
            row.volume_id: digest(row.volume_id, number)[:32] for row in self.corpus.volumes.values() if row.patient_id == patient
        }
        about_volumes = self.corpus.volume_instructions if defect.rule.startswith("volume_instructions.") else []
        whole = [row for row in about_volumes if row.patient_id == patient]
        target = next((i for i, row in enumerate(whole) if self._is_suitable_whole(defect, row, volume_id)), 0)
        about = len(self.tables.volume_instructions) + target
        self.tables.volume_instructions += [
            row.model_copy(
                update={
                    "patient_id": renamed,
                    "volume_id": ids[row.volume_id],
                    "series": [ids[one] for one in row.series],
                    "sample_id": digest(row.sample_id, number)[:32],
                }
            )
            for row in whole
        ]
        for volume in [row for row in self.corpus.volumes.values() if row.patient_id == patient]:
            new = ids[volume.volume_id]
            for name in ARRAYS:
                if self.corpus.store.has(volume.volume_id, name):
                    self.corpus.store.write(new, name, self.corpus.store.read(volume.volume_id, name))
            instructions = [row for row in self.corpus.instructions if row.volume_id == volume.volume_id]
            if volume.volume_id == volume_id:
                first = next(number for number, row in enumerate(instructions) if self._is_suitable(defect, row))
                self.targets[defect.name] = Target(
                    len(self.tables.volumes), len(self.tables.descriptions), len(self.tables.instructions) + first, about
                )
            changes = {"volume_id": new, "patient_id": renamed}
            self.tables.volumes.append(volume.model_copy(update={**changes, "content_md5": digest(new)[:32]}))
            self.tables.descriptions.append(self.corpus.descriptions[volume.volume_id].model_copy(update={"volume_id": new}))
            self.tables.instructions += [
                row.model_copy(update={**changes, "sample_id": digest(row.sample_id, number)[:32]}) for row in instructions
            ]
        self.tables.splits.append(SplitRecord(patient_id=renamed, split=self.corpus.splits[patient]))

    def _is_suitable(self, defect: Defect, row: InstructionRecord) -> bool:
        return row.task == defect.task and (defect.task != "detection" or bool(row.boxes))

    def _is_suitable_whole(self, defect: Defect, row: VolumeInstructionRecord, volume_id: str) -> bool:
        positive = defect.task not in ("detection", "diagnosis") or bool(row.boxes) or bool(row.positive)
        return (
            row.task == defect.task
            and row.scope == defect.scope
            and positive
            and (defect.scope == "study" or row.volume_id == volume_id)
        )

    def _find_source(self, defect: Defect) -> tuple[str, str]:
        """Return (patient, volume) of the tiny corpus with an instruction of the task and, if required, a lesion on one side."""
        for volume in self.corpus.volumes.values():
            measures = self.corpus.descriptions[volume.volume_id].measures
            one_sided = [measure.side for measure in measures if measure.lesion] in (["left"], ["right"])
            instructions = [row for row in self.corpus.instructions if row.volume_id == volume.volume_id]
            whole = [row for row in self.corpus.volume_instructions if row.patient_id == volume.patient_id]
            suitable = any(self._is_suitable(defect, row) for row in instructions)
            if defect.rule.startswith("volume_instructions."):
                if suitable and any(self._is_suitable_whole(defect, row, volume.volume_id) for row in whole):
                    return volume.patient_id, volume.volume_id
            elif suitable and (not defect.lesion or (volume.lesion and one_sided)):
                return volume.patient_id, volume.volume_id
        raise AssertionError(f"no volume to plant '{defect.name}' in")

    def key(self, defect: Defect) -> str:
        """Return the id of the row that the rule of the defect must report."""
        target, table = self.targets[defect.name], defect.rule.partition(".")[0]
        if table == "splits":
            return self.tables.splits[-1].patient_id
        if table == "volume_instructions":
            return self.tables.volume_instructions[target.volume_instruction].sample_id
        if table == "instructions":
            return self.tables.instructions[target.instruction].sample_id
        return self.tables.volumes[target.volume].volume_id


@pytest.fixture(scope="module")
def cohort(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    copy = tmp_path_factory.mktemp("cohort") / "corpus"
    shutil.copytree(corpus.root, copy)
    cohort = Cohort(Corpus(copy, corpus.summary))
    for number, defect in enumerate(DEFECTS):
        cohort.add(defect, number)
    return cohort


@pytest.fixture(scope="module")
def planted(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, set[str]], dict[str, str], Path]:
    """(rule -> reported rows, defect -> row that must be reported, project) of a cohort with every defect planted."""
    assert build_dataframes(_with_tables(cohort.corpus, cohort.tables))["volumes"]["shape_in_store"].all()
    tables = Tables(*(list(rows) for rows in vars(cohort.tables).values()))
    for defect in DEFECTS:
        defect.plant(tables, cohort.targets[defect.name])
    for volume_id in tables.missing_arrays:
        cohort.corpus.store.remove(volume_id)
    keys = {defect.name: cohort.key(defect) for defect in DEFECTS}
    keys |= {defect.name: tables.splits[-1].patient_id for defect in DEFECTS if defect.rule.startswith("splits.")}
    project = tmp_path_factory.mktemp("planted")
    report, quarantine = run_rules(
        corpus_digest="planted", tables=build_dataframes(_with_tables(cohort.corpus, tables)), project=project
    )
    assert not report.passed
    reported: dict[str, set[str]] = {}
    for rows in quarantine.values():
        for key, names in rows.items():
            for name in names:
                reported.setdefault(name, set()).add(key)
    for table in report.tables:
        for failure in (*table.failures, *table.left_out):
            reported.setdefault(f"{failure.table}.{failure.rule}", set()).update(failure.examples)
    return reported, keys, project


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name.replace(" ", "-"))
def test_every_planted_defect_is_reported_by_its_rule(
    defect: Defect, planted: tuple[dict[str, set[str]], dict[str, str], Path]
) -> None:
    reported, keys, _ = planted
    assert keys[defect.name] in reported.get(defect.rule, set())


def test_the_same_question_at_two_accelerations_is_not_a_repetition(corpus: Corpus) -> None:
    questions = [row for row in corpus.instructions if row.task == "reconstruction"]
    faster = [row.model_copy(update={"sample_id": digest(row.sample_id)[:32], "acceleration": 8}) for row in questions]
    repeated = _with_tables(
        corpus, Tables(list(corpus.volumes.values()), list(corpus.descriptions.values()), [*questions, *faster], [], [], [])
    )
    assert questions and build_dataframes(repeated)["instructions"]["question"].is_unique


def test_no_personal_text_reaches_results_or_data_docs(planted: tuple[dict[str, set[str]], dict[str, str], Path]) -> None:
    _, _, project = planted
    for path in project.rglob("*"):
        if path.suffix in (".json", ".html"):
            text = path.read_text()
            assert not [word for word in PERSONAL if re.search(rf"\b{re.escape(word)}\b", text)], path


def _change_volumes(change: Callable[[VolumeRecord], dict[str, Any]]) -> Callable[[Tables], None]:
    def drift(tables: Tables) -> None:
        tables.volumes = [row.model_copy(update=change(row)) for row in tables.volumes]

    return drift


def _keep_volumes(condition: Callable[[VolumeRecord], bool]) -> Callable[[Tables], None]:
    def drift(tables: Tables) -> None:
        tables.volumes = [row for row in tables.volumes if condition(row)]

    return drift


def _enlarge_masks(tables: Tables) -> None:
    tables.descriptions = [
        row.model_copy(update={"measures": [m.model_copy(update={"volume_ml": 2 * m.volume_ml}) for m in row.measures]})
        for row in tables.descriptions
    ]


def _shorten_descriptions(tables: Tables) -> None:
    tables.descriptions = [row.model_copy(update={"text": row.text[:40]}) for row in tables.descriptions]


def _remove_segmentation(tables: Tables) -> None:
    tables.instructions = [row for row in tables.instructions if row.task != "segmentation"]


DRIFTS_TO_PLANT: dict[str, Callable[[Tables], None]] = {
    "half of the volumes lost": _keep_volumes(lambda row: int(row.volume_id[:8], 16) % 2 == 0),
    "all T2-weighted images lost": _keep_volumes(lambda row: row.sequence != "T2-weighted"),
    "another scanner's field strength": _change_volumes(lambda row: {"field_strength_t": 1.5}),
    "patients moved from training to test": _change_volumes(lambda row: {"split": "test"}),
    "lesions vanished": _change_volumes(lambda row: {"lesion": False}),
    "repetition times doubled": _change_volumes(lambda row: {"repetition_time_ms": 9_000.0}),
    "echo times in another unit": _change_volumes(lambda row: {"echo_time_ms": (row.echo_time_ms or 1.0) / 1000}),
    "a much older cohort": _change_volumes(lambda row: {"age_years": 85.0}),
    "intensities a thousand times larger": _change_volumes(lambda row: {"intensity_scale": row.intensity_scale * 1000}),
    "images with half the contrast": _change_volumes(lambda row: {"voxel_deviation": row.voxel_deviation / 2}),
    "masks twice as large": _enlarge_masks,
    "descriptions cut short": _shorten_descriptions,
    "no instructions of one kind": _remove_segmentation,
}


def test_every_drift_is_reported_by_its_rule_and_an_unchanged_corpus_is_not(cohort: Cohort, tmp_path: Path) -> None:
    """All changes are rows of one table, so that Great Expectations runs once."""
    before = profile_corpus(_with_tables(cohort.corpus, cohort.tables))
    rows = [measure_drift(before, before).assign(dataset_id="nothing changed")]
    for name, change in DRIFTS_TO_PLANT.items():
        tables = Tables(*(list(rows) for rows in vars(cohort.tables).values()))
        change(tables)
        rows.append(measure_drift(before, profile_corpus(_with_tables(cohort.corpus, tables))).assign(dataset_id=name))
    table = pd.concat(rows)
    report, _ = run_rules("drifted", {"drift": table}, tmp_path)
    assert DRIFTS_TO_PLANT.keys() == DRIFTED.keys() and len(DRIFTED) == len(DRIFTS)
    limits = {f"drift.{column}_as_before": (column, limit) for column, (_, limit) in DRIFTS.items()}
    for name, rule in DRIFTED.items():
        column, limit = limits[rule]
        assert float(table.loc[table.dataset_id == name, column].iloc[0]) > limit, name
    (result,) = report.tables
    assert {f"drift.{failure.rule}" for failure in result.failures} == set(DRIFTED.values())
    assert all("nothing changed" not in failure.examples for failure in result.failures)
    assert (table.loc[table.dataset_id == "nothing changed", list(DRIFTS)] == 0).all(axis=None)


def test_at_least_forty_defects_are_planted_and_each_names_an_existing_rule() -> None:
    names = {rule.title for table_rules in rules().values() for rule in table_rules}
    assert {defect.rule for defect in (*DEFECTS, *PIXEL_DEFECTS)} | set(DRIFTED.values()) <= names
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS) >= 40


def test_the_tables_of_the_documentation_are_up_to_date() -> None:
    assert as_markdown() in PAGE.read_text(), "print it with python -m tests.helpers.defects"
    assert rules_as_markdown() in PAGE.read_text()


def _validate(own: Corpus, **options: Any) -> ValidationReport:
    return validate(own.root, own.root.parent / "gx", **options)


@pytest.fixture(scope="module")
def accepted(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, ValidationReport]:
    """The tiny corpus, accepted once, with its project in the same folder."""
    folder = tmp_path_factory.mktemp("accepted")
    shutil.copytree(corpus.root, folder / "corpus")
    own = Corpus.open(folder / "corpus")
    return own, _validate(own)


@pytest.fixture
def own(accepted: tuple[Corpus, ValidationReport], tmp_path: Path) -> Corpus:
    """A copy of the accepted corpus and its project for one test."""
    shutil.copytree(accepted[0].root.parent, tmp_path / "own")
    return Corpus.open(tmp_path / "own" / "corpus")


def test_a_valid_corpus_passes_without_quarantine_and_is_not_validated_twice(accepted: tuple[Corpus, ValidationReport]) -> None:
    own, first = accepted
    first.require()
    assert {result.table: result.rows for result in first.tables}["volumes"] == len(own.volumes)
    assert not any(result.failures or result.left_out for result in first.tables) and not first.quarantined
    assert first.data_docs.is_file() and "volumes" in first.data_docs.read_text()
    again = _validate(own)
    assert again.reused and not first.reused and again == first
    pages = "".join(path.read_text() for path in first.data_docs.parent.rglob("*.html"))
    assert "The echo time is in the range of MRI, in milliseconds." in pages, "Data Docs describe images, not columns"


def test_the_inputs_of_validation_are_the_tables_and_the_code(own: Corpus, tmp_path: Path) -> None:
    inputs = validation_inputs(own.root)
    assert inputs.corpus == own.tables_digest
    assert read_json(own.root.parent / "gx" / "report.json")["identity"] == inputs.digest
    assert validation_inputs(tmp_path / "nothing").corpus == ""


def test_a_changed_corpus_is_compared_with_the_accepted_one(own: Corpus) -> None:
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


def test_rows_within_a_tolerance_are_quarantined_and_the_corpus_passes(cohort: Cohort, tmp_path: Path) -> None:
    """One volume of 160 has an echo time in seconds: 0.6 % of 2 % allowed."""
    volumes = list(cohort.tables.volumes)
    volumes[3] = volumes[3].model_copy(update={"echo_time_ms": 0.09})
    tables = Tables(volumes, *list(vars(cohort.tables).values())[1:])
    frames = {name: table for name, table in build_dataframes(_with_tables(cohort.corpus, tables)).items() if name == "volumes"}
    frames["volumes"]["shape_in_store"] = True  # the arrays of one volume were removed for a defect
    report, quarantine = run_rules("one", frames, tmp_path)
    assert report.passed and report.quarantined == {"volumes": 1}
    assert quarantine["volumes"] == {volumes[3].volume_id: ["volumes.echo_time_in_ms"]}


def test_quarantined_rows_are_not_read_and_change_the_digest(own: Corpus) -> None:
    volume_id, sample = next(iter(own.volumes)), own.instructions[0]
    content = {"digest": own.digest, "volumes": {volume_id: ["volumes.echo_time_in_ms"]}, "instructions": {sample.sample_id: ["x"]}}
    (own.root / QUARANTINE).write_text(json.dumps(content))
    remaining = Corpus.open(own.root)
    assert volume_id not in remaining.volumes and volume_id not in remaining.descriptions and remaining.digest != own.digest
    assert all(row.volume_id != volume_id and row.sample_id != sample.sample_id for row in remaining.instructions)
    assert Corpus.open(own.root, include_quarantined=True).digest == own.digest == remaining.tables_digest
    (own.root / QUARANTINE).write_text(json.dumps({**content, "digest": "of other tables"}))
    assert Corpus.open(own.root).volumes == own.volumes


def test_quarantined_questions_about_volumes_are_not_read(own: Corpus) -> None:
    sample = own.volume_instructions[0]
    rows = {"digest": own.digest, "volume_instructions": {sample.sample_id: ["volume_instructions.boxes_are_not_the_volume"]}}
    (own.root / QUARANTINE).write_text(json.dumps(rows))
    remaining = Corpus.open(own.root)
    assert len(remaining.volume_instructions) == len(own.volume_instructions) - 1 and remaining.digest != own.digest
    assert sample not in remaining.volume_instructions and remaining.instructions == own.instructions


def test_a_refusal_names_table_rule_rows_and_statement_but_no_value(corpus: Corpus, tmp_path: Path) -> None:
    tables = {"volumes": build_dataframes(corpus)["volumes"]}
    tables["volumes"]["patient_is_pseudonym"] = [False, *tables["volumes"]["patient_is_pseudonym"][1:]]
    report, _ = run_rules("x", tables, tmp_path)
    with pytest.raises(GateRefused, match=r"volumes\.patient_is_a_pseudonym fails in 1 rows, e\.g\. [0-9a-f]{32}: The patient is"):
        report.require()


def test_an_empty_table_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    tables = {"instructions": build_dataframes(corpus)["instructions"].iloc[:0]}
    report, _ = run_rules("empty", tables, tmp_path)
    assert [(f.table, f.rule, f.column) for result in report.tables for f in result.failures] == [("instructions", "has_rows", "")]


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
def test_identifying_text_is_recognized(text: str) -> None:
    assert re.search(PHI_PATTERN, text)


@pytest.mark.parametrize(
    "text",
    ["lesion(012,034,256,300)", "18 mm, left", "1.4 of white matter", "4x acceleration", "T2*-weighted", "follow-up in 6 weeks"],
)
def test_ordinary_text_is_not_recognized(text: str) -> None:
    assert not re.search(PHI_PATTERN, text)
