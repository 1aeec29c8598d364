"""Running the suites in a Great Expectations project, and the gate.

The project (``.omnimri/gx``) keeps suites, validation results and the Data Docs. A corpus that was validated by the same code is
not validated again: its report is read from ``report.json`` there, without loading Great Expectations.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.curation.corpus import Corpus
from components.errors import GateRefused, JobFailed
from components.files import read_json, write_json
from components.provenance import code_digest, digest

if TYPE_CHECKING:
    import pandas as pd

REPORT = "report.json"
SHOWN_ROWS = 3
KEYS = {"volumes": "volume_id", "descriptions": "volume_id", "instructions": "sample_id", "splits": "patient_id"}


@dataclass(frozen=True)
class Failure:
    """One expectation that a table does not meet. Row ids are digests and pseudonyms; values are not repeated.

    ``column`` is empty where the expectation is about the table as a whole.
    """

    table: str
    expectation: str
    column: str
    rows: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        shown = f", e.g. {', '.join(self.examples)}" if self.examples else ""
        if not self.column:
            return f"{self.table}: {self.expectation} fails with {self.rows} rows"
        return f"{self.table}.{self.column}: {self.expectation} fails in {self.rows} rows{shown}"


@dataclass(frozen=True)
class TableResult:
    """One table against its suite."""

    table: str
    rows: int
    expectations: int
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class ValidationReport:
    """A whole corpus against its suites.

    Attributes:
        data_docs: index page of the Data Docs.
        reused: the corpus had been validated already.
    """

    corpus_digest: str
    passed: bool
    tables: tuple[TableResult, ...]
    data_docs: Path
    reused: bool = field(default=False, compare=False)

    def require(self) -> None:
        """Stop here unless everything holds.

        Raises:
            GateRefused: naming table, column, expectation and rows.
        """
        if not self.passed:
            failures = [failure for table in self.tables for failure in table.failures]
            raise GateRefused(
                "; ".join(str(failure) for failure in failures), where="validation",
                remedy=f"see {self.data_docs}; mend or leave out the sources, then curate again",
            )  # fmt: skip


def validate(corpus_root: Path, project: Path) -> ValidationReport:
    """Hold the corpus against the suites, writing results and Data Docs to the project folder.

    Raises:
        BadInput: nothing has been curated.
        JobFailed: an expectation could not be evaluated (a fault of ours, never taken for a pass).
    """
    corpus = Corpus.open(corpus_root)
    identity = digest(corpus.digest, code_digest("components/validation"))
    if (project / REPORT).exists() and (stored := read_json(project / REPORT))["identity"] == identity:
        report = _stored_report(stored)
        if report.data_docs.is_file():
            return report
    from components.validation.frames import frames

    report = _run(corpus.digest, frames(corpus), project)
    write_json(project / REPORT, {"identity": identity, **asdict(report)})
    return report


def _stored_report(stored: dict[str, Any]) -> ValidationReport:
    tables = tuple(
        TableResult(one["table"], one["rows"], one["expectations"],
                    tuple(Failure(**{**failure, "examples": tuple(failure["examples"])}) for failure in one["failures"]))
        for one in stored["tables"]
    )  # fmt: skip
    return ValidationReport(stored["corpus_digest"], stored["passed"], tables, Path(stored["data_docs"]), reused=True)


def _run(corpus_digest: str, tables: dict[str, pd.DataFrame], project: Path) -> ValidationReport:
    os.environ["GX_ANALYTICS_ENABLED"] = "False"
    import great_expectations as gx
    from great_expectations.checkpoint import UpdateDataDocsAction
    from great_expectations.data_context.types.base import ProgressBarsConfig

    from components.validation.suites import suites

    project.mkdir(parents=True, exist_ok=True)
    context = gx.get_context(mode="file", project_root_dir=str(project))
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_or_update_pandas("curated")
    definitions, parameters = [], {}
    for name, expectations in suites().items():
        if tables[name].empty:  # no row: no column either, of which anything could be said
            expectations = expectations[:1]
        suite = context.suites.add_or_update(gx.ExpectationSuite(name=name, expectations=expectations))
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("whole")
        definition = gx.ValidationDefinition(name=name, data=batch, suite=suite)
        definitions.append(context.validation_definitions.add_or_update(definition))
        parameters[name] = {"dataframe": tables[name]}
    results = {}
    for definition in definitions:
        checkpoint = context.checkpoints.add_or_update(
            gx.Checkpoint(
                name=definition.name, validation_definitions=[definition], actions=[UpdateDataDocsAction(name="docs")],
                result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [KEYS[definition.name]]},
            )
        )  # fmt: skip
        run = checkpoint.run(batch_parameters=parameters[definition.name])
        results[definition.name] = next(iter(run.run_results.values()))
    checked = tuple(_table_result(name, len(tables[name]), result) for name, result in results.items())
    pages = context.get_docs_sites_urls()
    docs = Path(str(pages[0]["site_url"]).removeprefix("file://"))
    return ValidationReport(corpus_digest, not any(one.failures for one in checked), checked, docs)


def _table_result(name: str, rows: int, result: Any) -> TableResult:
    failures = []
    for one in result.results:
        if one.exception_info and _raised(one.exception_info):
            raise JobFailed(
                f"{one.expectation_config.type} could not be evaluated", where=name, remedy="report this with the Data Docs"
            )  # fmt: skip
        if not one.success:
            config = one.expectation_config
            column = config.kwargs.get("column") or config.kwargs.get("column_A")
            found = one.result or {}
            examples = [str(row[KEYS[name]]) for row in (found.get("unexpected_index_list") or [])[:SHOWN_ROWS]]
            count = int(found.get("unexpected_count") or 0) if column else rows
            failures.append(Failure(name, config.type, str(column or ""), count, tuple(examples)))
    return TableResult(name, rows, len(result.results), tuple(failures))


def _raised(info: dict[str, Any]) -> bool:
    """Great Expectations nests this by metric where there are several."""
    nested = [value for value in info.values() if isinstance(value, dict)]
    return bool(info.get("raised_exception")) or any(one.get("raised_exception") for one in nested)
