"""The registered model as an MLflow pyfunc (models from code: this file is stored with the weights, nothing is pickled).

One output row for each input row. Input: ``image`` (NIfTI, DICOM, MetaImage or fastMRI file in base64) and ``instruction``. Output:
``task``, ``text``, ``boxes`` (JSON), ``file`` (NIfTI in base64, empty for text) and ``warning`` (empty unless the image is unlike
anything in training). Invalid requests, and questions that the model was not trained for, are rejected with fault and
remedy (HTTP 400), whichever server is used.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.pyfunc import PythonModel

if TYPE_CHECKING:
    import pandas as pd

    from components.inference import Predictor


class OmniMRIPyfunc(PythonModel):
    """Predicts requests one by one."""

    predictor: Predictor

    def load_context(self, context: Any) -> None:
        """Load the weights, and the plugins that the model was trained with.

        Raises:
            MlflowException: the weights differ from those that were evaluated.
        """
        about, weights = Path(context.artifacts["about"]), Path(context.artifacts["weights"])
        from components.model_files import has_digest

        if not has_digest(weights, json.loads((about / "weights_digest.json").read_text())):
            raise mlflow.MlflowException("the weights differ from those that were evaluated: restore them from a backup")
        listed = json.loads((about / "plugins.json").read_text())
        known = [name for name in os.environ.get("OMNIMRI_PLUGINS", "").split(",") if name]
        os.environ["OMNIMRI_PLUGINS"] = ",".join(dict.fromkeys([*known, *listed]))
        from components.inference import Predictor

        self.predictor = Predictor.load(weights)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Predict every row.

        Raises:
            MlflowException: an invalid row (HTTP 400).
        """
        import pandas as pd
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

        from components.errors import BadInput, OmniMRIError
        from components.inference.untrusted_input import Limits

        limits = Limits()
        try:
            if len(model_input) > limits.images:
                raise BadInput(f"{len(model_input)} rows", where="request", remedy=f"at most {limits.images} in a request")
            rows = [self._answer(str(row["image"]), str(row["instruction"]), limits) for _, row in model_input.iterrows()]
        except OmniMRIError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None
        return pd.DataFrame(rows)

    def _answer(self, image: str, instruction: str, limits: Any) -> dict[str, str]:
        from components.errors import BadInput
        from components.inference import save
        from components.inference.untrusted_input import check_limits

        if len(instruction) > limits.instruction_characters:
            raise BadInput(
                "the instruction is too long", where="instruction", remedy=f"at most {limits.instruction_characters} characters"
            )
        try:
            content = base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError):
            raise BadInput("not base64", where="image", remedy="send the bytes of one file in base64, not its name") from None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image"
            path.write_bytes(content)
            check_limits(path, limits)
            prediction = self.predictor.predict(path, instruction)
            written = [file for file in save(prediction, Path(folder) / "out") if file.suffix == ".nii"]
            file = base64.b64encode(written[0].read_bytes()).decode() if written else ""
        boxes = json.dumps([asdict(box) for box in prediction.boxes])
        warning = prediction.familiarity.warning if prediction.familiarity is not None else ""
        return {"task": prediction.task, "text": prediction.text, "boxes": boxes, "file": file, "warning": warning}


mlflow.models.set_model(OmniMRIPyfunc())
