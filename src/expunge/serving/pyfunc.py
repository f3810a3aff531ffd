"""The script that MLflow stores with a model and runs to load it: no class of ours is pickled.

Do not import it: it announces a model when it runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from numpy.typing import NDArray

from expunge.serving.servable import Servable
from expunge.system.errors import DataError


class UnlearnedClassifier(PythonModel):  # type: ignore[misc]
    """Raw images, uint8 `(n, h, w)` or `(n, h, w, c)`, or a frame with the column `text`, to class probabilities,
    float32 `(n, C)`."""

    def load_context(self, context: Any) -> None:
        self.servable = Servable.load(context.artifacts["servable"])

    # A bare array is the one hint that MLflow does not turn into a schema of its own: the signature is given.
    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> NDArray[np.float32]:
        given: Any = model_input
        if self.servable.contract.texts:  # MLflow has no tensors of texts, so they come in a frame
            given = given["text"].to_numpy()
        try:
            return self.servable.probabilities(given)
        except DataError as e:
            raise MlflowException.invalid_parameter_value(str(e)) from None


set_model(UnlearnedClassifier())
