"""The oracle of `oracle-match`: the result of the entry in its `after`."""

from __future__ import annotations

from expunge.core import AffineMap
from expunge.finetune import HeadOracle, RidgeOracle, TeacherOracle
from expunge.finetune.oracle import Oracle
from expunge.methods.unlearned import UnlearnedModel
from expunge.system.errors import ConfigError


def oracle_after(name: str, before: UnlearnedModel | None) -> Oracle:
    """Return the result of `after` of the entry `name`, a network or a head, as an oracle.

    Without `after` the oracle is the ridge head without the forgotten rows. Raises ConfigError if `after` maps the
    features.
    """
    if before is None:
        return RidgeOracle()
    if before.classifier is not None:
        return TeacherOracle(before.classifier)
    if isinstance(before.map, AffineMap) and before.map.is_identity:
        return HeadOracle(before.head)
    raise ConfigError(
        f"params.yaml: fit.{name}: `after` maps the features, but oracle-match needs a relearned network or a head"
    )
