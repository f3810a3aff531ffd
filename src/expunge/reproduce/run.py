"""Run one preset from its file to its page: fetch data, run it in its own workspace, and write the page.

An interrupted run can be continued.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from expunge.config import load_config
from expunge.data.readers.named import PREFIX, WITHOUT_DOWNLOAD
from expunge.reproduce import page
from expunge.reproduce.artefacts import augmented_retained, logits_cka
from expunge.reproduce.gaussians import draw, run_toy
from expunge.reproduce.presets import Preset, load, merged
from expunge.reproduce.rounds import run_rounds
from expunge.reproduce.rounds_page import draw_rounds, page_of_rounds
from expunge.reproduce.sample import cut, sample_changes
from expunge.reproduce.switches import AUGMENTED, LOGITS_CKA
from expunge.reproduce.weights import fetch_weights
from expunge.system.errors import ConfigError, DataError
from expunge.system.files import read_json, write_bytes, write_json, write_text
from expunge.system.paths import RAW, SUMMARY, WORK
from expunge.system.progress import log_message
from expunge.workspaces.workspace import lay_out, reproduce

HOME = WORK / "reproduce"
CACHE = HOME / "cache"  # DVC's cache, shared by all presets, so that a common base model is trained only once
PAGE = "page.md"
ONCE = ("validate-features", "activations")  # stages that must have run before the rounds
Pipeline = Callable[..., None]  # (root, workspace, *targets): `dvc repro`


@dataclass(frozen=True)
class Wanted:
    """Options of a run.

    `switches`: known artefacts to reproduce. `sample`: use a few dozen synthetic images in the real formats.
    `data_root`: directory of the data set, if it is not where it would be downloaded to.
    """

    switches: frozenset[str] = frozenset()
    sample: bool = False
    data_root: Path | None = None


def reproduce_preset(root: Path, name: str, wanted: Wanted, pipeline: Pipeline = reproduce) -> Path:
    """Run the preset `name`, write its page and return the path of the page.

    Raises ConfigError or DataError for options that do not fit the preset, and ExpungeError if the pipeline fails.
    """
    preset = load(root, name)
    _check(preset, wanted)
    home = root / HOME / "+".join([name, *(["sample"] if wanted.sample else []), *sorted(wanted.switches)])
    home.mkdir(parents=True, exist_ok=True)
    if preset.toy is not None:
        return _toy(preset, home)
    preset = cut(preset) if wanted.sample else preset
    changes = _given(root, home, preset, wanted)
    if preset.rounds:
        return _rounds(root, home, preset, wanted, changes, pipeline)
    results = []
    for run in preset.runs:
        params = preset.params_of(root, run, wanted.switches, changes)
        workspace = _laid_out(root, home / run, params)
        log_message(f"reproduce: {name}, {run}, in {workspace.relative_to(root)}")
        pipeline(root, workspace, "report")
        results.append(page.Result(run, read_json(workspace / SUMMARY), _extras(workspace, wanted)))
    write_text(home / PAGE, page.of_runs(preset, results, wanted.switches, wanted.sample))
    return home / PAGE


def _check(preset: Preset, wanted: Wanted) -> None:
    """Raise ConfigError for options that do not apply to the preset, before anything is written."""
    if wanted.switches and (preset.rounds or preset.toy):
        raise ConfigError(f"{preset.name}: has no switches for artefacts; leave --artefact and --as-published out")
    if wanted.sample and wanted.data_root is not None:
        raise ConfigError("--sample makes its own files; leave --data-root out")


def _given(root: Path, home: Path, preset: Preset, wanted: Wanted) -> dict[str, Any]:
    """Changes of the preset's params: directories on this machine, or the sizes of the sample.

    Raises DataError for a missing or superfluous data root.
    """
    source = preset.params.get("data", {}).get("source", "fashion-mnist")
    if wanted.sample:
        return merged(_engine(preset), sample_changes(home, preset))
    changes: dict[str, Any] = _engine(preset)
    if source.startswith(PREFIX):
        place = wanted.data_root or root / RAW / "torchvision"
        if source.removeprefix(PREFIX) in WITHOUT_DOWNLOAD and wanted.data_root is None:
            raise DataError(f"{preset.name}: {source} cannot be fetched; give its folder with --data-root DIRECTORY")
        if wanted.data_root is not None and not wanted.data_root.is_dir():
            raise DataError(f"{wanted.data_root}: no such directory (--data-root)")
        changes["data"] = {"root": str(place.resolve())}
    elif wanted.data_root is not None:
        raise DataError(f"--data-root is for presets of torchvision:NAME, but {preset.name} reads {source}")
    if preset.weights is not None:
        changes = merged(changes, {"model": {"checkpoint": str(fetch_weights(root, preset.weights).resolve())}})
    return changes


def _engine(preset: Preset) -> dict[str, Any]:
    """Changes that train whole networks with torchrun if there is a GPU; this process would train on the processor."""
    full = preset.params.get("model", {}).get("training", "full") == "full"
    return {"train": {"engine": "torchrun", "workers": 1}} if full and torch.cuda.is_available() else {}


def _laid_out(root: Path, workspace: Path, params: Mapping[str, Any]) -> Path:
    workspace.mkdir(parents=True, exist_ok=True)
    lay_out(root, workspace, yaml.safe_dump(dict(params), sort_keys=False), cache=root / CACHE)
    return workspace


def _extras(workspace: Path, wanted: Wanted) -> dict[str, Mapping[str, float | None]]:
    """The numbers that the switches ask for in addition to those of the pipeline."""
    config = load_config(workspace / "params.yaml")
    with chdir(workspace):  # paths in params are relative to it
        here = Path()
        found: dict[str, Mapping[str, float | None]] = {}
        if AUGMENTED in wanted.switches:
            found[AUGMENTED] = augmented_retained(here, config)
        if LOGITS_CKA in wanted.switches:
            found[LOGITS_CKA] = logits_cka(here, config)
    return found


def _rounds(
    root: Path, home: Path, preset: Preset, wanted: Wanted, changes: Mapping[str, Any], pipeline: Pipeline
) -> Path:
    workspace = _laid_out(root, home / "run", preset.params_of(root, "run", wanted.switches, changes))
    log_message(f"reproduce: {preset.name}, in {workspace.relative_to(root)}")
    pipeline(root, workspace, *ONCE)
    with chdir(workspace):
        found = run_rounds(load_config(), preset.rounds)
    write_json(home / "rounds.json", found)
    write_bytes(home / "rounds.png", draw_rounds(found))
    write_text(home / PAGE, page_of_rounds(preset, found, "rounds.png", wanted.sample))
    return home / PAGE


def _toy(preset: Preset, home: Path) -> Path:
    head, labels, panels = run_toy()
    write_bytes(home / "gaussians.png", draw(head, labels, panels))
    write_text(home / PAGE, page.of_toy(preset, panels, "gaussians.png"))
    return home / PAGE
