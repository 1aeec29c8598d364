"""Versions in MLflow's registry. Aliases (candidate, staging, production) are the truth; the legacy stage is mirrored."""

from __future__ import annotations

import base64
import json
import logging
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from components.errors import BadInput, GateRefused
from components.evaluation import EvaluationReport, weights_digest
from components.files import write_json
from components.provenance import REPOSITORY
from components.registry.gate import CASES, RESULTS, gate
from components.registry.records import LOCK, Lineage, ModelVersion
from components.settings import RegistrySettings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

PACKAGES = ("components", "model_core", "kernels")
CARD = Path(__file__).with_name("model_card.md.j2")

logger = logging.getLogger(__name__)


def _client(tracking_uri: str) -> MlflowClient:
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    return mlflow.MlflowClient(tracking_uri)


def _version(client: MlflowClient, name: str, number: str) -> ModelVersion:
    found = client.get_model_version(name, number)
    aliases = client.get_registered_model(name).aliases
    return ModelVersion(
        name, str(found.version), tuple(sorted(alias for alias, at in aliases.items() if str(at) == str(number))), dict(found.tags)
    )  # fmt: skip


def list_versions(tracking_uri: str, name: str) -> list[ModelVersion]:
    """Every version, newest first; none where the model has never been registered."""
    client = _client(tracking_uri)
    numbers = sorted((int(found.version) for found in client.search_model_versions(f"name='{name}'")), reverse=True)
    return [_version(client, name, str(number)) for number in numbers]


def show_version(version: str, tracking_uri: str, name: str) -> ModelVersion:
    """One version, by number or alias.

    Raises:
        BadInput: there is none.
    """
    from mlflow.exceptions import MlflowException

    client = _client(tracking_uri)
    try:
        number = version if version.isdigit() else str(client.get_model_version_by_alias(name, version).version)
        return _version(client, name, number)
    except MlflowException:
        raise BadInput("no such version", where=f"{name} {version}", remedy="omnimri models list shows those there are") from None


def register(
    model_dir: Path, evaluation: EvaluationReport, lineage: Lineage, tracking_uri: str, run_id: str, name: str
) -> ModelVersion:
    """Register an evaluated model as candidate. The same weights, evaluation and lineage keep the version that they have."""
    weights = weights_digest(model_dir)
    tags = {
        "weights_digest": weights, "evaluation_digest": evaluation.digest, CASES: evaluation.cases, **lineage.tags(),
        RESULTS: json.dumps([[row.task, row.metric, row.higher_is_better, row.model] for row in evaluation.rows]),
    }  # fmt: skip
    same = ("weights_digest", "evaluation_digest", "data_digest", "settings_digest")
    for found in list_versions(tracking_uri, name):
        if all(found.tags.get(tag) == tags[tag] for tag in same):
            return found
    client = _client(tracking_uri)
    uri = _log(model_dir, evaluation, lineage, tags, run_id, name)
    import mlflow

    number = str(mlflow.register_model(uri, name, tags=tags).version)
    client.set_registered_model_alias(name, "candidate", number)
    return _version(client, name, number)


def _log(model_dir: Path, evaluation: EvaluationReport, lineage: Lineage, tags: dict[str, str], run_id: str, name: str) -> str:
    """Log code, weights, settings, evaluation and card as one MLflow model below a run; its URI."""
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        extra = Path(folder)
        (extra / "README.md").write_text(_card(evaluation, tags))
        (extra / "settings.json").write_text(lineage.settings)
        write_json(extra / "evaluation.json", [asdict(row) for row in evaluation.rows])
        requirements = str(LOCK) if LOCK.exists() else str(REPOSITORY / "pyproject.toml")
        with _Continued(run_id):
            info = mlflow.pyfunc.log_model(
                name=name,
                python_model=str(Path(__file__).with_name("served.py")),
                artifacts={"weights": str(model_dir), "about": str(extra)},
                code_paths=[str(REPOSITORY / package) for package in PACKAGES],
                pip_requirements=[f"-r {requirements}"] if LOCK.exists() else [],
                signature=_signature(),
                input_example=_example(),
            )
    return str(info.model_uri)


