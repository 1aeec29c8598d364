"""An evaluation of an untrained model: test patients only, baselines, verdicts, page; stored once."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.curation.corpus import Corpus
from components.errors import BadInput
from components.evaluation import EvaluationReport, ResultRow, evaluate
from components.evaluation.baselines import (
    TotalVariation,
    build_atlas,
    count_reports,
    median_box,
    total_variation,
)
from components.evaluation.case_selection import select_cases
from components.evaluation.evaluate import CODE
from components.evaluation.metrics import psnr
from components.evaluation.model_answers import AnswerGenerator
from components.evaluation.report_page import NIIVUE
from components.files import read_json
from components.provenance import digest
from components.registries import TASKS
from components.settings import EvaluationSettings
from tests.helpers.corpora import tiny_corpus
from tests.helpers.trained import tiny_model

SETTINGS = EvaluationSettings(
    cases_per_task=4, sampler_steps=2, samples=1, max_new_tokens=8, accelerations=(2, 8), sweep_cases=1, volumes=4
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def model(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"), corpus)


@pytest.fixture(scope="module")
def report(corpus: Corpus, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EvaluationReport]:
    yield evaluate(model, corpus.root, SETTINGS, tmp_path_factory.mktemp("out"), seed=0)


def test_every_task_has_rows_with_baselines(report: EvaluationReport) -> None:
    assert {row.task for row in report.rows} == set(TASKS)
    assert all(row.baselines and row.cases and row.patients for row in report.rows)


def test_whole_volumes_stand_beside_the_same_volumes_slice_by_slice(report: EvaluationReport, corpus: Corpus) -> None:
    rows = {(row.task, row.metric): row for row in report.rows if row.metric.endswith("whole volumes")}
    assert {metric for task, metric in rows if task == "detection"} == {
        "3-D F1 at IoU 0.3, whole volumes",
        "3-D F1 at IoU 0.5, whole volumes",
        "FROC sensitivity at 1 false box, whole volumes",
    }
    assert {task for task, _ in rows} == {"segmentation", "detection", "diagnosis", "report"}
    assert all("slice by slice" in row.baselines and len(row.baselines) > 1 for row in rows.values())
    volumes = read_json(report.folder / "cases.json")["whole volumes"]
    assert len(volumes) == SETTINGS.volumes and {corpus.volumes[one].split for one in volumes} == {"test"}
    assert {corpus.volumes[one].lesion for one in volumes} == {True, False}
    assert (report.folder / "volume_calibration.json") in report.registered_files


def test_the_page_states_where_the_model_is_worse_and_the_kind_of_patients(report: EvaluationReport) -> None:
    page = report.report.read_text()
    assert "All test patients are synthetic" in page and "Worse than a baseline" in page
    worse = [row for row in report.rows if row.verdict == "worse"]
    assert len(re.findall(r'class="worse"', page)) == len(worse)
    assert "default-src 'none'" in page and "http" not in page.replace(NIIVUE.read_text(), "").replace("http-equiv", "")


def test_the_page_shows_examples_plots_and_the_worst_cases_first(report: EvaluationReport) -> None:
    page = report.report.read_text()
    assert {f'alt="examples of {task}"' in page for task in ("reconstruction", "segmentation")} == {True}
    assert 'alt="worst cases of segmentation"' in page and page.count("<h3>Worst cases</h3>") >= 4
    assert all(caption in page for caption in ("other masks and accelerations", "the line is the median", "<h2>Subgroups</h2>"))
    assert page.count('"base64":') == 3  # image, truth and model of the viewer


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser: apt-get install chromium")
def test_a_browser_opens_the_page_and_shows_the_volume(report: EvaluationReport, tmp_path: Path) -> None:
    """The page's policy forbids every request, so the file contains everything that it shows."""
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=20000",
        "--dump-dom",
        report.report.as_uri(),
    ]
    process = subprocess.run(command, capture_output=True, text=True, timeout=1000)
    [attributes] = re.findall(r'<div id="viewer" ([^>]*)>', process.stdout)
    assert 'data-state="ready"' in attributes and 'data-volumes="3"' in attributes
    assert not re.search(r"Uncaught|Content Security Policy", process.stderr)


