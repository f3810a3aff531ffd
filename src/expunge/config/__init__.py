"""Read params.yaml into frozen dataclasses. An unknown, missing or impossible key is an error that names it.

May import system. Start with `sections.py`, which defines the keys; `rules.py` checks keys that depend on each other.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from expunge.config.rules import DEFAULT_CUT, NAMED, RENAMED, RENAMED_METHODS, SOURCES, broken_rules, entries
from expunge.config.sections import Activations, Config, Data, Features, Model, Shadow, Train
from expunge.system import limits
from expunge.system.errors import ConfigError
from expunge.system.safe_yaml import read_mapping
from expunge.system.validation import explain, holds, without_misspellings

__all__ = [
    "DEFAULT_CUT",
    "NAMED",
    "PARAMS",
    "RENAMED",
    "RENAMED_METHODS",
    "SOURCES",
    "Activations",
    "Config",
    "Data",
    "Features",
    "Model",
    "Shadow",
    "Train",
    "entries",
    "load_config",
    "read_config",
]
PARAMS = Path("params.yaml")
_ADAPTER = TypeAdapter(Config)


def load_config(path: Path | str = PARAMS) -> Config:
    """Read and check params.yaml, and put its limits into force for this process.

    Raises ConfigError, which names the key and, for a misspelling, the closest key.
    """
    config, problems = read_config(path)
    if problems or config is None:
        raise ConfigError(f"{path}: {problems[0]}")
    limits.use(limits.InputLimits(**asdict(config.limits)))
    return config


def read_config(path: Path | str = PARAMS) -> tuple[Config | None, list[str]]:
    """Return the params of the file `path`, and one line for every problem with its keys.

    A misspelt key is read as the closest known key, so that the other keys are checked too. The params are None if the
    keys are still invalid.

    Raises ConfigError for a file that cannot be read as a mapping.
    """
    raw = read_mapping(Path(path))
    problems = _old_keys(raw)
    try:
        config = _ADAPTER.validate_python(raw)
    except ValidationError as e:
        problems += explain(e, raw, Config)
        try:
            config = _ADAPTER.validate_python(without_misspellings(e, raw, Config))
        except ValidationError:
            return None, problems
    return config, problems + broken_rules(config)


def _old_keys(raw: Any) -> list[str]:
    """Return one line for each key of an earlier version, with its replacement. Removes `verdict` from `raw`."""
    found = [f"key {key} is called {new} now; rename it" for key, new in RENAMED.items() if holds(raw, key)]
    if raw.pop("verdict", None) is not None:
        found.append(
            "verdict is no longer a section; remove it. The margins are fixed in expunge.evaluation.criteria, and "
            "docs/verdict.md gives their reasons"
        )
    register = raw.get("register")
    asked = register.get("promote_level") if isinstance(register, dict) else None
    if asked in ("a", "b", "c", "d"):
        found.append(
            f"register.promote_level is {asked!r}, a level of earlier versions; set it to the weakest claim that a "
            "served version must meet: outputs, features, backbone or exact (outputs replaces b)"
        )
    return found
