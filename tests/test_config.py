"""params.yaml is read, or refused with a message of one line that names the mistake."""

import copy
import dataclasses
import json
import re
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expunge.config import RENAMED, load_config
from expunge.methods.table import METHODS
from expunge.system.errors import ConfigError
from expunge.workspaces.workspace import params_with

ROOT = Path(__file__).parents[1]


def written(tmp_path: Path, change) -> Path:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    change(params)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    return path


ABOVE = {"training": "above", "cut": "stage1", "weights": "public", "saw_forget_data": False}


@pytest.mark.parametrize("name", ["params.yaml", "params.demo.yaml"])
def test_the_shipped_files_load(name):
    config = load_config(ROOT / name)
    assert "logit-mask" in config.methods


@pytest.mark.parametrize("name", ["params.yaml", "params.demo.yaml"])
def test_the_shipped_files_have_settings_for_every_method(name):
    entries = yaml.safe_load((ROOT / name).read_text())["fit"]
    missing = set(METHODS) - {(settings or {}).get("method", entry) for entry, settings in entries.items()}
    assert not missing, f"{name}: fit names no settings of {sorted(missing)}; add a line such as `NAME: {{}}`"


def test_both_files_have_the_same_keys():
    def keys(value, prefix=""):
        return {p for k, v in value.items() for p in keys(v, f"{prefix}{k}.")} if isinstance(value, dict) else {prefix}

    one, two = (keys(yaml.safe_load((ROOT / n).read_text())) for n in ("params.yaml", "params.demo.yaml"))
    assert one == two, f"give both files the keys {sorted(one ^ two)}; the values may differ"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p["train"].update(epoch=3), r"unknown key train\.epoch; did you mean train\.epochs\?"),
        (lambda p: p.update(sectoin={}), r"unknown key sectoin"),
        (lambda p: p["split"].pop("selector"), r"missing key split\.selector"),
        (lambda p: p.pop("methods"), r"missing key methods"),
        (lambda p: p["data"].update(source="mnist"), r"data\.source is 'mnist'; it must be one of fashion-mnist"),
        (lambda p: p["train"].update(epochs="six"), r"train\.epochs is 'six'; it must be int$"),
        (lambda p: p["train"].update(epochs=True), r"train\.epochs is True"),
        (lambda p: p["train"].update(augment_workers=2), r"train\.augment_workers is used only with train\.augment"),
        (lambda p: p["train"].update(epochs=0), r"train\.epochs is 0; it must be at least 1"),
        (lambda p: p["model"].update(image_size="big"), r"model\.image_size is 'big'; it must be int \| null"),
        (lambda p: p["split"].update(classes=5), r"split\.classes is 5; it must be list"),
        (lambda p: p["split"].update(fraction=1.5), r"split\.fraction is 1\.5; it must be less than 1"),
        (lambda p: p["split"].update(selector="ids"), r"split\.file must name the file"),
        (lambda p: p["split"].update(selector="correct"), r"split\.file must name the file of .* corrections"),
        (
            lambda p: p["split"].update(selector="correct", file="c.csv", duplicates="include"),
            r"must be warn with split\.selector: correct; list the copies",
        ),
        (
            lambda p: (p["split"].update(selector="correct", file="c.csv"), p["shadow"].update(heads=8)),
            r"shadow must be 0 with split\.selector: correct",
        ),
        (
            lambda p: p["split"].update(selector="canaries"),
            r"data\.canaries must be above 0 with split\.selector: canaries",
        ),
        (lambda p: p["split"].update(selector="filter"), r"split\.filter must be a filter expression"),
        (lambda p: p["model"].update(training="none"), r"model\.checkpoint must name the weights"),
        (lambda p: p["model"].update(training="none", checkpoint="x.safetensors"), r"reference must be skip"),
        (lambda p: p["model"].update(saw_forget_data=False), r"model\.saw_forget_data must be true"),
        (lambda p: p["model"].update(ABOVE, cut=None), r"model\.cut must name a cut when model\.training is above"),
        (lambda p: p["model"].update(shards=0), r"model\.shards is 0; it must be at least 1"),
        (lambda p: p["model"].update(shards=4), r"model\.shards is used only with model\.training: above, head"),
        (
            lambda p: p["model"].update(random_features=100),
            r"model\.random_features is used only with model\.training: ridge",
        ),
        (
            lambda p: p["model"].update(training="head", slices=2),
            r"model\.slices is used only with model\.training: above",
        ),
        (lambda p: p["model"].update(cut="stage1"), r"model\.cut is used only with model\.training: above"),
        (
            lambda p: p["model"].update(ABOVE, weights=None),
            r"model\.weights must be public when model\.training is above",
        ),
        (
            lambda p: p["model"].update(ABOVE, saw_forget_data=True),
            r"model\.saw_forget_data must be false when model\.training is above",
        ),
        (
            lambda p: p["model"].update(ABOVE, cut="stage2"),
            r"activations\.cuts must include 'stage2', the value of model\.cut",
        ),
        (
            lambda p: (p["model"].update(ABOVE), p["activations"].update(cuts="auto")),
            r"activations\.cuts must include 'stage1', the value of model\.cut",
        ),
        (lambda p: p["fit"]["relearn"].update(cut=10**600), r"fit\.relearn relearns above 10{50}"),
        (lambda p: p["retrain"].update(seeds=[]), r"retrain\.seeds must list at least one seed"),
        (lambda p: p["retrain"].update(seeds=[1, 1]), r"retrain\.seeds must list at least one seed"),
        (lambda p: p["methods"].remove("logit-mask"), r"methods must include logit-mask"),
        (lambda p: p["methods"].append("loft"), r"methods names a method twice"),
        (
            lambda p: (p["methods"].append("retrained"), p["fit"].update(retrained={"method": "loft"})),
            r"methods uses a reserved name \(original, retrained, references\)",
        ),
        (lambda p: p["methods"].append("magic"), r"fit\.magic is missing"),
        (lambda p: p["data"].update(source="npz"), r"data\.path must be the path of the file or directory"),
        (lambda p: p["features"].update(layers=["stage1"]), r"features\.layers must be penultimate unless"),
        (lambda p: p["features"].update(layers=[]), r"features\.layers must name at least one module"),
        (lambda p: p["data"].update(source="text", path="x.csv"), r"model\.name must be sentence:NAME-OR-DIR"),
        (lambda p: p["model"].update(name="sentence:x"), r"model\.name must be sentence:NAME-OR-DIR"),
        (lambda p: p.update(train=[1]), r"train must be a mapping, got \[1\]"),
        (lambda p: p["train"].update(lr=float("nan")), r"train\.lr is nan; it must be a finite number"),
        (lambda p: p["train"].update(lr=float("inf")), r"train\.lr is inf; it must be a finite number"),
        (lambda p: p["train"].update(lr=0), r"train\.lr is 0; it must be greater than 0"),
        (lambda p: p["train"].update(lr="0.1"), r"train\.lr is '0\.1'; it must be float"),
        (lambda p: p["train"].update(lr=True), r"train\.lr is True; it must be float"),
        (lambda p: p["train"].update(lr=10**400), r"train\.lr is 10000.*\.\.\.; it must be"),
        (lambda p: p["train"].update(batch_size=10**30), r"train\.batch_size is 10{30}; it must be at most 1048576"),
        (lambda p: p["train"].update(epochs=10**30), r"train\.epochs is 10{30}; it must be at most 100000"),
        (lambda p: p["train"].update(epochs=2.0), r"train\.epochs is 2\.0; it must be int"),
        (lambda p: p["train"].update(momentum=1.0), r"train\.momentum is 1\.0; it must be less than 1"),
        (lambda p: p["train"].update(seed=-1), r"train\.seed is -1; it must be at least 0"),
        (lambda p: p["split"].update(validation=0.6), r"split\.validation is 0\.6; it must be at most 0\.5"),
        (lambda p: p["split"].update(classes=[1, 2.5]), r"split\.classes\[1\] is 2\.5; it must be int \| str"),
        (lambda p: p["split"].update(classes={1}), r"split\.classes is \{1\}; it must be list"),
        (lambda p: p["features"].update(layers=3), r"features\.layers is 3; it must be str \| list"),
        (lambda p: p.update(verdict={"kl": 1}), r"verdict is no longer a section; remove it"),
        (lambda p: p["methods"].append("../x"), r"methods\[9\] is '\.\./x'; it must be text that matches"),
        (lambda p: p["fit"].update({"a/b": {}}), r"fit has the key 'a/b'; it must be text that matches"),
        (lambda p: p["fit"].update({3: {}}), r"fit has the key 3; it must be str"),
        (lambda p: p["fit"].update(loft=None), r"fit\.loft is None; it must be a mapping"),
        (
            lambda p: p["fit"]["loft"].update(rank=[1, float("inf")]),
            r"fit\.loft\.rank\[1\] is inf; it must be a finite",
        ),
        (lambda p: p["fit"]["loft"].update({1: 2}), r"fit\.loft has the key 1; it must be str"),
        (lambda p: p.update({"a\nb": 1}), r"unknown key 'a\\nb'; known keys"),
        (lambda p: p.update({7: 1}), r"the file has the key 7; it must be str"),
        (lambda p: p["train"].update({7: 1}), r"train has the key 7"),
    ],
)
def test_a_mistake_names_its_key(tmp_path, change, said):
    with pytest.raises(ConfigError, match=said):
        load_config(written(tmp_path, change))


