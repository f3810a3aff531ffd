"""`expunge check` reports every conflict of params, request, methods, model and machine before any stage runs.

All of them are reported together.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from expunge.checks import resources
from expunge.checks.report import Report, check
from expunge.checks.times import last_times
from expunge.data.prepare import prepare
from expunge.system import preflight
from expunge.system.errors import ConfigError
from tests.pipeline import ENVIRONMENT, ROOT

DEMO = yaml.safe_load((ROOT / "params.demo.yaml").read_text())


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "dataset"
    prepare("digits", out)
    return out


def checked(tmp_path: Path, change: Any, dataset: Path = Path("nowhere")) -> Report:
    params = yaml.safe_load(yaml.safe_dump(DEMO))
    change(params)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return check(tmp_path / "params.yaml", dataset)


def lines(report: Report) -> list[str]:
    return [str(p) for p in report.problems]


@pytest.mark.parametrize("name", ["params.yaml", "params.demo.yaml"])
def test_nothing_is_wrong_with_the_shipped_params(name, monkeypatch):
    monkeypatch.setattr(resources, "memory", lambda: 1e12)
    report = check(ROOT / name, Path("nowhere"))
    assert lines(report) == [] and report.needs is not None and report.needs["disk_gb"]["models"] > 0


def test_nothing_is_wrong_with_them_on_the_dataset_itself(tmp_path, digits):
    report = checked(tmp_path, lambda p: None, digits)
    assert lines(report) == [] and report.notes == []


def add(params: dict, name: str, settings: dict | None = None) -> None:
    params["methods"].append(name)
    params["fit"][name] = settings or {}


ROWS = {"selector": "random", "fraction": 0.1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p["activations"].update(cuts=["stage9", "stage1"]), r"activations\.cuts: .*no cut 'stage9'.*stage2"),
        (
            lambda p: add(p, "relearn", {"cut": "stage2"}),
            r"fit\.relearn: relearns above 'stage2', but activations\.cut",
        ),
        (lambda p: (p["split"].update(ROWS), add(p, "trew")), r"fit\.trew: trew is for whole classes, .*names rows of"),
        (lambda p: (p["split"].update(ROWS), add(p, "pour-p")), r"fit\.pour-p: pour-p is for whole classes"),
        (lambda p: add(p, "regun"), r"fit\.regun: regun is for rows of classes that stay, .*names whole classes"),
        (
            lambda p: (add(p, "regun"), p["split"].update(selector="random")),
            r"fit\.regun: regun needs rows that the model never saw, and split\.unseen is 0; set split\.unseen",
        ),
        (lambda p: p["fit"]["teacher-map"].pop("after"), r"fit\.teacher-map: .*starts from another.*add after"),
        (
            lambda p: p["fit"]["teacher-map"].update(after={"method": "relern"}),
            r"fit\.teacher-map\.after: unknown method 'relern'; did you mean relearn",
        ),
        (
            lambda p: p["fit"]["teacher-map"].update(after={"method": "loft"}),
            r"fit\.teacher-map\.after: teacher-map learns from a relearned teacher, not from loft",
        ),
        (
            lambda p: add(p, "seal", {"after": {"method": "teacher-map", "after": {"method": "magic"}}}),
            r"fit\.seal\.after\.after: unknown method 'magic'",
        ),
        (lambda p: add(p, "seal", {"after": {"method": "fine-tune"}}), r"fit\.seal\.after: fine-tune changes the back"),
        (lambda p: p["fit"]["loft"].update(after={"method": "leace"}), r"fit\.loft\.after: .*takes no `after`"),
        (lambda p: p["fit"]["loft"].update(rnk=3), r"fit\.loft\.rnk: loft has no such setting; near it: rank"),
        (lambda p: p["fit"]["loft"].update(choose={"rnk": [3]}), r"fit\.loft\.choose\.rnk: loft has no such setting"),
        (
            lambda p: add(p, "seal", {"after": {"method": "loft"}}),
            r"fit\.seal\.after\.rank: is missing, and loft has no",
        ),
        (
            lambda p: p["fit"]["teacher-map"]["after"].update(cut="stage2"),
            r"fit\.teacher-map\.after: relearns above 'stage2', but activations\.cuts is \['stage1'\]",
        ),
        (lambda p: add(p, "seal", {"after": {"rank": 3}}), r"fit\.seal\.after: names no method"),
        (lambda p: add(p, "seal", {"after": {"method": ["leace"]}}), r"fit\.seal\.after: unknown method .*'leace'"),
        (
            lambda p: add(p, "seal", {"after": {"method": "leace", "max_drop": 0.1}}),
            r"fit\.seal\.after\.max_drop: is for entries that methods names, .* start of seal; set it there",
        ),
        (
            lambda p: add(p, "head-refit", {"after": {"method": "relearn", "cut": "stage1"}}),
            r"fit\.head-refit\.after: relearn changes the backbone, and head-refit",
        ),
        (lambda p: add(p, "fine-tune", {"epochs": 0}), r"fit\.fine-tune: epochs and batch_size must be at least 1"),
        (
            lambda p: add(p, "salun", {"choose": {"factor": [0.1, -1.0]}}),
            r"fit\.salun: factor must not be negative, got -1",
        ),
        (lambda p: add(p, "certified-removal"), r"fit\.certified-removal: .*needs a frozen backbone"),
        (
            lambda p: p["model"].update(head="fc"),
            r"model\.head: 'fc' is not a linear layer of the model; its linear layers are head",
        ),
        (
            lambda p: p["model"].update(name="timm:resnet99"),
            r"model\.name: timm has no model 'resnet99'; similar models: ",
        ),
        (lambda p: p["model"].update(checkpoint="gone.safetensors"), r"model: gone\.safetensors: no such"),
        (lambda p: p["data"].update(source="image-folder", path="gone"), r"data\.path: gone: no such file"),
        (lambda p: p["split"].update(selector="ids", file="gone.txt"), r"split\.file: gone\.txt: no such file"),
        (lambda p: p["split"].update(classes=[10]), r"split\.classes: \[10\]: the classes are 0 to 9"),
        (lambda p: p["train"].update(epoch=3), r"params\.yaml: unknown key train\.epoch; did you mean train\.epochs"),
        (lambda p: p["train"].update(epochs=0), r"train\.epochs: is 0; it must be at least 1"),
        (lambda p: p["methods"].append("magic"), r"methods: names 'magic', but fit\.magic is missing"),
    ],
)
def test_a_mistake_is_one_line_with_key_and_way_out(tmp_path, change, said):
    found = lines(checked(tmp_path, change))
    assert any(re.match(said, line.split("/")[-1]) for line in found), found
    assert all(len(line.splitlines()) == 1 and "; " in line for line in found)


def test_a_teacher_s_settings_may_stand_for_beta_where_it_is_fitted(tmp_path):
    assert lines(checked(tmp_path, lambda p: add(p, "trew", {"beta": {"cut": "stage1"}}))) == []
    found = lines(checked(tmp_path, lambda p: add(p, "ru-mlp", {"beta": {"cut": "stage1"}, "hiden": [3]})))
    assert any("fit.ru-mlp.hiden: " in line for line in found)


def test_what_the_fit_stage_refuses_without_ending_the_run_is_a_note(tmp_path):
    report = checked(tmp_path, lambda p: add(p, "exact"))
    assert lines(report) == []
    assert any(note.startswith("fit.exact: exact will be refused: model.training is full") for note in report.notes)


def test_all_mistakes_are_reported_together(tmp_path, digits):
    def change(p: dict) -> None:
        p["train"]["epoch"] = p["train"].pop("epochs")
        p["activations"]["cuts"] = ["stage1", "stag2"]
        p["split"].update(selector="filter", filter="label == 5 and sample_id != 'x'")
        p["model"]["head"] = "backbone"
        add(p, "boundary-shrink", {"lr": 0.1, "steps": 3})
        add(p, "head-refit", {"after": {"method": "tlit"}})

    found = lines(checked(tmp_path, change, digits))
    for key in (
        "unknown key train.epoch",
        "split: ",
        "model.head",
        "no cut 'stag2'",
        "fit.boundary-shrink",
        "fit.head-refit.after",
    ):
        assert sum(key in line for line in found) == 1, (key, found)


def test_the_request_is_described_by_its_rows_where_there_is_a_dataset(tmp_path, digits):
    """A filter may take a whole class or a part of it; only its rows tell which."""

    def asks(text: str) -> Any:
        return lambda p: (p["split"].update(selector="filter", filter=text), add(p, "trew"))

    assert lines(checked(tmp_path, asks("label == 5"), digits)) == []
    (found,) = lines(checked(tmp_path, asks('label == 5 and split == "train" and height > 9'), digits))
    assert "no training row" in found
    ids = tmp_path / "ids.csv"
    from expunge.data.dataset import Dataset

    ids.write_text("sample_id\n" + Dataset(digits).sample_ids()[0] + "\n")
    found = lines(
        checked(tmp_path, lambda p: (p["split"].update(selector="ids", file=str(ids)), add(p, "trew")), digits)
    )
    assert len(found) == 1 and "trew is for whole classes" in found[0]


def folder(tmp_path: Path, sizes: list[int]) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in "ab":
        for i in range(6):
            path = tmp_path / "pictures" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            side = sizes[i % len(sizes)]
            Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(path)
    prepare("image-folder", tmp_path / "dataset", path=tmp_path / "pictures")
    return tmp_path / "dataset"


def test_requests_whose_rows_are_known_only_later_are_no_mistake(tmp_path, digits):
    def hard(p: dict) -> None:
        p["split"].update(selector="memorised", fraction=0.02)

    def audit(p: dict) -> None:
        p["data"].update(canaries=20)
        p["split"].update(selector="canaries")

    for change in (hard, audit):
        assert lines(checked(tmp_path, change, digits)) == []


@pytest.mark.parametrize("sizes", [[16], [16, 20]])
def test_methods_that_need_one_size_are_refused_on_pictures_of_several(tmp_path, sizes):
    dataset = folder(tmp_path, sizes)

    def change(p: dict) -> None:
        p["data"].update(source="image-folder", path=str(tmp_path / "pictures"))
        p["split"].update(classes=["a"])
        p["retrain"].update(seeds=[1])
        add(p, "delete")

    found = lines(checked(tmp_path, change, dataset))
    if len(sizes) == 1:
        assert found == []
    else:
        assert any(f.startswith("fit.delete: delete needs pictures of one size") for f in found)
        assert any(f.startswith("model.training: pictures differ in size") for f in found)


def test_needs_of_disk_and_memory_are_estimated_and_a_lack_is_reported(tmp_path, digits, monkeypatch):
    report = checked(tmp_path, lambda p: add(p, "fine-tune"), digits)
    assert report.needs is not None
    rows, seeds, train = 1797, 3, 1438
    want = 2 * rows * 128 * 4 * (1 + seeds) / 1e9
    assert report.needs["disk_gb"]["data/features"] == pytest.approx(want, abs=1e-3)
    assert report.needs["disk_gb"]["data/activations"] == pytest.approx(train * 32 * 8 * 8 * 2 / 1e9, abs=1e-3)
    monkeypatch.setattr(resources, "memory", lambda: 1e8)
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda root: SimpleNamespace(free=1e6))
    monkeypatch.chdir(tmp_path)
    found = lines(checked(tmp_path, lambda p: add(p, "fine-tune"), digits))
    assert any(f.startswith("disk: 0.0 GB will be written (data/features") for f in found)
    assert any(f.startswith("memory: the fit stage needs about ") and "train.batch_size" in f for f in found)


def test_the_memory_of_a_batch_grows_with_the_batch(tmp_path, digits):
    small, large = (checked(tmp_path, lambda p, b=b: p["train"].update(batch_size=b), digits).needs for b in (16, 1024))
    assert small["memory_gb"] < large["memory_gb"]


def test_estimated_times_are_those_of_the_last_run(tmp_path):
    written = {
        "train": {"train_s": 9.5},
        "retrain-3": {"train_s": 8.0},
        "extract-original": {"seconds": 2.0},
        "extract-retrained-3": {"seconds": 3.0},
        "fit-loft-mean": {"fit_s": 0.5},
        "evaluate-references": {"evaluate_s": 4.0},
        "evaluate-loft": {"evaluate_s": 1.0},
        "unknown": {"train_s": 1.0},
    }
    for name, cost in written.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(cost))
    (tmp_path / "fit-torn.json").write_text("{")
    assert last_times(tmp_path) == {
        "train": 9.5, "retrain@3": 8.0, "extract": 2.0, "extract-retrained@3": 3.0, "fit@loft-mean": 0.5,
        "evaluate-references": 4.0, "evaluate@loft": 1.0,
    }  # fmt: skip


def command(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT / "src")}
    run = [sys.executable, "-m", *arguments]
    return subprocess.run(run, cwd=directory, env=environment, text=True, capture_output=True)


@pytest.mark.slow
def test_the_command_and_prepare_refuse_with_status_2(tmp_path):
    params = {**DEMO, "methods": [*DEMO["methods"], "magic"], "fit": {**DEMO["fit"], "magic": {"method": "lofd"}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    report = command(tmp_path, "expunge.cli", "check")
    assert report.returncode == 2 and "fit.magic: unknown method 'lofd'; did you mean loft" in report.stdout
    assert "params.yaml: 1 conflict; no stage was run" in report.stdout
    as_json = command(tmp_path, "expunge.cli", "check", "--json")
    assert as_json.returncode == 2
    assert [p["where"] for p in json.loads(as_json.stdout)["problems"]] == ["fit.magic"]
    assert not preflight.passed(tmp_path)
    stage = command(tmp_path, "expunge.stages.prepare")
    assert stage.returncode == 2 and "error: fit.magic: unknown method 'lofd'; did you mean loft" in stage.stderr


@pytest.mark.slow
def test_prepare_does_not_check_again_what_passed(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(DEMO))
    monkeypatch.chdir(tmp_path)
    assert not preflight.passed()
    began = time.perf_counter()
    with preflight.checked_beside():
        body = time.perf_counter() - began
    assert body < 1  # The check runs at the same time as the body.
    assert preflight.passed()  # The check recorded that the params passed.
    monkeypatch.setattr(preflight.subprocess, "Popen", None)  # A second check would fail here.
    with preflight.checked_beside():
        pass
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**DEMO, "reference": "no"}))
    assert not preflight.passed()
    with pytest.raises(ConfigError, match="reference"), preflight.checked_beside():
        pass


def test_corrections_are_checked_on_the_dataset_and_need_methods_that_learn_new_labels(tmp_path, digits):
    from expunge.data.dataset import Dataset

    dataset, file = Dataset(digits), tmp_path / "corrections.csv"

    def asks(label: int, methods: list[str]) -> Any:
        def change(p: dict) -> None:
            p["split"].update(selector="correct", file=str(file))
            p["methods"] = ["logit-mask", *methods]
            p["fit"] = {name: p["fit"].get(name, {}) for name in p["methods"]}

        file.write_text(f"sample_id,label\n{dataset.sample_ids()[0]},{label}\n")
        return change

    own = int(dataset.labels()[0])
    assert lines(checked(tmp_path, asks((own + 1) % 10, ["relearn"]), digits)) == []
    (found,) = lines(checked(tmp_path, asks((own + 1) % 10, ["loft"]), digits))
    assert "loft is for whole classes, and this request names corrected labels" in found and "relearn" in found
    (found,) = lines(checked(tmp_path, asks(own, ["relearn"]), digits))
    assert "so there is nothing to correct" in found


@pytest.mark.parametrize("section", ["extract", "train"])
def test_ray_must_be_installed_and_its_cluster_answer(tmp_path, monkeypatch, section):
    def found(address: str | None) -> list[str]:
        def change(params: dict) -> None:
            params[section]["engine"] = "ray"
            params["extract"]["address"] = address

        return lines(checked(tmp_path, change))

    assert not found(None)
    (refused,) = found("127.0.0.1:1")
    assert refused.startswith("extract.address: no Ray cluster answers at '127.0.0.1:1'")
    monkeypatch.setattr(resources.importlib.util, "find_spec", lambda _name: None)
    way_out = "run pip install 'expunge[ray]'"
    assert found(None) == [f"{section}.engine: is ray, but Ray is not installed; {way_out}"]


def test_compiling_needs_a_compiler_and_header_files(tmp_path, monkeypatch):
    def found(**more: object) -> list[str]:
        return lines(checked(tmp_path, lambda p: p["train"].update(compile=True, **more)))

    monkeypatch.setattr(resources.sysconfig, "get_path", lambda _name: str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "g++"))
    way_out = "; install g++ and python3-dev, or set train.compile: false"
    compiler = f"train.compile: the compiler {tmp_path / 'g++'}"
    assert found() == [f"{compiler} and Python's header files cannot be found{way_out}"]
    (tmp_path / "Python.h").touch()
    assert found() == [f"{compiler} cannot be found{way_out}"]
    monkeypatch.setenv("CXX", sys.executable)
    assert not found()
    assert found(engine="torchrun") == ["train.compile: is for training in one process; set train.engine: local"]
