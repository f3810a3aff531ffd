"""What a verdict is held to. Written in code before tables are made, and in no user's parameters.

The reasons and the calibration of these numbers are in docs/verdict.md.
"""

from __future__ import annotations

# Share of the original's excess over the retrained models that a method may leave, and by which it may overshoot.
LEFT, OVERSHOT = 0.25, 0.25
# Largest loss of retained and test accuracy against the retrained models; better is no failure.
UTILITY = 0.005
# Each end of the interval that must lie inside the margins (two one-sided tests, Schuirmann 1987).
ALPHA = 0.05
# Chance, over all gates of a claim together, that a model at the edge of a margin is called refuted.
ALPHA_REFUTE = 0.05
# Chance, for one gate with power, that a further retrained model lies outside the margin.
BETA = 0.10
# With fewer retrained models their spread is unknown, or known from one degree of freedom, and nothing can be shown.
MIN_REFERENCES = 3
# With fewer rows the spread over rows is not known well enough.
MIN_ROWS = 20

SHOWN, REFUTED, CANNOT_TELL = "shown", "refuted", "cannot tell"
KEPT, LOST = "kept", "lost"
OUTPUTS, FEATURES, BACKBONE, EXACT = "outputs", "features", "backbone", "exact"
CLAIMS = (OUTPUTS, FEATURES, BACKBONE, EXACT)
