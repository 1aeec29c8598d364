"""Evaluate the rules in a Great Expectations project, and stop a corpus that breaks them.

The project (``.omnimri/gx``) contains suites, validation results and the Data Docs. A corpus that the same code validated before is
not validated again: its report is read from ``report.json`` in the project, without loading Great Expectations. ``accepted.json``
contains the profile of the last version of the data that passed; drift is measured against it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.curation.corpus import QUARANTINE, SUMMARY, Corpus
from components.errors import BadInput, GateRefused, JobFailed
from components.files import read_json, write_json
from components.provenance import code_digest, digest

if TYPE_CHECKING:
    import pandas as pd

REPORT, ACCEPTED = "report.json", "accepted.json"
CODE = (
    *("components/validation", "components/curation", "components/tasks", "components/phi_patterns.py"),
    *("components/ingestion/body_parts.py", "components/ingestion/deidentification/allowlists.py"),
)
"""Sources that decide the result of a validation."""
MAX_EXAMPLES = 3
"""Row ids that a failure quotes."""
KEYS = {
    "volumes": "volume_id",
    "descriptions": "volume_id",
    "instructions": "sample_id",
    "volume_instructions": "sample_id",
    "splits": "patient_id",
    "cards": "dataset_id",
    "drift": "dataset_id",
}
"""Table -> column that identifies a row."""
QUARANTINED_WITH = {
    "volumes": "volumes",
    "descriptions": "volumes",
    "instructions": "instructions",
    "volume_instructions": "volume_instructions",
}
"""Table -> the table whose rows are quarantined for a fault in it; rows of other tables are never quarantined."""

Quarantine = dict[str, dict[str, list[str]]]
"""Table -> row id -> the rules that the row breaks, as ``table.rule``."""


@dataclass(frozen=True)
class ValidationInputs:
    """Digests of everything that decides the result of a validation, apart from the accepted version that drift is measured
    against.

    Attributes:
        corpus: digest of the curated tables, ``""`` if nothing has been curated.
        code: digest of the code of validation and curation.
    """

    corpus: str
    code: str

    def by_name(self) -> dict[str, str]:
        """Return each digest under the name of the input in plain words."""
        return {"corpus": self.corpus, "code of validation": self.code}

    @property
    def digest(self) -> str:
        """Digest of all inputs."""
        return digest(self.corpus, self.code)


def validation_inputs(corpus_root: Path) -> ValidationInputs:
    """Return the inputs that :func:`validate` would use now; only ``corpus.json`` is read."""
    corpus = Corpus.open(corpus_root, include_quarantined=True).tables_digest if (corpus_root / SUMMARY).exists() else ""
    return ValidationInputs(corpus, code_digest(*CODE))


@dataclass(frozen=True)
class Failure:
    """A rule that rows of a table break. Row ids are digests and pseudonyms; the values are not repeated.

    Attributes:
        table, rule, statement: of the rule.
        column: the checked column; empty for a rule about the table as a whole.
        rows: number of rows that break the rule.
        examples: ids of the first :data:`MAX_EXAMPLES` of these rows.
    """

    table: str
    rule: str
    statement: str
    column: str
    rows: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        examples = f", e.g. {', '.join(self.examples)}" if self.examples else ""
        return f"{self.table}.{self.rule} fails in {self.rows} rows{examples}: {self.statement}"


@dataclass(frozen=True)
class TableResult:
    """The result of one table.

    Attributes:
        table: its name.
        rows: number of rows.
        expectations: number of evaluated rules.
        failures: rules that are broken beyond their tolerance.
        left_out: rules that are broken within their tolerance; the rows are quarantined.
    """

    table: str
    rows: int
    expectations: int
    failures: tuple[Failure, ...] = ()
    left_out: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class ValidationReport:
    """The result of a whole corpus.

    Attributes:
        corpus_digest: digest of the validated tables.
        passed: no table has a failure.
        tables: results in the order of the tables.
        data_docs: index page of the Data Docs.
        quarantined: table -> number of quarantined rows (``quarantine.json`` lists them and the rules).
        compared_with: digest of the accepted version that drift was measured against; "" for the first.
        reused: the report is that of an earlier validation of the same corpus.
    """

    corpus_digest: str
    passed: bool
    tables: tuple[TableResult, ...]
    data_docs: Path
    quarantined: dict[str, int] = field(default_factory=dict)
    compared_with: str = ""
    reused: bool = field(default=False, compare=False)

    def require(self) -> None:
        """Raise an error unless the corpus passed.

        Raises:
            GateRefused: naming table, column, expectation and rows.
        """
        if not self.passed:
            failures = [failure for table in self.tables for failure in table.failures]
            raise GateRefused(
                "; ".join(str(failure) for failure in failures),
                where="validation",
                remedy=f"see {self.data_docs}; fix or remove the sources, then curate again",
            )


def validate(corpus_root: Path, project: Path, accept_drift: str | None = None) -> ValidationReport:
    """Check the corpus against the rules; write results and Data Docs to the project folder and the quarantine to the corpus.

    Args:
        corpus_root: folder of the corpus.
        project: folder of the Great Expectations project.
        accept_drift: reason why this version may differ from the last accepted one; it is recorded, and drift is not checked.

    Raises:
        BadInput: nothing has been curated, or the reason is empty.
        JobFailed: an expectation could not be evaluated (a bug, never counted as a pass).
    """
    if accept_drift is not None and not accept_drift.strip():
        raise BadInput("no reason given", where="--accept-drift", remedy="state why the data may have changed")
    corpus = Corpus.open(corpus_root, include_quarantined=True)
    identity = validation_inputs(corpus_root).digest
    accepted = _read_accepted(project)
    if accept_drift is None and (existing := _existing_report(project, identity, accepted)):
        return existing
    from components.validation.dataframes import build_dataframes
    from components.validation.drift import measure_drift, profile_corpus

    tables, profile = build_dataframes(corpus), profile_corpus(corpus)
    reference = accepted if accepted and accepted["digest"] != corpus.tables_digest and accept_drift is None else None
    if reference:
        tables["drift"] = measure_drift(reference["profile"], profile)
    report, quarantine = run_rules(corpus.tables_digest, tables, project, reference["digest"] if reference else "")
    write_json(corpus_root / QUARANTINE, {"digest": corpus.tables_digest, **quarantine})
    if report.passed:
        write_json(project / ACCEPTED, {"digest": corpus.tables_digest, "profile": profile, "reason": accept_drift or ""})
    page = os.path.relpath(report.data_docs, project)  # the project may be moved
    write_json(project / REPORT, {"identity": identity, **asdict(report), "data_docs": page})
    return report


def current_report(corpus_root: Path, project: Path) -> ValidationReport | None:
    """Return the report that :func:`validate` would reuse now; None if it would check the corpus."""
    return _existing_report(project, validation_inputs(corpus_root).digest, _read_accepted(project))


def _read_accepted(project: Path) -> dict[str, Any] | None:
    """Read the version that drift is measured against; None before the first accepted version."""
    return read_json(project / ACCEPTED) if (project / ACCEPTED).exists() else None


def _existing_report(project: Path, identity: str, accepted: dict[str, Any] | None) -> ValidationReport | None:
    """Return the stored report if it is about the same inputs and, where it failed, about the same accepted version."""
    if not (project / REPORT).exists():
        return None
    stored = read_json(project / REPORT)
    if stored["identity"] != identity:
        return None
    report = _parse_report(stored, project)
    current = report.passed or not accepted or report.compared_with == accepted["digest"]
    return report if current and report.data_docs.is_file() else None


def _parse_report(stored: dict[str, Any], project: Path) -> ValidationReport:
    def failures(entries: list[dict[str, Any]]) -> tuple[Failure, ...]:
        return tuple(Failure(**{**entry, "examples": tuple(entry["examples"])}) for entry in entries)

    tables = tuple(
        TableResult(
            table["table"],
            table["rows"],
            table["expectations"],
            failures(table["failures"]),
            failures(table["left_out"]),
        )
        for table in stored["tables"]
    )
    return ValidationReport(
        stored["corpus_digest"],
        stored["passed"],
        tables,
        project / stored["data_docs"],
        stored["quarantined"],
        stored["compared_with"],
        reused=True,
    )


def run_rules(
    corpus_digest: str, tables: Mapping[str, pd.DataFrame], project: Path, compared_with: str = ""
) -> tuple[ValidationReport, Quarantine]:
    """Evaluate the rules of every table, and return the report and the rows to quarantine.

    Raises:
        JobFailed: an expectation could not be evaluated.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "False"
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    project.mkdir(parents=True, exist_ok=True)
    context = gx.get_context(mode="file", project_root_dir=str(project))
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    results: list[TableResult] = []
    quarantine: Quarantine = {table: {} for table in QUARANTINED_WITH.values()}
    for definition in _define_validations(context, tables):
        table = definition.name
        evaluated = _evaluate(context, definition, tables[table])
        result, broken_rules = _summarize_table(table, len(tables[table]), evaluated)
        results.append(result)
        rows = quarantine.get(QUARANTINED_WITH.get(table, ""), {})
        for key, rules in broken_rules.items():
            rows.setdefault(key, []).extend(f"{table}.{rule}" for rule in rules)
    sites = context.get_docs_sites_urls()
    data_docs = Path(str(sites[0]["site_url"]).removeprefix("file://"))  # not quoted, whatever characters the path has
    passed = not any(result.failures for result in results)
    counts = {name: len(rows) for name, rows in quarantine.items() if rows}
    return ValidationReport(corpus_digest, passed, tuple(results), data_docs, counts, compared_with), quarantine


