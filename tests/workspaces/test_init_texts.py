"""Test the texts of params.yaml and dvc.yaml that `expunge init` makes from those of this repository."""

from __future__ import annotations

import difflib
import subprocess
import tomllib
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import yaml
from PIL import Image

from expunge.config import read_config
from expunge.system.errors import ConfigError
from expunge.system.installed import LOCK, code_digest, read_lock, stages
from expunge.workspaces.init import answers as asked
from expunge.workspaces.init.answers import Answers, changes_of, named_classes, source_of
from expunge.workspaces.init.editing import blocks_of, mapping_of, with_missing, with_values
from expunge.workspaces.init.graph import graph, outputs, stages_of
from expunge.workspaces.init.plan import lock_of
from tests.pipeline import ROOT

PARAMS = (ROOT / "params.yaml").read_text()
GRAPH = (ROOT / "dvc.yaml").read_text()


def changed_lines(old: str, new: str) -> list[str]:
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), n=0)
    return [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]


def test_values_take_their_places_and_comments_keep_theirs():
    changes = {
        "data": {"source": "npz", "path": "a b: c.npz"},
        "split": {"classes": ["3", 4]},
        "activations": {"cuts": []},
    }
    text = with_values(PARAMS, {**changes, "train": {"head": {"ridge": "gcv"}}})
    expected = yaml.safe_load(PARAMS)
    for section, keys in changes.items():
        expected[section].update(keys)
    expected["train"]["head"] = {"ridge": "gcv"}
    assert yaml.safe_load(text) == expected
    assert len(changed_lines(PARAMS, text)) == 2 * 5
    column = [next(line.index("#") for line in t.splitlines() if line.startswith("  source:")) for t in (PARAMS, text)]
    assert column[0] == column[1]


@pytest.mark.parametrize("wrong", [{"nothing": 1}, {"data": {"sorce": "npz"}}, {"fit": {"relearn": 3}}])
def test_a_key_that_is_not_there_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"params\.yaml"):
        with_values(PARAMS, wrong)


def blocks():
    lines = PARAMS.splitlines()
    for block in blocks_of(mapping_of(PARAMS), lines):
        yield block.key, block
        if isinstance(block.node, yaml.MappingNode) and len(block.node.value) > 1:
            yield from ((f"{block.key}.{inner.key}", inner) for inner in blocks_of(block.node, lines))


@pytest.mark.parametrize(("name", "block"), blocks(), ids=lambda b: b if isinstance(b, str) else "")
def test_a_key_that_an_older_file_lacks_comes_back_with_its_comments(name, block):
    lines = PARAMS.splitlines()
    older = "\n".join(lines[: block.first] + lines[block.last :]) + "\n"
    text, added = with_missing(older, PARAMS)
    assert added == [name] and yaml.safe_load(text) == yaml.safe_load(PARAMS)
    assert [line for line in text.splitlines() if line] == [line for line in lines if line]


def test_an_own_params_file_keeps_values_comments_and_entries():
    own = with_values(PARAMS, {"train": {"epochs": 77}, "methods": ["logit-mask", "mine"]})
    own = own.replace("  epochs: 77\n", "  epochs: 77 # because of table 3\n").replace(
        "fit:\n", "fit:\n  mine: {method: loft}\n"
    )
    assert with_missing(own, PARAMS) == (own, [])
    older = own.replace("  near_duplicates: warn", "  # near_duplicates: warn")
    text, added = with_missing(older, PARAMS)
    assert added == ["split.near_duplicates"]
    values = yaml.safe_load(text)
    assert (values["train"]["epochs"], values["fit"]["mine"]) == (77, {"method": "loft"})
    assert "# because of table 3" in text
    with pytest.raises(ConfigError, match="retrain lacks seeds"):
        with_missing(PARAMS.replace("retrain:\n  seeds: [1, 2, 3]", "retrain: {other: 1}\n#"), PARAMS)


def test_the_graph_depends_on_the_lock_in_place_of_the_source():
    for own_input in (False, True):
        text = graph(own_input)
        ours, theirs = yaml.safe_load(text)["stages"], yaml.safe_load(GRAPH)["stages"]
        theirs["code"]["deps"] = [LOCK.as_posix()]
        if own_input:
            theirs["prepare"]["deps"] = ["${data.path}"]
        assert ours == theirs and list(ours) == list(theirs)
        assert "src/" not in text


def test_the_lock_holds_the_code_of_every_stage(tmp_path):
    result = lock_of({"dvc.yaml": "x"})
    result.write(tmp_path)
    assert read_lock(tmp_path) == result
    for stage, parts in stages().items():
        assert all(result.code[part] == code_digest(part) for part in parts) and f"stages.{stage}" in parts
    (tmp_path / LOCK).write_text("version: 1\n")
    with pytest.raises(ConfigError, match="git checkout"):
        read_lock(tmp_path)


def test_a_change_of_code_is_one_of_the_stages_that_import_it():
    assert stages_of(["report"]) == ["compare", "report", "register"]
    assert stages_of(["stages.fit"]) == ["fit"] and stages_of(["commands"]) == []


def test_a_digest_follows_the_code(tmp_path, monkeypatch):
    from expunge.system import installed

    (tmp_path / "data/__pycache__").mkdir(parents=True)
    (tmp_path / "data/a.py").write_text("x = 1\n")
    monkeypatch.setattr(installed, "PACKAGE", tmp_path)
    before = code_digest("data")
    (tmp_path / "data/__pycache__/a.pyc").write_text("compiled")
    assert code_digest("data") == before
    (tmp_path / "data/a.py").write_text("x = 2\n")
    assert code_digest("data") != before
    assert code_digest("data.a") and code_digest("data.b") is None


