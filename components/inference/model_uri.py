"""Resolution of a model's name: a folder, or an MLflow URI."""

from __future__ import annotations

from pathlib import Path

from components.errors import BadInput

PREPROCESSING = "preprocessing.json"
"""File of a model folder with the grid that images are resampled to."""
_LIST_MODELS = "omnimri models list shows the registered versions"


def resolve_model(model: str | Path, tracking_uri: str) -> Path:
    """Return the folder of a model.

    Args:
        model: a folder, which is returned unchanged, or an MLflow URI, e.g. ``models:/omnimri@staging`` or ``models:/omnimri/3``.

    Raises:
        BadInput: the folder contains no saved model, or MLflow has no such model.
    """
    if not str(model).startswith(("models:/", "runs:/")):
        folder = Path(model)
        if not (folder / "config.json").is_file():
            remedy = "name a folder of save_pretrained, or e.g. models:/omnimri@staging"
            raise BadInput("no saved model", where=str(model), remedy=remedy)
        return folder
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri)
    try:
        local = Path(mlflow.artifacts.download_artifacts(str(model)))
    except MlflowException:
        raise BadInput("MLflow has no such model", where=str(model), remedy=_LIST_MODELS) from None
    preprocessing_files = sorted(local.rglob(PREPROCESSING))
    if not preprocessing_files:
        raise BadInput("not a model of OmniMRI", where=str(model), remedy=_LIST_MODELS)
    return preprocessing_files[0].parent
