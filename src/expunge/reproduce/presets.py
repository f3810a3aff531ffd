"""Presets: files in `presets/` that change params.yaml, each on top of what it extends in `presets/base/`."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.reproduce.switches import entry_settings
from expunge.system.errors import ConfigError
from expunge.system.safe_yaml import read_mapping
from expunge.workspaces.template import template
from expunge.workspaces.workspace import params_with

HOME = Path("presets")
KEYS = {
    "title", "paper", "extends", "params", "grid", "runs", "rounds", "published", "differs", "weights", "toy",
}  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """One preset.

    `params`: changes of params.yaml. `runs`: further changes by name of the run; each run is one request. `rounds`:
    successive requests, instead of runs. `grid`: entries of `fit` for every beta. `weights`: public weights of
    torchvision from which the model starts. `published`: known published numbers. `differs`: differences to the paper.
    """

    name: str
    title: str
    paper: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Any] | None = None
    runs: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"run": {}})
    rounds: Sequence[Mapping[str, Any]] = ()
    published: Sequence[Mapping[str, Any]] = ()
    differs: Sequence[str] = ()
    weights: Mapping[str, str] | None = None
    toy: str | None = None

    def entries(self, switches: frozenset[str]) -> dict[str, dict[str, Any]]:
        """Entries of `fit` that the grid defines, by their names ENTRY-BETA."""
        if self.grid is None:
            return {}
        found = {}
        for name, own in self.grid["entries"].items():
            for beta in self.grid["beta"]:
                found[f"{name}-{_power(beta)}"] = entry_settings({**self.grid["every"], **own, "beta": beta}, switches)
        return found

    def params_of(self, root: Path, run: str, switches: frozenset[str], more: Mapping[str, Any]) -> dict[str, Any]:
        """Complete params of one run; `more` overrides everything else. Raises ConfigError for an unknown key."""
        changes = merged(merged(self.params, self.runs[run]), more)
        settings: dict[str, Any] = changes.pop("fit", None) or {}
        params = params_with(source_of(root) / "params.yaml", changes)
        if unknown := sorted(set(settings) - set(params["fit"])):
            raise ConfigError(f"{HOME / self.name}.yaml: fit.{unknown[0]} is no entry of params.yaml")
        entries = self.entries(switches)
        params["fit"] = {**merged(dict(params["fit"]), settings), **entries}
        params["methods"] = [*params["methods"], *entries]
        return params


def source_of(root: Path) -> Path:
    """Directory with `presets/` and the params.yaml that they change: `root`, or the installed package's template."""
    return root if (root / HOME).is_dir() else template(HOME.name).parent


def names(root: Path) -> list[str]:
    """Names of all presets in alphabetical order."""
    return sorted(path.stem for path in (source_of(root) / HOME).glob("*.yaml"))


def load(root: Path, name: str) -> Preset:
    """Load the preset `name`. Raises ConfigError for an unknown preset, an unknown key, or a missing title."""
    known = names(root)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        raise ConfigError(f"{HOME / name}.yaml: no such preset; {hint}")
    given = _read(source_of(root) / HOME / f"{name}.yaml")
    if "title" not in given:
        raise ConfigError(f"{HOME / name}.yaml: has no title; add the key title")
    given.pop("extends", None)
    return Preset(name, **given)


def _read(file: Path) -> dict[str, Any]:
    """Read one file and merge it over what it extends. The lists `differs` are concatenated, other values replaced."""
    given = dict(read_mapping(file))
    if unknown := sorted(set(given) - KEYS):
        raise ConfigError(f"{file}: unknown key {unknown[0]!r}; known are {', '.join(sorted(KEYS))}")
    below = given.pop("extends", None)
    if below is None:
        return given
    base = file.parent / "base" if file.parent.name != "base" else file.parent
    places = [base / f"{below}.yaml", file.parent / f"{below}.yaml"]
    found = next((place for place in places if place.is_file() and place != file), None)
    if found is None:
        raise ConfigError(f"{file}: extends {below!r}, which is neither in {base} nor beside it")
    under = _read(found)
    return {**merged(under, given), "differs": [*under.get("differs", []), *given.get("differs", [])]}


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` into a copy of `under`, key by key at any depth."""
    out: dict[str, Any] = copy.deepcopy(dict(under))
    for key, value in over.items():
        below = out.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            out[key] = merged(below, value)
        else:
            out[key] = copy.deepcopy(value)
    return out


def _power(beta: float) -> str:
    """Format 0.001 as 1e-3. Entries are parts of DVC's keys, in which a dot is a separator."""
    mantissa, exponent = f"{beta:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}".replace(".", "_")
