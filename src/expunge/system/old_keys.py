"""Keys of params.yaml that earlier versions had: refused, with what took their place."""

from __future__ import annotations

from typing import Any

from expunge.system.errors import ConfigError
from expunge.system.validation import holds

# Old keys -> new keys, as they are written in errors. An old key is refused with the new one.
RENAMED = {
    "fit.matched": "fit.relearn",
    "fit.matched-stage2": "fit.relearn-stage2",
    "fit.matched-fast": "fit.teacher-map",
    "fit.matched-sealed": "fit.teacher-map-sealed",
    "fit.teacher": "fit.teacher-map.after",
    "ensembles": "shadow",
    "shadow.full": "shadow.networks",
}


def refuse_old_keys(raw: Any, path: str) -> None:
    """Keys of earlier versions, with what took their place."""
    if isinstance(raw, dict) and "verdict" in raw:
        raise ConfigError(
            f"{path}: verdict is no section any more; remove it. The margins are the same for everybody and stand in "
            "src/expunge/evaluation/criteria.py, with their reasons in docs/verdict.md"
        )
    register = raw.get("register") if isinstance(raw, dict) else None
    asked = register.get("promote_level") if isinstance(register, dict) else None
    if asked in ("a", "b", "c", "d"):
        raise ConfigError(
            f"{path}: register.promote_level is {asked!r}, a letter of earlier versions; it is now the least claim "
            "that may serve: outputs, features, backbone or exact (outputs took the place of b)"
        )
    for key, new in RENAMED.items():
        if holds(raw, key):
            raise ConfigError(f"{path}: key {key} is called {new} now; rename it")
