"""One evaluation: frozen cases, predictions, baselines, rows, page. Made once for the same weights, corpus, settings and code."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.curation.corpus import Corpus
from components.errors import BadInput
from components.evaluation.cohort import cohort_of
from components.evaluation.results import COHORT, EvaluationReport, ResultRow, SubgroupRow, SweepRow
from components.files import atomic_directory, read_json, write_json
from components.provenance import SHORT, code_digest, digest, file_md5
from components.settings import EvaluationSettings

RESULTS, ROWS, CASES, PAGE = "results.json", "rows.parquet", "cases.json", "report.html"
CODE = ("components/evaluation", "components/curation", "components/training", "model_core", "kernels")
"""What decides a number: curation holds undersampling and the template, training how a case is read."""


def weights_digest(model_dir: Path) -> str:
    """Digest of a saved model: weights, configuration, tokenizer.

    Raises:
        BadInput: not a folder that ``save_pretrained`` wrote.
    """
    if not (model_dir / "config.json").is_file() or not list(model_dir.glob("*.safetensors")):
        raise BadInput("no saved model", where=str(model_dir), remedy="name a folder with config.json and model.safetensors")
    return digest([(path.name, file_md5(path)) for path in sorted(model_dir.iterdir()) if path.is_file()])


def evaluate(model_dir: Path, corpus_root: Path, settings: EvaluationSettings, out: Path, seed: int) -> EvaluationReport:
    """Evaluate a saved model on the test patients of a corpus.

    Raises:
        BadInput: no model or corpus there, or no test patients.
    """
    corpus = Corpus.open(corpus_root)
    weights = weights_digest(model_dir)
    identity = digest(weights, corpus.digest, settings, seed, code_digest(*CODE))
    folder = out / identity[:SHORT]
    reused = (folder / RESULTS).exists()
    if not reused:
        with atomic_directory(folder) as temporary:
            _evaluate(model_dir, weights, corpus, settings, seed, temporary)
    results = read_json(folder / RESULTS)
    rows = tuple(ResultRow(**{**row, "interval": row["interval"] and tuple(row["interval"])}) for row in results["rows"])
    sweep = tuple(SweepRow(**row) for row in results["sweep"])
    groups = tuple(SubgroupRow(**row) for row in results["subgroups"])
    return EvaluationReport(identity, folder, folder / PAGE, rows, results["cases"], results["note"], sweep, groups, reused)


def _evaluate(model_dir: Path, weights: str, corpus: Corpus, settings: EvaluationSettings, seed: int, folder: Path) -> None:
    from components.evaluation.answers import Answerer, load_cases
    from components.evaluation.baselines import learn
    from components.evaluation.cases import choose
    from components.evaluation.page import render
    from components.evaluation.subgroups import subgroups
    from components.evaluation.tasks import EVALUATE
    from components.evaluation.viewer import viewer
    from model_core import OmniMRIForConditionalGeneration
    from model_core.processing import Processor

    chosen = {task: records for task, records in choose(corpus, settings.cases_per_task, seed).items() if records}
    if not chosen:
        raise BadInput(
            "no held-out instructions", where=str(corpus.root), remedy="curate at least four patients with labels or k-space"
        )
    model = OmniMRIForConditionalGeneration.from_pretrained(model_dir)
    processor = Processor.from_pretrained(model_dir)
    answerer = Answerer(model, processor, settings, seed)
    learned = learn(corpus)
    results = {
        task: EVALUATE[task](load_cases(corpus, records), answerer, corpus, learned, settings) for task, records in chosen.items()
    }
    rows = [asdict(row) for result in results.values() for row in result.rows]
    sweep = [row for result in results.values() for row in result.sweep]
    groups = [
        row
        for task, result in results.items()
        if (unit := result.unit)
        for row in subgroups(task, unit.metric, unit.score, unit.volumes, corpus)
    ]
    cases = {task: [record.sample_id for record in records] for task, records in chosen.items()}
    patients = sorted({record.patient_id for records in chosen.values() for record in records})
    synthetic = all(corpus.volumes[record.volume_id].synthetic for records in chosen.values() for record in records)
    note = (
        "All test patients are synthetic: the numbers say that the machinery works, nothing about patients."
        if synthetic
        else ("Part of the test patients are real scans; see the dataset cards for their rights.")
    )
    unseen = sum(record.held_out_phrasing for records in chosen.values() for record in records)
    phrasings = f"{unseen} of {sum(map(len, chosen.values()))} questions in words that were never trained on"
    facts = {
        "note": note,
        "phrasings": phrasings,
        "weights": weights,
        "corpus": corpus.digest,
        "cases": digest(cases),
        "patients": len(patients),
        "seed": seed,
        "settings": settings.model_dump_json(),
    }
    (folder / PAGE).write_text(render(results, facts, groups, viewer(answerer, corpus, chosen.get("segmentation", []))))
    write_json(folder / CASES, cases)
    write_json(folder / COHORT, cohort_of(corpus))
    _write_table(folder / ROWS, rows)
    tables = {"rows": rows, "sweep": [asdict(row) for row in sweep], "subgroups": [asdict(row) for row in groups]}
    write_json(folder / RESULTS, {**tables, "note": note, "weights": weights, "corpus": corpus.digest, "cases": digest(cases)})


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows as Parquet, with the baselines in JSON: their names differ from task to task."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([{**row, "baselines": json.dumps(row["baselines"])} for row in rows]), path)
