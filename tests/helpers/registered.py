"""A real MLflow store with a tiny model to register, as good or as bad as a test wants it to look."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from components.curation.corpus import Corpus
from components.evaluation import EvaluationReport, ResultRow
from components.evaluation.cohort import cohort_digests
from components.evaluation.results import COHORT
from components.files import write_json
from components.registries import STAGES, TASKS
from components.registry import Lineage, ModelVersion, register, show_version
from components.registry.audit_entries import Action, Move
from components.registry.registration import audit_log_of, mlflow_client
from components.settings import RegistrySettings, load_settings
from components.tasks.scope import Scope
from components.tracking import Tracking
from tests.helpers.corpora import tiny_corpus
from tests.helpers.mlflow_store import new_home
from tests.helpers.trained import tiny_model

SETTINGS = RegistrySettings(tolerance=0.02)
SETTINGS_JSON = load_settings("debug").model_dump_json()
ROWS = tuple(ResultRow(task, "score", True, 0.8, {"trivial": 0.5}, "better", 4, 2) for task in TASKS)


class Store:
    """A real MLflow store with one model to register."""

    def __init__(self, root: Path) -> None:
        root = root / "b?#ü"  # names that addresses must quote
        self.home = new_home(root)
        self.uri = self.home.local_store  # whatever store an earlier test set
        self.corpus: Corpus = tiny_corpus(root / "corpus")
        self.model = tiny_model(root / "model", self.corpus)
        self.client = mlflow_client(self.uri)
        self.run = Tracking(self.uri, self.home).pipeline_run("digest", load_settings("debug"), "data", {})
        write_json(root / "report.html", {})
        write_json(root / COHORT, cohort_digests(self.corpus))
        Scope.from_corpus(self.corpus).write(root)

    def lineage(self) -> Lineage:
        stages = {stage: f"digest-{stage}" for stage in STAGES.built_in}
        return Lineage("data", "corpus", "settings", SETTINGS_JSON, "commit", "lock", stages, stages, validation_passed=True)

    def evaluation(self, digest: str = "evaluation", score: float = 0.8) -> EvaluationReport:
        rows = tuple(replace(row, model=score) for row in ROWS)
        return EvaluationReport(digest, self.home.root, self.home.root / "report.html", rows)

    def register(self, digest: str = "evaluation", score: float = 0.8, lineage: Lineage | None = None) -> ModelVersion:
        return register(self.model, self.evaluation(digest, score), lineage or self.lineage(), self.uri, self.run, "omnimri")

    def evaluated_again(self, digest: str, score: float) -> ModelVersion:
        """The first version's files as another version, with other figures: MLflow need not copy and try them again."""
        first = self.client.get_model_version(SETTINGS.name, "1")
        results = [[row.task, row.metric, row.higher_is_better, score] for row in ROWS]
        tags = {**first.tags, "evaluation_digest": digest, "results": json.dumps(results)}
        made = self.client.create_model_version(
            SETTINGS.name, first.source, run_id=first.run_id, tags=tags, model_id=first.model_id
        )
        number = str(made.version)
        audit_log_of(self.uri, SETTINGS.name).write(
            lambda state: Action("register", number, "candidate", (Move("candidate", state.aliases["candidate"], number),))
        )
        return show_version(number, self.uri, SETTINGS.name)