def _define_validations(context: Any, tables: Mapping[str, pd.DataFrame]) -> list[Any]:
    """Register suite, data asset and validation definition of every table; an empty table gets its first rule only."""
    import great_expectations as gx

    from components.validation.rules import rules

    source = context.data_sources.add_or_update_pandas("curated")
    definitions = []
    for name, table_rules in rules().items():
        if name not in tables:
            continue
        expectations = [rule.expectation() for rule in (table_rules[:1] if tables[name].empty else table_rules)]
        suite = context.suites.add_or_update(gx.ExpectationSuite(name=name, expectations=expectations))
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("whole")
        definition = gx.ValidationDefinition(name=name, data=batch, suite=suite)
        definitions.append(context.validation_definitions.add_or_update(definition))
    return definitions


def _evaluate(context: Any, definition: Any, table: pd.DataFrame) -> Any:
    """Run the checkpoint of one table, update the Data Docs, and return the result of Great Expectations."""
    import great_expectations as gx
    from great_expectations.checkpoint import UpdateDataDocsAction

    checkpoint = context.checkpoints.add_or_update(
        gx.Checkpoint(
            name=definition.name,
            validation_definitions=[definition],
            actions=[UpdateDataDocsAction(name="docs")],
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [KEYS[definition.name]]},
        )
    )
    run = checkpoint.run(batch_parameters={"dataframe": table})
    return next(iter(run.run_results.values()))


