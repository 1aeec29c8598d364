"""From a version back to all that it was made of, and from a patient or a dataset forward to the versions made of them.

A version carries the list of its patients as digests (dataset -> split -> digests): it answers whether somebody was in it, and
names nobody. So the answer outlives the files, which a withdrawal deletes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import BadInput
from components.evaluation.cohort import person
from components.evaluation.results import COHORT
from components.files import read_json
from components.registry.model_version import ModelVersion
from components.registry.registration import SETTINGS, list_versions, show_version
from components.settings import STAGES

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Origin:
    """Where a version comes from.

    Attributes:
        facts: name -> value, of data, code, environment and evaluation; "" = not recorded.
        stages: (stage, digest, MLflow run) of the four.
        missing: what was not recorded.
        settings: the profile as it was used.
    """

    version: str
    facts: dict[str, str]
    stages: tuple[tuple[str, str, str], ...]
    missing: tuple[str, ...]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Use:
    """A version that was made of somebody's data.

    Attributes:
        splits: how: ``train``, ``validation``, ``test``; ``unknown`` = its data version holds them, and it kept no list.
    """

    version: str
    aliases: tuple[str, ...]
    data_digest: str
    splits: tuple[str, ...]


FACTS = (
    "data_digest",
    "corpus_digest",
    "settings_digest",
    "git_commit",
    "environment",
    "python",
    "container",
    "weights_digest",
    "evaluation_digest",
    "evaluation_cases",
    "validation_passed",
)


def origin(version: str, tracking_uri: str, name: str) -> Origin:
    """All that a version was made of.

    Raises:
        BadInput: no such version.
    """
    found = show_version(version, tracking_uri, name)
    facts = {fact: found.tags.get(fact, "") for fact in FACTS}
    stages = tuple(
        (stage, found.tags.get(f"stage_digest.{stage}", ""), found.tags.get(f"stage_run.{stage}", "")) for stage in STAGES
    )
    missing = [fact for fact, value in facts.items() if not value] + [stage for stage, at, _ in stages if not at]
    return Origin(found.version, facts, stages, tuple(missing), settings_of(found, tracking_uri))


def settings_of(version: ModelVersion, tracking_uri: str) -> dict[str, Any]:
    """The profile that made a version.

    Raises:
        BadInput: it was registered without.
    """
    file = _beside(version, tracking_uri, SETTINGS)
    if file is None:
        raise BadInput(
            "no settings were kept with this version", where=f"{version.name} {version.version}", remedy="register it again"
        )
    settings: dict[str, Any] = json.loads(file.read_text())
    return settings


def versions_with_patients(
    patients: Mapping[str, Collection[str]], holding: Collection[str], tracking_uri: str, name: str
) -> list[Use]:
    """Versions that patients (dataset -> pseudonyms) went into, newest first.

    Args:
        holding: data versions that hold files of theirs, for versions that kept no list.
    """
    people = {person(dataset, patient) for dataset, names in patients.items() for patient in names}

    def splits(version: ModelVersion, cohort: dict[str, dict[str, list[str]]] | None) -> set[str]:
        if cohort is None:
            return {UNKNOWN} if version.tags.get("data_digest") in holding else set()
        return {split for parts in cohort.values() for split, listed in parts.items() if people & set(listed)}

    return _uses(splits, tracking_uri, name)


def versions_with_dataset(dataset: str, tracking_uri: str, name: str) -> list[Use]:
    """Versions that a dataset went into, newest first."""

    def splits(version: ModelVersion, cohort: dict[str, dict[str, list[str]]] | None) -> set[str]:
        if cohort is not None:
            return set(cohort.get(dataset, {}))
        return {UNKNOWN} if dataset in {one["card"] for one in settings_of(version, tracking_uri)["datasets"]} else set()

    return _uses(splits, tracking_uri, name)


def _uses(splits: Any, tracking_uri: str, name: str) -> list[Use]:
    found = []
    for version in list_versions(tracking_uri, name):
        file = _beside(version, tracking_uri, COHORT)
        if how := splits(version, read_json(file) if file else None):
            found.append(Use(version.version, version.aliases, version.tags.get("data_digest", ""), tuple(sorted(how))))
    return found


def _beside(version: ModelVersion, tracking_uri: str, file: str) -> Path | None:
    """A file that was registered beside the weights."""
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    local = Path(mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}"))
    return next(iter(sorted((local / "artifacts").rglob(file))), None)