def test_training_above_a_cut_is_accepted(tmp_path):
    assert load_config(written(tmp_path, lambda p: p["model"].update(ABOVE))).model.cut == "stage1"


def test_an_int_is_taken_for_a_float(tmp_path):
    assert load_config(written(tmp_path, lambda p: p["train"].update(lr=1))).train.lr == 1.0


def test_a_number_too_long_to_print_is_refused(tmp_path):
    path = written(tmp_path, lambda p: p["train"].update(epochs="HUGE"))
    path.write_text(path.read_text().replace("HUGE", hex(10**5000)))
    with pytest.raises(ConfigError, match=r"train\.epochs is a number too long to print; it must be at most 100000"):
        load_config(path)


def test_a_missing_or_broken_file_is_refused(tmp_path):
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


@pytest.mark.parametrize("key", sorted(RENAMED))
def test_an_old_key_is_refused_with_its_new_name(tmp_path, key):
    new = re.escape(RENAMED[key])
    *sections, name = key.split(".")

    def add(params):
        for section in sections:
            params = params[section]
        params[name] = {}

    with pytest.raises(ConfigError, match=rf"{re.escape(key)} is called {new} now"):
        load_config(written(tmp_path, add))


@pytest.mark.parametrize("key", sorted(k for k in RENAMED if k.startswith("fit.")))
def test_an_old_entry_in_methods_is_refused_with_its_new_name(tmp_path, key):
    entry, new = key.removeprefix("fit."), re.escape(RENAMED[key])
    with pytest.raises(ConfigError, match=rf"fit\.{entry} is missing; it is called {new} now"):
        load_config(written(tmp_path, lambda p: p["methods"].append(entry)))


