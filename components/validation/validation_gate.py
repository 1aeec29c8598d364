"""Running the rules in a Great Expectations project, and the gate.

The project (``.omnimri/gx``) keeps suites, validation results and the Data Docs. A corpus that was validated by the same code is
not validated again: its report is read from ``report.json`` there, without loading Great Expectations. ``accepted.json`` holds the
profile of the last version of the data that passed; drift is measured against it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.curation.corpus import QUARANTINE, Corpus
from components.errors import BadInput, GateRefused, JobFailed
from components.files import read_json, write_json
from components.provenance import code_digest, digest

if TYPE_CHECKING:
    import pandas as pd

REPORT, ACCEPTED = "report.json", "accepted.json"
SHOWN_ROWS = 3
KEYS = {
    "volumes": "volume_id",
    "descriptions": "volume_id",
    "instructions": "sample_id",
    "splits": "patient_id",
    "cards": "dataset_id",
    "drift": "dataset_id",
}


@dataclass(frozen=True)
class Failure:
    """One rule that a table does not meet. Row ids are digests and pseudonyms; values are not repeated.

    ``column`` is empty where the rule is about the table as a whole.
    """

    table: str
    rule: str
    statement: str
    column: str
    rows: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        shown = f", e.g. {', '.join(self.examples)}" if self.examples else ""
        return f"{self.table}.{self.rule} fails in {self.rows} rows{shown}: {self.statement}"


@dataclass(frozen=True)
class TableResult:
    """One table against its rules: what is refused, and what is within its tolerance and left out."""

    table: str
    rows: int
    expectations: int
    failures: tuple[Failure, ...] = ()
    left_out: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class ValidationReport:
    """A whole corpus against its suites.

    Attributes:
        data_docs: index page of the Data Docs.
        quarantined: table -> rows that are left out of the corpus (``quarantine.json`` names them and the rules).
        compared_with: digest of the accepted version that drift was measured against; "" for the first.
        reused: the corpus had been validated already.
    """

    corpus_digest: str
    passed: bool
    tables: tuple[TableResult, ...]
    data_docs: Path
    quarantined: dict[str, int] = field(default_factory=dict)
    compared_with: str = ""
    reused: bool = field(default=False, compare=False)

    def require(self) -> None:
        """Stop here unless everything holds.

        Raises:
            GateRefused: naming table, column, expectation and rows.
        """
        if not self.passed:
            failures = [failure for table in self.tables for failure in table.failures]
            raise GateRefused(
                "; ".join(str(failure) for failure in failures),
                where="validation",
                remedy=f"see {self.data_docs}; mend or leave out the sources, then curate again",
            )


def validate(corpus_root: Path, project: Path, accept_drift: str | None = None) -> ValidationReport:
    """Hold the corpus against the rules, writing results and Data Docs to the project folder and the quarantine to the corpus.

    Args:
        accept_drift: why this version may differ from the last accepted one; recorded, and drift is not checked.

    Raises:
        BadInput: nothing has been curated, or the reason is empty.
        JobFailed: an expectation could not be evaluated (a fault of ours, never taken for a pass).
    """
    if accept_drift is not None and not accept_drift.strip():
        raise BadInput("no reason given", where="--accept-drift", remedy="say why the data may have changed")
    corpus = Corpus.open(corpus_root, whole=True)
    accepted = read_json(project / ACCEPTED) if (project / ACCEPTED).exists() else None
    identity = digest(corpus.tables_digest, code_digest("components/validation", "components/curation"))
    if accept_drift is None and (project / REPORT).exists() and (stored := read_json(project / REPORT))["identity"] == identity:
        report = _stored_report(stored)
        if report.data_docs.is_file() and (report.passed or not accepted or report.compared_with == accepted["digest"]):
            return report
    from components.validation.dataframes import frames
    from components.validation.drift import drift, profile

    tables, now = frames(corpus), profile(corpus)
    before = accepted if accepted and accepted["digest"] != corpus.tables_digest and accept_drift is None else None
    if before:
        tables["drift"] = drift(before["profile"], now)
    report, quarantine = _run(corpus.tables_digest, tables, project, before["digest"] if before else "")
    write_json(corpus_root / QUARANTINE, {"digest": corpus.tables_digest, **quarantine})
    if report.passed:
        write_json(project / ACCEPTED, {"digest": corpus.tables_digest, "profile": now, "reason": accept_drift or ""})
    write_json(project / REPORT, {"identity": identity, **asdict(report)})
    return report


def _stored_report(stored: dict[str, Any]) -> ValidationReport:
    def failures(found: list[dict[str, Any]]) -> tuple[Failure, ...]:
        return tuple(Failure(**{**failure, "examples": tuple(failure["examples"])}) for failure in found)

    tables = tuple(
        TableResult(one["table"], one["rows"], one["expectations"], failures(one["failures"]), failures(one["left_out"]))
        for one in stored["tables"]
    )
    return ValidationReport(
        stored["corpus_digest"],
        stored["passed"],
        tables,
        Path(stored["data_docs"]),
        stored["quarantined"],
        stored["compared_with"],
        reused=True,
    )


def _run(
    corpus_digest: str, tables: Mapping[str, pd.DataFrame], project: Path, compared_with: str = ""
) -> tuple[ValidationReport, dict[str, dict[str, list[str]]]]:
    """The report, and the quarantine: table -> row -> rules that it breaks."""
    os.environ["GX_ANALYTICS_ENABLED"] = "False"
    import great_expectations as gx
    from great_expectations.checkpoint import UpdateDataDocsAction
    from great_expectations.data_context.types.base import ProgressBarsConfig

    from components.validation.rules import rules

    project.mkdir(parents=True, exist_ok=True)
    context = gx.get_context(mode="file", project_root_dir=str(project))
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_or_update_pandas("curated")
    checked: list[TableResult] = []
    quarantine: dict[str, dict[str, list[str]]] = {"volumes": {}, "instructions": {}}
    definitions = []
    for name, found in rules().items():
        if name not in tables:
            continue
        expectations = [rule.expectation() for rule in (found[:1] if tables[name].empty else found)]
        suite = context.suites.add_or_update(gx.ExpectationSuite(name=name, expectations=expectations))
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("whole")
        definition = gx.ValidationDefinition(name=name, data=batch, suite=suite)
        definitions.append(context.validation_definitions.add_or_update(definition))
    for definition in definitions:
        name = definition.name
        checkpoint = context.checkpoints.add_or_update(
            gx.Checkpoint(
                name=name,
                validation_definitions=[definition],
                actions=[UpdateDataDocsAction(name="docs")],
                result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [KEYS[name]]},
            )
        )
        run = checkpoint.run(batch_parameters={"dataframe": tables[name]})
        result, rows = _table_result(name, len(tables[name]), next(iter(run.run_results.values())))
        checked.append(result)
        for key, broken in rows.items():
            place = quarantine.get({"descriptions": "volumes"}.get(name, name))
            if place is not None:
                place.setdefault(key, []).extend(f"{name}.{rule}" for rule in broken)
    pages = context.get_docs_sites_urls()
    docs = Path(str(pages[0]["site_url"]).removeprefix("file://"))
    passed = not any(one.failures for one in checked)
    counts = {name: len(rows) for name, rows in quarantine.items() if rows}
    return ValidationReport(corpus_digest, passed, tuple(checked), docs, counts, compared_with), quarantine


def _table_result(name: str, rows: int, result: Any) -> tuple[TableResult, dict[str, list[str]]]:
    """The result of one table, and the rows that break rules: row -> rules."""
    failures: list[Failure] = []
    left_out: list[Failure] = []
    broken: dict[str, list[str]] = defaultdict(list)
    for one in result.results:
        if one.exception_info and _raised(one.exception_info):
            raise JobFailed(
                f"{one.expectation_config.type} could not be evaluated", where=name, remedy="report this with the Data Docs"
            )
        found, config = one.result or {}, one.expectation_config
        column = config.kwargs.get("column") or config.kwargs.get("column_A")
        keys = [str(row[KEYS[name]]) for row in found.get("unexpected_index_list") or []]
        if one.success and not keys:
            continue
        count = int(found.get("unexpected_count") or 0) if column else rows
        rule = config.meta["name"]
        fault = Failure(name, rule, str(config.description), str(column or ""), count, tuple(keys[:SHOWN_ROWS]))
        (left_out if one.success else failures).append(fault)
        for key in keys:
            broken[key].append(rule)
    return TableResult(name, rows, len(result.results), tuple(failures), tuple(left_out)), dict(broken)


def _raised(info: dict[str, Any]) -> bool:
    """Great Expectations nests this by metric where there are several."""
    nested = [value for value in info.values() if isinstance(value, dict)]
    return bool(info.get("raised_exception")) or any(one.get("raised_exception") for one in nested)