class _Continued:
    """Log into a run without changing its state."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def __enter__(self) -> None:
        import mlflow

        self.status = mlflow.MlflowClient().get_run(self.run_id).info.status
        mlflow.start_run(run_id=self.run_id)

    def __exit__(self, *_: object) -> None:
        import mlflow

        mlflow.end_run(self.status)


def _signature() -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    def columns(*names: str) -> Schema:
        return Schema([ColSpec(DataType.string, name) for name in names])

    return ModelSignature(columns("image", "instruction"), columns("task", "text", "boxes", "file"))


def _example() -> Any:
    """A request: four slices of a made-up sphere, as NIfTI in base64."""
    import nibabel as nib
    import numpy as np
    import pandas as pd

    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 32)] * 2, np.linspace(-0.5, 0.5, 4), indexing="ij"))
    sphere = (1000 * (np.sqrt((grid**2).sum(0)) < 0.8)).astype(np.int16)
    content = nib.Nifti1Image(sphere, np.diag([6.75, 6.75, 6.0, 1.0])).to_bytes()
    image = base64.b64encode(content).decode()
    return pd.DataFrame([{"image": image, "instruction": "Segment the white matter in this axial T1-weighted brain MRI."}])


def _card(evaluation: EvaluationReport, tags: dict[str, str]) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, autoescape=False)  # noqa: S701 (Markdown)
    shown = {name: value for name, value in sorted(tags.items()) if name != RESULTS}
    return environment.from_string(CARD.read_text()).render(rows=evaluation.rows, tags=shown)


def refusal(candidate: ModelVersion, to: Literal["staging", "production"], tracking_uri: str, settings: RegistrySettings) -> str:
    """Why the gate would refuse a version; empty where it is open, or the version is through already."""
    if to in candidate.aliases:
        return ""
    client = _client(tracking_uri)
    holder = client.get_registered_model(settings.name).aliases.get(to)
    incumbent = _version(client, settings.name, str(holder)) if holder else None
    return "; ".join(gate(candidate, incumbent, to, settings))


def promote(
    version: str, to: Literal["staging", "production"], tracking_uri: str, settings: RegistrySettings, reason: str | None = None
) -> ModelVersion:
    """Give a version the alias ``to`` if the gate is open, or if there is a reason to do it all the same, which is recorded.

    Raises:
        BadInput: no such version, or an empty reason.
        GateRefused: every gate that is shut, and by how much.
    """
    client = _client(tracking_uri)
    candidate = show_version(version, tracking_uri, settings.name)
    if to in candidate.aliases:
        return candidate
    refused = refusal(candidate, to, tracking_uri, settings)
    if refused and reason is None:
        raise GateRefused(
            refused, where=f"{settings.name} version {candidate.version} to {to}",
            remedy="train or evaluate again; --reason TEXT promotes all the same and is recorded",
        )  # fmt: skip
    if reason is not None and not reason.strip():
        raise BadInput("a forced promotion needs a reason", where="--reason", remedy="say why")
    if refused:
        client.set_model_version_tag(settings.name, candidate.version, f"forced.{to}", f"{reason} [{refused}]"[:4900])
    client.set_registered_model_alias(settings.name, to, candidate.version)
    _mirror_stages(client, settings.name)
    return _version(client, settings.name, candidate.version)


def _mirror_stages(client: MlflowClient, name: str) -> None:
    """Bring the legacy stages in line with the aliases, for clients that ask for ``models:/omnimri/Production``.

    All versions, not the promoted one alone: a version that has lost its alias must leave the stage, since MLflow answers such a
    client with the newest version of a stage, after a rollback therefore with the one that was withdrawn. MLflow will drop stages
    some day.
    """
    if not hasattr(client, "transition_model_version_stage"):
        return
    aliases = client.get_registered_model(name).aliases
    stages = {str(aliases[place]): place.capitalize() for place in ("staging", "production") if place in aliases}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for found in client.search_model_versions(f"name='{name}'"):
            held = found.current_stage in ("Staging", "Production")
            stage = stages.get(str(found.version), "Archived" if held else found.current_stage)
            if stage != found.current_stage:
                client.transition_model_version_stage(name, str(found.version), stage)
