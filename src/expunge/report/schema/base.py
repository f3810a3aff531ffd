"""Types that the parts of the schema share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from expunge.report.metrics import METRICS

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


def metric(path: str) -> Any:
    """A required key that holds the metric registered under `path`, with the words of `report/metrics.py`."""
    return Field(description=METRICS[path].name)


class Part(BaseModel):
    """A part of the summary. Attribute docstrings become descriptions in the JSON Schema."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="allow", strict=True, allow_inf_nan=False)