def _summarize_table(table: str, rows: int, evaluated: Any) -> tuple[TableResult, dict[str, list[str]]]:
    """Return the result of one table, and row id -> the rules that the row breaks.

    Raises:
        JobFailed: an expectation could not be evaluated.
    """
    failures: list[Failure] = []
    tolerated: list[Failure] = []
    broken_rules: dict[str, list[str]] = defaultdict(list)
    for outcome in evaluated.results:
        config, details = outcome.expectation_config, outcome.result or {}
        if outcome.exception_info and _has_raised(outcome.exception_info):
            raise JobFailed(f"{config.type} could not be evaluated", where=table, remedy="report this with the Data Docs")
        column = config.kwargs.get("column") or config.kwargs.get("column_A")
        keys = [str(row[KEYS[table]]) for row in details.get("unexpected_index_list") or []]
        if outcome.success and not keys:
            continue
        count = int(details.get("unexpected_count") or 0) if column else rows
        rule = config.meta["name"]
        failure = Failure(table, rule, str(config.description), str(column or ""), count, tuple(keys[:MAX_EXAMPLES]))
        (tolerated if outcome.success else failures).append(failure)
        for key in keys:
            broken_rules[key].append(rule)
    return TableResult(table, rows, len(evaluated.results), tuple(failures), tuple(tolerated)), dict(broken_rules)


def _has_raised(info: dict[str, Any]) -> bool:
    """Return whether an expectation raised; Great Expectations nests the information by metric if there are several."""
    nested = [value for value in info.values() if isinstance(value, dict)]
    return bool(info.get("raised_exception")) or any(metric.get("raised_exception") for metric in nested)
