"""Versions in MLflow's registry: what there is, and how a trained model gets in."""

from __future__ import annotations

import base64
import json
import logging
import shutil
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import BadInput
from components.evaluation import EvaluationReport, weights_digest
from components.files import write_json
from components.provenance import REPOSITORY
from components.registry.audit_log import Act, History, Move, State
from components.registry.model_card import limits, model_card
from components.registry.model_version import LOCK, Lineage, ModelVersion
from components.registry.promotion_gate import CASES, RESULTS, figures

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

PACKAGES = ("components", "model_core", "kernels")
SETTINGS = "settings.json"
DESCRIPTION = """Research software. Not a medical device; not for clinical use. The model card (README.md), the report page and the
settings are beside the weights, under artifacts/about. What the measurements say against this version:
"""

logger = logging.getLogger(__name__)


def client_of(tracking_uri: str) -> MlflowClient:
    """A client of the store."""
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    return mlflow.MlflowClient(tracking_uri)


def version_of(client: MlflowClient, name: str, number: str) -> ModelVersion:
    """A version by its number."""
    found = client.get_model_version(name, number)
    aliases = client.get_registered_model(name).aliases
    return ModelVersion(
        name, str(found.version), tuple(sorted(alias for alias, at in aliases.items() if str(at) == str(number))), dict(found.tags)
    )


def list_versions(tracking_uri: str, name: str) -> list[ModelVersion]:
    """Every version, newest first; none where the model has never been registered."""
    client = client_of(tracking_uri)
    numbers = sorted((int(found.version) for found in client.search_model_versions(f"name='{name}'")), reverse=True)
    return [version_of(client, name, str(number)) for number in numbers]


def show_version(version: str, tracking_uri: str, name: str) -> ModelVersion:
    """One version, by number or alias.

    Raises:
        BadInput: there is none.
    """
    from mlflow.exceptions import MlflowException

    client = client_of(tracking_uri)
    try:
        number = version if version.isdigit() else str(client.get_model_version_by_alias(name, version).version)
        return version_of(client, name, number)
    except MlflowException:
        raise BadInput("no such version", where=f"{name} {version}", remedy="omnimri models list shows those there are") from None


def register(
    model_dir: Path, evaluation: EvaluationReport, lineage: Lineage, tracking_uri: str, run_id: str, name: str
) -> ModelVersion:
    """Register an evaluated model as candidate. The same weights, evaluation and lineage keep the version that they have."""
    weights = weights_digest(model_dir)
    tags = {
        "weights_digest": weights,
        "evaluation_digest": evaluation.digest,
        CASES: evaluation.cases,
        **lineage.tags(),
        RESULTS: json.dumps([[row.task, row.metric, row.higher_is_better, row.model] for row in evaluation.rows]),
    }
    same = ("weights_digest", "evaluation_digest", "data_digest", "settings_digest")
    for found in list_versions(tracking_uri, name):
        if all(found.tags.get(tag) == tags[tag] for tag in same):
            return found
    client, history = client_of(tracking_uri), history_of(tracking_uri, name)
    uri = _log(model_dir, evaluation, lineage, tags, run_id, name)
    number = ""

    def candidate(state: State) -> Act:
        nonlocal number
        if not number:
            import mlflow

            number = str(mlflow.register_model(uri, name, tags=tags).version)
            client.update_model_version(
                name, number, "\n".join([DESCRIPTION, *(f"- {limit}" for limit in limits(evaluation))])[:4900]
            )
        move = Move("candidate", state.aliases.get("candidate", ""), number)
        return Act("register", number, "candidate", (move,), figures=figures(tags[RESULTS]), weights=weights)

    history.write(candidate)
    return version_of(client, name, number)


def history_of(tracking_uri: str, name: str) -> History:
    """The list of who moved which version where."""
    client = client_of(tracking_uri)
    return History(client, name, lambda: mirror_stages(client, name))


def mirror_stages(client: MlflowClient, name: str) -> None:
    """Bring the legacy stages in line with the aliases, for clients that ask for ``models:/omnimri/Production``.

    All versions, not the promoted one alone: a version that has lost its alias must leave the stage, since MLflow answers such a
    client with the newest version of a stage, after a rollback therefore with the one that was withdrawn. MLflow will drop stages
    some day.
    """
    if not hasattr(client, "transition_model_version_stage"):
        return
    aliases = client.get_registered_model(name).aliases
    stages = {str(aliases[place]): place.capitalize() for place in ("archived", "staging", "production") if place in aliases}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for found in client.search_model_versions(f"name='{name}'"):
            held = found.current_stage in ("Staging", "Production")
            stage = stages.get(str(found.version), "Archived" if held else found.current_stage)
            if stage != found.current_stage:
                client.transition_model_version_stage(name, str(found.version), stage)


def _log(model_dir: Path, evaluation: EvaluationReport, lineage: Lineage, tags: dict[str, str], run_id: str, name: str) -> str:
    """Log code, weights, settings, evaluation and card as one MLflow model below a run; its URI."""
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        about = Path(folder) / "about"
        about.mkdir()
        (about / "README.md").write_text(model_card(name, evaluation, lineage.settings, tags))
        (about / SETTINGS).write_text(lineage.settings)
        write_json(about / "evaluation.json", [asdict(row) for row in evaluation.rows])
        for file in evaluation.kept:
            shutil.copy(file, about)
        requirements = str(LOCK) if LOCK.exists() else str(REPOSITORY / "pyproject.toml")
        with _Continued(run_id):
            info = mlflow.pyfunc.log_model(
                name=name,
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"weights": str(model_dir), "about": str(about)},
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
