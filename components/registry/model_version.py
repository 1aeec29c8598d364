"""A registered model version, and the lineage that is recorded with it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from components.assets import asset
from components.provenance import file_md5, git_commit
from components.registries import STAGES
from components.settings import Settings

if TYPE_CHECKING:
    from components.training import StageResult

LOCK = asset("constraints.txt")


def own_cards(cards: Iterable[str]) -> dict[str, str]:
    """Return card -> MD5 of its file, of those cards that are the user's own."""
    from components.catalog.card_files import FOLDER, card_paths

    paths = {card: path for card, path in card_paths().items() if path.parent != FOLDER}
    return {card: file_md5(paths[card]) for card in sorted(cards) if card in paths}


@dataclass(frozen=True)
class Lineage:
    """Everything that is needed to build a model again.

    Attributes:
        data_digest: DVC digest of ``data/``; corpus_digest: digest of the curated tables.
        settings_digest, settings: the profile as it was used, JSON.
        git_commit: commit of the code; environment: MD5 of the pinned package versions.
        stage_digests, stage_runs: stage name -> digest of its folder, MLflow run.
        validation_passed: the corpus passed Great Expectations.
        cards: the user's own dataset cards that were used, which no commit contains: card -> MD5 of its file, JSON.
        container: image that trained the model, "none" = no container; python: version of the interpreter.
    """

    data_digest: str
    corpus_digest: str
    settings_digest: str
    settings: str
    git_commit: str
    environment: str
    stage_digests: dict[str, str]
    stage_runs: dict[str, str]
    validation_passed: bool
    cards: str = "{}"
    container: str = "none"
    python: str = platform.python_version()

    @classmethod
    def of(
        cls, settings: Settings, data_digest: str, corpus_digest: str, stages: Sequence[StageResult], validation_passed: bool
    ) -> Lineage:
        """Return the lineage of a model that this code has just trained."""
        return cls(
            data_digest=data_digest,
            corpus_digest=corpus_digest,
            settings_digest=settings.digest(),
            settings=settings.model_dump_json(),
            git_commit=git_commit(),
            environment=file_md5(LOCK) if LOCK.exists() else "",
            stage_digests={stage.stage: stage.digest for stage in stages},
            stage_runs={stage.stage: stage.run_id for stage in stages},
            validation_passed=validation_passed,
            cards=json.dumps(own_cards(dataset.card for dataset in settings.datasets)),
            container=settings.kubernetes.image if settings.launcher == "kubernetes" else os.environ.get("OMNIMRI_IMAGE") or "none",
        )

    def tags(self) -> dict[str, str]:
        """Return the tags of a registered version. The settings are too long for a tag and become an artifact."""
        plain = {
            f.name: str(getattr(self, f.name)) for f in fields(self) if f.name not in ("stage_digests", "stage_runs", "settings")
        }
        staged = {f"stage_digest.{name}": value for name, value in self.stage_digests.items()}
        return {**plain, **staged, **{f"stage_run.{name}": value for name, value in self.stage_runs.items()}}


REQUIRED_TAGS = (
    "data_digest",
    "corpus_digest",
    "settings_digest",
    "git_commit",
    "environment",
    *(f"stage_digest.{stage}" for stage in STAGES.built_in),
)
"""Tags without which a version cannot be reproduced."""


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model, with its aliases and tags."""

    name: str
    version: str
    aliases: tuple[str, ...]
    tags: dict[str, str]
