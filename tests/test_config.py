"""params.yaml: what is accepted, and what each mistake is told."""

from pathlib import Path

import pytest
import yaml

from expunge.config import load_config
from expunge.system.errors import ConfigError
from expunge.workspaces.workspace import params_with

ROOT = Path(__file__).parents[1]


def written(tmp_path: Path, change) -> Path:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    change(params)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    return path


@pytest.mark.parametrize("name", ["params.yaml", "params.demo.yaml"])
def test_the_shipped_files_load(name):
    config = load_config(ROOT / name)
    assert "logit-mask" in config.methods


def test_both_files_have_the_same_keys():
    def keys(value, prefix=""):
        return {p for k, v in value.items() for p in keys(v, f"{prefix}{k}.")} if isinstance(value, dict) else {prefix}

    one, two = (keys(yaml.safe_load((ROOT / n).read_text())) for n in ("params.yaml", "params.demo.yaml"))
    assert one == two


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p["train"].update(epoch=3), r"unknown key train\.epoch; did you mean train\.epochs\?"),
        (lambda p: p.update(sectoin={}), r"unknown key sectoin"),
        (lambda p: p["split"].pop("selector"), r"missing key split\.selector"),
        (lambda p: p.pop("methods"), r"missing key methods"),
        (lambda p: p["data"].update(source="mnist"), r"data\.source is 'mnist'; it must be one of fashion-mnist"),
        (lambda p: p["train"].update(epochs="six"), r"train\.epochs is 'six'; it must be int"),
        (lambda p: p["train"].update(epochs=True), r"train\.epochs is True"),
        (lambda p: p["train"].update(epochs=0), r"train\.epochs must be positive"),
        (lambda p: p["model"].update(image_size="big"), r"model\.image_size is 'big'; it must be int \| null"),
        (lambda p: p["split"].update(classes=5), r"split\.classes is 5; it must be list"),
        (lambda p: p["split"].update(fraction=1.5), r"split\.fraction must lie between 0 and 1"),
        (lambda p: p["split"].update(selector="ids"), r"split\.file must name the file"),
        (lambda p: p["split"].update(selector="filter"), r"split\.filter must be an expression"),
        (lambda p: p["model"].update(training="none"), r"model\.checkpoint must name the weights"),
        (lambda p: p["model"].update(training="none", checkpoint="x.safetensors"), r"reference must be skip"),
        (lambda p: p["model"].update(saw_forget_data=False), r"model\.saw_forget_data must be true"),
        (lambda p: p["retrain"].update(seeds=[]), r"retrain\.seeds must be a list of different seeds"),
        (lambda p: p["retrain"].update(seeds=[1, 1]), r"retrain\.seeds must be a list of different seeds"),
        (lambda p: p["methods"].remove("logit-mask"), r"methods must hold logit-mask"),
        (lambda p: p["methods"].append("loft"), r"methods names a method twice"),
        (lambda p: p["methods"].append("magic"), r"fit\.magic is missing"),
        (lambda p: p["data"].update(source="npz"), r"data\.path must name the input"),
        (lambda p: p["features"].update(layers=["stage1"]), r"features\.layers other than penultimate need"),
        (lambda p: p["features"].update(layers=[]), r"features\.layers must name modules"),
        (lambda p: p["data"].update(source="text", path="x.csv"), r"model\.name must be sentence:NAME-OR-DIR"),
        (lambda p: p["model"].update(name="sentence:x"), r"model\.name must be sentence:NAME-OR-DIR"),
        (lambda p: p["verdict"].update(kl=-1), r"verdict\.kl must not be negative"),
        (lambda p: p.update(train=[1]), r"train must be a mapping"),
    ],
)
def test_a_mistake_names_its_key(tmp_path, change, said):
    with pytest.raises(ConfigError, match=said):
        load_config(written(tmp_path, change))


def test_an_int_is_taken_for_a_float(tmp_path):
    assert load_config(written(tmp_path, lambda p: p["train"].update(lr=1))).train.lr == 1.0


def test_a_missing_or_broken_file(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "params.yaml")


def test_the_settings_for_texts_fit_over_the_demos(tmp_path):
    changes = yaml.safe_load((ROOT / "params.text.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params_with(ROOT / "params.demo.yaml", changes)))
    config = load_config(tmp_path / "params.yaml")
    assert config.data.source == "text" and config.model.training == "head" and config.activations.cuts == []
    with pytest.raises(ConfigError, match="has no key modle"):
        params_with(ROOT / "params.demo.yaml", {"modle": {}})
