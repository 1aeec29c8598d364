"""Evaluation of a saved model on the test patients of a corpus: cases, answers, baselines, result rows, report page.

The result is stored under the digest of weights, corpus, settings and code, and reused for the same inputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.curation.corpus import Corpus
from components.curation.table_rows import InstructionRecord
from components.errors import BadInput
from components.evaluation.cohort import cohort_digests
from components.evaluation.results import COHORT, EvaluationReport, ResultRow, SubgroupRow, SweepRow
from components.files import atomic_directory, read_json, write_json
from components.model_files import weights_digest
from components.provenance import SHORT, code_digest, digest
from components.registries import TASKS
from components.settings import EvaluationSettings
from components.tasks.calibration import VOLUME_CALIBRATION, Calibration
from components.tasks.kind_weights import write_kind_weights
from components.tasks.scope import Scope
from components.verified_files import is_sealed, seal

if TYPE_CHECKING:
    from components.evaluation.model_answers import AnswerGenerator
    from components.evaluation.task_result import TaskResult

RESULTS, ROWS, CASES, PAGE = "results.json", "rows.parquet", "cases.json", "report.html"
CODE = (
    *(f"components/{name}" for name in ("evaluation", "tasks", "curation", "inference", "training")),
    "model_core",
    "kernels",
)
"""Code that decides a result: tasks score and read cases, curation undersamples and parses the description template."""
Selected = Mapping[str, Sequence[InstructionRecord]]


@dataclass(frozen=True)
class EvaluationInputs:
    """Digests of everything that decides the result of an evaluation.

    Attributes:
        weights: digest of the saved model.
        corpus: digest of the corpus.
        settings: digest of the evaluation settings.
        seed: of the cases and the image sampler.
        code: digest of the code of evaluation.
    """

    weights: str
    corpus: str
    settings: str
    seed: int
    code: str

    def by_name(self) -> dict[str, str]:
        """Return each digest under the name of the input in plain words."""
        return {
            "model": self.weights,
            "corpus": self.corpus,
            "settings: evaluation": self.settings,
            "seed": str(self.seed),
            "code of evaluation": self.code,
        }

    @property
    def digest(self) -> str:
        """Digest of all inputs."""
        return digest(self.by_name())


def evaluation_inputs(model_dir: Path, corpus: str, settings: EvaluationSettings, seed: int) -> EvaluationInputs:
    """Return the inputs that :func:`evaluate` would use now.

    Args:
        model_dir: folder of the saved model.
        corpus: digest of the corpus.
        settings: of the evaluation.
        seed: of the cases and the image sampler.

    Raises:
        BadInput: not a folder that ``save_pretrained`` wrote.
    """
    return EvaluationInputs(weights_digest(model_dir), corpus, settings.digest(), seed, code_digest(*CODE))


def evaluate(model_dir: Path, corpus_root: Path, settings: EvaluationSettings, out: Path, seed: int) -> EvaluationReport:
    """Evaluate a saved model on the test patients of a corpus.

    Raises:
        BadInput: a path has no model or no corpus, or the corpus has no test patients.
    """
    corpus = Corpus.open(corpus_root)
    inputs = evaluation_inputs(model_dir, corpus.digest, settings, seed)
    identity = inputs.digest
    folder = out / identity[:SHORT]
    reused = is_sealed(folder)
    if not reused:
        with atomic_directory(folder) as temporary:
            _write_evaluation(model_dir, inputs.weights, corpus, settings, seed, temporary)
            seal(temporary)
    results = read_json(folder / RESULTS)
    rows = tuple(ResultRow(**{**row, "interval": row["interval"] and tuple(row["interval"])}) for row in results["rows"])
    sweep = tuple(SweepRow(**row) for row in results["sweep"])
    groups = tuple(SubgroupRow(**row) for row in results["subgroups"])
    return EvaluationReport(identity, folder, folder / PAGE, rows, results["cases"], results["note"], sweep, groups, reused)


def _write_evaluation(model_dir: Path, weights: str, corpus: Corpus, settings: EvaluationSettings, seed: int, folder: Path) -> None:
    """Evaluate the model and write all files of the evaluation."""
    from components.evaluation.case_selection import select_cases
    from components.evaluation.finding_names import measure_kind_weights
    from components.evaluation.model_answers import AnswerGenerator, load_cases
    from components.evaluation.organ_findings import measure_volumetry
    from components.evaluation.report_page import render_page
    from components.evaluation.scope_measurement import measure_familiarity
    from components.evaluation.volume_cases import VOLUMES
    from components.evaluation.volume_viewer import build_viewer

    selected = {task: records for task, records in select_cases(corpus, settings.cases_per_task, seed).items() if records}
    if not selected:
        raise BadInput(
            "no held-out instructions", where=str(corpus.root), remedy="curate at least four patients with labels or k-space"
        )
    answers = AnswerGenerator.load(model_dir, settings, seed)
    answers.familiar = measure_familiarity(answers.model, corpus)
    answers.volumetry = measure_volumetry(answers, corpus, settings)
    answers.known = replace(answers.known, kind_weights=measure_kind_weights(answers, corpus))
    results = {
        task: TASKS[task].evaluate(load_cases(corpus, records), answers, corpus, settings) for task, records in selected.items()
    }
    cases = {task: [record.sample_id for record in records] for task, records in selected.items()}
    if settings.volumes:
        cases[VOLUMES] = _add_volumes(results, answers, corpus, settings)
    note = _cohort_note(selected, corpus)
    facts = {
        "note": note,
        "phrasings": _phrasing_note(selected),
        "weights": weights,
        "corpus": corpus.digest,
        "cases": digest(cases),
        "patients": len({record.patient_id for records in selected.values() for record in records}),
        "seed": seed,
        "settings": settings.model_dump_json(),
    }
    groups = _subgroup_rows(results, corpus)
    viewer = build_viewer(answers, corpus, selected)
    (folder / PAGE).write_text(render_page(results, facts, groups, viewer))
    write_json(folder / CASES, cases)
    write_json(folder / COHORT, cohort_digests(corpus))
    for result in results.values():
        if result.calibration is not None:
            result.calibration.write(folder)
        if result.volume_calibration is not None:
            result.volume_calibration.write(folder, VOLUME_CALIBRATION)
    answers.volumetry.write(folder)
    write_kind_weights(folder, answers.known.kind_weights)
    Scope.from_corpus(corpus).write(folder)
    if answers.familiar is not None:
        answers.familiar.write(folder)
    rows = [asdict(row) for result in results.values() for row in result.rows]
    _write_table(folder / ROWS, rows)
    sweep = [asdict(row) for result in results.values() for row in result.sweep]
    tables = {"rows": rows, "sweep": sweep, "subgroups": [asdict(row) for row in groups]}
    write_json(folder / RESULTS, {**tables, "note": note, "weights": weights, "corpus": corpus.digest, "cases": digest(cases)})


def _add_volumes(
    results: Mapping[str, TaskResult], answers: AnswerGenerator, corpus: Corpus, settings: EvaluationSettings
) -> list[str]:
    """Add the rows of whole volumes to the results of their tasks, and return the ids of the volumes."""
    from components.evaluation.volume_cases import VolumeCases

    fitted = [result.calibration for result in results.values() if result.calibration is not None]
    cases = VolumeCases.load(corpus, answers, settings, fitted[0] if fitted else Calibration())
    for task, result in results.items():
        if cases.test[task]:
            result.rows += TASKS[task].score_volumes(cases, corpus, result)
    return cases.volumes


def _cohort_note(selected: Selected, corpus: Corpus) -> str:
    """Return a sentence on the kind of test patients that the results rest on."""
    if all(corpus.volumes[record.volume_id].synthetic for records in selected.values() for record in records):
        return "All test patients are synthetic: the results show that the pipeline works, and nothing about real patients."
    return "Part of the test patients are real scans; see the dataset cards for their rights."


def _phrasing_note(selected: Selected) -> str:
    """Return the number of questions with a held-out phrasing, in words."""
    held_out = sum(record.held_out_phrasing for records in selected.values() for record in records)
    return f"{held_out} of {sum(map(len, selected.values()))} questions have held-out phrasings"


def _subgroup_rows(results: Mapping[str, TaskResult], corpus: Corpus) -> list[SubgroupRow]:
    """Return one metric of every task by subgroups."""
    from components.evaluation.subgroups import score_subgroups

    return [row for task, result in results.items() if (units := result.units) for row in score_subgroups(task, units, corpus)]


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows as Parquet; baselines are JSON because their names differ between tasks."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([{**row, "baselines": json.dumps(row["baselines"])} for row in rows]), path)
