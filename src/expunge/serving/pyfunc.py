"""The script that MLflow stores with a model and runs to load it, so that no class of this package is pickled.

Do not import it: running it registers a model with MLflow (`set_model`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from numpy.typing import NDArray

from expunge.serving.servable import Servable
from expunge.system.errors import DataError


class UnlearnedClassifier(PythonModel):  # type: ignore[misc]
    """This model predicts class probabilities float32 `(n, C)` from raw images or texts.

    Images are uint8 `(n, h, w)` or `(n, h, w, c)`; texts come in a data frame with the column `text`.
    """

    def load_context(self, context: Any) -> None:
        """Load the files of the version; MLflow calls this once."""
        self.servable = Servable.load(context.artifacts["servable"])

    # np.ndarray is the only type hint from which MLflow derives no schema; the signature is given when logging.
    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> NDArray[np.float32] | pd.DataFrame:
        """Return the probabilities `(n, C)`; with the parameter `names`, a data frame with the classes as columns.

        Raises MlflowException for an input that does not fit the contract.
        """
        given: Any = model_input
        if self.servable.contract.texts:  # MLflow has no text tensors, so texts come in a data frame
            given = given["text"].to_numpy()
        try:
            probabilities = self.servable.probabilities(given)
        except DataError as e:
            raise MlflowException.invalid_parameter_value(str(e)) from None
        if (params or {}).get("names"):
            return pd.DataFrame(probabilities, columns=list(self.servable.contract.classes))
        return probabilities


set_model(UnlearnedClassifier())
