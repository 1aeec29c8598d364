"""A good corpus passes; each fault is refused with its table, column and rows."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from components.curation.corpus import Corpus
from components.errors import GateRefused
from components.validation import validate
from components.validation.frames import frames
from components.validation.gate import _run
from components.validation.suites import IDENTIFYING
from tests.corpora import tiny_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


def test_a_good_corpus_passes_and_is_not_validated_twice(corpus: Corpus, tmp_path: Path) -> None:
    first = validate(corpus.root, tmp_path)
    first.require()
    assert {one.table: one.rows for one in first.tables}["volumes"] == len(corpus.volumes)
    assert first.data_docs.is_file() and "volumes" in first.data_docs.read_text()
    again = validate(corpus.root, tmp_path)
    assert again.reused and not first.reused and again == first


def _set(table: str, column: str, value: Any) -> Callable[[dict[str, pd.DataFrame]], None]:
    def corrupt(tables: dict[str, pd.DataFrame]) -> None:
        frame = tables[table]
        frame[column] = [value, *frame[column][1:]]

    return corrupt


def _repeat(table: str, column: str) -> Callable[[dict[str, pd.DataFrame]], None]:
    def corrupt(tables: dict[str, pd.DataFrame]) -> None:
        frame = tables[table]
        frame[column] = [frame[column][1], *frame[column][1:]]

    return corrupt


FAULTS = {
    "echo time in seconds": ("volumes", "echo_time_ms", 0.09),
    "field strength in gauss": ("volumes", "field_strength_t", 15000.0),
    "constant volume": ("volumes", "voxel_deviation", 0.0),
    "voxels that are no numbers": ("volumes", "finite", False),
    "a label that the card does not know": ("volumes", "unknown_label_values", 1),
    "mask of another shape": ("volumes", "shape_in_store", False),
    "a name for a pseudonym": ("volumes", "patient_id", "Doe^Jane"),
    "a birth date in a report": ("instructions", "response", "Patient born 03.02.1970. No lesion."),
    "a box outside of the image": ("instructions", "boxes_inside", False),
    "an empty response": ("instructions", "response", ""),
    "an instruction about no volume": ("instructions", "volume_known", False),
    "a phrasing kept for evaluation in training": ("instructions", "held_out_but_trained", True),
    "a number in a description": ("descriptions", "text", "Seen in study 12345678."),
    "a name in a header": ("volumes", "header_texts", "Skyra of Doe^Jane"),
    "a repetition time that is no number": ("volumes", "header_numbers_finite", False),
    "a real scan of a synthetic dataset": ("volumes", "synthetic_as_card", False),
    "a structure that the card calls otherwise": ("instructions", "structure_as_card", False),
}


def test_every_fault_is_refused_where_it_is(corpus: Corpus, tmp_path: Path) -> None:
    """All faults at once, so that Great Expectations runs once."""
    tables = frames(corpus)
    wanted = {(table, column) for table, column, _ in FAULTS.values()}
    for table, column, value in FAULTS.values():
        _set(table, column, value)(tables)
    _repeat("volumes", "content_md5")(tables)
    tables["volumes"]["split_of_patient"] = ["test" if s == "train" else "train" for s in tables["volumes"]["split"]]
    report = _run(corpus.digest, tables, tmp_path)
    found = {(failure.table, failure.column) for one in report.tables for failure in one.failures}
    assert found == wanted | {("volumes", "content_md5"), ("volumes", "split")}
    with pytest.raises(GateRefused, match=r"volumes\.echo_time_ms: .* fails in 1 rows, e\.g\. [0-9a-f]{32}"):
        report.require()
    assert "Doe^Jane" not in str(report.tables) and "1970" not in str(report.tables)


@pytest.mark.parametrize(
    "text", ["born 03.02.1970", "born 3 Feb 1970", "1970-02-03", "19700203", "MRN 0012345678", "Doe^Jane", "a@b.org"]
)
def test_identifying_text_is_recognised(text: str) -> None:
    assert re.search(IDENTIFYING, text)


@pytest.mark.parametrize(
    "text", ["lesion(012,034,256,300)", "18 mm, left", "1.4 of white matter", "4x acceleration", "T2*-weighted"]
)
def test_ordinary_text_is_not(text: str) -> None:
    assert not re.search(IDENTIFYING, text)


def test_an_empty_table_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    tables = frames(corpus)
    tables["instructions"] = tables["instructions"].iloc[:0]
    found = {(f.table, f.column) for one in _run(corpus.digest, tables, tmp_path).tables for f in one.failures}
    assert found == {("instructions", "")}