def test_an_old_method_is_refused_with_its_new_name_wherever_an_entry_names_it(tmp_path):
    for where, entry in (
        ("fit.mine", {"method": "matched-map"}),
        ("fit.mine.after", {"method": "seal", "after": {"method": "matched-map"}}),
    ):
        with pytest.raises(ConfigError, match=rf"{where} names the method 'matched-map', .*teacher-map now"):
            load_config(written(tmp_path, lambda p, entry=entry: p["fit"].update(mine=entry)))


def test_every_new_name_is_a_key_of_params():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for new in RENAMED.values():
        value = params
        for part in new.split("."):
            assert part in value, f"{new} is no key of params.yaml"
            value = value[part]


def test_a_config_is_frozen_and_can_be_changed_by_replace(tmp_path):
    config = load_config(ROOT / "params.yaml")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.epochs = 1
    changed = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=1))
    assert changed.train.epochs == 1 and changed.data == config.data
    assert dataclasses.asdict(config) == yaml.safe_load((ROOT / "params.yaml").read_text())


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 30))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "expands to more than 100000 values"),
        (MERGES, "expands to more than 100000 values"),
        ("data: &a [*a]", "alias of itself"),
        ("data: " + "[" * 60 + "]" * 60, "nested deeper than 50"),
        ("data: " + "[" * 1_000_000, "nested deeper than 50|not valid YAML"),
        ("a: 1\na: 2", "line 2 has the key 'a' a second time"),
        ("x" * (2**20 + 1), "larger than 1048576 bytes"),
        ("", "the file must be a mapping, got None"),
        ("- 1", r"the file must be a mapping, got \[1\]"),
        ("a: !!python/object/apply:os.system [echo]", "not valid YAML: could not determine a constructor"),
        ("a: !!int x", "a value does not fit its tag"),
        ("a: !!int ''", "a value does not fit its tag"),
        ("a: !!bool x", "a value does not fit its tag"),
        ("a: !!timestamp x", "a value does not fit its tag"),
        ("a: 2026-99-99", "a value does not fit its tag"),
        ("a: " + "1" * 5000, "a value does not fit its tag"),
        ("? [a]\n: 1", "not valid YAML"),
        ("a: 1\n--- 2", "not valid YAML"),
        ("a: \0", "not valid YAML"),
        ("{}\U000e0001x", r"not valid YAML.*\\U000e0001x"),
    ],
    ids=lambda value: value[:20],
)
def test_hostile_yaml_is_refused(tmp_path, text, said):
    (tmp_path / "params.yaml").write_text(text)
    began = time.process_time()
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(tmp_path / "params.yaml")
    assert len(str(caught.value).splitlines()) == 1 and time.process_time() - began < 20


