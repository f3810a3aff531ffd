"""What a reviewer is shown, on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.report.comparison import Part
from expunge.tracking import Version


@dataclass(frozen=True)
class Review:
    """What a reviewer is shown.

    `champion` is None where nothing was promoted: then the original stands in its place. `evaluations`: blocks of the
    summary: the champion's and the challenger's, each as registered, and the retrained models' beside the challenger.
    `retrained`: part -> what a retrained model predicts for its rows; empty without one. `failed`: gates of the
    challenger. `findings`: what the audit found.
    """

    champion: Version | None
    challenger: Version
    evaluations: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None, Mapping[str, Any] | None]
    parts: Mapping[str, Part]
    retrained: Mapping[str, NDArray[np.int64]]
    classes: Sequence[str]
    failed: Sequence[str]
    findings: Sequence[str]
