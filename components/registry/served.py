"""The registered model as MLflow loads it (models from code: this file travels with the weights, nothing is pickled).

One row in, one row out: ``image`` is a NIfTI, DICOM or fastMRI file in base64, ``instruction`` the question; the answer has
``task``, ``text``, ``boxes`` (JSON) and ``file`` (NIfTI in base64, empty for text).
"""

from __future__ import annotations

import base64
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.pyfunc import PythonModel

if TYPE_CHECKING:
    import pandas as pd

    from components.inference import Predictor


class ServedModel(PythonModel):
    """Answers requests one by one."""

    predictor: Predictor

    def load_context(self, context: Any) -> None:
        """Load the weights."""
        from components.inference import Predictor

        self.predictor = Predictor.load(context.artifacts["weights"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answer every row."""
        import pandas as pd

        rows = [self._answer(str(row["image"]), str(row["instruction"])) for _, row in model_input.iterrows()]
        return pd.DataFrame(rows)

    def _answer(self, image: str, instruction: str) -> dict[str, str]:
        from components.inference import save

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image"
            path.write_bytes(base64.b64decode(image, validate=True))
            prediction = self.predictor.predict(path, instruction)
            written = [file for file in save(prediction, Path(folder) / "out") if file.suffix == ".nii"]
            file = base64.b64encode(written[0].read_bytes()).decode() if written else ""
        boxes = json.dumps([asdict(box) for box in prediction.boxes])
        return {"task": prediction.task, "text": prediction.text, "boxes": boxes, "file": file}


mlflow.models.set_model(ServedModel())