def test_what_is_no_text_is_refused(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="does not fit its tag"):
        load_config(tmp_path / "params.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def places(value, path=()):
    """Return the path of every key and item below `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, item in items for p in [(*path, key), *places(item, (*path, key))]]


PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.integers().map(lambda i: 10 ** abs(i % 6000)) | st.floats()
    | st.text() | st.dates() | st.datetimes() | st.binary(max_size=8)
    | st.sampled_from(["../x", "a\nb", "\0", "\ud800", "1e400"])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS | st.sets(st.integers(), max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers() | st.none(), inner, max_size=3)
    ),
    max_leaves=6,
)
FUZZ = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def loads_or_says_why(path: Path) -> None:
    """Load the file, and assert that any failure is a ConfigError of one line that names it."""
    try:
        config = load_config(path)
    except ConfigError as e:
        assert len(str(e).splitlines()) == 1 and str(e).startswith(str(path)) and str(e).isprintable(), repr(str(e))
        assert len(str(e)) < 800
    else:
        assert (config.train.lr is None or 0 < config.train.lr <= 1000) and 1 <= config.train.epochs <= 100_000
        json.dumps(dataclasses.asdict(config), allow_nan=False)


@FUZZ
@given(where=st.sampled_from(places(PARAMS)), value=VALUES)
def test_any_value_in_any_place_is_read_or_refused(tmp_path, where, value):
    params = copy.deepcopy(PARAMS)
    inner = params
    for part in where[:-1]:
        inner = inner[part]
    inner[where[-1]] = value
    try:
        text = yaml.safe_dump(params)
    except ValueError:  # Python prints no int of more than 4,300 digits. Hexadecimal numbers have no such limit.
        inner[where[-1]] = "HUGE"
        text = yaml.safe_dump(params).replace("HUGE", hex(10**5000))
    (tmp_path / "params.yaml").write_text(text)
    loads_or_says_why(tmp_path / "params.yaml")


TAGS = [
    "!!int",
    "!!float",
    "!!bool",
    "!!null",
    "!!set",
    "!!omap",
    "!!pairs",
    "!!binary",
    "!!timestamp",
    "!!str",
    "!!seq",
]
TAGS += [
    "!!map",
    "!!merge",
    "!!python/name:os.system",
    "!x",
    "!<tag:yaml.org,2002:value>",
    "&a",
    "*a",
    "<<: *a",
    "? ",
    "=",
    "---",
]


@FUZZ
@given(data=st.data())
def test_any_edit_of_the_text_is_read_or_refused(tmp_path, data):
    text = (ROOT / "params.yaml").read_text()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(
            st.one_of(st.integers(0, len(text)), st.sampled_from([m.end() for m in re.finditer(": ", text)]))
        )
        cut = data.draw(st.integers(0, 12))
        text = text[:at] + data.draw(st.sampled_from(TAGS).map("{} ".format) | st.text(max_size=6)) + text[at + cut :]
    (tmp_path / "params.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    loads_or_says_why(tmp_path / "params.yaml")
