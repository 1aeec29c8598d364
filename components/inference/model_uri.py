"""From what a user calls a model to the folder that holds it."""

from __future__ import annotations

from pathlib import Path

from components.errors import BadInput

PREPROCESSING = "preprocessing.json"
"""What a model folder has beside weights and tokenizer: the grid that images are brought to."""


def resolve_model(model: str | Path, tracking_uri: str) -> Path:
    """A folder as it is; ``models:/omnimri@staging``, ``models:/omnimri/3`` or ``runs:/...`` from MLflow.

    Raises:
        BadInput: neither a saved model nor anything that MLflow knows.
    """
    if not str(model).startswith(("models:/", "runs:/")):
        folder = Path(model)
        if not (folder / "config.json").is_file():
            raise BadInput(
                "no saved model", where=str(model), remedy="a folder of save_pretrained, or e.g. models:/omnimri@staging"
            )
        return folder
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri)
    try:
        local = Path(mlflow.artifacts.download_artifacts(str(model)))
    except MlflowException:
        raise BadInput("MLflow has no such model", where=str(model), remedy="omnimri models list shows those there are") from None
    found = sorted(local.rglob(PREPROCESSING))
    if not found:
        raise BadInput("not a model of OmniMRI", where=str(model), remedy="omnimri models list shows those there are")
    return found[0].parent