def test_a_source_tree_on_the_path_has_a_version_too(monkeypatch, tmp_path):
    """The container image of the worker holds the sources, but no package metadata."""
    from expunge.system import installed
    from expunge.system.preflight import passed, remember

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    monkeypatch.setattr(installed, "version", absent)
    assert installed.installed_version() == declared
    (tmp_path / "params.yaml").write_text("")
    remember(tmp_path)
    assert passed(tmp_path)


def test_ignore_rules_know_every_output_of_this_repository():
    """The root .gitignore has rules for folders, while a workspace has one rule for each output. Both must agree."""
    # If a folder does not exist, a rule for folders matches only a name that ends with a slash.
    kept_out = [Path(name) for name, in_git in outputs(GRAPH) if not in_git]
    names = [f"{path}" if path.suffix else f"{path}/" for path in kept_out]
    command = ["git", "check-ignore", "--no-index", "--stdin"]
    done = subprocess.run(command, cwd=ROOT, input="\n".join(names), text=True, capture_output=True)
    assert done.stdout.splitlines() == names, done.stderr


def folder(root: Path) -> Path:
    for name in ("bag", "Coat", "3"):
        (root / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / "images" / name / "1.png")
    return root


CLASSES = {"selector": "classes", "classes": ["coat", 3]}


@pytest.mark.parametrize("training", ["full", "head", "ridge", "none"])
@pytest.mark.parametrize(
    "request_", [CLASSES, {"selector": "random", "fraction": 0.1}, {"selector": "filter", "filter": "label == 1"}]
)
@pytest.mark.parametrize("model", ["resnet-small", "timm:resnet18", "efficientnet-lite0"])
def test_any_answers_make_params_without_conflicts(tmp_path, training, request_, model):
    weights = None if training in ("full", "none") or model == "efficientnet-lite0" else "w.safetensors"
    checkpoint = "own.safetensors" if training == "none" else None
    given = Answers("images", model, training, request_, weights=weights, checkpoint=checkpoint, image_size=32)
    text = with_values(PARAMS, changes_of(given, folder(tmp_path)))
    (tmp_path / "params.yaml").write_text(text)
    config, problems = read_config(tmp_path / "params.yaml")
    assert problems == [] and config is not None
    assert (config.data.source, config.data.path, config.model.image_size) == ("image-folder", "images", 32)
    if request_ is CLASSES:
        assert config.split.classes == ["Coat", "3"]
    if training in ("head", "ridge"):
        assert not config.model.saw_forget_data and "exact" in config.methods
    from expunge.checks.methods import method_problems
    from expunge.checks.schema import RequestSize, Schema

    kind = {"classes": "classes", "random": "rows"}.get(request_["selector"])
    assert method_problems(config, Schema(False, (8, 8, 3), False, 3, 9, 9), RequestSize(kind)) == []


def test_a_text_encoder_can_be_trained_as_a_whole_from_its_own_weights(tmp_path):
    (tmp_path / "texts.csv").write_text("text,label\na,b\n")
    given = Answers("texts.csv", "sentence:encoder", "full", {"selector": "classes", "classes": ["b"]})
    (tmp_path / "params.yaml").write_text(with_values(PARAMS, changes_of(given, tmp_path)))
    config, problems = read_config(tmp_path / "params.yaml")
    assert problems == [] and config is not None
    assert (config.model.training, config.model.weights, config.model.saw_forget_data) == ("full", "public", True)
    assert config.activations.cuts == "auto" and {"relearn", "short-retrain"} <= set(config.methods)
    from expunge.checks.methods import method_problems
    from expunge.checks.schema import RequestSize, Schema

    texts = Schema(True, None, False, 3, 9, 9)
    assert method_problems(config, texts, RequestSize("classes")) == []
    pixels = replace(config, methods=[*config.methods, "jit"], fit={**config.fit, "jit": {}})
    [problem] = method_problems(pixels, texts, RequestSize("classes"))
    assert "jit changes pixels, and the data are texts" in str(problem)


def test_a_text_table_gets_a_head_on_its_encoder(tmp_path):
    (tmp_path / "texts.csv").write_text("text,label\na,b\n")
    given = Answers("texts.csv", "sentence:encoder", "head", {"selector": "classes", "classes": ["b"]})
    (tmp_path / "params.yaml").write_text(with_values(PARAMS, changes_of(given, tmp_path)))
    config, problems = read_config(tmp_path / "params.yaml")
    assert problems == [] and (config.data.source, config.model.weights) == ("text", None)


def test_impossible_answers_are_refused(tmp_path):
    folder(tmp_path)
    (tmp_path / "empty").mkdir()
    for data, words in (
        ("../x", "no such file"),
        ("empty", "its kind is not clear"),
        (str(ROOT), "below"),
        ("./absent", "no such"),
    ):
        with pytest.raises(ConfigError, match=words):
            source_of(data, None, tmp_path)
    assert source_of("torchvision:CIFAR10", None, tmp_path) == ("torchvision:CIFAR10", None)
    with pytest.raises(ConfigError, match="no such class; there are bag, coat"):
        named_classes(["hat"], ["bag", "coat"])
    with pytest.raises(ConfigError, match="comes without weights"):
        changes_of(Answers("images", "timm:resnet18", "head", CLASSES), tmp_path)
    assert set(asked.EXAMPLES.values()) <= {p.name for p in ROOT.glob("params.*.yaml")}
