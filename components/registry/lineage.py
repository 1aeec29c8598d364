"""Lineage: from a version back to its data, code and settings, and from a patient or dataset forward to the versions built from it.

A version stores its patients as digests (dataset -> split -> digests): it can be asked whether a patient was in it, and identifies
nobody. The answer remains available after a withdrawal has deleted the files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import BadInput, JobFailed, OmniMRIError
from components.files import read_json
from components.model_files import WEIGHTS_TAG, is_on_this_machine
from components.registries import STAGES
from components.registry.model_version import REQUIRED_TAGS, ModelVersion
from components.registry.registration import SETTINGS, list_models, list_versions, show_version

UNKNOWN = "unknown"
Cohort = dict[str, dict[str, list[str]]]
"""Dataset -> split -> digests of its patients."""


@dataclass(frozen=True)
class Origin:
    """Origin of a version.

    Attributes:
        facts: name -> value, for data, code, environment and evaluation; "" = not recorded.
        stages: (stage, digest, MLflow run).
        missing: facts and stages that were not recorded.
        settings: the profile as it was used.
    """

    version: str
    facts: dict[str, str]
    stages: tuple[tuple[str, str, str], ...]
    missing: tuple[str, ...]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Use:
    """A version that used data of given patients or of a dataset.

    Attributes:
        name: of the registered model.
        splits: ``train``, ``validation``, ``test``; ``unknown`` = its data version contains them, but it stores no patient list.
    """

    name: str
    version: str
    aliases: tuple[str, ...]
    data_digest: str
    splits: tuple[str, ...]


FACTS = (
    "data_digest",
    "corpus_digest",
    "settings_digest",
    "git_commit",
    "cards",
    "environment",
    "python",
    "container",
    "weights_digest",
    "evaluation_digest",
    "evaluation_cases",
    "validation_passed",
)


def origin(version: str, tracking_uri: str, name: str) -> Origin:
    """Return the origin of a version.

    Raises:
        BadInput: no such version.
    """
    registered = show_version(version, tracking_uri, name)
    facts = {fact: registered.tags.get(fact, "") for fact in FACTS}
    recorded = [tag.removeprefix("stage_digest.") for tag in registered.tags if tag.startswith("stage_digest.")]
    stages = tuple(
        (stage, registered.tags.get(f"stage_digest.{stage}", ""), registered.tags.get(f"stage_run.{stage}", ""))
        for stage in dict.fromkeys((*STAGES.built_in, *recorded))
    )
    missing = [fact for fact, value in facts.items() if not value] + [stage for stage, digest, _ in stages if not digest]
    return Origin(registered.version, facts, stages, tuple(missing), load_version_settings(registered, tracking_uri))


def load_version_settings(version: ModelVersion, tracking_uri: str) -> dict[str, Any]:
    """Return the profile that a version was built with.

    Raises:
        BadInput: the version was registered without it.
        LostArtifacts: its files cannot be found.
    """
    settings: dict[str, Any] | None = _read_artifact(version, tracking_uri, SETTINGS)
    if settings is None:
        raise BadInput(
            "no settings are stored with this version", where=f"{version.name} {version.version}", remedy="register it again"
        )
    return settings


def versions_with_patients(patients: Mapping[str, Collection[str]], data_versions: Collection[str], tracking_uri: str) -> list[Use]:
    """Return the versions of any registered model that used data of patients (dataset -> pseudonyms), newest first.

    Args:
        data_versions: data versions that contain their files, for model versions that store no patient list.
    """
    from components.evaluation.cohort import patient_digest

    patient_digests = {patient_digest(dataset, patient) for dataset, names in patients.items() for patient in names}

    def splits(version: ModelVersion, cohort: Cohort | None) -> set[str]:
        if cohort is None:
            return {UNKNOWN} if version.tags.get("data_digest") in data_versions else set()
        return {split for parts in cohort.values() for split, listed in parts.items() if patient_digests & set(listed)}

    return _uses(splits, tracking_uri)


def versions_with_dataset(dataset: str, tracking_uri: str) -> list[Use]:
    """Return the versions of any registered model that used a dataset, newest first."""

    def splits(version: ModelVersion, cohort: Cohort | None) -> set[str]:
        if cohort is not None:
            return set(cohort.get(dataset, {}))
        return (
            {UNKNOWN} if dataset in {entry["card"] for entry in load_version_settings(version, tracking_uri)["datasets"]} else set()
        )

    return _uses(splits, tracking_uri)


def _uses(splits: Callable[[ModelVersion, Cohort | None], set[str]], tracking_uri: str) -> list[Use]:
    """Return the versions for which ``splits`` returns some; one whose artifacts are lost or damaged counts as unknown.

    Versions of other programs that use the same MLflow server have none of our tags, and are left out.
    """
    from components.evaluation.results import COHORT

    uses = []
    for version in (version for name in list_models(tracking_uri) for version in list_versions(tracking_uri, name)):
        if not {WEIGHTS_TAG, *REQUIRED_TAGS} & version.tags.keys():
            continue
        try:
            used_in = splits(version, _read_artifact(version, tracking_uri, COHORT))
        except (OmniMRIError, AttributeError, KeyError, TypeError):
            used_in = {UNKNOWN}
        if used_in:
            data, listed = version.tags.get("data_digest", ""), tuple(sorted(used_in))
            uses.append(Use(version.name, version.version, version.aliases, data, listed))
    return uses


class LostArtifacts(JobFailed):
    """The files of a registered version are not where MLflow's store says they are, or are damaged."""

    def __init__(self, version: ModelVersion, what: str = "its files are lost") -> None:
        super().__init__(what, where=f"{version.name} {version.version}", remedy="restore MLflow's artifacts from a backup")


def _read_artifact(version: ModelVersion, tracking_uri: str, file: str) -> Any:
    """Return the content of a JSON file that was registered with the weights; None where the version has none.

    Raises:
        LostArtifacts: the version's files cannot be found, or this one is no JSON object.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri)
    about = f"models:/{version.name}/{version.version}/artifacts/about"
    try:
        listed = {Path(entry.path).name for entry in mlflow.artifacts.list_artifacts(about)}
        if not listed:
            raise LostArtifacts(version)
        if file not in listed:
            return None
        if is_on_this_machine(f"models:/{version.name}/{version.version}"):
            content = read_json(Path(mlflow.artifacts.download_artifacts(f"{about}/{file}")))
        else:
            with tempfile.TemporaryDirectory(prefix="omnimri-artifacts-") as folder:  # MLflow's own would stay
                content = read_json(Path(mlflow.artifacts.download_artifacts(f"{about}/{file}", dst_path=folder)))
    except (MlflowException, OSError):
        raise LostArtifacts(version) from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise LostArtifacts(version, f"its file {file} is damaged")
    return content