def test_the_sweep_has_every_mask_at_every_acceleration(report: EvaluationReport) -> None:
    combinations = {(row.mask, row.acceleration) for row in report.sweep}
    assert combinations == {(kind, acceleration) for kind in SETTINGS.masks for acceleration in SETTINGS.accelerations}
    zero_filled = {(row.mask, row.acceleration): row.values["NMSE"]["zero-filled"] for row in report.sweep}
    assert all(zero_filled[kind, 2] < zero_filled[kind, 8] for kind in SETTINGS.masks)


def test_subgroups_add_up_to_all_cases(report: EvaluationReport) -> None:
    whole = {(row.task, row.metric): row.cases for row in report.rows}
    by_factor: dict[tuple[str, str, str], int] = {}
    for row in report.subgroups:
        key = row.task, row.metric, row.factor
        by_factor[key] = by_factor.get(key, 0) + row.cases
    assert {factor for _, _, factor in by_factor} >= {"sequence"}
    for (task, metric, _), cases in by_factor.items():
        if task in ("detection", "diagnosis", "report"):
            assert cases == whole[task, metric]


def test_subgroups_show_the_baselines_on_the_same_cases(report: EvaluationReport) -> None:
    """A factor's groups, weighted by their cases, give the mean over all cases, of the model and of the baseline."""
    (whole,) = [row for row in report.rows if (row.task, row.metric) == ("segmentation", "Dice, all structures")]
    groups = [row for row in report.subgroups if (row.task, row.factor) == ("segmentation", "sequence")]
    cases = sum(row.cases for row in groups)
    assert np.isclose(sum(row.value * row.cases for row in groups) / cases, whole.model)
    assert np.isclose(sum(row.baselines["atlas"] * row.cases for row in groups) / cases, whole.baselines["atlas"])


def test_the_cohort_file_contains_no_pseudonym(report: EvaluationReport, corpus: Corpus) -> None:
    text = (report.folder / "cohort.json").read_text()
    assert not any(patient in text for patient in corpus.splits)
    digests = {patient for splits in json.loads(text).values() for patients in splits.values() for patient in patients}
    assert len(digests) == len(corpus.splits)


def test_the_same_inputs_are_evaluated_once(report: EvaluationReport, corpus: Corpus, model: Path) -> None:
    again = evaluate(model, corpus.root, SETTINGS, report.folder.parent, seed=0)
    assert again.reused and not report.reused and again == report
    assert again.cases == digest(read_json(report.folder / "cases.json"))


def test_all_cases_are_of_test_patients(corpus: Corpus) -> None:
    for records in select_cases(corpus, 6, seed=0).values():
        assert records and all(corpus.splits[record.patient_id] == "test" for record in records)
        assert len({record.sample_id for record in records}) == len(records)


def test_baselines_use_training_patients_only(corpus: Corpus) -> None:
    """Without the training split there are no baselines, whatever the test split contains."""
    assert build_atlas(corpus).means and count_reports(corpus, "report").overall and median_box(corpus)
    without = Corpus(corpus.root, corpus.summary)
    without.__dict__["instructions"] = [record for record in corpus.instructions if record.split != "train"]
    without.__dict__["volumes"] = {k: v for k, v in corpus.volumes.items() if v.split != "train"}
    assert not build_atlas(without).means and not count_reports(without, "report").overall and median_box(without) is None


def test_total_variation_beats_zero_filling(corpus: Corpus) -> None:
    record = next(record for record in corpus.instructions if record.task == "reconstruction")
    image, target = TASKS["reconstruction"].input_and_target(record, corpus.store)
    baseline = TotalVariation.fit(corpus)
    assert set(baseline.weights) == {one.acceleration for one in corpus.instructions if one.task == "reconstruction"}
    for acceleration in (record.acceleration, 8):
        reconstructed = baseline.reconstruct(target, acceleration)
        assert ((reconstructed - target.image) ** 2).mean() < ((image - target.image) ** 2).mean()


def test_total_variation_is_solved_as_by_thousands_of_iterations_of_another_solver(corpus: Corpus) -> None:
    """A baseline that has not converged is too easy: with 600 iterations, the best weight was too large and PSNR 1 dB too low."""
    import sigpy.mri

    record = next(record for record in corpus.instructions if record.task == "reconstruction")
    target = TASKS["reconstruction"].input_and_target(record, corpus.store)[1]
    maps, scale = np.ones((1, *target.sampling.shape), np.complex64), float(np.abs(target.kspace).max())
    weights = target.sampling[None].astype(np.float32)
    by_iterations = [
        scale
        * np.abs(
            sigpy.mri.app.TotalVariationRecon(
                target.kspace.reshape(maps.shape) / scale, maps, 0.001, weights=weights, max_iter=iterations, show_pbar=False
            ).run()
        )
        for iterations in (300, 3000)
    ]
    image, range_ = total_variation(target, 0.001), float(target.image.max())
    early, late = (psnr(image[None], other[None], range_) for other in by_iterations)
    assert late > 35 and late > early + 10


