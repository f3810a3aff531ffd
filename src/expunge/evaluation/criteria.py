"""Thresholds of the verdict. They are constants in code, fixed before results are seen; no user parameter changes them.

docs/verdict.md gives the reasons for these numbers and their calibration.
"""

from __future__ import annotations

# Largest share of the original's excess over the retrained models that may be left, and that may be overshot.
LEFT, OVERSHOT = 0.25, 0.25
# Largest loss of retained and test accuracy against the retrained models. The test is one-sided: better passes.
UTILITY = 0.005
# Error rate of each end of the interval that must lie inside the margins (two one-sided tests, Schuirmann 1987).
ALPHA = 0.05
# Probability, over all gates of a claim together, that a model at the edge of a margin is called refuted.
ALPHA_REFUTE = 0.05
# Probability, at one gate with power, that a further retrained model lies outside the margin.
BETA = 0.10
# With fewer retrained models, the estimate of their spread has at most one degree of freedom, so nothing can be shown.
MIN_REFERENCES = 3
# With fewer rows, the spread over rows is not estimated well enough.
MIN_ROWS = 20

SHOWN, REFUTED, CANNOT_TELL = "shown", "refuted", "cannot tell"
KEPT, LOST = "kept", "lost"
OUTPUTS, FEATURES, BACKBONE, EXACT = "outputs", "features", "backbone", "exact"
CLAIMS = (OUTPUTS, FEATURES, BACKBONE, EXACT)