def test_the_page_lists_values_behind_a_baseline_without_a_verdict(report: EvaluationReport) -> None:
    page = report.report.read_text()
    behind = [row for row in report.rows if row.behind and row.verdict != "worse"]
    assert behind and all(f"<li>{row.task}, {row.metric}: {row.model:.3f} ({row.verdict})</li>" in page for row in behind)


def test_a_row_can_be_behind_its_best_baseline() -> None:
    row = ResultRow("report", "BLEU", True, 0.5, {"a": 0.4, "b": 0.6}, "no difference", 2, 2)
    assert row.behind and not replace(row, higher_is_better=False, model=0.3).behind and not replace(row, model=0.7).behind


def test_the_rows_are_stored_as_parquet(report: EvaluationReport) -> None:
    table = pq.read_table(report.folder / "rows.parquet").to_pylist()
    assert [(row["task"], row["metric"], row["model"]) for row in table] == [(r.task, r.metric, r.model) for r in report.rows]
    assert json.loads(table[0]["baselines"]) == report.rows[0].baselines


@pytest.mark.parametrize("package", ["components/curation", "components/tasks", "components/training", "model_core"])
def test_code_that_prepares_the_input_decides_the_evaluation(package: str) -> None:
    """Undersampling and reading of cases are outside of the evaluation package."""
    assert package in CODE


def test_the_baseline_report_depends_on_the_sequence(corpus: Corpus) -> None:
    reports = count_reports(corpus, "report")
    for sequence in ("T1-weighted", "T2-weighted"):
        volume = next(v for v in corpus.volumes.values() if v.sequence == sequence and v.split == "test")
        assert f"Sequence: {sequence}." in reports.for_volume(volume)
        assert reports.for_volume(volume.model_copy(update={"sequence": "FLAIR"})) == reports.overall


def test_the_atlas_predicts_rare_structures(corpus: Corpus) -> None:
    """No pixel is lesion in half of the slices; the threshold with the best training Dice is therefore lower."""
    atlas = build_atlas(corpus)
    assert atlas.thresholds["lesion"] < atlas.thresholds["white matter"]
    records = [r for r in corpus.instructions if r.split == "train" and r.structure == "lesion"]
    assert any(atlas.mask(record, corpus.volumes[record.volume_id]).any() for record in records)


def test_a_folder_without_a_model_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"config\.json"):
        evaluate(tmp_path, corpus.root, SETTINGS, tmp_path, seed=0)


def test_what_decides_an_answer_is_registered_with_the_model(report: EvaluationReport) -> None:
    decides = {"calibration.json", "volumetry.json", "kind_weights.json"}
    decides |= {"scope.json", "familiarity.json", "familiarity.npz"}
    assert {path.name for path in report.registered_files} >= decides
    familiarity = json.loads((report.folder / "familiarity.json").read_text())
    assert familiarity["validation_images"] and familiarity["test_images"] >= familiarity["test_alarms"]


def test_the_slices_of_a_volume_are_asked_for_the_structures_of_one_anatomy(model: Path) -> None:
    """Some slices tell their anatomy and others do not; the maps of a volume have one set of structures."""
    answers = AnswerGenerator.load(model, SETTINGS, 0)
    tells = {"agree": ("brain", None, "brain"), "differ": ("knee", "brain", None), "tell nothing": (None, None), "one": ("knee",)}
    cases = [
        SimpleNamespace(image=np.zeros((32, 32), np.float32), record=SimpleNamespace(volume_id=volume_id))
        for volume_id, slices in tells.items()
        for _ in slices
    ]
    each = iter([anatomy for slices in tells.values() for anatomy in slices])
    answers.familiar = cast(Any, SimpleNamespace(anatomies=("brain", "knee"), anatomy=lambda features: next(each)))
    assert answers._recognized_anatomies(cast(Any, cases)) == {"agree": "brain", "one": "knee"}
